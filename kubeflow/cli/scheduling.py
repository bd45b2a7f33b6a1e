"""The commands that talk to a Kubeflow Pipelines server: submit, schedule, list, pause, resume, delete."""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from edgeline.budget import Budget
from edgeline.errors import UserError
from edgeline.kubeflow import compiled_file, cron, kfp_server, run_date
from edgeline.kubeflow.compiled_file import CompiledPipeline
from edgeline.kubeflow.cron import Trigger
from edgeline.kubeflow.deployment import check_uri
from edgeline.pipelines.console import Console
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.run.live_view import LiveView


def add_commands(kinds: Any, common: argparse.ArgumentParser) -> None:
    """Adds the commands.

    Args:
        kinds: The subparsers of `edgeline kubeflow`.
        common: The parent of every command.
    """
    server = argparse.ArgumentParser(add_help=False)
    group = server.add_argument_group("server")
    group.add_argument("--host", metavar="URL", help="(default: $KF_PIPELINES_ENDPOINT, this cluster's, or kubectl's)")
    group.add_argument("--namespace", metavar="NAME", help="yours, where the server keeps its users apart")
    group.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="holds a bearer token (default: the one of the pod's service account, in a pod that mounts one)",
    )
    group.add_argument(
        "--cookies-file", type=Path, metavar="FILE", help="holds the header Cookie of a browser that has logged in"
    )
    group.add_argument("--ca-cert", type=Path, metavar="FILE", help="certificates to trust (default: the usual ones)")

    pipeline = argparse.ArgumentParser(add_help=False)
    pipeline.add_argument("file", type=Path, metavar="PIPELINE.yaml", help="written by: edgeline kubeflow compile")
    pipeline.add_argument(
        "--param",
        action="append",
        default=[],
        dest="parameters",
        metavar="NAME=VALUE",
        help="a parameter of the pipeline; may be repeated",
    )
    pipeline.add_argument(
        "--pipeline-root", metavar="URI", help="bucket and path of all artifacts (default: the one compiled in)"
    )
    pipeline.add_argument("--experiment", metavar="NAME", help="(default: the pipeline's name)")
    pipeline.add_argument("--service-account", metavar="NAME", help="of the steps (default: the server's)")
    pipeline.add_argument(
        "--allow-mutable-tag", action="store_true", help="accept an image that is not named by its digest"
    )

    submit = kinds.add_parser("submit", parents=[common, pipeline, server], help="run a compiled pipeline once")
    submit.add_argument("--name", help="of the run (default: the pipeline's and the time)")
    submit.add_argument(
        "--date",
        type=_date,
        metavar="YYYY-MM-DD",
        help="what {YYYY}, {MM} and {DD} stand for in the parameters (default: today, UTC)",
    )
    submit.add_argument("--wait", action="store_true", help="show the steps until it ends; exit code 3 if it fails")
    submit.add_argument("--output", choices=("text", "json"), default="text", help="json: one line for machines")
    submit.set_defaults(command=_submit, interval=5.0)

    schedule = kinds.add_parser(
        "schedule",
        parents=[common, pipeline, server],
        help="run a compiled pipeline again and again; a second call of the same name changes the schedule",
    )
    schedule.add_argument("--name", help="of the schedule (default: the pipeline's)")
    when = schedule.add_mutually_exclusive_group(required=True)
    when.add_argument(
        "--cron",
        metavar="FIELDS",
        help="as in crontab: '30 2 * * *', or @daily. In the server's time zone: UTC, or its CRON_SCHEDULE_TIMEZONE",
    )
    when.add_argument("--every", metavar="DURATION", help="such as 6h, 90m, 1d12h")
    schedule.add_argument(
        "--catchup",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="make up for runs that were missed while paused or down (default: no)",
    )
    schedule.add_argument(
        "--max-concurrency",
        type=int,
        default=1,
        metavar="N",
        help="of its runs at once, 1-10 (default: %(default)s)",
    )
    schedule.set_defaults(command=_schedule)

    listing = kinds.add_parser("list", parents=[common, server], help="list the schedules")
    listing.add_argument("--output", choices=("table", "json"), default="table", help="json: one line for machines")
    listing.set_defaults(command=_list)

    for name, text, action, past in (
        ("pause", "keep a schedule from starting runs", kfp_server.Server.pause, "paused"),
        ("resume", "let a paused schedule start runs again", kfp_server.Server.resume, "resumed"),
        ("delete", "delete a schedule; its runs and the pipeline stay", kfp_server.Server.delete, "deleted"),
    ):
        change = kinds.add_parser(name, parents=[common, server], help=text)
        change.add_argument("name", help="of the schedule (see: edgeline kubeflow list)")
        change.set_defaults(command=_change, action=action, past=past)


def _date(text: str) -> datetime.date:
    try:
        return datetime.datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a date such as 2026-11-27, received {text!r}") from None


def _connect(arguments: argparse.Namespace) -> kfp_server.Server:
    if arguments.ca_cert is not None and not arguments.ca_cert.is_file():
        raise UserError(f"--ca-cert {arguments.ca_cert}: there is no such file")
    return kfp_server.Server(
        kfp_server.Connection(
            host=arguments.host,
            namespace=arguments.namespace,
            token=_secret("--token-file", arguments.token_file),
            cookies=_secret("--cookies-file", arguments.cookies_file),
            ca_cert=arguments.ca_cert and str(arguments.ca_cert),
        )
    )


def _secret(option: str, path: Path | None) -> str | None:
    """Reads a secret. There is no option for the secret itself: others on the machine can read command lines."""
    if path is None:
        return None
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{option} {path} cannot be read: {getattr(error, 'strerror', error)}") from None
    if not text or "\n" in text:
        raise UserError(f"{option} {path}: expected one line, found {len(text.splitlines())}")
    return text


def _pipeline(arguments: argparse.Namespace) -> tuple[CompiledPipeline, dict[str, Any], str]:
    """Returns the pipeline, its parameters and its root, after all checks that need no server."""
    compiled = compiled_file.read_compiled(arguments.file)
    if not arguments.allow_mutable_tag:
        compiled_file.check_images(compiled)
    root = arguments.pipeline_root or compiled.root or ""
    check_uri("--pipeline-root", root, "oss")
    parameters = compiled_file.coerce_parameters(compiled.parameters, arguments.parameters)
    _check_budget(compiled, parameters)
    return compiled, parameters, root.rstrip("/")


def _check_budget(compiled: CompiledPipeline, parameters: dict[str, Any]) -> None:
    """Checks the budget's parameters, of a pipeline that has them all, before the cluster's last step does."""
    if not Budget.encoded_types().keys() <= compiled.parameters.keys():
        return
    defaults = {name: parameter.default for name, parameter in compiled.parameters.items()}
    try:
        Budget.decoded(defaults | parameters)
    except ValueError as error:
        raise UserError(f"--param: {error}; in a pipeline's parameters None is the word none") from None


def _dated(compiled: CompiledPipeline, parameters: dict[str, Any], fill: Callable[[str, str], str]) -> dict[str, Any]:
    """Returns the parameters of a run, and with them the defaults in which something is to be filled in."""
    texts = {name: parameter.default for name, parameter in compiled.parameters.items()} | parameters
    filled = {name: fill(name, text) for name, text in texts.items() if isinstance(text, str)}
    return parameters | {name: text for name, text in filled.items() if name in parameters or text != texts[name]}


def _submit(arguments: argparse.Namespace) -> int:
    compiled, parameters, root = _pipeline(arguments)
    date = arguments.date or datetime.datetime.now(datetime.UTC).date()
    server = _connect(arguments)
    parameters = _dated(compiled, parameters, lambda name, text: run_date.submitted(name, text, date, server.version))
    run_id = server.submit(
        compiled,
        parameters,
        root,
        experiment=arguments.experiment,
        run_name=arguments.name,
        service_account=arguments.service_account,
    )
    shown = Console(stderr=arguments.output == "json", highlight=False)
    where = server.url(run_id)
    shown.print(
        f"run {run_id} of {compiled.name}, version {compiled.version}, artifacts below {root}"
        + (f"\n{where}" if where else ""),
        soft_wrap=True,
        markup=False,
    )
    code: int = ExitCode.DONE
    outcome = "submitted"
    if arguments.wait:
        try:
            code, outcome = _wait(server, run_id, compiled, shown, arguments.interval)
        except KeyboardInterrupt:
            shown.print("no longer watching; the run goes on")
            return ExitCode.INTERRUPTED
    if arguments.output == "json":
        summary = {"exit_code": code, "run_id": run_id, "url": where, "state": outcome.partition(":")[0]}
        Console(highlight=False).print(json.dumps(summary), soft_wrap=True, markup=False)
    return code


def _wait(
    server: kfp_server.Server, run_id: str, compiled: CompiledPipeline, shown: Console, interval: float
) -> tuple[int, str]:
    failed = []

    with LiveView(shown) as view:

        def show(step: kfp_server.Step) -> None:
            if step.state == "failed":
                failed.append(step.node_id)
            view(step)  # type: ignore[arg-type]  # the runner's Event has these fields; its module would import TFX

        succeeded, outcome = server.wait(run_id, compiled.tasks, show, interval)
    shown.print(f"run {run_id} {outcome}", style="green" if succeeded else "red", soft_wrap=True, markup=False)
    if not succeeded:
        namespace = server.namespace or "kubeflow"
        of = f" of {', '.join(failed)}" if failed else ""
        # of a step whose driver failed that pod is the one that failed; the others of the run have nothing to say
        shown.print(
            f"the logs{of}: kubectl get pods -n {namespace} -l pipeline/runid={run_id} -o name "
            f"--field-selector status.phase=Failed | xargs -I POD kubectl logs -n {namespace} -c main --tail 50 POD",
            soft_wrap=True,
            markup=False,
        )
    return (ExitCode.DONE if succeeded else ExitCode.STEP_FAILED), outcome


def _schedule(arguments: argparse.Namespace) -> int:
    if arguments.cron is not None:
        trigger = Trigger(cron=cron.to_kfp_cron(arguments.cron))
    else:
        trigger = Trigger(every=cron.parse_duration(arguments.every))
    if not 1 <= arguments.max_concurrency <= 10:
        raise UserError(f"--max-concurrency {arguments.max_concurrency}: expected 1 to 10")
    compiled, parameters, root = _pipeline(arguments)
    server = _connect(arguments)
    dated = _dated(compiled, parameters, lambda name, text: run_date.scheduled(name, text, server.version))
    every_run_differs = any("{{workflow.creationTimestamp" in str(value) for value in dated.values())
    what, schedule = server.schedule(
        arguments.name or compiled.name,
        compiled,
        dated,
        root,
        trigger,
        catchup=arguments.catchup,
        max_concurrency=arguments.max_concurrency,
        experiment=arguments.experiment,
        service_account=arguments.service_account,
    )
    text = f"schedule {schedule.name} {what}: {_when(trigger)}; runs {compiled.name}, version {compiled.version}"
    if not schedule.enabled:
        text += f"; it is paused, as before (edgeline kubeflow resume {schedule.name})"
    Console(highlight=False).print(text, soft_wrap=True, markup=False)
    if compiled.fixed_data and not every_run_differs:
        Console(stderr=True, highlight=False).print(
            "edgeline: warning: compiled with --fixed-data, every run will be served from the cache and see no new "
            "data. Compile without, or give --param 'data=.../{YYYY}-{MM}-{DD}'",
            style="yellow",
            soft_wrap=True,
            markup=False,
        )
    return ExitCode.DONE


def _when(trigger: Trigger) -> str:
    if trigger.cron is not None:
        return f"cron {trigger.cron} (seconds first; the server's time zone, UTC unless it sets CRON_SCHEDULE_TIMEZONE)"
    return f"every {_duration(trigger.every or 0)}"


def _duration(seconds: int) -> str:
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, seconds = divmod(seconds, size)
        parts += [f"{count}{unit}"] if count else []
    return "".join(parts)


def _list(arguments: argparse.Namespace) -> int:
    schedules = _connect(arguments).schedules()
    shown = Console(highlight=False)
    if arguments.output == "json":
        shown.print(json.dumps([asdict(schedule) for schedule in schedules]), soft_wrap=True, markup=False)
        return ExitCode.DONE
    if not schedules:
        shown.print("no schedules (make one with: edgeline kubeflow schedule)")
        return ExitCode.DONE
    if not shown.is_terminal:
        shown.width = 200  # a file has no width that could be too small
    table = Table("schedule", "state", "when", "at once", "missed runs", "parameters", "pipeline root")
    for schedule in schedules:
        trigger = schedule.trigger
        table.add_row(
            schedule.name,
            "enabled" if schedule.enabled else "paused",
            f"cron {trigger.cron}" if trigger.cron else f"every {_duration(trigger.every or 0)}",
            str(schedule.max_concurrency),
            "made up for" if schedule.catchup else "left out",
            ", ".join(f"{name}={value}" for name, value in schedule.parameters.items()),
            schedule.root,
        )
    shown.print(table)
    shown.print("cron: seconds first, in the server's time zone (UTC unless it sets CRON_SCHEDULE_TIMEZONE)")
    return ExitCode.DONE


def _change(arguments: argparse.Namespace) -> int:
    server = _connect(arguments)
    action: Callable[[kfp_server.Server, kfp_server.Schedule], None] = arguments.action
    for schedule in server.find(arguments.name):
        action(server, schedule)
    Console(highlight=False).print(f"schedule {arguments.name} {arguments.past}", soft_wrap=True, markup=False)
    return ExitCode.DONE
