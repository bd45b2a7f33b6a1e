"""`edgeline kubeflow compile` and `data`. Like the rest of the command line, they import nothing slow at first."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from edgeline import files
from edgeline.errors import UserError
from edgeline.kubeflow import data, deployment, run_date, settings, warm_start
from edgeline.model_module import module_source
from edgeline.pipelines import console
from edgeline.pipelines.cli import options
from edgeline.pipelines.console import Console
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.job import Job
from edgeline.pipelines.root import LAST_STATISTICS, pipeline_name


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `data` and `compile` to the commands of `edgeline kubeflow`.

    Args:
      commands: what `add_subparsers` of `edgeline kubeflow` returned.
      common: parent of every command's parser.
    """
    layout = commands.add_parser(
        "data",
        parents=[common],
        help="lay a data folder out for a bucket",
        description=(
            "Check a data folder and make the folder that belongs into the bucket: Split-train, Split-validation and "
            "Split-eval. Prints how to upload it."
        ),
    )
    layout.set_defaults(command=_lay_out)
    layout.add_argument("source", type=Path, metavar="DIR", help="with train, validation and eval (see: edgeline data)")
    layout.add_argument("out", type=Path, metavar="OUT", help="the folder to make")

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
        help="where selected models go: a path in a volume mounted for the Pusher and the Evaluator, or a gs:// folder "
        "(default: on Vertex `pushed` in the root; else only as the artifact pushed_model in the run's folder)",
    )
    where.add_argument(
        "--settings", type=Path, metavar="FILE.yaml", help="resources, GPUs, secrets, volumes, retries of each step"
    )
    options.add_memory_limit(where)
    where.add_argument("--name", help="of the pipeline (default: the last part of the root)")
    what = compiler.add_argument_group("what it does")
    what.add_argument("--module", required=True, metavar="DOTTED.NAME", help="the model module, installed in the image")
    what.add_argument(
        "--data",
        default="",
        metavar="URI",
        help="folder with Split-train, Split-validation and Split-eval; {YYYY}, {MM} and {DD} in it are the date on "
        "which a run is created (UTC)",
    )
    what.add_argument(
        "--fixed-data",
        action="store_true",
        help="the data under a URI never changes: serve steps from earlier runs on it (default: every run reads anew)",
    )
    what.add_argument(
        "--schema",
        default="",
        metavar="URI",
        help="folder with one file, the schema that the data must fit (see: edgeline data schema)",
    )
    options.add_gate(what)
    what.add_argument(
        "--last-statistics",
        metavar="PATH|gs://URI",
        help="with --schema: where the statistics of the last data are kept, for drift: a path in a volume mounted for "
        "the DataGate, or a gs:// folder (default: on Vertex `last_statistics` in the root; else no drift is seen)",
    )
    options.add_recipes(what)
    what.add_argument(
        "--warm-start",
        metavar="PATH[@sha256:...]",
        help="begin the training with the weights of a .keras file or Model folder: a path in a volume mounted for the "
        "Trainer, or a gs:// URI; without the file's digest the cache goes by the path alone",
    )
    what.add_argument("--no-cache", action="store_true", help="never serve a step from an earlier run")
    options.add_training(compiler)
    options.add_budget(compiler, target_flag="--runs-on")
    options.add_evaluation(compiler)
    options.add_export(compiler)
    compiler.add_argument(
        "-o", "--output", type=Path, default=Path("pipeline.yaml"), metavar="FILE", help="(default: %(default)s)"
    )


def _lay_out(arguments: argparse.Namespace) -> int:
    counts = data.lay_out(arguments.source, arguments.out)
    lines = [
        f"{arguments.out}: {', '.join(f'{count:,} {split}' for split, count in counts.items())}",
        "Upload it by one of these, which also delete what only the bucket's folder has, and give its URI to compile:",
        *(f"  --data {uri:20} {command}" for uri, command in data.upload_commands(arguments.out).items()),
    ]
    console.say(Console(), "\n".join(lines))
    return ExitCode.DONE


def _compile(arguments: argparse.Namespace) -> int:
    chosen = tuple(options.chosen(arguments))
    deployment.check_module(arguments.module)
    source = module_source.locate(arguments.module)
    target = deployment.Deployment(
        arguments.target,
        arguments.image,
        arguments.pipeline_root,
        settings.load(arguments.settings) if arguments.settings else settings.Settings(),
        arguments.push_to,
        arguments.allow_mutable_tag,
        arguments.memory_limit,
    )
    deployment.check_uri("--data", arguments.data, arguments.target)
    run_date.check("--data", arguments.data)
    if arguments.target == "vertex" and run_date.has_date(arguments.data):
        raise UserError(
            f"--data {arguments.data}: nothing fills in the date on Vertex; give the parameter `data` to each job"
        )
    name = arguments.name or pipeline_name(arguments.pipeline_root.rstrip("/").rpartition("/")[2])
    if not re.fullmatch("[a-z0-9][a-z0-9-]{0,127}", name):
        raise UserError(f"--name must have small letters, digits and hyphens only, received {name!r}")
    if not arguments.output.parent.is_dir():
        raise UserError(f"--output {arguments.output}: the folder {arguments.output.parent} does not exist")
    fields = {
        "budget": options.budget(arguments),
        "evaluation": options.evaluation(arguments),
        "export": options.export(arguments),
        **options.training(arguments),
        "gate": options.gate(arguments, _last_statistics(arguments, target)),
    }
    if arguments.schema:
        deployment.check_uri("--schema", arguments.schema, arguments.target)
    if arguments.warm_start:
        fields["train"] = warm_start.on_cluster(fields["train"], arguments.warm_start, target.target, target.settings)

    try:
        import kfp.kubernetes  # noqa: F401
    except ImportError:
        raise UserError("compiling for Kubeflow needs the extra: pip install 'edgeline[kubeflow]'") from None
    from edgeline.kubeflow import compile as compiler
    from edgeline.pipelines.compression import check

    job = Job(source, chosen, **fields)
    check(job)
    text = compiler.compile_run(
        job,
        arguments.data,
        target,
        name=name,
        schema=arguments.schema,
        fixed_data=arguments.fixed_data,
        enable_cache=not arguments.no_cache,
    )
    files.write_text(arguments.output, text)
    console.say(
        Console(), f"{arguments.output}: pipeline {name} for --target {arguments.target}, {len(chosen)} candidates"
    )
    return ExitCode.DONE


def _last_statistics(arguments: argparse.Namespace, target: deployment.Deployment) -> str | None:
    path: str | None = arguments.last_statistics
    if path is None:
        return f"{target.pipeline_root.rstrip('/')}/{LAST_STATISTICS}" if target.target == "vertex" else None
    if not arguments.schema:
        raise UserError("--last-statistics needs --schema")
    on_volume = target.target == "oss"
    mounted = on_volume and path.startswith("/") and settings.mounted_at(target.settings, "DataGate", path)
    if not path.startswith("gs://") and not mounted:
        volume = " or a path in a volume that the settings file mounts for the DataGate" if on_volume else ""
        raise UserError(f"--last-statistics must be a gs:// URI{volume}, received {path!r}")
    return path
