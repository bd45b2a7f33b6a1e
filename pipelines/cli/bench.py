"""`edgeline bench`: what `.tflite` files cost on this machine, whoever made them."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from edgeline.errors import UserError
from edgeline.pipelines import console
from edgeline.pipelines.cli import options
from edgeline.pipelines.console import Console
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.report import formats


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `bench` to the commands of `edgeline`.

    Args:
      commands: what `add_subparsers` of `edgeline` returned.
      common: parent of every command's parser.
    """
    bench = commands.add_parser(
        "bench",
        parents=[common],
        description=(
            "Measure what .tflite files cost on this machine, one example at a time: latency with one thread, with all "
            "threads, and with LiteRT's built-in kernels in place of XNNPACK; the first inference of a fresh process; "
            "memory. Inputs are random. Each file runs in a process of its own."
        ),
        epilog="exit codes: 0 all files were measured, 2 a file or an option was wrong; the other files are measured",
    )
    bench.set_defaults(command=_bench)
    bench.add_argument("files", nargs="+", type=Path, metavar="FILE.tflite", help="what to measure")
    bench.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="how long to time each file (default: %(default)s)"
    )
    bench.add_argument(
        "--benchmark-model", metavar="BINARY", help="TFLite's benchmark_model: says which operations the time goes to"
    )
    options.add_output(bench)


def _bench(arguments: argparse.Namespace) -> int:
    from edgeline.tflite import device_cost

    if not 0 < arguments.seconds <= 3600:
        raise UserError(f"--seconds must be above 0 and at most 3600, received {arguments.seconds:g}")
    if arguments.benchmark_model:
        device_cost.find_binary(arguments.benchmark_model)
    err = Console(stderr=True)
    _warn_if_busy(err)
    results = []
    for path in arguments.files:
        with err.status(escape(f"measuring {path}"), refresh_per_second=1):  # it runs on a core that is measured
            result = _result(path, arguments.seconds, arguments.benchmark_model)
        results.append(result)
        if result["error"]:
            console.say(err, f"edgeline: {path}: {result['error']}", "red")
    code = ExitCode.USERS_MISTAKE if any(result["error"] for result in results) else ExitCode.DONE
    out = console.for_tables()
    if arguments.output == "json":
        console.say(out, json.dumps({"exit_code": code, "files": results}))
    else:
        _print_tables(out, results)
    return code


def _warn_if_busy(err: Console) -> None:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    # one core is for the thread that is timed; on a machine with no other, its last minute cannot have been empty
    if load > max(cores - 1, 0.5):
        console.say(
            err, f"edgeline: the machine is busy (load {load:.1f} on {cores} cores): the times are noise", "yellow"
        )


def _result(path: Path, seconds: float, binary: str | None) -> dict[str, Any]:
    """Measures a file: `file`, `bytes`, `zlib_bytes`, `device`, `profile` and `error`, each None where not known."""
    from edgeline.tflite import device_cost, inspection

    result: dict[str, Any] = dict.fromkeys(("file", "bytes", "zlib_bytes", "device", "profile", "error"))
    result["file"] = str(path)
    try:
        content = path.read_bytes()
        result |= {"bytes": len(content), "zlib_bytes": inspection.compressed_size(content)}
        result["device"] = device_cost.measure(path, seconds=seconds, timeout=seconds + 120)
        if binary:
            result["profile"] = device_cost.profile(binary, path)
    except OSError as error:
        result["error"] = f"cannot be read: {error.strerror or error}"
    except (ValueError, RuntimeError, UserError) as error:
        result["error"] = str(error)
    return result


def _print_tables(out: Console, results: list[dict[str, Any]]) -> None:
    measured = [result for result in results if result["device"]]
    if measured:
        _print_costs(out, measured)
    for result in measured:
        if result["profile"]:
            out.print(_operations(result))


def _print_costs(out: Console, results: list[dict[str, Any]]) -> None:
    """Prints a row per file, or a table per file where a row would not fit."""
    rows = [_cells(result) for result in results]
    wide = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in rows[0]:
        # a long name breaks before its last word
        wide.add_column("\n".join(column.rsplit(" ", 1)), justify="left" if column == "file" else "right", no_wrap=True)
    for cells in rows:
        wide.add_row(*cells.values())
    # what it would take, not what it would be squeezed into
    if Measurement.get(out, out.options.update(max_width=10_000), wide).maximum <= out.width:
        out.print(wide)
    else:
        for cells in rows:
            narrow = Table("", "", box=box.SIMPLE, padding=(0, 1), show_header=False)
            for name, cell in cells.items():
                narrow.add_row(name, cell)
            out.print(narrow)
    console.say(out, "times of one example; noise: how far the medians of blocks of runs lie apart, at worst")


def _cells(result: dict[str, Any]) -> dict[str, str]:
    device = result["device"]
    one, every, plain = device["one_thread"], device["all_threads"], device["without_xnnpack"]
    memory = device["peak_rss_bytes"]
    return {
        "file": escape(result["file"]),
        "bytes": f"{result['bytes']:,}",
        "zlib bytes": f"{result['zlib_bytes']:,}",
        "1 thread p50": formats.duration(one["p50"]),
        "p90": formats.duration(one["p90"]),
        "p99": formats.duration(one["p99"]),
        f"{every['threads']} threads p50": formats.duration(every["p50"]),
        "no XNNPACK p50": formats.duration(plain["p50"]),
        "cold start": formats.duration(device["cold_start_ms"]),
        "peak memory": "" if memory is None else f"{memory / 1e6:,.2f} MB",
        "noise": f"{max(setting['noise'] for setting in (one, every, plain)):.0%}",
    }


def _operations(result: dict[str, Any]) -> Table:
    table = Table(
        title=f"{escape(result['file'])}: operations, one thread",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("operation", overflow="fold")
    for column in ("ms", "%", "count"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result["profile"]:
        table.add_row(escape(row["op"]), f"{row['ms']:.3f}", f"{row['percent']:.1f}", f"{row['count']}")
    return table
