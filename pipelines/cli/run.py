"""`edgeline run` and `edgeline optimize`."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from edgeline.errors import UserError
from edgeline.model_importer.config import Import
from edgeline.model_module import module_source
from edgeline.model_module.module_source import Source
from edgeline.pipelines import console
from edgeline.pipelines.cli import options, verdict
from edgeline.pipelines.cli.options import DIGITS_MODULE
from edgeline.pipelines.datasets import mnist
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.records import prometheus
from edgeline.pipelines.root import DEFAULT_ROOT, Root
from edgeline.pipelines.run import new_data, warm_start
from edgeline.pipelines.run.journal import Journal
from edgeline.pipelines.run.live_view import LiveView
from edgeline.recipe import Recipe

_EPILOG = """\
exit codes: 0 a model was selected, and pushed unless an earlier run had pushed it, 1 no candidate met the budget,
2 a mistake in what was given, 3 a step failed"""


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `run` and `optimize` to the commands of `edgeline`.

    Args:
      commands: what `add_subparsers` of `edgeline` returned.
      common: parent of every command's parser.
    """
    run = commands.add_parser(
        "run",
        parents=[common],
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
    run.add_argument(
        "--root", type=options.root, help="where everything of this pipeline is kept (default: runs/digits)"
    )
    warm_start.add_option(run)
    _add_run_options(run)

    optimize = commands.add_parser(
        "optimize",
        parents=[common],
        description=(
            "Compress, export, evaluate, select and push a trained model. It is not trained further\n"
            "before that: --epochs and --early-stopping do nothing, and the module needs no build_model."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    optimize.set_defaults(command=_optimize)
    options.add_import_options(optimize)
    optimize.add_argument("--module", required=True, help="the model module: a .py file or a dotted name")
    optimize.add_argument("--data", type=Path, required=True, help="data folder with train, validation and eval")
    optimize.add_argument("--root", type=options.root, required=True, help="where everything of this pipeline is kept")
    _add_run_options(optimize)


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


def _run(arguments: argparse.Namespace) -> int:
    with _recorded(arguments, "run") as journal:
        chosen = options.chosen(arguments)
        journal.exit_code = _run_pipeline(arguments, chosen, module_source.locate(arguments.module), journal)
    return journal.exit_code


def _optimize(arguments: argparse.Namespace) -> int:
    with _recorded(arguments, "optimize") as journal:
        chosen = options.chosen(arguments)
        model = options.imported(arguments)
        options.check_recipes(model, chosen)
        if arguments.check_keras and options.is_graph(model):
            raise UserError(f"--check-keras needs a Keras model, but {arguments.model} is a graph without layers")
        located = module_source.locate(arguments.module, needs_model=False)
        journal.exit_code = _run_pipeline(arguments, chosen, located, journal, model)
    return journal.exit_code


@contextlib.contextmanager
def _recorded(arguments: argparse.Namespace, command: str) -> Iterator[Journal]:
    """Records a run in its root's event log, however it ends, and then brings the root's metrics up to date."""
    root = arguments.root.absolute() if arguments.root else _folders(arguments)[0]
    try:
        with Journal(root, command, module=arguments.module, data=arguments.data and str(arguments.data)) as log:
            yield log
    finally:
        prometheus.write(root)


def _run_pipeline(
    arguments: argparse.Namespace,
    chosen: Sequence[Recipe],
    source: Source,
    journal: Journal,
    model: Import | None = None,
) -> int:
    # everything else that can be wrong is checked here, before the imports
    root, data = _folders(arguments)
    asked = {
        "budget": options.budget(arguments),
        "evaluation": options.evaluation(arguments),
        "export": options.export(arguments),
        **options.training(arguments),
        "gate": options.gate(arguments, str(root.last_statistics)),
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
                data = root.data
                if not data.exists():
                    mnist.write_digits(data, console=live)
            asked["train"], cold = warm_start.resolved(asked["train"], root)
            for note in (*(window.notes if window else ()), *([cold] if cold else [])):
                console.say(terminal.err, f"edgeline: {note}", "yellow")
            new_data.check_readable(data, window, root)
            journal.write("data", **new_data.facts(data, window, request))
            with live.status("loading TensorFlow and TFX") if live.is_terminal else contextlib.nullcontext():
                from edgeline.pipelines import compression
                from edgeline.pipelines.run import session
            run = compression.Run(source, tuple(chosen), model=model, **asked)
            compression.check(run)
            view = LiveView(live, False if arguments.verbose else None)
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
            return ExitCode.STEP_FAILED
        return verdict.show(outcome, log, arguments, terminal)


def _nothing_new(why: str, window: Any, arguments: argparse.Namespace) -> int:
    notes = window.notes if window else ()
    for note in notes:
        console.say(Console(stderr=True), f"edgeline: {note}", "yellow")
    line = (
        json.dumps({"exit_code": ExitCode.DONE, "no_new_data": True, "why": why}) if arguments.output == "json" else why
    )
    console.say(Console(), line)
    return ExitCode.DONE


def _folders(arguments: argparse.Namespace) -> tuple[Root, Path | None]:
    """Returns the root and the data folder (None: make the digits), by the rules of the command's help."""
    is_default = arguments.module == DIGITS_MODULE
    if arguments.data is None and not is_default:
        raise UserError("--module needs --data: a folder with train, validation and eval (see: edgeline data --help)")
    if arguments.root is None and not (is_default and arguments.data is None):
        raise UserError("--module and --data need --root: the folder where everything of this pipeline is kept")
    return (arguments.root or DEFAULT_ROOT).absolute(), arguments.data and arguments.data.absolute()


def _open_root(root: Root, run: str) -> Path:
    """Makes the root and returns the log file of this run."""
    log = root.log(run)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.touch()
    except OSError as error:
        raise UserError(f"--root {root} cannot be written: {error.strerror}; choose another folder") from None
    return log
