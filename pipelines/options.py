"""The options of training and of the budget: the same for a local run and for a compiled one."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from edgeline.config import FineTuning
from edgeline.errors import UserError
from edgeline.evaluator.config import DIRECTIONS, DROP_BOUNDS, LIMITS, OBJECTIVES, Budget, Evaluation
from edgeline.representative_dataset.config import LABEL, STRATEGIES, Sample
from edgeline.tflite_exporter.config import Export
from edgeline.trainer.config import Train


def add_training(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `training` reads."""
    group = parser.add_argument_group("training")
    for flag, default, text in (
        ("--epochs", Train().epochs, "of the first training"),
        ("--finetune-epochs", FineTuning().epochs, "of each compression step that trains"),
        ("--batch-size", Train().batch_size, "of all trainings"),
        ("--early-stopping", 0, "stop after so many epochs without a better validation loss; 0: never"),
        ("--seed", 0, "of every random draw"),
        ("--samples", Sample().samples, "for calibration"),
    ):
        group.add_argument(flag, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)")
    group.add_argument(
        "--non-deterministic",
        dest="deterministic",
        action="store_const",
        const=0,
        default=1,
        help="let operations sum in any order: may be faster on a GPU, and two runs differ in the last digits",
    )
    unset = Sample()
    group.add_argument(
        "--calibration",
        choices=STRATEGIES,
        default=unset.strategy,
        help="which training examples quantization is calibrated on (default: %(default)s)",
    )
    group.add_argument(
        "--calibration-by",
        default=unset.by,
        metavar="FEATURE",
        help=f"for stratified: {LABEL}, or a feature with one string or int64 (default: %(default)s)",
    )
    group.add_argument(
        "--winsor-percent",
        type=float,
        default=unset.winsor_percent,
        metavar="X",
        help="for diverse: share at each end of a range that counts as outliers, in %% (default: %(default)s)",
    )
    group.add_argument(
        "--max-bad-fraction",
        type=float,
        default=unset.max_bad_fraction,
        metavar="X",
        help="share of training examples that may hold NaN or infinite values (default: %(default)s)",
    )


def training(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns `train`, `finetune` and `sample` of a Run.

    Raises:
      UserError: a value is out of range.
    """
    shared = {"batch_size": arguments.batch_size, "seed": arguments.seed, "deterministic": arguments.deterministic}
    with as_user_error():
        return {
            "train": Train(epochs=arguments.epochs, early_stopping_patience=arguments.early_stopping, **shared),
            "finetune": FineTuning(epochs=arguments.finetune_epochs, **shared),
            "sample": Sample(
                samples=arguments.samples,
                seed=arguments.seed,
                strategy=arguments.calibration,
                by=arguments.calibration_by,
                winsor_percent=arguments.winsor_percent,
                max_bad_fraction=arguments.max_bad_fraction,
            ),
        }


def add_budget(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `budget` reads."""
    unset = Budget()
    group = parser.add_argument_group("budget")
    group.add_argument(
        "--max-accuracy-drop",
        "--max-drop",
        dest="max_drop",
        type=float,
        default=unset.max_drop,
        metavar="X",
        help="below the float32 baseline, in the metric's unit (default: %(default)s)",
    )
    group.add_argument("--metric", default=unset.metric, help="the compiled metric that counts (default: %(default)s)")
    group.add_argument(
        "--direction",
        choices=DIRECTIONS,
        default=unset.direction,
        help="whether more (max) or less (min) of it is better (default: %(default)s)",
    )
    group.add_argument(
        "--drop-bound",
        choices=DROP_BOUNDS,
        default=unset.drop_bound,
        help="what must be within the drop: the measured one, or the upper end of its 95%% interval (default: "
        "%(default)s)",
    )
    group.add_argument(
        "--max-deployed-drop",
        type=float,
        default=unset.max_deployed_drop,
        metavar="X",
        help="below the model that was pushed last, on the same data; -1: do not compare (default: %(default)s)",
    )
    group.add_argument(
        "--max-slice-drop",
        dest="max_slice_drops",
        action="append",
        nargs=2,
        default=[],
        metavar=("SLICE", "X"),
        help="likewise in each slice by features (label, camera, or camera,label) or in one (label=7); may be repeated",
    )
    group.add_argument(
        "--min-slice-examples",
        type=int,
        default=unset.min_slice_examples,
        metavar="N",
        help="slices with fewer are not judged (default: %(default)s)",
    )
    for name, words, unit in LIMITS:
        group.add_argument(
            f"--{name.replace('_', '-')}",
            type=int if unit == "bytes" else float,
            default=getattr(unset, name),
            metavar="N" if unit == "bytes" else "MS",
            help=f"most that the {words} may be (default: no limit)",
        )
    group.add_argument(
        "--objective",
        choices=OBJECTIVES,
        default=unset.objective,
        help="what the selected candidate has least of (default: %(default)s)",
    )


def budget(arguments: argparse.Namespace) -> Budget:
    """Returns what the options of `add_budget` say.

    Raises:
      UserError: a value is out of range, or two contradict each other.
    """
    values = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Budget)}
    drops: dict[str, float] = {}
    for key, text in arguments.max_slice_drops:
        try:
            value = float(text)
        except ValueError:
            raise UserError(f"--max-slice-drop {key} {text}: the drop must be a number, such as 0.03") from None
        if key in drops and drops[key] != value:
            raise UserError(f"--max-slice-drop {key} is given as {drops[key]:g} and as {value:g}; give it once")
        drops[key] = value
    with as_user_error():
        return Budget(**{**values, "max_slice_drops": json.dumps(drops)})


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `evaluation` reads."""
    group = parser.add_argument_group("evaluation")
    group.add_argument(
        "--max-bad-records",
        type=int,
        default=Evaluation().max_bad_records,
        metavar="N",
        help="records of the eval split that may be unreadable; they are left out (default: %(default)s)",
    )
    group.add_argument("--check-keras", action="store_true", help="also evaluate the baseline's Keras model")


def evaluation(arguments: argparse.Namespace) -> Evaluation:
    """Returns what the options of `add_evaluation` say.

    Raises:
      UserError: a value is out of range.
    """
    with as_user_error():
        return Evaluation(max_bad_records=arguments.max_bad_records, check_keras=int(arguments.check_keras))


def add_export(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `export` reads."""
    group = parser.add_argument_group("export")
    group.add_argument(
        "--allow-select-tf-ops",
        action="store_true",
        help="convert TensorFlow's own operators too; such a model is listed, never selected",
    )
    group.add_argument("--allow-custom-ops", action="store_true", help="allow custom operators, which the app brings")


def export(arguments: argparse.Namespace) -> Export:
    """Returns what the options of `add_export` say."""
    return Export(
        allow_select_tf_ops=int(arguments.allow_select_tf_ops), allow_custom_ops=int(arguments.allow_custom_ops)
    )


@contextlib.contextmanager
def as_user_error() -> Iterator[None]:
    """A config refuses a value with ValueError; where the value came from the command line, that is the user's."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error
