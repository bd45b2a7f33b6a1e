"""Wall time of a whole `edgeline run` beside a plain script that makes the same 13 candidates by hand.

Both run as child processes, from their imports on, on the same data folder, with the same epochs and batch size, the
pipeline in a fresh root. `edgeline run` does more: it ingests and checks the data, draws calibration samples by Beam,
keeps every artifact with its lineage, proves each conversion in a child process of its own, measures latencies, writes
a report and pushes the selected model. The plain script (`benchmarks/plain_script.py`) keeps everything in memory.

    python benchmarks/pipeline.py                                        # scikit-learn's digits: quick
    python benchmarks/pipeline.py --dataset fashion-mnist --data DIR     # made by: edgeline data fashion-mnist DIR
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import record

from edgeline.config import FineTuning
from edgeline.pipelines import recipes
from edgeline.pipelines.datasets import mnist
from edgeline.trainer.config import Train

EXAMPLES = {"digits": "digits", "fashion-mnist": "fashion_mnist"}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=EXAMPLES, default="digits", help="(default: %(default)s)")
    parser.add_argument("--data", type=Path, help="its data folder (default: made in a temporary place)")
    parser.add_argument("--epochs", type=int, default=Train().epochs, help="(default: %(default)s)")
    parser.add_argument("--finetune-epochs", type=int, default=FineTuning().epochs, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=Train().batch_size, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="(default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        benchmark(arguments, Path(folder))


def benchmark(arguments: argparse.Namespace, folder: Path) -> None:
    """Prepares the data in a folder, and measures."""
    if arguments.data is None:
        write = mnist.write_digits if arguments.dataset == "digits" else mnist.write_fashion_mnist
        arguments.data = write(folder / "data").path
    example = EXAMPLES[arguments.dataset]
    settings = {name: getattr(arguments, name) for name in ("epochs", "finetune_epochs", "batch_size")}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]

    def ours() -> dict[str, Any]:
        root = tempfile.mkdtemp(dir=folder)
        command = [sys.executable, "-m", "edgeline.pipelines.cli", "run", "--output=json", f"--root={root}"]
        command += [f"--module=edgeline.pipelines.examples.{example}.model", f"--data={arguments.data}", *options]
        seconds, child = run([*command, *(f"--recipe={name}" for name in recipes.RECIPES)])
        # one line per step, e.g. `[ 3/35] done    Trainer 4.2 s: epoch 4/4 ...`
        steps = re.findall(r"^\[ *\d+/\d+\] done +(\S+) ([\d.]+) s", child.stderr, re.MULTILINE)
        nodes = {"imports": imports("edgeline.pipelines.compression", "edgeline.pipelines.run.session")}
        nodes |= {name: float(took) for name, took in steps}
        outcome = json.loads(child.stdout)
        results = {c["name"]: {"accuracy": c["metrics"]["accuracy"], **c} for c in outcome["candidates"]}
        return {"seconds": seconds, "nodes": nodes, "results": _numbers(results)}

    def plain() -> dict[str, Any]:
        output = folder / "plain.json"
        script = Path(__file__).with_name("plain_script.py")
        seconds, _ = run([sys.executable, str(script), str(arguments.data), example, str(output), *options])
        content = json.loads(output.read_text(encoding="utf-8"))
        parts = {"imports": imports("tensorflow", "tf_keras", "tensorflow_model_optimization"), **content["seconds"]}
        return {"seconds": seconds, "parts": parts, "results": _numbers(content["results"])}

    runs = record.in_turn({"edgeline run": ours, "plain script": plain}, arguments.repeats)
    walls = {side: [run["seconds"] for run in results] for side, results in runs.items()}
    record.report(
        f"pipeline_{example}",
        [record.Ratio("whole run, 13 candidates", walls["edgeline run"], walls["plain script"], "s", "<= 1.5")],
        settings={
            "dataset": arguments.dataset,
            **settings,
            "repeats": arguments.repeats,
            "in the time": "the whole process from its start to its end, imports included",
            "results": {side: results[-1]["results"] for side, results in runs.items()},
        },
        seconds={
            "edgeline run": [{"wall": run["seconds"], **run["nodes"]} for run in runs["edgeline run"]],
            "plain script": [{"wall": run["seconds"], **run["parts"]} for run in runs["plain script"]],
        },
        output=arguments.output,
    )
    print_parts("edgeline run", walls["edgeline run"], [by_component(run["nodes"]) for run in runs["edgeline run"]])
    print_parts("plain script", walls["plain script"], [run["parts"] for run in runs["plain script"]])


def run(command: list[str]) -> tuple[float, subprocess.CompletedProcess[str]]:
    """Returns the wall time of a child process, and what it printed."""
    start = time.perf_counter()
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    # `edgeline run` exits with 1 where no candidate meets the budget, which is no concern of a benchmark
    if child.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} failed with {child.returncode}:\n{child.stderr[-4000:]}")
    return seconds, child


def imports(*modules: str) -> float:
    """Returns the wall time of a process that only imports."""
    return run([sys.executable, "-c", f"import {', '.join(modules)}"])[0]


def by_component(nodes: dict[str, float]) -> dict[str, float]:
    """Adds up the times of a component's nodes, whose ids are the component's name, a dot and a recipe's prefix."""
    sums: dict[str, float] = {}
    for node, seconds in nodes.items():
        component = node.split(".")[0]
        sums[component] = sums.get(component, 0.0) + seconds
    return sums


def print_parts(side: str, walls: list[float], parts: list[dict[str, float]]) -> None:
    """Prints where the time of a side went, in medians; the rest is what lies before, between and after the parts."""
    medians = {name: statistics.median(part[name] for part in parts) for name in parts[0]}
    rest = statistics.median(walls) - sum(medians.values())
    print(f"{side}: " + ", ".join(f"{n} {s:.1f} s" for n, s in medians.items()) + f", the rest {rest:.1f} s")


def _numbers(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    return {name: {key: facts[key] for key in ("accuracy", "zlib_bytes")} for name, facts in results.items()}


if __name__ == "__main__":
    main()
