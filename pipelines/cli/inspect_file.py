"""`edgeline inspect`: what is in a `.tflite` file, whoever made it."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from edgeline import layout, targets
from edgeline.errors import UserError
from edgeline.pipelines import console
from edgeline.pipelines.cli import options
from edgeline.pipelines.console import Console
from edgeline.pipelines.exit_codes import ExitCode

#: Constants with fewer values are biases, shapes and lookup tables.
_SMALLEST_WEIGHT = 32


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `inspect` to the commands of `edgeline`.

    Args:
      commands: what `add_subparsers` of `edgeline` returned.
      common: parent of every command's parser.
    """
    inspect = commands.add_parser(
        "inspect",
        parents=[common],
        description=(
            "Say what is in a .tflite file: inputs and outputs, operators and which of them compute on floats, and of "
            "each weight its bytes, zeros, distinct values and quantization; what breaks the TFLite quantization "
            "specification; and what was done to the model, where its passport.json lies beside it. Nothing is run, "
            "and a damaged file does no harm. Of a SavedModel, the inputs and outputs of its signatures."
        ),
        epilog="exit codes: 0 the file was read, 1 the target cannot run it, 2 it is missing, damaged or no TFLite",
    )
    inspect.set_defaults(command=_inspect)
    inspect.add_argument("file", type=Path, metavar="FILE.tflite|SAVEDMODEL", help="what to look at")
    options.add_target(inspect, default=None)
    options.add_output(inspect)


def _inspect(arguments: argparse.Namespace) -> int:
    from edgeline.tflite import inspection

    path: Path = arguments.file
    if path.is_dir():
        return _inspect_saved_model(arguments)
    summary = {"file": str(path), **inspection.read(path), "passport": _passport(path.parent)}
    code = ExitCode.DONE
    if arguments.runs_on is not None:
        counted = dict(Counter(op["op"] for op in summary["float_ops"]))
        misfits = targets.misfits(arguments.runs_on, {**summary, "float_ops": counted})
        summary["target"] = {"name": arguments.runs_on, "misfits": misfits}
        code = ExitCode.NOTHING_FITS if misfits else ExitCode.DONE
    out = console.for_tables()
    if arguments.output == "json":
        console.say(out, json.dumps({"exit_code": code, **summary}))
    else:
        _print(out, summary)
    return code


def _inspect_saved_model(arguments: argparse.Namespace) -> int:
    from edgeline.model_io import saved_model

    if arguments.runs_on is not None:
        raise UserError(f"--target is for .tflite files, but {arguments.file} is a folder")
    signatures = saved_model.signatures(arguments.file)
    out = console.for_tables()
    if arguments.output == "json":
        facts = {"exit_code": ExitCode.DONE, "file": str(arguments.file), "signatures": signatures}
        out.print(json.dumps(facts), soft_wrap=True, markup=False, highlight=False)
        return ExitCode.DONE
    console.say(out, f"{arguments.file}: a SavedModel with {len(signatures)} signatures\n")
    for signature in signatures:
        console.say(out, f"signature {signature['name']}")
        out.print(_ports_table(signature))
    return ExitCode.DONE


def _passport(folder: Path) -> dict[str, Any] | None:
    """Returns what `passport.json` in a folder says; None without, and `error` where it cannot be read."""
    from edgeline.passport import Passport

    if not (folder / layout.PASSPORT_FILE).exists():
        return None
    try:
        passport = Passport.read(folder)
        steps = [{"step": str(step["step"]), "config": dict(step["config"])} for step in passport.steps]
        failure = f"{passport.failure['step']}: {passport.failure['error']}" if passport.failure else None
    except Exception as error:  # any JSON may be in a file of that name
        return {"error": f"{folder / layout.PASSPORT_FILE} cannot be read: {type(error).__name__}: {error}"}
    return {"steps": steps, "scheme": passport.scheme, "failure": failure}


def _print(out: Console, summary: dict[str, Any]) -> None:
    console.say(out, f"{summary['file']}: {summary['bytes']:,} bytes, {summary['zlib_bytes']:,} after zlib\n")
    if len(summary["signatures"]) > 1:
        for signature in summary["signatures"]:
            console.say(out, f"signature {signature['name']}")
            out.print(_ports_table(signature))
    else:
        out.print(_ports_table(summary))

    floats = [op["op"] for op in summary["float_ops"]]
    ops = _table("operator", "count", "on floats", right=(1, 2))
    for kind, counts in summary["ops"].items():
        for name, count in counts.items():
            shown = name if kind == "builtin" else f"{name} ({kind})"
            ops.add_row(escape(shown), str(count), str(floats.count(name) or ""))
    out.print(ops)

    weights = [weight for weight in summary["weights"] if _size(weight) >= _SMALLEST_WEIGHT]
    table = _table(
        "weight", "layer", "type", "shape", "bytes", "zlib", "zeros", "values", "per channel", "scales",
        right=range(4, 10),
    )  # fmt: skip
    for weight in sorted(weights, key=lambda weight: -weight["bytes"]):
        counted = weight["zeros"] is not None
        table.add_row(
            escape(weight["name"].split(";")[0]),
            escape(weight["layer"]),
            weight["dtype"] + (" sparse" if weight["sparse"] else ""),
            escape(str(weight["shape"])),
            f"{weight['bytes']:,}",
            f"{weight['zlib_bytes']:,}",
            f"{weight['zeros']:.1%}" if counted else "",
            f"{weight['values']:,}" if counted else "",
            f"{weight['channel_values']:,}" if counted else "",
            str(weight["scales"] or ""),
        )
    if weights:
        out.print(table)
    others = len(summary["weights"]) - len(weights)
    if others:
        console.say(out, f"and {others} constants of fewer than {_SMALLEST_WEIGHT} values")
    for violation in summary["violations"]:
        console.say(out, f"against the quantization specification: {violation}", "yellow")
    _print_passport(out, summary["passport"])
    if target := summary.get("target"):
        for misfit in target["misfits"]:
            console.say(out, misfit, "yellow")
        if not target["misfits"]:
            console.say(out, f"fits target {target['name']}", "green")


def _ports_table(ends: dict[str, Any]) -> Table:
    """Returns the inputs and outputs of a signature as a table."""
    ports = _table("port", "name", "shape", "type", "scale", "zero point")
    for side in ("inputs", "outputs"):
        for port in ends[side]:
            quantized = (f"{port['scale']:.6g}", str(port["zero_point"])) if port.get("scale") else ("", "")
            shape = "any" if port["shape"] is None else str(port["shape"]).replace("-1", "any")
            ports.add_row(side[:-1], escape(port["name"]), escape(shape), port["dtype"], *quantized)
    return ports


def _size(weight: dict[str, Any]) -> int:
    total = 1
    for n in weight["shape"]:
        total *= n
    return total


def _print_passport(out: Console, passport: dict[str, Any] | None) -> None:
    if passport is None:
        return
    if "error" in passport:
        console.say(out, passport["error"], "yellow")
        return
    for step in passport["steps"]:
        console.say(out, f"{step['step']}: " + " ".join(f"{name}={value}" for name, value in step["config"].items()))
    if passport["failure"]:
        console.say(out, f"failed: {passport['failure']}", "yellow")


def _table(*columns: str, right: Any = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for position, column in enumerate(columns):
        table.add_column(column, justify="right" if position in right else "left", overflow="fold")
    return table
