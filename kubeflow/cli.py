"""`edgeline kubeflow compile`. Like the rest of the command line it imports nothing slow before it has work for it."""

from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

from edgeline import model_module
from edgeline.config import FineTuning
from edgeline.errors import UserError
from edgeline.evaluator.config import DIRECTIONS, OBJECTIVES, Budget
from edgeline.kubeflow import deployment, settings
from edgeline.pipelines import recipes
from edgeline.pipelines.recipe import find
from edgeline.representative_dataset.config import Sample
from edgeline.trainer.config import Train


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `compile` to the commands of `edgeline kubeflow`.

    Args:
      commands: what `add_subparsers` of `edgeline kubeflow` returned.
      common: parent of every command's parser.
    """
    compiler = commands.add_parser(
        "compile",
        parents=[common],
        help="compile the pipeline for a cluster or for Vertex",
        description=(
            "Compile the pipeline to a file for Kubeflow Pipelines or Vertex. Data, module, epochs and the budget are "
            "parameters of what comes out: the values given here are their defaults."
        ),
    )
    compiler.set_defaults(command=_compile)
    where = compiler.add_argument_group("where it runs")
    where.add_argument(
        "--target",
        choices=deployment.TARGETS,
        default="oss",
        help="Kubeflow Pipelines or Vertex (default: %(default)s)",
    )
    where.add_argument("--image", default="", metavar="NAME@sha256:...", help="the image of every step, by digest")
    where.add_argument(
        "--allow-mutable-tag",
        action="store_true",
        help="take an image by tag; the cache cannot see that a tag means another image now",
    )
    where.add_argument("--pipeline-root", default="", metavar="URI", help="where the artifacts of all runs are kept")
    where.add_argument(
        "--push-to",
        metavar="PATH|gs://URI",
        help="where selected models go: a path in a volume mounted for the Pusher, or a gs:// folder (default: on "
        "Vertex `pushed` in the root; else only as the artifact pushed_model in the run's folder)",
    )
    where.add_argument(
        "--settings", type=Path, metavar="FILE.yaml", help="resources, GPUs, secrets, volumes, retries of each step"
    )
    where.add_argument("--name", help="of the pipeline (default: the last part of the root)")
    what = compiler.add_argument_group("what it does")
    what.add_argument("--module", required=True, metavar="DOTTED.NAME", help="the model module, installed in the image")
    what.add_argument(
        "--data", default="", metavar="URI", help="folder with Split-train, Split-validation and Split-eval"
    )
    what.add_argument(
        "--fixed-data",
        action="store_true",
        help="the data under a URI never changes: serve steps from earlier runs on it (default: every run reads anew)",
    )
    what.add_argument(
        "--recipe", action="append", dest="recipes", metavar="NAME", help="a candidate to make; may be repeated"
    )
    what.add_argument("--no-cache", action="store_true", help="never serve a step from an earlier run")
    for flag, default, text in (
        ("--epochs", Train().epochs, "of the first training"),
        ("--finetune-epochs", FineTuning().epochs, "of each compression step that trains"),
        ("--batch-size", Train().batch_size, "of all trainings"),
        ("--early-stopping", 0, "stop after so many epochs without a better validation loss; 0 for off"),
        ("--seed", 0, "of every random draw"),
        ("--samples", Sample().samples, "for calibration"),
    ):
        what.add_argument(flag, type=int, default=default, metavar="N", help=f"{text} (default: %(default)s)")
    budget = compiler.add_argument_group("budget")
    unset = Budget()
    budget.add_argument(
        "--max-accuracy-drop",
        "--max-drop",
        dest="max_drop",
        type=float,
        default=unset.max_drop,
        metavar="X",
        help="below the float32 baseline, in the metric's unit (default: %(default)s)",
    )
    budget.add_argument("--metric", default=unset.metric, help="the compiled metric that counts (default: %(default)s)")
    budget.add_argument(
        "--direction", choices=DIRECTIONS, default=unset.direction, help="what is better (default: %(default)s)"
    )
    budget.add_argument("--max-bytes", type=int, default=unset.max_bytes, metavar="N", help="of the .tflite file")
    budget.add_argument(
        "--max-zlib-bytes", type=int, default=unset.max_zlib_bytes, metavar="N", help="of the file after zlib, level 9"
    )
    budget.add_argument(
        "--max-latency-ms", type=float, default=unset.max_latency_ms, metavar="X", help="median, on the step's machine"
    )
    budget.add_argument(
        "--objective", choices=OBJECTIVES, default=unset.objective, help="what is minimised (default: %(default)s)"
    )
    compiler.add_argument(
        "-o", "--output", type=Path, default=Path("pipeline.yaml"), metavar="FILE", help="(default: %(default)s)"
    )


def _compile(arguments: argparse.Namespace) -> int:
    chosen = tuple(find(arguments.recipes or recipes.DEFAULT, recipes.RECIPES))
    deployment.check_module(arguments.module)
    source = model_module.locate(arguments.module)
    target = deployment.Deployment(
        arguments.target,
        arguments.image,
        arguments.pipeline_root,
        settings.load(arguments.settings) if arguments.settings else settings.Settings(),
        arguments.push_to,
        arguments.allow_mutable_tag,
    )
    deployment.check_uri("--data", arguments.data, arguments.target)
    name = arguments.name or _name_of(arguments.pipeline_root)
    if not re.fullmatch("[a-z0-9][a-z0-9-]{0,127}", name):
        raise UserError(f"--name must have small letters, digits and hyphens only, received {name!r}")
    if not arguments.output.parent.is_dir():
        raise UserError(f"--output {arguments.output}: the folder {arguments.output.parent} does not exist")
    try:
        shared = {"batch_size": arguments.batch_size, "seed": arguments.seed}
        train = Train(epochs=arguments.epochs, early_stopping_patience=arguments.early_stopping, **shared)
        finetune = FineTuning(epochs=arguments.finetune_epochs, **shared)
        budget = Budget(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(Budget)})
        sample = Sample(samples=arguments.samples, seed=arguments.seed)
    except ValueError as error:
        raise UserError(str(error)) from error

    try:
        import kfp.kubernetes  # noqa: F401
    except ImportError:
        raise UserError("compiling for Kubeflow needs the extra: pip install 'edgeline[kubeflow]'") from None
    from edgeline.kubeflow import compile as compiler
    from edgeline.pipelines.compression import Run

    text = compiler.compile_run(
        Run(source, chosen, train, finetune, budget, sample),
        arguments.data,
        target,
        name=name,
        fixed_data=arguments.fixed_data,
        enable_cache=not arguments.no_cache,
    )
    arguments.output.write_text(text)
    print(f"{arguments.output}: pipeline {name} for --target {arguments.target}, {len(chosen)} candidates")  # noqa: T201
    return 0


def _name_of(root: str) -> str:
    return re.sub("[^a-z0-9-]+", "-", root.rstrip("/").rpartition("/")[2].lower()).strip("-") or "edgeline"
