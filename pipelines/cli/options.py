"""The options of training and of the budget: the same for a local run and for a compiled one."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edgeline import targets
from edgeline.budget import DEPLOYED, DIRECTIONS, DROP_BOUNDS, LIMITS, OBJECTIVES, Budget
from edgeline.config import NONE, FineTuning
from edgeline.data_gate.config import Gate
from edgeline.errors import UserError
from edgeline.evaluator.config import Evaluation
from edgeline.isolation import limits
from edgeline.model_importer.config import KINDS, WITH_SIGNATURES, Import, digest_of, kind_of
from edgeline.pipelines import recipes
from edgeline.pipelines.root import Root
from edgeline.recipe import Recipe
from edgeline.representative_dataset.config import LABEL, STRATEGIES, Sample
from edgeline.tflite_exporter.config import Export
from edgeline.trainer.config import Train


def root(text: str) -> Root:
    """Is the type of an option that takes the root of a pipeline."""
    return Root(Path(text))


@dataclasses.dataclass(frozen=True)
class PathOr:
    """The type of an option that takes a path or something else; the value stays a text.

    Attributes:
      is_path: tells them apart.
    """

    is_path: Callable[[str], bool]

    def __call__(self, text: str) -> str:
        """Returns the value of the option."""
        return text


#: Of options that take a model module: a dotted name is none.
MODULE = PathOr(lambda text: text.endswith(".py") or os.sep in text)


def is_path(kind: object, text: str) -> bool:
    """Returns whether a value of an option of this type is a path."""
    return kind in (Path, root) or (isinstance(kind, PathOr) and kind.is_path(text))


def add_switch(parser: Any, flag: str, text: str) -> None:
    """Adds an option that is on or off, off by default; `--no-...` turns off what a config file turns on."""
    parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text).default = False


def _add(parser: Any, flag: str, default: float | str, text: str, **settings: Any) -> None:
    """Adds an option of the default's type whose help ends with the default."""
    parser.add_argument(flag, type=type(default), default=default, help=f"{text} (default: %(default)s)", **settings)


def _add_optional(parser: Any, flag: str, default: float | None, text: str, *, of: type, metavar: str) -> None:
    """Adds an option for a number or `none`, whose help ends with the default where that is a number."""
    parser.add_argument(
        flag,
        type=_or_none(of),
        default=default,
        metavar=f"{metavar}|{NONE}",
        help=text if default is None else f"{text} (default: %(default)s)",
    )


def _or_none(of: type) -> Callable[[str], Any]:
    """Returns what reads a value of this type, or the word `none`."""

    def read(text: str) -> Any:
        return None if text.lower() == NONE else of(text)

    # argparse says this name where a text is none of it
    read.__name__ = of.__name__
    return read


def add_output(parser: argparse.ArgumentParser) -> None:
    """Adds the option that chooses between output for people and for machines."""
    parser.add_argument("--output", choices=("table", "json"), default="table", help="json: one machine-readable line")


def add_memory_limit(parser: argparse._ActionsContainer) -> None:
    """Adds the option that limits what a process may take which opens a stranger's file."""
    parser.add_argument(
        "--memory-limit",
        type=float,
        metavar="GIB",
        help="that a process may take which opens a stranger's model, at least "
        f"{limits.LEAST_GIB:g} (default: {limits.MEMORY_LIMIT}, else half of the machine's memory)",
    )


def add_data(parser: argparse.ArgumentParser, *, required: bool) -> None:
    """Adds the options for which data are read, and when."""
    group = parser.add_argument_group("data")
    what = "data folder with train, validation and eval, or the pattern of such folders"
    default = "" if required else " (default for the digits example: it is made)"
    group.add_argument("--data", type=Path, required=required, metavar="DIR", help=f"{what}{default}")
    group.add_argument(
        "--window",
        type=int,
        metavar="N",
        help="of spans (--data 'DIR/day-{SPAN}' or 'DIR/{YYYY}-{MM}-{DD}'): the newest complete one and the N-1 before "
        "(default: 1)",
    )
    add_switch(
        group,
        "--only-new-data",
        "do nothing, exit code 0, if data, module and options are those of the last finished run; with spans, every "
        "run does so",
    )
    group.add_argument(
        "--schema",
        type=Path,
        metavar="FILE.pbtxt",
        help="what the data must look like; stop before the training where they do not (see: edgeline data schema)",
    )
    add_gate(group)


def add_gate(parser: Any) -> None:
    """Adds the options that `gate` reads."""
    _add_optional(
        parser,
        "--max-drift",
        Gate().max_drift,
        "with --schema: how far a feature of the training split may be from the last run's, and from the eval split, "
        f"where the schema has no comparator for it; 0-1, {NONE}: any distance",
        of=float,
        metavar="X",
    )
    add_switch(parser, "--allow-drift", "say what has drifted, and go on")


def gate(arguments: argparse.Namespace, last_statistics: str | None = None) -> Gate:
    """Returns what the options of `add_gate` say.

    Args:
      arguments: of the command.
      last_statistics: where the statistics of the last data are kept; empty: the request says so.

    Raises:
      UserError: a value is out of range, or something is asked that needs a schema.
    """
    unset = Gate()
    if not arguments.schema and (arguments.allow_drift or arguments.max_drift != unset.max_drift):
        raise UserError("--max-drift and --allow-drift need --schema: make one with `edgeline data schema`")
    with as_user_error():
        return Gate(max_drift=arguments.max_drift, allow_drift=arguments.allow_drift, last_statistics=last_statistics)


def add_training(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `training` reads."""
    group = parser.add_argument_group("training")
    for flag, default, text in (
        ("--epochs", Train().epochs, "of the first training"),
        ("--finetune-epochs", FineTuning().epochs, "of each compression step that trains"),
        ("--batch-size", Train().batch_size, "of all trainings"),
        ("--seed", 0, "of every random draw"),
        (
            "--threads",
            Train().threads,
            "per operation of a training, on any number of cores; 0: TensorFlow's own choice",
        ),
        ("--samples", Sample().samples, "for calibration"),
    ):
        _add(group, flag, default, text, metavar="N")
    what = "stop after so many epochs without a better validation loss (default: never)"
    _add_optional(group, "--early-stopping", None, what, of=int, metavar="N")
    group.add_argument(
        "--non-deterministic",
        dest="deterministic",
        action="store_false",
        help="let operations sum in any order: may be faster on a GPU, and two runs differ in the last digits",
    )
    unset = Sample()
    what = "which training examples quantization is calibrated on"
    _add(group, "--calibration", unset.strategy, what, choices=STRATEGIES)
    what = f"for stratified: {LABEL}, or a feature with one string or int64"
    _add(group, "--calibration-by", unset.by, what, metavar="FEATURE")
    what = "for diverse: share at each end of a range that counts as outliers, in %%"
    _add(group, "--winsor-percent", unset.winsor_percent, what, metavar="X")
    what = "share of training examples that may hold NaN or infinite values"
    _add(group, "--max-bad-fraction", unset.max_bad_fraction, what, metavar="X")


def training(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns `train`, `finetune` and `sample` of a Run.

    Raises:
      UserError: a value is out of range.
    """
    shared = {name: getattr(arguments, name) for name in ("batch_size", "seed", "deterministic", "threads")}
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


def add_budget(parser: argparse.ArgumentParser, *, target_flag: str = "--target") -> None:
    """Adds the options that `budget` reads.

    Args:
      parser: to add them to.
      target_flag: what the option for the target is called, where `--target` means something else.
    """
    unset = Budget()
    group = parser.add_argument_group("budget")
    group.add_argument(
        "--max-accuracy-drop",
        "--max-drop",
        dest="max_drop",
        type=float,
        default=unset.max_drop,
        metavar="X",
        help="below the float32 baseline, in the metric's unit, of metrics without a DROP (default: %(default)s)",
    )
    group.add_argument(
        "--metric",
        action="append",
        dest="metrics",
        default=[],
        metavar="NAME[:max|min[:DROP]]",
        help="a compiled metric that must hold, or loss; whether more or less of it is better, and its own largest "
        "drop; may be repeated, the first ranks the candidates (default: accuracy if compiled, else the first metric)",
    )
    group.add_argument(
        "--direction",
        choices=DIRECTIONS,
        default=unset.direction,
        help="of metrics that say none (default: what name and class of the metric tell)",
    )
    what = "what must be within the drop: the measured one, or the upper end of its 95%% interval"
    _add(group, "--drop-bound", unset.drop_bound, what, choices=DROP_BOUNDS)
    what = "the worst value that the first metric may have, whatever the baseline has (default: any)"
    _add_optional(group, "--value-threshold", unset.value_threshold, what, of=float, metavar="X")
    what = f"below the model that was pushed last, on the same data; {NONE}: do not compare"
    _add_optional(group, "--max-deployed-drop", unset.max_deployed_drop, what, of=float, metavar="X")
    group.add_argument(
        "--max-slice-drop",
        dest="max_slice_drops",
        action="append",
        nargs=2,
        default=[],
        metavar=("SLICE", "X"),
        help="likewise in each slice by features (label, camera, or camera,label) or in one (label=7); NAME:SLICE for "
        "that metric alone; may be repeated",
    )
    what = "slices with fewer are not judged"
    _add(group, "--min-slice-examples", unset.min_slice_examples, what, metavar="N")
    for name, limit in LIMITS.items():
        of, metavar = (int, "N") if limit.is_whole else (float, "MS")
        what = f"most that the {limit.words} may be (default: no limit)"
        _add_optional(group, f"--{name.replace('_', '-')}", unset.limit(name), what, of=of, metavar=metavar)
    what = "what the selected candidate has least of"
    _add(group, "--objective", unset.objective, what, choices=OBJECTIVES)
    add_target(group, target_flag)


def add_target(parser: Any, flag: str = "--target", *, default: str | None = targets.DEFAULT) -> None:
    """Adds the option for the kind of hardware, read as `arguments.runs_on`."""
    parser.add_argument(
        flag,
        dest="runs_on",
        choices=targets.TARGETS,
        default=default,
        help="the hardware that has to be able to run the model: its number types, operators and sizes"
        + (" (default: %(default)s)" if default else ""),
    )


def budget(arguments: argparse.Namespace) -> Budget:
    """Returns what the options of `add_budget` say.

    Raises:
      UserError: a value is out of range, or two contradict each other.
    """
    names = Budget().parameters().keys() - {"metric", "target"}
    values = {name: getattr(arguments, name) for name in names}
    values |= {"metric": arguments.metrics, "target": arguments.runs_on}
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
        return Budget.of({**values, "max_slice_drops": drops})


def add_evaluation(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `evaluation` reads."""
    group = parser.add_argument_group("evaluation")
    what = "records of the eval split that may be unreadable; they are left out"
    _add(group, "--max-bad-records", Evaluation().max_bad_records, what, metavar="N")
    add_switch(group, "--check-keras", "also evaluate the baseline's Keras model")
    add_switch(
        group,
        "--allow-chance-level",
        "let a model be the first that is pushed that is no better than always answering the commonest class or the "
        "mean",
    )
    group.add_argument(
        "--like",
        type=PathOr(lambda text: text not in (DEPLOYED, NONE)),
        default=DEPLOYED,
        metavar=f"FILE.tflite|{DEPLOYED}|{NONE}",
        help="whose inputs, outputs (names, shapes, number types), order of labels and target a candidate must have: a "
        f"file's, those of the model that was pushed last, or {NONE}'s: a new contract (default: %(default)s)",
    )


def evaluation(arguments: argparse.Namespace) -> Evaluation:
    """Returns what the options of `add_evaluation` say.

    Raises:
      UserError: a value is out of range, or there is no such file.
    """
    with as_user_error():
        return Evaluation(
            max_bad_records=arguments.max_bad_records,
            check_keras=arguments.check_keras,
            like=_like(arguments.like),
            allow_chance_level=arguments.allow_chance_level,
        )


def _like(given: str) -> str | dict[str, Any] | None:
    """Returns the value of `Evaluation.like`: of a file its contract, as the file is not there where it is judged."""
    if given in (DEPLOYED, NONE):
        return given if given == DEPLOYED else None
    from edgeline.deployed import contract

    path = Path(given)
    if not path.is_file():
        raise UserError(f"--like {given}: there is no such file; give a .tflite file, {DEPLOYED} or {NONE}")
    return {"of": path.name, "contract": contract.of_file(path)}


def add_recipes(parser: argparse._ActionsContainer) -> None:
    """Adds the options that `chosen` reads, apart from the target."""
    parser.add_argument(
        "--recipe",
        action="append",
        dest="recipes",
        metavar="NAME",
        help="a candidate to make; may be repeated (see: edgeline recipes)",
    )
    add_recipes_file(parser)


def add_recipes_file(parser: argparse._ActionsContainer) -> None:
    """Adds the option that names a file of the user's own recipes."""
    parser.add_argument(
        "--recipes-file",
        type=Path,
        metavar="FILE.py",
        help="Python file of functions that return recipes of your own; without --recipe, these are made",
    )


def chosen(arguments: argparse.Namespace) -> list[Recipe]:
    """Returns the recipes that the options of `add_recipes` name, see `recipes.chosen`."""
    return recipes.chosen(arguments.recipes, arguments.runs_on, arguments.recipes_file)


def add_export(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `export` reads, apart from those of `add_budget`."""
    group = parser.add_argument_group("export")
    add_switch(
        group,
        "--allow-select-tf-ops",
        "convert TensorFlow's own operators too; such a model is listed, never selected",
    )
    add_switch(group, "--allow-custom-ops", "allow custom operators, which the app brings")


def export(arguments: argparse.Namespace) -> Export:
    """Returns what the options of `add_export` say."""
    return Export(
        allow_select_tf_ops=arguments.allow_select_tf_ops,
        allow_custom_ops=arguments.allow_custom_ops,
        one_example=targets.needs_fixed_shapes(arguments.runs_on),
    )


@contextlib.contextmanager
def as_user_error() -> Iterator[None]:
    """A config refuses a value with ValueError; where the value came from the command line, that is the user's."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from error


_MODEL = "a .keras or .h5 file (tf-keras, Keras 2 or 3), a SavedModel's folder, a GraphDef (.pb), or a float .tflite"


def add_import_options(parser: argparse.ArgumentParser) -> None:
    """Adds the positional MODEL and the options that `imported` reads."""
    parser.add_argument("model", type=Path, metavar="MODEL", help=_MODEL)
    group = parser.add_argument_group("import")
    group.add_argument("--signature", metavar="NAME", help="of a SavedModel or .tflite file that has several")
    group.add_argument(
        "--input",
        action="append",
        dest="inputs",
        default=[],
        metavar="NAME[=?,96,96,3]",
        help="of a GraphDef, with its shape where the graph does not say; may be repeated (default: all placeholders)",
    )
    group.add_argument(
        "--output-name",
        action="append",
        dest="outputs",
        default=[],
        metavar="NAME",
        help="of a GraphDef; may be repeated (default: what nothing else reads)",
    )
    add_switch(
        group, "--allow-lambda", "run the Python code that Lambda layers in the file hold: only if you trust its author"
    )


def imported(arguments: argparse.Namespace) -> Import:
    """Returns what the options of `add_import_options` say.

    Raises:
      UserError: the path holds no model, or of another kind than an option is for.
    """
    path = arguments.model.absolute()
    kind = kind_of(path)
    for flag, given, wanted, words in (
        ("--signature", arguments.signature, WITH_SIGNATURES, "SavedModel or a .tflite file"),
        ("--input", arguments.inputs, ("graph_def",), KINDS["graph_def"]),
        ("--output-name", arguments.outputs, ("graph_def",), KINDS["graph_def"]),
    ):
        if given and kind not in wanted:
            raise UserError(f"{flag} is for a {words}, but {arguments.model} is a {KINDS[kind]}")
    return Import(
        str(path),
        digest_of(path),
        signature=arguments.signature,
        inputs=arguments.inputs,
        outputs=arguments.outputs,
        allow_lambda=arguments.allow_lambda,
    )
