"""The report of hand-made findings: every field, with values worked by hand."""

from __future__ import annotations

import base64
import copy
import dataclasses
import functools
import json
import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from scipy import stats

from edgeline.budget import Budget
from edgeline.deployed.pointer_file import Deployed
from edgeline.errors import UserError
from edgeline.evaluator.judging import reporting
from edgeline.evaluator.judging.candidates import Candidate
from edgeline.evaluator.measuring import comparison
from edgeline.evaluator.measuring.chance import CommonestClass
from edgeline.evaluator.measuring.classification import Classification, Task
from edgeline.evaluator.measuring.comparison import Comparison, OutputError, Paired
from edgeline.evaluator.measuring.findings import DEPLOYED, Findings
from edgeline.evaluator.measuring.measurements import Evaluated, Flip
from edgeline.evaluator.measuring.metrics import CompiledMetrics, State
from edgeline.evaluator.measuring.slices import Key
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.report.dataclass_json import from_json, to_json
from edgeline.report.rendering import render
from edgeline.report.schema import DatasetReport, DeployedReport, DeviceCost, KerasReport, Report

MODULE = """
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {"x": tf.io.FixedLenFeature([4], tf.float32), "y": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    return features["x"], features["y"]


def build_model():
    return keras.Sequential([keras.Input([4], name="x"), keras.layers.Dense(3)])


def compile_model(model):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
"""

BINARY = """

def build_model():
    return keras.Sequential([keras.Input([4], name="x"), keras.layers.Dense(1, activation="sigmoid")])


def compile_model(model):
    model.compile("adam", "binary_crossentropy", metrics=["accuracy", keras.metrics.AUC(name="auc")])
"""

HISTORY = {"loss": [2.0, 1.0], "val_loss": [2.5, 1.5]}
TRAINER = {
    "step": "Trainer",
    "config": {"epochs": 4},
    "metrics": {"accuracy": 0.99},
    "model": "d1",
    "weights_zlib_bytes": 3000,
    "history": HISTORY,
}
PRUNER = {
    "step": "Pruner",
    "config": {"sparsity": 0.8, "ramp": 0.75},
    "metrics": {"accuracy": 0.98},
    "layers": [
        {
            **{"name": "dense", "type": "Dense", "parameters": 10, "sparsity": 0.8, "unique_values": 3},
            "note": "pruned to 0.8",
        }
    ],
    "model": "d2",
    "weights_zlib_bytes": 1000,
    "history": {"loss": [1.25]},
}
STEPS: tuple[dict[str, Any], ...] = (
    TRAINER,
    PRUNER,
    {"step": "Quantizer", "config": {"scheme": "int8"}, "model": "d3"},
    {"step": "TFLiteExporter", "config": {"parity_samples": 32}},
)


@pytest.fixture(scope="module")
def metrics(tmp_path_factory: pytest.TempPathFactory) -> CompiledMetrics:
    path = tmp_path_factory.mktemp("module") / "three_classes.py"
    path.write_text(MODULE)
    found = CompiledMetrics(hooks.load(str(path)))
    found.prepare(tf.constant([0], tf.int64), [np.zeros([1, 3], np.float32)])
    return found


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> CompiledMetrics:
    path = tmp_path_factory.mktemp("module") / "two_classes.py"
    path.write_text(MODULE + BINARY)
    found = CompiledMetrics(hooks.load(str(path)))
    found.prepare(tf.constant([0], tf.int64), [np.zeros([1, 1], np.float32)])
    return found


def state(examples: int, right: int, loss: float = 0.25) -> State:
    return State(examples, np.array([loss * examples, right]), np.array([examples, examples], float))


def did(right: int, examples: int = 100, loss: float = 0.25, **more: Any) -> Evaluated:
    return Evaluated(state(examples, right, loss), **more)


def sliced(**right: int) -> dict[Key, State]:
    """Slices by camera, of 50 examples each."""
    return {(("camera", name),): state(50, count) for name, count in right.items()}


def cost(ms: float) -> dict[str, Any]:
    times = {"p50": ms, "p90": 1.5 * ms, "p99": 2 * ms, "runs": 100, "noise": 0.05, "threads": None}
    return {
        "one_thread": times,
        "all_threads": {**times, "p50": ms / 2, "threads": 4},
        "without_xnnpack": {**times, "p50": 3 * ms},
        "cold_start_ms": 10 * ms,
        "peak_rss_bytes": 4_000_000,
    }


def candidate(name: str, size: int = 1000, zlib_bytes: int = 500, steps: Any = STEPS, failure: Any = None) -> Candidate:
    metadata = {"bytes": size, "zlib_bytes": zlib_bytes, "sparsity": 0.5, "sha256": name * 4, "parity": {}}
    passport = Passport(io={}, steps=steps, failure=failure)
    return Candidate(name, Path("folder", name), passport, None if failure else metadata)


BASELINE = candidate("baseline", 4000, 2000, STEPS[:1])
FIELD = DeployedReport(path="/p/1/model.tflite", version="1", sha256="s", name=None, bytes=9)


@dataclasses.dataclass
class Reporter:
    """Makes reports with the rest of what `evaluation.report` asks for."""

    metrics: CompiledMetrics
    task: Task | None = None

    def __call__(
        self, candidates: list[Candidate], results: dict[str, Any], budget: Budget | None = None, **changes: Any
    ) -> dict[str, Any]:
        """Returns report.json."""
        return to_json(self.report(candidates, results, budget, **changes))

    def report(
        self, candidates: list[Candidate], results: dict[str, Any], budget: Budget | None = None, **changes: Any
    ) -> Report:
        found = {"baseline": did(95), **results}
        costs = changes.pop("devices", {name: cost(0.5) for name in found})
        devices = {name: c if isinstance(c, str) else from_json(DeviceCost, c) for name, c in costs.items()}
        baseline = found["baseline"]
        arguments = {
            "budget": budget or Budget(max_drop=0.05),
            "baseline": BASELINE,
            "candidates": candidates,
            "missing": [],
            "findings": Findings(found, devices, self.metrics, self.task),
            "deployed": FIELD if DEPLOYED in results else None,
            "keras": None,
            "dataset": DatasetReport(
                split="eval",
                examples=baseline.overall.examples if isinstance(baseline, Evaluated) else 0,
                fingerprint="f",
                bad_records=0,
            ),
            **{"created": "2026-11-22T02:00:00+00:00", "pipeline": "p", "module": "m"},
        }
        return reporting.report(**{**arguments, **changes})


@pytest.fixture(scope="module")
def report(metrics: CompiledMetrics) -> Reporter:
    return Reporter(metrics)


def by_name(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in facts["candidates"]}


# all there is to say --------------------------------------------------------------------------------------------------

TASK = Task(3, "sparse", True, "logits")


def classes(predictions: dict[tuple[int, int], int]) -> Classification:
    """From how often each (label, prediction) came; a prediction is made with probability 0.8, the others with 0.1."""
    pairs = np.repeat(list(predictions), list(predictions.values()), axis=0)
    probabilities = np.full([len(pairs), 3], 0.1)
    probabilities[np.arange(len(pairs)), pairs[:, 1]] = 0.8
    return Classification.of(TASK, pairs[:, 0], probabilities, pairs[:, 1])


def full() -> dict[str, Any]:
    """A candidate that breaks 4 of 100 and mends 1; the deployed model has one more right than it."""
    error = OutputError(0.5, 75.0, 3.0, 300.0, 300)
    return {
        "baseline": did(
            95,
            classes=classes({(0, 0): 50, (1, 1): 45, (1, 2): 5}),
            slices=sliced(front=48, rear=47),
            paired={(DEPLOYED, "accuracy"): Paired(100, 1, 3, 0, 100, 2, 100, 2, 4)},
        ),
        "small": did(
            92,
            loss=0.375,
            classes=classes({(0, 0): 47, (0, 2): 3, (1, 1): 45, (1, 2): 5}),
            slices=sliced(rear=47, front=45),
            comparison=Comparison(100, {"logits": error}, True, 94, 4, 1),
            paired={
                ("baseline", "accuracy"): Paired(100, 4, 1, 0, 100, -3, 100, -3, 5),
                (DEPLOYED, "accuracy"): Paired(100, 2, 1, 0, 100, -1, 100, -1, 3),
            },
            flips=[
                Flip(1, "right_to_wrong", 0, 0, 2, np.arange(80, dtype=np.uint8).reshape(8, 10), {"camera": "front"}),
                Flip(2, "wrong_to_right", 1, 2, 1, None, {"camera": "rear"}),
            ],
        ),
        DEPLOYED: did(93, slices=sliced(front=46, rear=47)),
    }


@pytest.fixture(scope="module")
def whole_report(metrics: CompiledMetrics) -> Report:
    failure = {"step": "Quantizer", "error": "ValueError: <no>"}
    found = full()
    return Reporter(metrics, TASK).report(
        [
            candidate("small"),
            candidate("float32", 4000, 2000, STEPS[:1]),
            candidate("failed", steps=STEPS[:2], failure=failure),
            candidate("nan"),
            candidate("crashes", zlib_bytes=10),
        ],
        # the same file as the baseline: one and the same object
        {**found, "float32": found["baseline"], "nan": "outputs y hold NaN values", "crashes": did(95)},
        Budget(max_drop=0.05, max_deployed_drop=0.02, max_slice_drops={"camera": 0.1}, max_bytes=4000),
        devices={**{name: cost(0.5) for name in ("baseline", "small", "float32")}, "crashes": "LiteRT crashed"},
        missing=["gone"],
        keras=KerasReport(metrics={"loss": 0.2, "accuracy": 0.95}, max_abs_difference=1e-6),
        dataset=DatasetReport(
            split="eval",
            examples=found["baseline"].overall.examples,
            fingerprint="f",
            label_names=("a", "b", "c"),
            bad_records=2,
            slice_features=(("camera",), ("label",)),
        ),
    )


@pytest.fixture(scope="module")
def whole(whole_report: Report) -> dict[str, Any]:
    """Its report.json."""
    return to_json(whole_report)


def test_all_of_a_candidate(whole: dict[str, Any]) -> None:
    entry = copy.deepcopy(by_name(whole)["small"])
    assert entry.pop("classification").keys() == {
        "output", "classes", "confusion", "top_k", "per_class", "log_loss", "ece", "bins",
    }  # fmt: skip
    # 5 and 2 of 102 against 1 and 1: see the intervals' own tests
    # (5 - 2) / 102 = 0.0294118, sqrt((7/102 - 0.0294118**2) / 102) = 0.0257747, times 1.959964 = 0.0505175
    low, high = entry.pop("drop_interval")
    assert (low, high) == pytest.approx((-0.0211058, 0.0799293), abs=1e-6)
    # the better of three: 0.95**(1/3) = 0.9830476, whose quantile is 2.3877, for 1.959964 above
    low, high = entry.pop("chosen_drop_interval")
    assert (low, high) == pytest.approx((0.0294118 - 2.3877 * 0.0257747, 0.0294118 + 2.3877 * 0.0257747), abs=1e-5)
    # (3 - 2) / 102 = 0.0098039, sqrt((5/102 - 0.0098039**2) / 102) = 0.0219009, times 1.959964 = 0.0429250
    low, high = entry.pop("deployed_drop_interval")
    assert (low, high) == pytest.approx((-0.0331210, 0.0527289), abs=1e-6)
    assert entry.pop("flipped")[0].pop("image").startswith("data:image/png;base64,")
    assert entry == {
        "name": "small",
        "recipe": [
            {"step": "Pruner", "config": {"sparsity": 0.8, "ramp": 0.75}},
            {"step": "Quantizer", "config": {"scheme": "int8"}},
        ],
        "metrics": {"loss": 0.375, "accuracy": 0.92},
        "undefined": {},
        "chance": {},
        "outputs": [],
        "misses": [],
        "drop": pytest.approx(0.03),
        "deployed_drop": pytest.approx(0.01),
        "more_drops": {},
        "bytes": 1000,
        "zlib_bytes": 500,
        "ratio": 4.0,  # 2,000 by 500
        "latency_ms": {"p50": 0.5, "p90": 0.75},
        "device": cost(0.5),
        "sparsity": 0.5,
        "comparison": {
            "examples": 100,
            "agreement": 0.94,
            "flips": {"right_to_wrong": 4, "wrong_to_right": 1},
            "outputs": {"logits": {"max_abs_error": 0.5, "mean_abs_error": 0.25, "sqnr_db": pytest.approx(20.0)}},
        },
        "slices": [
            {
                "features": {"camera": "front"},
                "examples": 50,
                "metrics": {"loss": 0.25, "accuracy": 0.9},
                "drop": pytest.approx(0.06),
                "more_drops": {},
            },
            {
                "features": {"camera": "rear"},
                "examples": 50,
                "metrics": {"loss": 0.25, "accuracy": 0.94},
                "drop": 0.0,
                "more_drops": {},
            },
        ],
        "ladder": [
            {"step": "Trainer", "zlib_bytes": 3000},
            {"step": "Pruner", "zlib_bytes": 1000},
            {"step": "TFLiteExporter", "zlib_bytes": 500},
        ],
        "sensitivity": None,
        "ladder_walked": None,
        "blessed": True,
        "reasons": [],
        "pareto": True,
        "sha256": "small" * 4,
        "failure": None,
        "steps": [
            {"step": "Trainer", "metrics": {"accuracy": 0.99}, "split": "validation"},
            {"step": "Pruner", "metrics": {"accuracy": 0.98}, "split": "validation"},
        ],
        "layers": PRUNER["layers"],
    }


def test_every_candidate_has_every_field(whole: dict[str, Any]) -> None:
    keys = {
        *("name", "recipe", "steps", "layers", "metrics", "drop", "bytes", "zlib_bytes", "ratio", "latency_ms"),
        *("sparsity", "blessed", "reasons", "pareto", "sha256", "failure", "drop_interval", "device"),
        *("classification", "comparison", "deployed_drop", "deployed_drop_interval", "slices", "flipped", "ladder"),
        *("sensitivity", "ladder_walked", "undefined", "more_drops", "chance", "misses", "chosen_drop_interval"),
        "outputs",
    }
    assert [entry["name"] for entry in whole["candidates"]] == ["small", "float32", "failed", "nan", "crashes", "gone"]
    for entry in whole["candidates"]:
        assert entry.keys() == keys


def test_the_rest_of_the_report(whole: dict[str, Any]) -> None:
    assert whole.keys() == {
        *("schema_version", "created", "pipeline", "module", "dataset", "budget", "baseline", "deployed", "candidates"),
        *("like", "training", "selected", "chosen_among", "closest", "versions", "machine", "module_digest", "run"),
    }
    assert whole["schema_version"] == 3
    assert whole["module_digest"] is whole["run"] is None  # a run adds itself
    assert whole["dataset"] == {
        "split": "eval",
        "fingerprint": "f",
        "label_names": ["a", "b", "c"],
        "training_examples": {},
        "bad_records": 2,
        "slice_features": [["camera"], ["label"]],
        "examples": 100,
        "spans": None,
    }
    assert (whole["selected"], whole["chosen_among"]) == ("small", 3)
    assert whole["closest"] is None
    assert whole["versions"]["tensorflow"] == "2.21.0"
    assert whole["machine"]["cores"] >= 1
    assert whole["machine"]["cpu"]


def test_the_baseline(whole: dict[str, Any]) -> None:
    baseline = whole["baseline"]
    assert {
        *("metrics", "bytes", "zlib_bytes", "sha256", "latency_ms", "device", "classification", "slices", "keras"),
    } <= baseline.keys()
    assert baseline["metrics"] == {"loss": 0.25, "accuracy": 0.95}
    assert (baseline["bytes"], baseline["zlib_bytes"], baseline["sha256"]) == (4000, 2000, "baseline" * 4)
    assert baseline["device"] == cost(0.5)
    assert baseline["keras"] == {"metrics": {"loss": 0.2, "accuracy": 0.95}, "max_abs_difference": 1e-6}
    assert baseline["comparison"] is None
    assert [entry["drop"] for entry in baseline["slices"]] == [None, None]
    assert baseline["classification"]["confusion"] == [[50, 0, 0], [0, 45, 5], [0, 0, 0]]
    assert baseline["classification"]["per_class"][2] == {"precision": 0.0, "recall": None, "examples": 0}


def test_the_deployed_model(whole: dict[str, Any]) -> None:
    found = whole["deployed"]
    measured = ("metrics", "slices", "classification", "comparison", "flipped")
    known = {key: value for key, value in to_json(FIELD).items() if key not in measured}
    assert {**known, "metrics": {"loss": 0.25, "accuracy": 0.93}, "failure": None}.items() <= found.items()
    assert [(entry["features"], entry["drop"]) for entry in found["slices"]] == [
        ({"camera": "front"}, pytest.approx(0.04)),
        ({"camera": "rear"}, 0.0),
    ]


def test_the_baseline_as_a_candidate(whole: dict[str, Any]) -> None:
    entry = by_name(whole)["float32"]
    assert (entry["ratio"], entry["drop"], entry["drop_interval"]) == (1.0, 0.0, [0.0, 0.0])
    assert entry["metrics"] == whole["baseline"]["metrics"]
    assert [part["drop"] for part in entry["slices"]] == [0.0, 0.0]
    # it has two more right than the deployed one; (4 - 2) / 102 = 0.0196078
    # sqrt((6/102 - 0.0196078**2) / 102) = 0.0239360, times 1.959964 = 0.0469137
    assert entry["deployed_drop"] == pytest.approx(-0.02)
    assert entry["deployed_drop_interval"] == pytest.approx((-0.0665215, 0.0273059), abs=1e-6)
    assert entry["blessed"]
    assert entry["pareto"]


def test_a_candidate_that_failed_is_listed_with_its_error(whole: dict[str, Any]) -> None:
    entry = by_name(whole)["failed"]
    assert entry["failure"] == {"step": "Quantizer", "error": "ValueError: <no>"}
    assert entry["reasons"] == ["Quantizer failed: ValueError: <no>"]
    assert not entry["blessed"]
    assert not entry["pareto"]
    assert entry["metrics"] is entry["bytes"] is entry["ratio"] is entry["sha256"] is entry["device"] is None
    assert entry["recipe"] == [{"step": "Pruner", "config": {"sparsity": 0.8, "ramp": 0.75}}]
    assert entry["ladder"] == [{"step": "Trainer", "zlib_bytes": 3000}, {"step": "Pruner", "zlib_bytes": 1000}]


def test_a_candidate_that_was_given_up_during_the_evaluation(whole: dict[str, Any]) -> None:
    entry = by_name(whole)["nan"]
    assert entry["failure"] == {"step": "Evaluator", "error": "outputs y hold NaN values"}
    assert entry["reasons"] == ["Evaluator failed: outputs y hold NaN values"]
    assert not entry["blessed"]
    assert entry["bytes"] == 1000  # what is known of it stays


def test_a_candidate_whose_cost_cannot_be_measured(whole: dict[str, Any]) -> None:
    entry = by_name(whole)["crashes"]
    text = "its cost could not be measured: LiteRT crashed"
    assert entry["failure"] == {"step": "Evaluator", "error": text}
    assert entry["reasons"] == [f"Evaluator failed: {text}"]
    assert not entry["blessed"]
    assert not entry["pareto"]  # though nothing is smaller
    assert entry["metrics"] == {"loss": 0.25, "accuracy": 0.95}
    assert entry["latency_ms"] is entry["device"] is None


def test_a_candidate_whose_earlier_step_failed_is_missing_and_listed(whole: dict[str, Any]) -> None:
    entry = by_name(whole)["gone"]
    assert not entry["blessed"]
    assert not entry["pareto"]
    assert entry["failure"]["step"] == "an earlier step"
    assert entry["reasons"] == ["it failed, so that there is nothing to evaluate; see the log"]


def test_every_training_is_listed_once(whole: dict[str, Any]) -> None:
    trained = ["small", "failed", "nan", "crashes"]
    assert whole["training"] == [
        {
            "step": "Trainer",
            "of": ["baseline", "small", "float32", *trained[1:]],
            "config": {"epochs": 4},
            "history": HISTORY,
            **{"phases": [], "warm_start": None},
        },
        {
            **{"step": "Pruner", "of": trained, "config": PRUNER["config"], "history": {"loss": [1.25]}},
            **{"phases": [], "warm_start": None},
        },
    ]


def test_the_report_is_json_and_can_be_drawn(whole_report: Report, whole: dict[str, Any]) -> None:
    assert json.loads(json.dumps(whole, allow_nan=False))["selected"] == "small"
    html = render(whole_report)
    assert all(candidate.name in html for candidate in whole_report.candidates)


# the verdict ----------------------------------------------------------------------------------------------------------


def test_the_smallest_that_fits_is_selected(report: Reporter) -> None:
    facts = report(
        [candidate("large", zlib_bytes=900), candidate("fits", zlib_bytes=400), candidate("broken", zlib_bytes=100)],
        {"large": did(95), "fits": did(91), "broken": did(50)},
    )
    found = by_name(facts)
    assert facts["selected"] == "fits"
    assert [found[name]["blessed"] for name in ("large", "fits", "broken")] == [True, True, False]
    assert found["broken"]["reasons"] == ["accuracy drop 0.45 exceeds 0.05"]
    assert [found[name]["pareto"] for name in ("large", "fits", "broken")] == [True, True, True]


def test_nothing_fits(report: Reporter) -> None:
    candidates = [candidate("near", zlib_bytes=400), candidate("far", zlib_bytes=100), candidate("crashes")]
    facts = report(
        candidates,
        {"near": did(89), "far": did(50), "crashes": did(95)},
        devices={"near": cost(1), "far": cost(1), "crashes": "LiteRT did not finish in 120 s"},
    )
    assert facts["selected"] is None
    assert facts["closest"] == "near"  # what has failed is close to nothing
    assert not any(entry["blessed"] for entry in facts["candidates"])


def test_a_first_push_has_to_be_better_than_the_commonest_class(report: Reporter) -> None:
    # 40 of 100 labels are of class 1: 0.4 + 1.96 * sqrt(0.4 * 0.6 / 100) = 0.49602
    labels = np.repeat([0, 1, 2], [30, 40, 30])
    chance = {"accuracy": CommonestClass.of(labels, np.ones(100), 3)}
    results = {name: did(right, chance=chance) for name, right in (("baseline", 95), ("guess", 49), ("knows", 50))}
    candidates, budget = [candidate("guess"), candidate("knows")], Budget(max_drop=1.0)
    for must_beat_chance, kept in ((True, [False, True]), (False, [True, True])):
        facts = report(candidates, results, budget, must_beat_chance=must_beat_chance)
        assert [entry["blessed"] for entry in facts["candidates"]] == kept
        assert [entry["chance"]["accuracy"]["beaten"] for entry in facts["candidates"]] == [False, True]
    [refused, taken] = report(candidates, results, budget, must_beat_chance=True)["candidates"]
    assert refused["misses"] == ["chance"]
    assert refused["reasons"] == [
        "at chance level: accuracy 0.4900, where always to answer 1, the commonest class, has 0.4000 (0.0960 more may "
        "be luck); as the first model that is pushed it has to be better: train longer, say with --value-threshold "
        "what is good enough, or let it be pushed with --allow-chance-level"
    ]
    assert (taken["misses"], taken["reasons"]) == ([], [])
    assert taken["chance"] == {
        "accuracy": {
            **{"guess": "commonest class", "answer": 1, "value": 0.4, "beaten": True},
            "margin": pytest.approx(1.96 * np.sqrt(0.4 * 0.6 / 100)),
        }
    }


def test_the_selected_ones_interval_knows_among_how_many_it_was_chosen(report: Reporter) -> None:
    paired = {("baseline", "accuracy"): Paired(100, 4, 1, 0, 100, -3, 100, -3, 5)}
    names = ["a", "b", "c"]
    candidates = [candidate(name, zlib_bytes=100 + i) for i, name in enumerate(names)]
    results: dict[str, Any] = {name: did(92, paired=paired) for name in names}
    # a file under two names, and one that failed, are no choice more
    twice = dataclasses.replace(candidate("d", zlib_bytes=900), metadata=candidates[2].metadata)
    facts = report([*candidates, twice, candidate("e")], {**results, "d": results["c"], "e": "it failed"})
    assert (facts["selected"], facts["chosen_among"]) == ("a", 3)
    [chosen, *others] = facts["candidates"]
    z = stats.norm.ppf(1 - (1 - 0.95 ** (1 / 3)) / 2)
    middle, half = 3 / 102, z * np.sqrt((7 / 102 - (3 / 102) ** 2) / 102)
    assert chosen["chosen_drop_interval"] == pytest.approx([middle - half, middle + half])
    assert chosen["drop_interval"] == pytest.approx([middle - half / z * 1.959964, middle + half / z * 1.959964])
    assert [entry["chosen_drop_interval"] for entry in others] == [None] * 4
    nothing = report(candidates, results, Budget(max_drop=0.0))
    assert (nothing["selected"], nothing["chosen_among"]) == (None, None)
    assert [entry["chosen_drop_interval"] for entry in nothing["candidates"]] == [None] * 3


def test_other_metrics_are_not_compared_with_a_guess(report: Reporter) -> None:
    chance = {"accuracy": CommonestClass.of(np.zeros(100, np.int64), np.ones(100), 3)}
    facts = report(
        [candidate("a")], {"baseline": did(95, chance=chance), "a": did(95, chance=chance)},
        Budget(metric="loss", direction="min"), must_beat_chance=True,
    )  # fmt: skip
    assert facts["selected"] == "a"
    assert facts["candidates"][0]["chance"] == facts["baseline"]["chance"] == {}


def test_a_candidate_without_a_result_is_never_blessed(report: Reporter) -> None:
    facts = report([candidate("unmeasured")], {})
    assert not facts["candidates"][0]["blessed"]
    assert facts["selected"] is None


def test_all_that_failed(report: Reporter) -> None:
    failure = {"step": "TFLiteExporter", "error": "x"}
    facts = report([candidate("failed", failure=failure)], {}, missing=["gone"])
    assert facts["selected"] is facts["closest"] is None


@pytest.mark.parametrize(
    ("limit", "reason"),
    [
        ({"max_bytes": 999}, "file size 1,000 bytes exceeds 999 bytes"),
        ({"max_zlib_bytes": 499}, "size after zlib 500 bytes exceeds 499 bytes"),
        ({"max_latency_ms": 0.4}, "median latency 0.5 ms exceeds 0.4 ms"),
        ({"max_latency_p90_ms": 0.7}, "90th percentile of latency 0.75 ms exceeds 0.7 ms"),
        ({"max_latency_p99_ms": 0.9}, "99th percentile of latency 1 ms exceeds 0.9 ms"),
        ({"max_latency_all_threads_ms": 0.2}, "median latency on all threads 0.25 ms exceeds 0.2 ms"),
        ({"max_latency_without_xnnpack_ms": 1.4}, "median latency without XNNPACK 1.5 ms exceeds 1.4 ms"),
        ({"max_cold_start_ms": 4.9}, "cold start 5 ms exceeds 4.9 ms"),
        ({"max_peak_rss_bytes": 3_999_999}, "peak memory 4 MB exceeds 3.999999 MB"),
    ],
)
def test_every_limit_is_on_what_its_name_says(report: Reporter, limit: dict[str, Any], reason: str) -> None:
    facts = report([candidate("a")], {"a": did(95)}, Budget(**limit))
    assert facts["candidates"][0]["reasons"] == [reason]
    [(name, value)] = limit.items()
    assert facts["budget"][name] == value
    assert facts["closest"] == "a"


def test_what_was_not_measured_counts_only_where_it_is_limited(report: Reporter) -> None:
    without = {**cost(0.5), "peak_rss_bytes": None}
    for budget, reasons in (
        (Budget(), []),
        (Budget(max_peak_rss_bytes=10**9), ["peak memory could not be measured, and the budget limits it"]),
    ):
        facts = report([candidate("a")], {"a": did(95)}, budget, devices={"a": without})
        assert facts["candidates"][0]["reasons"] == reasons


def test_the_upper_bound_of_the_drop(report: Reporter) -> None:
    paired = {("baseline", "accuracy"): Paired(100, 4, 1, 0, 100, -3, 100, -3, 5)}  # 0.03, up to 0.0799293
    for bound, blessed in (("point", True), ("upper", False)):
        facts = report([candidate("a")], {"a": did(92, paired=paired)}, Budget(max_drop=0.05, drop_bound=bound))
        assert facts["candidates"][0]["blessed"] == blessed
        assert facts["budget"]["drop_bound"] == bound
    [reason] = facts["candidates"][0]["reasons"]
    assert reason.startswith("accuracy drop 0.03 may be up to 0.07993 (95% interval), which exceeds 0.05")
    # the baseline's own file has no doubt about it
    same = did(95)
    facts = report([candidate("a")], {"baseline": same, "a": same}, Budget(max_drop=0.0, drop_bound="upper"))
    assert facts["candidates"][0]["blessed"]


def test_an_error_wants_to_be_small(report: Reporter) -> None:
    # differences 1, 2, 3, 6 of the loss, worked in the intervals' own tests: 3 +- 2.117003
    paired = Paired.of(np.array([1.5, 4.0, 3.25, 8.0]), np.array([0.5, 2.0, 0.25, 2.0]), np.ones(4))
    facts = report(
        [candidate("better"), candidate("worse", zlib_bytes=100)],
        {
            "baseline": did(0, 4, loss=1.1875),
            "better": did(0, 4, loss=0.6875),
            "worse": did(0, 4, loss=4.1875, paired={("baseline", "loss"): paired}),
        },
        Budget(metric="loss", direction="min", max_drop=0.5),
    )
    found = by_name(facts)
    assert (found["better"]["drop"], found["worse"]["drop"]) == (-0.5, 3.0)
    assert found["better"]["drop_interval"] is None
    assert found["worse"]["drop_interval"] == pytest.approx((3 - 2.117003, 3 + 2.117003), abs=1e-6)
    assert found["worse"]["reasons"] == ["loss drop 3 exceeds 0.5"]
    assert facts["selected"] == "better"


def test_limits_that_are_off_are_none_in_the_report(report: Reporter) -> None:
    facts = report([candidate("a")], {"a": did(95)}, Budget(max_bytes=2000, max_deployed_drop=None))
    assert facts["budget"] == {
        "metric": "accuracy",
        "direction": "max",
        "max_drop": 0.01,
        "more_metrics": [],
        "metric_is_default": True,
        "drop_bound": "point",
        "value_threshold": None,
        "max_deployed_drop": None,
        "max_slice_drops": {},
        "min_slice_examples": 20,
        "max_bytes": 2000,
        "max_zlib_bytes": None,
        "max_latency_ms": None,
        "max_latency_p90_ms": None,
        "max_latency_p99_ms": None,
        "max_latency_all_threads_ms": None,
        "max_latency_without_xnnpack_ms": None,
        "max_cold_start_ms": None,
        "max_peak_rss_bytes": None,
        "objective": "zlib_bytes",
        "target": "cpu",
    }


# several metrics ------------------------------------------------------------------------------------------------------


def lossy(right: int, loss: float, **more: Any) -> Evaluated:
    """What a model did, with slices of 50 examples by camera that are as good as the whole."""
    parts = {(("camera", name),): state(50, right // 2, loss) for name in ("front", "rear")}
    return Evaluated(state(100, right, loss), slices=parts, **more)


def test_every_metric_is_reported_and_judged(report: Reporter) -> None:
    paired = {
        ("baseline", "accuracy"): Paired(100, 4, 1, 0, 100, -3, 100, -3, 5),  # 0.03 +- 0.0499293
        ("baseline", "loss"): Paired.of(np.array([1.5, 4.0, 3.25, 8.0]), np.array([0.5, 2.0, 0.25, 2.0]), np.ones(4)),
    }
    results = {
        "baseline": lossy(96, 0.25),
        "good": lossy(94, 0.5, paired=paired),
        "small": lossy(94, 1.0),
        "wrong": lossy(80, 0.25),
        DEPLOYED: lossy(95, 0.75),
    }
    budget = Budget(metric=["loss:min:0.5", "accuracy:max:0.05"], max_deployed_drop=0.02)
    candidates = [candidate("good"), candidate("small", zlib_bytes=100), candidate("wrong", zlib_bytes=90)]
    facts = report(candidates, results, budget)
    assert {key: facts["budget"][key] for key in ("metric", "direction", "max_drop", "metric_is_default")} == {
        "metric": "loss", "direction": "min", "max_drop": 0.5, "metric_is_default": False,
    }  # fmt: skip
    assert facts["budget"]["more_metrics"] == [{"metric": "accuracy", "direction": "max", "max_drop": 0.05}]
    found = by_name(facts)
    assert found["good"]["reasons"] == []
    assert found["small"]["reasons"] == [
        "loss drop 0.75 exceeds 0.5",
        "loss is 0.25 worse than the deployed model's, which exceeds 0.02 (--max-deployed-drop); worse in camera=front "
        "(0.25), camera=rear (0.25)",
    ]
    assert found["wrong"]["reasons"] == [
        "accuracy drop 0.16 exceeds 0.05",
        "accuracy is 0.15 worse than the deployed model's, which exceeds 0.02 (--max-deployed-drop); worse in "
        "camera=front (0.14), camera=rear (0.14)",
    ]
    assert facts["selected"] == "good"
    good = found["good"]
    assert (good["drop"], good["deployed_drop"]) == (0.25, -0.25)
    assert good["drop_interval"] == pytest.approx((3 - 2.117003, 3 + 2.117003), abs=1e-6)
    accuracy = good["more_drops"]["accuracy"]
    assert list(good["more_drops"]) == ["accuracy"]
    assert (accuracy["drop"], accuracy["deployed_drop"]) == (pytest.approx(0.02), pytest.approx(0.01))
    assert accuracy["drop_interval"] == pytest.approx((-0.0211058, 0.0799293), abs=1e-6)
    assert accuracy["deployed_drop_interval"] is None
    for lost, widened in ((good, good["chosen_drop_interval"]), (accuracy, accuracy["chosen_drop_interval"])):
        assert widened[0] < lost["drop_interval"][0] < lost["drop_interval"][1] < widened[1]  # chosen among three
    assert found["wrong"]["more_drops"]["accuracy"]["chosen_drop_interval"] is None
    for part in good["slices"]:
        assert (part["drop"], part["more_drops"]) == (0.25, {"accuracy": pytest.approx(0.02)})
    assert [part["more_drops"] for part in facts["baseline"]["slices"]] == [{}, {}]


def test_slices_may_be_limited_by_metric(report: Reporter) -> None:
    results = {"baseline": lossy(96, 0.25), "a": lossy(86, 1.0)}

    def of(**drops: float) -> list[str]:
        limits = {key.replace("_", ":"): drop for key, drop in drops.items()}
        budget = Budget(metric=["accuracy:max:0.5", "loss:min:5"], max_slice_drops=limits)
        [entry] = report([candidate("a")], results, budget)["candidates"]
        return [reason.split(" (")[0] for reason in entry["reasons"]]

    accuracy = [f"accuracy drop 0.1 in camera={name}" for name in ("front", "rear")]
    loss = [f"loss drop 0.75 in camera={name}" for name in ("front", "rear")]
    assert of(camera=0.05) == accuracy + loss
    assert of(camera=0.05, loss_camera=2.0) == accuracy
    assert of(loss_camera=0.5) == loss
    assert of(camera=0.05, accuracy_camera=0.2) == loss
    with pytest.raises(UserError, match="limits the drop in slices by 'hour'"):
        of(loss_hour=0.5)


def test_a_second_metric_without_a_value_makes_nothing_eligible(binary: CompiledMetrics) -> None:
    scores = np.float32([[0.2], [0.3], [0.7]])
    results = {name: Evaluated(binary.batch(tf.zeros([3, 1]), [scores])) for name in ("baseline", "a")}
    whole = Reporter(binary)([candidate("a")], results, Budget(metric=["accuracy", "auc:max:0.05"]))
    assert whole["selected"] is whole["closest"] is None
    assert whole["candidates"][0]["reasons"] == ["auc has no value on the eval split: no example has a positive label"]
    assert whole["candidates"][0]["more_drops"]["auc"]["drop"] is None


# slices ---------------------------------------------------------------------------------------------------------------


def test_slices_are_judged_by_the_narrowest_limit(report: Reporter) -> None:
    results = {"baseline": did(95, slices=sliced(front=48, rear=48)), "a": did(93, slices=sliced(front=46, rear=44))}
    # 0.04 in front of 0.03 or 0.05, 0.08 in the rear
    for drops, reasons in [
        ({"camera": 0.08}, []),
        ({"camera": 0.05}, ["accuracy drop 0.08 in camera=rear (50 examples) exceeds 0.05"]),
        ({"camera=front": 0.05}, []),
        (
            {"camera": 0.05, "camera=front": 0.03},
            [
                "accuracy drop 0.08 in camera=rear (50 examples) exceeds 0.05",
                "accuracy drop 0.04 in camera=front (50 examples) exceeds 0.03",
            ],
        ),
        ({"camera": 0.05, "camera=rear": 0.1}, ["accuracy drop 0.08 in camera=rear (50 examples) exceeds 0.05"]),
    ]:
        facts = report([candidate("a")], results, Budget(max_drop=0.05, max_slice_drops=drops))
        assert facts["candidates"][0]["reasons"] == reasons
        assert facts["budget"]["max_slice_drops"] == drops


def test_small_slices_are_not_judged(report: Reporter) -> None:
    few, many = (("label", 10),), (("label", 9),)
    results = {
        "baseline": did(95, slices={few: state(19, 19), many: state(20, 20)}),
        "a": did(95, slices={few: state(19, 0), many: state(20, 20)}),
    }
    budget = Budget(max_slice_drops={"label": 0})
    [entry] = report([candidate("a")], results, budget)["candidates"]
    assert entry["blessed"]
    # they are listed all the same, by number and not by text
    assert [(part["features"], part["drop"]) for part in entry["slices"]] == [({"label": 9}, 0.0), ({"label": 10}, 1.0)]
    [entry] = report([candidate("a")], results, dataclasses.replace(budget, min_slice_examples=19))["candidates"]
    assert entry["reasons"] == ["accuracy drop 1 in label=10 (19 examples) exceeds 0"]


def test_slices_are_listed_by_names_and_then_values(report: Reporter) -> None:
    keys: list[Key] = [
        (("label", 10),),
        (("camera", "rear"), ("label", 2)),
        (("camera", "rear"),),
        (("camera", "front"), ("label", 11)),
        (("label", 9),),
        (("camera", "front"), ("label", 2)),
    ]
    facts = report([], {"baseline": did(95, slices={key: state(5, 5) for key in keys})})
    assert [list(part["features"].values()) for part in facts["baseline"]["slices"]] == [
        ["front", 2], ["front", 11], ["rear"], ["rear", 2], [9], [10],
    ]  # fmt: skip


def test_no_slice_has_examples_enough(report: Reporter) -> None:
    slices = {(("label", 3),): state(19, 19)}
    with pytest.raises(UserError) as error:
        report([], {"baseline": did(95, slices=slices)}, Budget(max_slice_drops={"label": 0.1, "label=3": 0}))
    assert str(error.value) == (
        "the budget limits the drop in slices by label, label=3, but none of them has the 20 examples that "
        "--min-slice-examples asks for"
    )


def test_a_slice_that_no_example_is_in(report: Reporter) -> None:
    baseline = did(95, slices=sliced(front=48, rear=48))
    text = r"slices by 'camera=frnt' \(did you mean 'camera=front'\?\), but the eval split has no example in one"
    with pytest.raises(UserError, match=text):
        report([], {"baseline": baseline}, Budget(max_slice_drops={"camera": 0.1, "camera=frnt": 0.05}))
    with pytest.raises(UserError, match="slices by 'hour', but the eval split has no example in one"):
        report([], {"baseline": baseline}, Budget(max_slice_drops={"hour": 0.1}))


def test_a_slice_in_which_the_metric_is_no_number_is_not_judged(report: Reporter) -> None:
    weightless = State(50, np.array([12.5, 0.0]), np.array([50.0, 0.0]))
    baseline, other = did(95, slices=sliced(front=48)), did(95, slices=sliced(front=48))
    for result in (baseline, other):
        result.slices[(("camera", "rear"),)] = weightless
    budget = Budget(max_slice_drops={"camera": 0.1})
    facts = report([candidate("a")], {"baseline": baseline, "a": other, DEPLOYED: other}, budget)
    assert facts["candidates"][0]["blessed"]


# the deployed model ---------------------------------------------------------------------------------------------------


def test_worse_than_the_deployed_model(report: Reporter) -> None:
    results = {
        "baseline": did(95, slices=sliced(front=48, rear=47)),
        "a": did(94, slices=sliced(front=45, rear=49)),
        DEPLOYED: did(96, slices=sliced(front=48, rear=48)),
    }
    [entry] = report([candidate("a")], results)["candidates"]
    assert entry["reasons"] == [
        "accuracy is 0.02 worse than the deployed model's, which exceeds 0 (--max-deployed-drop); worse in "
        "camera=front (0.06)"
    ]
    assert entry["deployed_drop"] == pytest.approx(0.02)
    assert entry["deployed_drop_interval"] is None  # nothing says how they differ example by example
    [entry] = report([candidate("a")], results, Budget(max_drop=0.05, max_deployed_drop=0.02))["candidates"]
    assert entry["blessed"]


def test_a_deployed_model_that_cannot_be_evaluated_blocks_nobody(report: Reporter) -> None:
    content = report.report([candidate("a")], {"a": did(95), DEPLOYED: "KeyError: 'image'"})
    assert content.deployed == dataclasses.replace(FIELD, metrics=None, slices=(), failure="KeyError: 'image'")
    assert content.selected == "a"
    assert content.candidates[0].deployed_drop is None
    assert "KeyError" in render(content)


def test_no_deployed_model(report: Reporter) -> None:
    assert report([candidate("a")], {"a": did(95)})["deployed"] is None


def test_what_is_said_of_the_deployed_model() -> None:
    found = Deployed("/p/2/model.tflite", "2", "sha", "int8", {"bytes": 9, "zlib_bytes": 7, "x": 1}, {}, "2026-01-31")
    assert reporting.deployed_report(found) == DeployedReport(
        path="/p/2/model.tflite",
        version="2",
        sha256="sha",
        name="int8",
        pushed_at="2026-01-31",
        bytes=9,
        zlib_bytes=7,
    )


# a metric that is no mean ---------------------------------------------------------------------------------------------


def area(labels: np.ndarray, scores: np.ndarray) -> float:
    """The share of pairs of a positive and a negative that are in order, a tie counting half."""
    apart = scores[labels == 1][:, None] - scores[labels == 0]
    return float(np.mean((apart > 0) + 0.5 * (apart == 0)))


@pytest.fixture(scope="module")
def areas(binary: CompiledMetrics) -> dict[str, Any]:
    """Two models' scores of 400 examples in 20 groups, in tenths: Keras' 200 thresholds tell them apart."""
    random = np.random.default_rng(5)
    labels, group = random.integers(0, 2, 400), random.integers(0, 20, 400)
    scores = {
        name: np.clip(np.rint(random.normal(0.4 + 0.2 * labels, spread) * 10), 0.5, 9.5) / 10
        for name, spread in (("baseline", 0.1), ("a", 0.2))
    }

    def states(name: str, rows: np.ndarray) -> State:
        return binary.batch(tf.constant(labels[rows]), [scores[name][rows].astype(np.float32)[:, None]])

    results = {
        name: Evaluated(states(name, group >= 0), groups={g: states(name, group == g) for g in range(20)})
        for name in scores
    }
    difference = {
        g: area(labels[group != g], scores["a"][group != g]) - area(labels[group != g], scores["baseline"][group != g])
        for g in range(20)
    }
    whole = area(labels, scores["a"]) - area(labels, scores["baseline"])
    return {"results": results, "drop": -whole, "without": list(difference.values())}


def test_a_metric_that_is_no_mean_gets_its_interval_from_groups(binary: CompiledMetrics, areas: dict[str, Any]) -> None:
    budget = Budget(metric="auc", max_drop=0.5)
    [entry] = Reporter(binary)([candidate("a")], areas["results"], budget)["candidates"]
    assert 0.02 < entry["drop"] == pytest.approx(areas["drop"], abs=1e-6)
    low, high = comparison.jackknife(-areas["drop"], areas["without"])
    assert entry["drop_interval"] == pytest.approx((-high, -low), abs=1e-6)
    assert entry["drop_interval"][0] < entry["drop"] < entry["drop_interval"][1]


def test_a_metric_without_a_value_makes_nothing_eligible(binary: CompiledMetrics) -> None:
    scores = np.float32([[0.2], [0.3], [0.7]])
    results = {name: Evaluated(binary.batch(tf.zeros([3, 1]), [scores])) for name in ("baseline", "a")}
    whole = Reporter(binary)([candidate("a")], results, Budget(metric="auc", max_drop=0.05))
    why = "no example has a positive label"
    assert whole["selected"] is None
    [entry] = whole["candidates"]
    assert entry["reasons"] == [f"auc has no value on the eval split: {why}"]
    for model in (entry, whole["baseline"]):
        assert model["metrics"]["auc"] is None
        assert model["undefined"] == {"auc": why}
    assert entry["drop"] is None
    # on another metric they are judged as ever
    assert Reporter(binary)([candidate("a")], results, Budget(max_drop=0.05))["selected"] == "a"


def test_slices_in_which_the_metric_has_no_value_judge_nothing(binary: CompiledMetrics) -> None:
    scores = np.float32([[0.2], [0.3], [0.7]])
    both, none = (binary.batch(tf.constant(labels), [scores]) for labels in ([[0.0], [0], [1]], [[0.0], [0], [0]]))
    results = {name: Evaluated(both, slices={(("camera", "rear"),): none}) for name in ("baseline", "a")}
    budget = Budget(metric="auc", max_drop=0.05, max_slice_drops={"camera": 0.1}, min_slice_examples=1)
    with pytest.raises(UserError, match=r"auc has no value in any of them \(camera=rear: no example has a positive"):
        Reporter(binary)([candidate("a")], results, budget)


def test_too_few_groups_give_no_interval(binary: CompiledMetrics, areas: dict[str, Any]) -> None:
    results = {}
    for name, found in areas["results"].items():
        groups = {group: found.groups[group] for group in range(19)}
        results[name] = Evaluated(functools.reduce(operator.add, groups.values()), groups=groups)
    budget = Budget(metric="auc", max_drop=0.5, drop_bound="upper")
    [entry] = Reporter(binary)([candidate("a")], results, budget)["candidates"]
    assert entry["drop_interval"] is None
    assert entry["reasons"] == ["the interval of the auc drop, which --drop-bound upper asks for, is not known"]


# flips ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 10), (9, 8, 3)])
def test_an_image_that_flipped_is_drawn_pixel_by_pixel(report: Reporter, shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    flip = Flip(7, "right_to_wrong", 3, 3, 5, pixels, {"camera": "front", "hour": 4})
    [entry] = report([candidate("a")], {"a": did(95, flips=[flip])})["candidates"]
    [found] = entry["flipped"]
    start, content = found.pop("image").split(",")
    assert start == "data:image/png;base64"
    decoded = tf.io.decode_png(base64.b64decode(content)).numpy()
    np.testing.assert_array_equal(decoded, pixels if pixels.ndim == 3 else pixels[..., None])
    assert found == {
        "kind": "right_to_wrong",
        "label": 3,
        "baseline": 3,
        "candidate": 5,
        "features": {"camera": "front", "hour": 4},
    }


def test_a_flip_without_an_image(report: Reporter) -> None:
    flip = Flip(7, "wrong_to_right", 0, 1, 0, None, {})
    [entry] = report([candidate("a")], {"a": did(95, flips=[flip])})["candidates"]
    assert entry["flipped"][0]["image"] is None


# what cannot be reported ----------------------------------------------------------------------------------------------


def test_a_metric_that_is_not_compiled(report: Reporter) -> None:
    text = "metric 'auc' is not compiled by the model module, which has loss, accuracy; name one of them with --metric"
    with pytest.raises(UserError, match=text):
        report([candidate("a")], {"a": did(95)}, Budget(metric="auc"))


def test_a_baseline_that_cannot_be_evaluated(report: Reporter) -> None:
    with pytest.raises(ValueError, match="the float32 baseline could not be evaluated: it crashed"):
        report([candidate("a")], {"baseline": "it crashed", "a": did(95)})
    found = Findings({}, {}, report.metrics, None)
    with pytest.raises(ValueError, match="the float32 baseline could not be evaluated: it was not evaluated"):
        report([candidate("a")], {}, findings=found)
