"""What all benchmarks share: measuring sides in turn, the table of ratios, and the JSON file beside it."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Ratio:
    """One line of a benchmark's table: a number of ours beside a peer's, measured in the same run.

    Attributes:
      name: what is compared.
      ours, peer: one value per repeat, in the order measured.
      unit: of both.
      target: the ratio ours / peer that is asked for, with its direction, e.g. `<= 1.15`; "" where there is none.
    """

    name: str
    ours: Sequence[float]
    peer: Sequence[float]
    unit: str
    target: str = ""

    @property
    def value(self) -> float:
        """The ratio of the medians."""
        return statistics.median(self.ours) / statistics.median(self.peer)

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest ratio of two neighbours in time: how noisy the machine was."""
        pairs = [ours / peer for ours, peer in zip(self.ours, self.peer, strict=True)]
        return min(pairs), max(pairs)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def in_turn(sides: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Runs all sides one after the other, `repeats` times, so that a slow spell of the machine hits them alike."""
    results: dict[str, list[T]] = {name: [] for name in sides}
    for repeat in range(repeats):
        for name, run in sides.items():
            print(f"{name} {repeat + 1}/{repeats}", file=sys.stderr, flush=True)
            results[name].append(run())
    return results


def report(
    name: str, ratios: Sequence[Ratio], *, settings: Mapping[str, Any], seconds: Mapping[str, Any], output: Path | None
) -> None:
    """Prints the table and writes the JSON file.

    Args:
      name: of the benchmark.
      ratios: the lines of the table.
      settings: what was run, and what is in the measured time.
      seconds: raw measurements by side.
      output: the file to write; None: `benchmarks/results/<name>.json`.
    """
    # importing the package's facts is left to the end: it must not be part of any measurement
    from edgeline.evaluator.judging.reporting import machine
    from edgeline.toolchain import versions

    table = Table("", "ours", "peer", "ratio", "of neighbours", "target", title=name, title_justify="left")
    for ratio in ratios:
        low, high = ratio.range
        medians = (f"{_short(statistics.median(side))} {ratio.unit}" for side in (ratio.ours, ratio.peer))
        table.add_row(ratio.name, *medians, f"{ratio.value:.2f}x", f"{low:.2f}-{high:.2f}x", ratio.target)
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table)

    path = output or RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "benchmark": name,
        "command": shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {**dataclasses.asdict(machine()), "load_average": os.getloadavg()},
        "versions": versions(),
        "settings": dict(settings),
        "ratios": [
            {**dataclasses.asdict(ratio), "ratio": round(ratio.value, 4), "range": [round(n, 4) for n in ratio.range]}
            for ratio in ratios
        ],
        "seconds": dict(seconds),
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    console.print(f"written: {path}", highlight=False, soft_wrap=True)
