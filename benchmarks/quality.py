"""Accuracy and size of the recipes, mean of some seeds, beside a plain tfmot script and the float baseline.

Each seed is a run of its own, `edgeline run` in one root per model and seed, and `benchmarks/plain_script.py` with the
same data, model, epochs, batch size and seed. Both are kept in a folder: what is there already is not done again, and
what a killed run had finished is served from its cache.

    python benchmarks/quality.py --data DIR --folder DIR     # DIR/data made by: edgeline data fashion-mnist DIR

A ratio is the zlib bytes of the float32 file of the unmodified baseline by those of the candidate; a drop is in points
of accuracy below that baseline of the same seed, on the 10,000 examples of the eval split.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import record

from edgeline import layout
from edgeline.report import report_file
from edgeline.report.schema import ModelReport, Report

#: Model module, epochs of training and of each fine-tuning, batch size, recipes.
MODELS: dict[str, tuple[str, int, int, int, tuple[str, ...]]] = {
    "small": (
        "edgeline.pipelines.examples.fashion_mnist.model",
        4,
        2,
        32,
        (
            "int8",
            "prune80_int8",
            "prune80_cluster16_int8",
            "prune85_cluster16_int8",
            "prune88_cluster8_int8",
            "prune90_cluster8_int8",
            "prune80_d50_cluster16_d50_int8",
            "prune85_d50_cluster16_d50_int8",
            "prune88_d50_cluster8_d50_int8",
            "prune90_d50_cluster8_d50_int8",
            "prune93_d50_cluster8_d50_int8",
        ),
    ),
    "large": (
        "edgeline.pipelines.examples.fashion_mnist.large",
        10,
        4,
        128,
        (
            "int8",
            "prune90_from50_float32",
            "prune90_from50_dynamic_range",
            "prune90_d50_cluster8_d50_int8",
            "prune95_d50_cluster16_d50_int8",
        ),
    ),
}
#: Of the plain script, which takes one sparsity and one number of shared values: the example, both, and its recipes.
_PLAIN: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "small": ("fashion_mnist", "0.8", "16", ("int8", "prune80_int8", "prune80_cluster16_int8")),
    "large": (
        "fashion_mnist.large",
        "0.9",
        "8",
        ("int8", "prune90_float32", "prune90_dynamic_range", "prune90_int8", "prune90_cluster8_int8"),
    ),
}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="data folder of Fashion-MNIST")
    parser.add_argument("--folder", type=Path, required=True, help="where runs are kept")
    parser.add_argument("--model", choices=MODELS, default="small", help="(default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain script out")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    module, epochs, finetune, batch, recipes = MODELS[arguments.model]
    ours: dict[str, list[dict[str, float]]] = {}
    plain: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.seeds):
        root = (arguments.folder / f"{arguments.model}-{seed}").absolute()
        report = edgeline(module, epochs, finetune, batch, recipes, seed, arguments.data, root)
        for candidate in report.candidates:
            if candidate.metrics:
                add(ours, candidate.name, *_numbers(candidate), *_numbers(report.baseline))
        if not arguments.no_plain:
            found = plain_script(arguments.model, epochs, finetune, batch, seed, arguments.data, root)
            reference = found["float32"]
            for name in _PLAIN[arguments.model][-1]:
                numbers = (model[key] for model in (found[name], reference) for key in ("accuracy", "zlib_bytes"))
                add(plain, name, *numbers)
    rows = [summary("Edgeline", name, values) for name, values in ours.items()]
    rows += [summary("plain tfmot", name, values) for name, values in plain.items()]
    for row in rows:
        print("| {by} | {recipe} | {accuracy:.4f} | {drop:+.4f} ({drops}) | {ratio:.1f}x |".format(**row))
    output = arguments.output or record.RESULTS / f"quality_{arguments.model}.json"
    settings = {
        "module": module,
        "epochs": epochs,
        "finetune_epochs": finetune,
        "batch_size": batch,
        "seeds": arguments.seeds,
    }
    output.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


def edgeline(
    module: str, epochs: int, finetune: int, batch: int, recipes: tuple[str, ...], seed: int, data: Path, root: Path
) -> Report:
    """Returns the report of a run."""
    chosen = [word for name in recipes for word in ("--recipe", name)]
    command = [
        sys.executable, "-m", "edgeline.pipelines.cli", "run", "--module", module, "--data", str(data),
        "--root", str(root), "--epochs", str(epochs), "--finetune-epochs", str(finetune), "--batch-size", str(batch),
        "--seed", str(seed), "--recipes-file", str(Path(__file__).with_name("quality_recipes.py")), *chosen,
    ]  # fmt: skip
    print(shlex.join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)  # 1: no candidate met the budget
    return report_file.read(root / "report" / layout.REPORT_FILE)


def plain_script(
    model: str, epochs: int, finetune: int, batch: int, seed: int, data: Path, root: Path
) -> dict[str, Any]:
    """Returns what the plain script found, by recipe."""
    output = root / "plain.json"
    if not output.exists():
        example, sparsity, clusters, recipes = _PLAIN[model]
        command = [
            sys.executable, str(Path(__file__).with_name("plain_script.py")), str(data), example, str(output),
            "--epochs", str(epochs), "--finetune-epochs", str(finetune), "--batch-size", str(batch),
            "--seed", str(seed), "--sparsity", sparsity, "--clusters", clusters, "--recipes", *recipes,
        ]  # fmt: skip
        print(shlex.join(command), file=sys.stderr, flush=True)
        subprocess.run(command, check=True)
    found: dict[str, Any] = json.loads(output.read_text())["results"]
    return found


def _numbers(model: ModelReport) -> tuple[float, float]:
    """Returns accuracy and zlib bytes."""
    accuracy = model.value("accuracy")
    if accuracy is None or model.zlib_bytes is None:
        raise ValueError(f"{model.name} has no accuracy or no file")
    return accuracy, model.zlib_bytes


def add(
    results: dict[str, list[dict[str, float]]],
    name: str,
    accuracy: float,
    size: float,
    baseline_accuracy: float,
    baseline_size: float,
) -> None:
    """Notes a candidate of one seed."""
    results.setdefault(name, []).append(
        {
            "accuracy": accuracy,
            "drop": baseline_accuracy - accuracy,
            "ratio": baseline_size / size,
            "zlib_bytes": size,
        }
    )


def summary(by: str, name: str, values: list[dict[str, float]]) -> dict[str, Any]:
    """Returns a candidate's means over the seeds."""
    row: dict[str, Any] = {key: statistics.mean(v[key] for v in values) for key in values[0]}
    return {"by": by, "recipe": name, **row, "drops": ", ".join(f"{v['drop']:+.4f}" for v in values)}


if __name__ == "__main__":
    main()
