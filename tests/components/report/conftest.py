"""A report.json as an Evaluator writes it, schema version 3, with all that there may be in one."""

from __future__ import annotations

import base64
import copy
import functools
import hashlib
import io
import pickle
import random
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageDraw

CLOTHES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
#: Name: (accuracy, zlib bytes, file bytes, p50 in ms, zeros), all as measured once.
MEASURED = {
    "float32": (0.8825, 77531, 84848, 0.015, 0.0),
    "float16": (0.8825, 39872, 44704, 0.011, 0.0),
    "dynamic_range": (0.8825, 18723, 24192, 0.014, 0.03),
    "int8": (0.8818, 18681, 24824, 0.057, 0.03),
    "int8_io": (0.8818, 18579, 24520, 0.056, 0.03),
    "int16x8": (0.8824, 18974, 25288, 0.523, 0.03),
    "qat8": (0.8870, 17389, 25136, 0.057, 0.04),
    "prune80_float32": (0.8834, 23510, 84848, 0.014, 0.8),
    "prune80_dynamic_range": (0.8836, 8534, 24192, 0.015, 0.8),
    "prune80_int8": (0.8842, 8476, 24824, 0.058, 0.8),
    "cluster16_float32": (0.8845, 13820, 84848, 0.014, 0.0),
    "cluster16_dynamic_range": (0.8824, 11806, 24192, 0.015, 0.0),
    "prune80_cluster16_int8": (0.8862, 6540, 24824, 0.056, 0.8),
}
STEPS = {"prune80": "Pruner", "cluster16": "Clusterer", "qat8": "Quantizer"}


@pytest.fixture
def make_report() -> Callable[..., dict[str, Any]]:
    """Makes a report: `make_report(candidates=13, classes=10)`, the same for the same arguments."""
    return build


@pytest.fixture
def make_outputs() -> Callable[[float], list[dict[str, Any]]]:
    """Makes what a report says of an output of each kind: `make_outputs(0.9)`, a tenth worse than 1.0."""
    return lambda better: outputs(random.Random(3), better)


def build(candidates: int = 13, classes: int = 10, *, nodes: bool = True) -> dict[str, Any]:
    """Makes the report of a classifier, each time anew for a test to change.

    Args:
        candidates: how many; beyond 13 they repeat themselves under other names.
        classes: how many; ten have clothes for names.
        nodes: whether it is the copy that a local run publishes.
    """
    report: dict[str, Any] = pickle.loads(_pickled(candidates, classes, nodes))
    return report


@functools.cache
def _pickled(candidates: int, classes: int, nodes: bool) -> bytes:
    rng = random.Random(7)
    labels = list(CLOTHES) if classes == 10 else [f"class {i}" for i in range(classes)]
    names = [[*MEASURED][i % 13] + (f"_{i // 13}" if i >= 13 else "") for i in range(candidates)]
    baseline_confusion = confusion(rng, classes, 0.8825)
    baseline = {
        "metrics": {"loss": 0.3331, "accuracy": 0.8825},
        "bytes": 84848,
        "zlib_bytes": 77531,
        "latency_ms": {"p50": 0.015, "p90": 0.018},
        "sha256": sha256("baseline"),
        "device": device(0.015, 0.02),
        "classification": classification(baseline_confusion),
        "slices": slices(rng, 0.8825, None, classes),
        "keras": {"metrics": {"loss": 0.3331, "accuracy": 0.8825}, "max_abs_difference": 3.1e-6},
    }
    entries = [candidate(rng, name, baseline, baseline_confusion) for name in names]
    report = {
        "schema_version": 3,
        "created": "2026-11-22T02:53:34+00:00",
        "pipeline": "fashion-mnist",
        "module": "edgeline.pipelines.examples.fashion_mnist.model",
        "dataset": {
            "split": "eval",
            "fingerprint": sha256("data"),
            "examples": sum(map(sum, baseline_confusion)),
            "label_names": labels,
            "bad_records": 3,
            "slice_features": [["camera"], ["camera", "light"], ["label"]],
        },
        "budget": {
            **{"metric": "accuracy", "direction": "max", "max_drop": 0.01, "drop_bound": "point"},
            **{"objective": "zlib_bytes", "max_bytes": None, "max_zlib_bytes": 20000, "max_latency_ms": 0.2},
            **{"max_slice_drops": {"label": 0.05, "label=6": 0.02, "camera,light": 0.03}, "min_slice_examples": 30},
            **{"value_threshold": 0.8},
            **{"max_deployed_drop": 0.005, "max_latency_p90_ms": None, "max_latency_p99_ms": 0.25},
            **{"max_latency_all_threads_ms": None, "max_latency_without_xnnpack_ms": None},
            **{"max_cold_start_ms": 20.0, "max_peak_rss_bytes": 30_000_000, "target": "cpu"},
        },
        "baseline": baseline,
        "deployed": {
            **{"path": "runs/fashion-mnist/pushed/1732240000/model.tflite", "version": "1732240000"},
            **{"sha256": sha256("deployed"), "name": "prune80_int8", "pushed_at": "2026-10-02T03:00:00+00:00"},
            **{"metrics": {"loss": 0.34, "accuracy": 0.8801}, "bytes": 24824, "zlib_bytes": 8497},
            **{"slices": slices(rng, 0.8801, None, classes), "failure": None},
        },
        "like": None,
        "candidates": entries,
        "training": trainings(names),
        "run": run(names) if nodes else None,
        "selected": "prune80_cluster16_int8" if candidates >= 13 else None,
        "closest": None if candidates >= 13 or not names else names[-1],
        "versions": {"edgeline": "0.1.0", "tensorflow": "2.21.0", "ai-edge-litert": "2.3.0"},
        "machine": {"cpu": "Intel(R) Xeon(R) Processor", "cores": 2, "system": "Linux 6.18"},
    }
    return pickle.dumps(report)


def candidate(rng: random.Random, name: str, baseline: dict[str, Any], before: list[list[int]]) -> dict[str, Any]:
    accuracy, zlib_bytes, size, p50, zeros = MEASURED["_".join(name.split("_")[:-1]) if name not in MEASURED else name]
    after = moved(rng, before, 40)
    drop = 0.8825 - accuracy
    reasons = []
    if p50 > 0.2:
        reasons.append(f"median latency {p50:.3g} ms exceeds 0.2 ms")
    if zlib_bytes > 20000:
        reasons.append(f"size after zlib {zlib_bytes:,} bytes exceeds 20,000 bytes")
    trained = ["Trainer", *(step for part, step in STEPS.items() if part in name)]
    sizes = [77531, *(23510 if step == "Pruner" else 13820 for step in trained[1:]), zlib_bytes]
    return {
        "name": name,
        "recipe": [
            {
                "step": step,
                "config": {"epochs": 2, "batch_size": 32, "seed": 0}
                | ({"sparsity": 0.8} if step == "Pruner" else {"clusters": 16}),
            }
            for step in trained[1:]
        ],
        "metrics": {"loss": 0.3331 + drop, "accuracy": accuracy},
        "drop": drop,
        "drop_interval": [drop - 0.0031, drop + 0.0031] if name != "float32" else [0.0, 0.0],
        "bytes": size,
        "zlib_bytes": zlib_bytes,
        "ratio": 77531 / zlib_bytes,
        "latency_ms": {"p50": p50, "p90": 1.3 * p50},
        "device": device(p50, 0.14 if name == "int8_io" else 0.03),
        "sparsity": zeros,
        "classification": classification(after),
        "comparison": {
            "examples": sum(map(sum, before)),
            "agreement": 0.9732,
            "flips": {"right_to_wrong": 121, "wrong_to_right": 84},
            "outputs": {"logits": {"max_abs_error": 0.8123, "mean_abs_error": 0.0412, "sqnr_db": 31.42}},
        },
        "deployed_drop": 0.8801 - accuracy,
        "deployed_drop_interval": [0.8801 - accuracy - 0.004, 0.8801 - accuracy + 0.004],
        "slices": slices(rng, accuracy, baseline["slices"], len(before)),
        "flipped": [flip(rng, len(before)) for _ in range(12)],
        "ladder": [
            {"step": step, "zlib_bytes": n} for step, n in zip([*trained, "TFLiteExporter"], sizes, strict=True)
        ],
        "sensitivity": [
            {
                "layer": "logits",
                "sqnr_db": 29.9,
                "channel_sqnr_db": 21.7,
                "cosine": 0.99871,
                "max_error": 0.213,
                "range": [-9.5, 14.25],
                "histogram": [1, 3, 40, 400, 90, *[0] * 18, 2],
                "drop": 0.0021,
                "drop_when_float": 0.0007,
            },
            {
                "layer": "conv2d",
                "sqnr_db": 38.2,
                "channel_sqnr_db": 37.0,
                "cosine": 0.99992,
                "max_error": 0.011,
                "range": [0.0, 2.5],
                "histogram": [90] * 24,
                "drop": None,
                "drop_when_float": None,
            },
        ],
        "blessed": not reasons,
        "reasons": reasons,
        "pareto": name in ("qat8", "prune80_cluster16_int8"),
        "sha256": sha256(name),
        "failure": None,
        "steps": [
            {"step": step, "metrics": {"loss": 0.31, "accuracy": 0.887 + i / 500}, "split": "validation"}
            for i, step in enumerate(trained)
        ],
        "layers": [
            {
                **{"name": "conv2d", "type": "Conv2D", "parameters": 120, "sparsity": 0.0, "unique_values": 108},
                **{"note": "holds 0.53% of the weights, under 1.00%", "bits": 8},
            },
            {
                **{"name": "logits", "type": "Dense", "parameters": 20290, "sparsity": zeros, "unique_values": 16},
                **{"note": "clustered to 16 values", "bits": 8},
            },
        ],
    }


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def device(p50: float, noise: float) -> dict[str, Any]:
    def times(p50: float) -> dict[str, Any]:
        return {"p50": p50, "p90": 1.3 * p50, "p99": 1.9 * p50, "runs": 1200, "noise": noise}

    return {
        "one_thread": times(p50),
        "all_threads": {**times(0.8 * p50), "threads": 2},
        "without_xnnpack": times(3 * p50),
        "cold_start_ms": 2.4 + 10 * p50,
        "peak_rss_bytes": 3_500_000,
    }


def confusion(rng: random.Random, classes: int, accuracy: float, each: int = 100) -> list[list[int]]:
    """A matrix in which every label has as many examples, mistaken most for its neighbours."""
    rows = []
    for label in range(classes):
        row = [0] * classes
        for _ in range(each):
            right = rng.random() < accuracy + (0.1 if label % 3 else -0.1)
            row[label if right else (label + rng.choice((-2, -1, 1, 1, 3))) % classes] += 1
        rows.append(row)
    return rows


def moved(rng: random.Random, before: list[list[int]], many: int) -> list[list[int]]:
    """The same examples, some of them predicted otherwise."""
    after = copy.deepcopy(before)
    for _ in range(many):
        row = rng.choice(after)
        source = rng.choice([j for j, n in enumerate(row) if n])
        row[source] -= 1
        row[rng.randrange(len(row))] += 1
    return after


def classification(matrix: list[list[int]]) -> dict[str, Any]:
    total, hits = sum(map(sum, matrix)), [matrix[i][i] for i in range(len(matrix))]
    predicted = [sum(row[j] for row in matrix) for j in range(len(matrix))]
    return {
        "output": "logits",
        "classes": len(matrix),
        "confusion": matrix if len(matrix) <= 200 else None,
        "top_k": {"1": sum(hits) / total, "2": 0.96, "3": 0.981, "5": 0.996},
        "per_class": [
            {"precision": h / p if p else None, "recall": h / sum(row), "examples": sum(row)}
            for h, p, row in zip(hits, predicted, matrix, strict=True)
        ],
        "log_loss": 0.3331 + sum(hits) / total / 100,
        "ece": 0.0182,
        "bins": [
            {
                "confidence": c,
                "accuracy": c - (0.1 + (sum(hits) % 7) / 20) * c * (1 - c),
                "count": int(total * c**3 / 4),
            }
            for c in (0.3, 0.37, 0.43, 0.5, 0.57, 0.63, 0.7, 0.77, 0.83, 0.9, 0.98)
        ],
    }


def slices(
    rng: random.Random, accuracy: float, baseline: list[dict[str, Any]] | None, classes: int
) -> list[dict[str, Any]]:
    features = [{"camera": camera} for camera in ("front", "rear")]
    features += [{"camera": camera, "light": light} for camera in ("front", "rear") for light in ("day", "night")]
    features += [{"label": label} for label in range(min(classes, 30))]
    found = []
    for i, each in enumerate(features):
        value = min(1.0, max(0.0, accuracy + rng.uniform(-0.015, 0.02)))
        entry = {
            "features": each,
            "examples": 12 if each == {"camera": "rear", "light": "night"} else 500 if "camera" in each else 100,
            "metrics": {"accuracy": value, "loss": 0.3},
        }
        if baseline is not None:
            entry["drop"] = baseline[i]["metrics"]["accuracy"] - value
        found.append(entry)
    return found


def outputs(rng: random.Random, better: float) -> list[dict[str, Any]]:
    """What a model does at an output of each kind; the higher `better` the better."""
    labels = [[rng.uniform(-40, 60)] for _ in range(200)]
    predicted = [[value + rng.gauss(0, 8 / better)] for [value] in labels]
    found: list[dict[str, Any]] = [
        {"output": "kind", "classification": classification(confusion(rng, 4, 0.8 * better))},
        {
            "output": "distance",
            "regression": {
                **{"numbers": 1, "r2": 0.94 * better, "mean_abs_error": 6.3 / better, "rmse": 8 / better},
                "error_quantiles": {"0.5": 5.4 / better, "0.9": 13.2 / better, "0.99": 21 / better, "1": 30 / better},
                **{"labels": labels, "predicted": predicted},
            },
        },
        {
            "output": "pixels",
            "segmentation": {
                "per_class": [
                    {"iou": iou and iou * better, "pixels": n} for iou, n in ((0.9, 8000), (0.4, 90), (None, 0))
                ],
                "masks": [
                    {
                        **{"differing": 0.25 / (i + 1), "image": picture(i), "label": picture(i + 1)},
                        **{"baseline": picture(i + 2), "candidate": picture(i + 3)},
                    }
                    for i in range(4)
                ],
            },
        },
        {
            "output": "tags",
            "tags": [
                {
                    **{"precision": None if recall is None else 0.9 * better, "recall": recall},
                    **{"f1": recall and recall * better, "examples": 40 * i, "predicted": 44},
                }
                for i, recall in enumerate((None, 0.5, 0.75, 0.9))
            ],
        },
    ]
    return found


def flip(rng: random.Random, classes: int) -> dict[str, Any]:
    label, other = rng.sample(range(classes), 2)
    worse = rng.random() < 0.6
    return {
        "kind": "right_to_wrong" if worse else "wrong_to_right",
        "label": label,
        "baseline": label if worse else other,
        "candidate": other if worse else label,
        "image": picture(label),
        "features": {"camera": rng.choice(("front", "rear"))},
    }


@functools.cache
def picture(label: int) -> str:
    """A small PNG that shows a number."""
    image, buffer = Image.new("L", (28, 28)), io.BytesIO()
    ImageDraw.Draw(image).text((6, 2), str(label % 100), fill=230, font_size=20)
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def trainings(names: list[str]) -> list[dict[str, Any]]:
    found = []
    for step, part, epochs in (
        ("Trainer", "", 8),
        ("Pruner", "prune80", 4),
        ("Clusterer", "cluster16", 2),
        ("Quantizer", "qat8", 1),
    ):
        history = {
            "loss": [0.9 * 0.8**e + 0.2 for e in range(epochs)],
            "accuracy": [0.9 - 0.3 * 0.7**e for e in range(epochs)],
            "val_loss": [0.8 * 0.8**e + 0.25 for e in range(epochs)],
            "val_accuracy": [0.89 - 0.25 * 0.7**e for e in range(epochs)],
        }
        of = [name for name in names if part in name]
        if of:
            found.append({"step": step, "of": of if part else ["baseline", *of], "history": history})
    return found


def run(names: list[str]) -> dict[str, Any]:
    nodes = [
        {"id": "ExampleSource", "state": "done", "seconds": 1.2, "upstream": []},
        {"id": "RepresentativeDatasetGen", "state": "done", "seconds": 8.4, "upstream": ["ExampleSource"]},
        {
            **{"id": "Trainer", "state": "cached", "seconds": 0.1},
            **{"upstream": ["ExampleSource", "RepresentativeDatasetGen"]},
        },
    ]
    made = {"": "Trainer"}
    for name in names:
        prefix, last = "", "Trainer"
        for part in name.split("_"):
            if part not in STEPS:
                continue
            prefix = f"{prefix}_{part}".strip("_")
            if prefix not in made:
                made[prefix] = f"{STEPS[part]}.{prefix}"
                nodes.append(
                    {"id": made[prefix], "state": "done", "seconds": 31.0, "upstream": ["ExampleSource", last]}
                )
            last = made[prefix]
        nodes.append(
            {
                **{"id": f"TFLiteExporter.{name}", "state": "failed" if name == "int8_io" else "done", "seconds": 4.2},
                **{"upstream": [last, "RepresentativeDatasetGen"]},
            }
        )
    exporters = [node["id"] for node in nodes if node["id"].startswith("TFLiteExporter")]
    nodes.append({"id": "Evaluator", "state": "done", "seconds": 64.0, "upstream": ["ExampleSource", *exporters]})
    nodes.append({"id": "Pusher", "state": "skipped", "seconds": None, "upstream": ["Evaluator"]})
    return {"seconds": 171.3, "nodes": nodes}
