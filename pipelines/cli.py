"""The command line. TensorFlow and TFX (9 s) are imported only once there is work for them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from edgeline import model_module
from edgeline.errors import UserError
from edgeline.model_importer.config import Import
from edgeline.pipelines import (
    bench_cli,
    console,
    datasets,
    events,
    gc_cli,
    history_cli,
    inspect_cli,
    new_data,
    optimize_cli,
    options,
    prometheus,
    push_cli,
    recipes,
    report_cli,
    verify_cli,
    warm_start,
)
from edgeline.pipelines.recipe import Recipe

DIGITS_MODULE = "edgeline.pipelines.examples.digits.model"
DIGITS_ROOT = Path("runs/digits")

PUSHED, NOTHING_FITS, USERS_MISTAKE, STEP_FAILED = 0, 1, 2, 3

_EPILOG = """\
exit codes: 0 a model was selected, and pushed unless an earlier run had pushed it, 1 no candidate met the budget,
2 a mistake in what was given, 3 a step failed"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    # before the first import of TensorFlow, in this process and its children
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.command(arguments))
    except UserError as error:
        if arguments.debug:
            traceback.print_exc()
        return _fail(str(error), USERS_MISTAKE)
    except KeyboardInterrupt:
        return _fail("interrupted; finished steps are kept, run the same command again to go on", 130)


def _fail(message: str, code: int) -> int:
    console.say(Console(stderr=True), f"edgeline: {message}", "red")
    return code


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser = argparse.ArgumentParser(
        prog="edgeline",
        description="Turn a Keras model into the smallest, fastest TFLite model that still meets its quality budget.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run",
        parents=[common],
        help="train, compress, export, evaluate, select and push",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.set_defaults(command=_run)
    run.add_argument(
        "--module",
        default=DIGITS_MODULE,
        help="the model module: a .py file or a dotted name (default: the digits example)",
    )
    run.add_argument(
        "--data",
        type=Path,
        help="data folder with train, validation and eval (default for the digits example: it is made)",
    )
    run.add_argument("--root", type=Path, help="where everything of this pipeline is kept (default: runs/digits)")
    warm_start.add_option(run)
    _add_run_options(run)

    optimize = commands.add_parser(
        "optimize",
        parents=[common],
        help="like run, for a model that is already trained",
        description=(
            "Compress, export, evaluate, select and push a trained model. It is not trained further\n"
            "before that: --epochs and --early-stopping do nothing, and the module needs no build_model."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    optimize.set_defaults(command=_optimize)
    optimize_cli.add_import_options(optimize)
    optimize.add_argument("--module", required=True, help="the model module: a .py file or a dotted name")
    optimize.add_argument("--data", type=Path, required=True, help="data folder with train, validation and eval")
    optimize.add_argument("--root", type=Path, required=True, help="where everything of this pipeline is kept")
    _add_run_options(optimize)

    data = commands.add_parser("data", help="make a data folder", parents=[common])
    kinds = data.add_subparsers(metavar="KIND", required=True)
    for name, text, write in (
        ("digits", "scikit-learn's digits, 1,797 images of 8x8 pixels", _write_digits),
        ("fashion-mnist", "Fashion-MNIST, 70,000 images of 28x28 pixels", _write_fashion_mnist),
        ("mnist", "MNIST, 70,000 images of 28x28 pixels", _write_mnist),
        ("imdb", "the IMDB reviews of tf-keras, 50,000 of 100 words", _write_imdb),
        ("images", "a folder with one sub-folder of jpeg or png files per class", _write_images),
    ):
        kind = kinds.add_parser(name, help=text, parents=[common])
        if name == "images":
            kind.add_argument("source", type=Path, metavar="SRC", help="one sub-folder per class")
        elif name != "digits":
            what = "the file imdb.npz" if name == "imdb" else "folder with the four idx files"
            kind.add_argument("--source", type=Path, help=what)
        kind.add_argument("out", type=Path, metavar="DIR", help="the folder to make")
        kind.add_argument("--shards", type=int, default=8, help="files of the train split (default: %(default)s)")
        kind.set_defaults(command=_data, write=write)
    new_data.add_schema_command(kinds, common)

    listing = commands.add_parser("recipes", help="list the named recipes", parents=[common])
    options.add_recipes_file(listing)
    listing.set_defaults(command=_recipes)

    runs = commands.add_parser("runs", help="list the runs of a pipeline, from its metadata", parents=[common])
    runs.add_argument("--root", type=Path, default=DIGITS_ROOT, help="(default: %(default)s)")
    runs.set_defaults(command=_runs)

    lineage = commands.add_parser(
        "lineage", help="say which data, module, parameters and steps made a file", parents=[common]
    )
    lineage.add_argument(
        "target", metavar="FILE.tflite|ARTIFACT_ID", help="matched by its SHA-256, or by its id in the metadata"
    )
    lineage.add_argument("--root", type=Path, help="of the pipeline (default: found above FILE, else runs/digits)")
    lineage.set_defaults(command=_lineage)

    optimize_cli.add_commands(commands, common)
    inspect_cli.add_commands(commands, common)
    report_cli.add_commands(commands, common)
    bench_cli.add_commands(commands, common)
    push_cli.add_commands(commands, common)
    verify_cli.add_commands(commands, common)
    history_cli.add_commands(commands, common)
    gc_cli.add_commands(commands, common)

    from edgeline.kubeflow import cli as kubeflow_cli
    from edgeline.kubeflow import client_cli

    kinds = commands.add_parser("kubeflow", help="run on Kubeflow Pipelines or Vertex").add_subparsers(
        metavar="COMMAND", required=True
    )
    kubeflow_cli.add_commands(kinds, common)
    client_cli.add_commands(kinds, common)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `run` and `optimize` share."""
    options.add_data(parser)
    options.add_recipes(parser)
    options.add_training(parser)
    options.add_budget(parser)
    options.add_evaluation(parser)
    options.add_export(parser)
    parser.add_argument("--no-cache", action="store_true", help="run every step again")
    parser.add_argument(
        "--output", choices=("table", "json"), default="table", help="json: one machine-readable line, for cron"
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="show the full logs")


def _write_digits(arguments: argparse.Namespace, shown: Console) -> datasets.DatasetSummary:
    return datasets.write_digits(arguments.out, shards=arguments.shards, console=shown)


def _write_fashion_mnist(arguments: argparse.Namespace, shown: Console) -> datasets.DatasetSummary:
    return datasets.write_fashion_mnist(arguments.out, source=arguments.source, shards=arguments.shards, console=shown)


def _write_mnist(arguments: argparse.Namespace, shown: Console) -> datasets.DatasetSummary:
    return datasets.write_mnist(arguments.out, source=arguments.source, shards=arguments.shards, console=shown)


def _write_imdb(arguments: argparse.Namespace, shown: Console) -> datasets.DatasetSummary:
    return datasets.write_imdb(arguments.out, source=arguments.source, shards=arguments.shards, console=shown)


def _write_images(arguments: argparse.Namespace, shown: Console) -> datasets.DatasetSummary:
    return datasets.write_images(arguments.source, arguments.out, shards=arguments.shards, console=shown)


def _data(arguments: argparse.Namespace) -> int:
    shown = Console(stderr=True)
    summary = arguments.write(arguments, shown)
    counts = ", ".join(f"{count:,} {split}" for split, count in summary.counts.items())
    if summary.written:
        shown.print(f"{summary.path}: {summary.name}, {counts}, {len(summary.labels)} classes")
    return PUSHED


def _recipes(arguments: argparse.Namespace) -> int:
    table = Table("recipe", "steps", "what for")
    known = recipes.catalog(arguments.recipes_file)
    for name, recipe in known.recipes.items():
        marked = f"{name} *" if name in known.default else name
        table.add_row(marked, " → ".join(step.token for step in recipe.steps), known.descriptions[name])
    shown = Console()
    shown.print(table)
    shown.print("* made by `edgeline run` where no --recipe is given")
    shown.print("Each recipe that ends with int8 or qat8 exists with int8 inputs and outputs too: NAME_io")
    return PUSHED


def _run(arguments: argparse.Namespace) -> int:
    with _recorded(arguments, "run") as journal:
        chosen = options.chosen(arguments)
        journal.exit_code = _run_pipeline(arguments, chosen, model_module.locate(arguments.module), journal)
    return journal.exit_code


def _optimize(arguments: argparse.Namespace) -> int:
    with _recorded(arguments, "optimize") as journal:
        chosen = options.chosen(arguments)
        model = optimize_cli.imported(arguments)
        optimize_cli.check_recipes(model, chosen)
        if arguments.check_keras and optimize_cli.is_graph(model):
            raise UserError(f"--check-keras needs a Keras model, but {arguments.model} is a graph without layers")
        located = model_module.locate(arguments.module, needs_model=False)
        journal.exit_code = _run_pipeline(arguments, chosen, located, journal, model)
    return journal.exit_code


@contextlib.contextmanager
def _recorded(arguments: argparse.Namespace, command: str) -> Iterator[events.Journal]:
    """Records a run in its root's event log, however it ends, and then brings the root's metrics up to date."""
    root = arguments.root.absolute() if arguments.root else _folders(arguments)[0]
    try:
        with events.Journal(root, command, module=arguments.module, data=arguments.data and str(arguments.data)) as log:
            yield log
    finally:
        prometheus.write(root)


def _run_pipeline(
    arguments: argparse.Namespace,
    chosen: Sequence[Recipe],
    source: model_module.Source,
    journal: events.Journal,
    model: Import | None = None,
) -> int:
    # everything else that can be wrong is checked here, before the imports
    root, data = _folders(arguments)
    asked = {
        "budget": options.budget(arguments),
        "evaluation": options.evaluation(arguments),
        "export": options.export(arguments),
        **options.training(arguments),
        "gate": options.gate(arguments, str(root / "last_statistics")),
    }
    asked["train"] = warm_start.asked(asked["train"], getattr(arguments, "warm_start", None))
    window = new_data.window(arguments, data)
    request = new_data.request(source, chosen, [*asked.values(), model], arguments.schema)
    if (why := new_data.nothing_new(arguments, root, data, window, request)) is not None:
        journal.write("no_new_data", why=why)
        return _nothing_new(why, window, arguments)
    log = _open_root(root, journal.run)

    with console.capture_output(log, arguments.verbose) as terminal:
        live = terminal.err if arguments.output == "json" else terminal.out
        try:
            if data is None:
                data = root / "data"
                if not data.exists():
                    datasets.write_digits(data, console=live)
            asked["train"], cold = warm_start.resolved(asked["train"], root)
            for note in (*(window.notes if window else ()), *([cold] if cold else [])):
                console.say(terminal.err, f"edgeline: {note}", "yellow")
            new_data.check_readable(data, window, root)
            journal.write("data", **new_data.facts(data, window, request))
            with live.status("loading TensorFlow and TFX") if live.is_terminal else contextlib.nullcontext():
                from edgeline.pipelines import compression, session
            run = compression.Run(source, tuple(chosen), model=model, **asked)
            compression.check(run)
            view = console.LiveView(live, False if arguments.verbose else None)
            examples = compression.import_spans(window) if window else compression.import_examples(data)
            schema = compression.import_schema(arguments.schema, root) if arguments.schema else None
            cached = not arguments.no_cache
            outcome = session.run(run, root, examples, view, schema=schema, enable_cache=cached, listen=journal.step)
            journal.outcome(outcome)
        except UserError:
            raise
        except Exception as error:
            if arguments.debug:
                terminal.err.print_exception()
            journal.error = f"{type(error).__name__}: {error}"
            terminal.err.print(f"edgeline: {journal.error}\nfull log: {log}", markup=False)
            return STEP_FAILED
        return _show(outcome, log, arguments, terminal)


def _nothing_new(why: str, window: Any, arguments: argparse.Namespace) -> int:
    notes = window.notes if window else ()
    for note in notes:
        console.say(Console(stderr=True), f"edgeline: {note}", "yellow")
    line = json.dumps({"exit_code": PUSHED, "no_new_data": True, "why": why}) if arguments.output == "json" else why
    console.say(Console(), line)
    return PUSHED


def _folders(arguments: argparse.Namespace) -> tuple[Path, Path | None]:
    """Returns the root and the data folder (None: make the digits), by the rules of the command's help."""
    is_default = arguments.module == DIGITS_MODULE
    if arguments.data is None and not is_default:
        raise UserError("--module needs --data: a folder with train, validation and eval (see: edgeline data --help)")
    if arguments.root is None and not (is_default and arguments.data is None):
        raise UserError("--module and --data need --root: the folder where everything of this pipeline is kept")
    return (arguments.root or DIGITS_ROOT).absolute(), arguments.data and arguments.data.absolute()


def _open_root(root: Path, run: str) -> Path:
    """Makes the root and returns the log file of this run."""
    log = root / "logs" / f"{run}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    except OSError as error:
        raise UserError(f"--root {root} cannot be written: {error.strerror}; choose another folder") from None
    return log


def _show(outcome: Any, log: Path, arguments: argparse.Namespace, terminal: console.Terminal) -> int:
    code = _exit_code(outcome)
    for line in outcome.drifted:
        console.say(terminal.err, f"edgeline: drift allowed: {line}", "yellow")
    for failure in outcome.failures:
        console.say(terminal.err, f"edgeline: {failure.text}", "red")
        if arguments.debug and failure.error is not None:
            console.say(terminal.err, "".join(traceback.format_exception(failure.error)))
    if outcome.failures:
        terminal.err.print(f"full log: {log}", soft_wrap=True, highlight=False)
    if arguments.output == "json":
        summary = {"exit_code": code, "no_new_data": False, **outcome.summary(), "log": str(log)}
        console.say(terminal.out, json.dumps(summary))
        return code
    if outcome.report is None:
        return code
    if not terminal.out.is_terminal:
        terminal.out.width = console.FILE_WIDTH  # a file has no width that could be too small
    terminal.out.print(_table(outcome.report, terminal.out.width))
    _print_verdict(outcome, terminal.out)
    return code


def _exit_code(outcome: Any) -> int:
    if outcome.failures:
        return USERS_MISTAKE if all(isinstance(f.error, UserError) for f in outcome.failures) else STEP_FAILED
    return PUSHED if outcome.report["selected"] else NOTHING_FITS


#: Columns that a terminal of less than this width is spared.
_WIDE = 110


def _table(report: dict[str, Any], width: int) -> Table:
    metric = report["budget"]["metric"]
    table = Table(
        title=f"{report['pipeline']}: {report['dataset']['examples']:,} examples of the eval split",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    columns = ["candidate", metric, "drop", "bytes", "zlib bytes", "ratio", "p50/p90 ms", "sparsity", "verdict"]
    shown = [i for i, name in enumerate(columns) if width >= _WIDE or name not in ("bytes", "sparsity")]
    for i in shown:
        table.add_column(columns[i], justify="left" if i in (0, 8) else "right", no_wrap=True)

    def add(name: str, facts: dict[str, Any], drop: str, ratio: str, verdict: str, **style: Any) -> None:
        times = facts["latency_ms"]
        cells = [
            name,
            _number(facts["metrics"][metric], ".4f"),
            drop,
            f"{facts['bytes']:,}",
            f"{facts['zlib_bytes']:,}",
            ratio,
            f"{times['p50']:.3f}/{times['p90']:.3f}" if times else "",
            f"{facts.get('sparsity') or 0:.0%}",
            verdict,
        ]
        table.add_row(*(cells[i] for i in shown), **style)

    add("  float32 baseline", report["baseline"], "", "1.0x", "reference", style="dim", end_section=True)
    for c in report["candidates"]:
        if c["name"] == report["selected"]:
            add(f"▶ {c['name']}", c, _number(c["drop"], "+.4f"), f"{c['ratio']:.1f}x", "selected", style="bold green")
        elif c["metrics"] is None or c["failure"]:
            table.add_row(f"  {c['name']}", *[""] * (len(shown) - 2), "failed", style="red")
        else:
            verdict, style = ("fits", "") if c["blessed"] else ("rejected", "yellow")
            add(f"  {c['name']}", c, _number(c["drop"], "+.4f"), f"{c['ratio']:.1f}x", verdict, style=style)
    return table


def _number(value: float | None, style: str) -> str:
    return "" if value is None else format(value, style)


def _print_verdict(outcome: Any, shown: Console) -> None:
    report = outcome.report

    def say(text: str, style: str = "") -> None:
        console.say(shown, text, style)

    for training in report.get("training", []):
        if training.get("warm_start"):
            say(f"warm start: {training['warm_start']['note']}")
    for c in report["candidates"]:
        if not c["blessed"]:
            say(f"rejected  {c['name']}: {'; '.join(c['reasons'])}", "red" if c["failure"] else "yellow")
    if report["selected"]:
        say(f"selected  {report['selected']}", "bold green")
        if report.get("deployed"):
            say(f"against   {_beside_deployed(report)}")
    else:
        near = f"; closest was {report['closest']}" if report["closest"] else ""
        say(f"no candidate meets the budget, nothing is pushed{near}", "bold yellow")
    say(f"report    {outcome.report_path}")
    if outcome.pushed:
        say(f"pushed    {outcome.pushed}")
    elif outcome.not_pushed:
        say(f"deployed  {outcome.not_pushed}", "yellow")


def _beside_deployed(report: dict[str, Any]) -> str:
    """Says in one line what the selected candidate would change for those who use the deployed model."""
    old, metric = report["deployed"], report["budget"]["metric"]
    [new] = [c for c in report["candidates"] if c["name"] == report["selected"]]
    # by now, this or a later push may have replaced it
    who = f"{old['name'] or 'the model'} (version {old['version']}), deployed before"
    if old["failure"] or old["metrics"] is None:
        return f"{who}: not comparable, {old['failure']}"
    if old["sha256"] == new["sha256"]:
        return f"{who}: the same file"
    quality = " → ".join(_number(model["metrics"][metric], ".4f") or "unknown" for model in (old, new))
    drop = _number(new["deployed_drop"], "+.4f")
    interval = new["deployed_drop_interval"]
    if interval and None not in interval:
        drop += f", 95% interval {interval[0]:+.4f} to {interval[1]:+.4f}"
    sizes = " → ".join(_number(model["zlib_bytes"], ",") or "unknown" for model in (old, new))
    return f"{who}: {metric} {quality}{drop and f' (drop {drop})'}, zlib bytes {sizes}"


def _runs(arguments: argparse.Namespace) -> int:
    from edgeline.pipelines import lineage

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("run", "started", "seconds", "steps", "cached", "failed"):
        table.add_column(name, justify="left" if name in ("run", "started") else "right", no_wrap=True)
    table.add_column("selected", overflow="fold")
    for entry in lineage.runs(arguments.root):
        cells = dataclasses.asdict(entry) | {
            "started": f"{entry.started:%Y-%m-%d %H:%M}",
            "seconds": f"{entry.seconds:.1f}",
            "selected": entry.selected or "",
        }
        table.add_row(*map(str, cells.values()))
    console.for_tables().print(table)
    return PUSHED


def _lineage(arguments: argparse.Namespace) -> int:
    from edgeline.pipelines import lineage

    found = lineage.render(lineage.trace(arguments.target, arguments.root))
    # what reads a pipe wants whole paths and digests
    console.for_tables().print(found)
    return PUSHED


if __name__ == "__main__":
    sys.exit(main())
