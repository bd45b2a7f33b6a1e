from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline.errors import UserError
from edgeline.evaluator import evaluation
from edgeline.evaluator.config import Budget
from edgeline.evaluator.evaluation import Candidate
from edgeline.evaluator.metrics import State
from edgeline.evaluator.report import render
from edgeline.passport import Passport

STEPS: tuple[dict[str, Any], ...] = (
    {"step": "Trainer", "config": {"epochs": 4}, "metrics": {"accuracy": 0.99}},
    {
        "step": "Pruner",
        "config": {"sparsity": 0.8, "ramp": 0.75},
        "metrics": {"accuracy": 0.98},
        "layers": [{"name": "dense", "parameters": 10, "sparsity": 0.8, "unique_values": 3, "note": "pruned to 0.8"}],
    },
    {"step": "Quantizer", "config": {"scheme": "int8"}},
    {"step": "TFLiteExporter", "config": {"parity_samples": 32}},
)


def candidate(name: str, size: int = 1000, zlib_bytes: int = 500, steps: Any = STEPS, failure: Any = None) -> Candidate:
    metadata = {"bytes": size, "zlib_bytes": zlib_bytes, "sparsity": 0.5, "sha256": name * 4, "parity": {}}
    passport = Passport(io={}, steps=steps, failure=failure)
    return Candidate(name, Path("folder", name), passport, None if failure else metadata)


BASELINE = candidate("baseline", 4000, 2000, STEPS[:1])


def report(
    candidates: list[Candidate],
    results: dict[str, Any],
    budget: Budget | None = None,
    missing: Any = (),
    **changes: Any,
) -> dict[str, Any]:
    arguments = {
        "budget": budget or Budget(max_drop=0.05),
        "baseline": BASELINE,
        "candidates": candidates,
        "missing": list(missing),
        "results": {"baseline": (100, {"loss": 0.2, "accuracy": 0.95}), **results},
        "latencies": {c.name: {"p50": 0.5, "p90": 0.75} for c in (BASELINE, *candidates)},
        "dataset": {"split": "eval", "fingerprint": "f", "label_names": None},
        "about": {"created": "2026-11-22T02:00:00+00:00", "pipeline": "p", "module": "m"},
    }
    return evaluation.report(**{**arguments, **changes})


def by_name(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {entry["name"]: entry for entry in facts["candidates"]}


def test_the_facts_of_a_candidate() -> None:
    facts = report([candidate("small")], {"small": (100, {"loss": 0.25, "accuracy": 0.9375})})
    [entry] = facts["candidates"]
    assert entry == {
        "name": "small",
        "recipe": ["Pruner sparsity=0.8 ramp=0.75", "Quantizer scheme=int8"],
        "metrics": {"loss": 0.25, "accuracy": 0.9375},
        "drop": pytest.approx(0.0125),
        "bytes": 1000,
        "zlib_bytes": 500,
        "ratio": 4.0,  # 2,000 by 500
        "latency_ms": {"p50": 0.5, "p90": 0.75},
        "sparsity": 0.5,
        "blessed": True,
        "reasons": [],
        "pareto": True,
        "sha256": "small" * 4,
        "failure": None,
        "steps": [
            {"step": "Trainer", "metrics": {"accuracy": 0.99}, "split": "validation"},
            {"step": "Pruner", "metrics": {"accuracy": 0.98}, "split": "validation"},
        ],
        "layers": STEPS[1]["layers"],
    }
    assert facts["selected"] == "small"
    assert facts["closest"] is None
    assert facts["baseline"] == {
        "metrics": {"loss": 0.2, "accuracy": 0.95},
        "bytes": 4000,
        "zlib_bytes": 2000,
        "latency_ms": {"p50": 0.5, "p90": 0.75},
        "sha256": "baseline" * 4,
    }
    assert facts["dataset"] == {"split": "eval", "fingerprint": "f", "label_names": None, "examples": 100}
    assert facts["pipeline"] == "p"
    assert facts["versions"]["tensorflow"] == "2.21.0"
    assert facts["machine"]["cores"] >= 1
    assert facts["machine"]["cpu"]


def test_the_smallest_that_fits_is_selected() -> None:
    facts = report(
        [candidate("large", zlib_bytes=900), candidate("fits", zlib_bytes=400), candidate("broken", zlib_bytes=100)],
        {
            "large": (100, {"accuracy": 0.95}),
            "fits": (100, {"accuracy": 0.91}),
            "broken": (100, {"accuracy": 0.50}),
        },
    )
    found = by_name(facts)
    assert facts["selected"] == "fits"
    assert [found[name]["blessed"] for name in ("large", "fits", "broken")] == [True, True, False]
    assert found["broken"]["reasons"] == ["accuracy drop 0.45 exceeds 0.05"]
    assert [found[name]["pareto"] for name in ("large", "fits", "broken")] == [True, True, True]


def test_nothing_fits() -> None:
    facts = report(
        [candidate("near", zlib_bytes=400), candidate("far", zlib_bytes=100)],
        {"near": (100, {"accuracy": 0.89}), "far": (100, {"accuracy": 0.50})},
    )
    assert facts["selected"] is None
    assert facts["closest"] == "near"
    assert not any(entry["blessed"] for entry in facts["candidates"])


def test_a_candidate_that_failed_is_listed_with_its_error() -> None:
    failure = {"step": "Quantizer", "error": "ValueError: no"}
    facts = report(
        [candidate("failed", steps=STEPS[:2], failure=failure), candidate("good")], {"good": (100, {"accuracy": 0.95})}
    )
    entry = by_name(facts)["failed"]
    assert entry["failure"] == failure
    assert entry["reasons"] == ["Quantizer failed: ValueError: no"]
    assert not entry["blessed"]
    assert not entry["pareto"]
    assert entry["metrics"] is entry["bytes"] is entry["ratio"] is entry["sha256"] is None
    assert entry["recipe"] == ["Pruner sparsity=0.8 ramp=0.75"]
    assert facts["selected"] == "good"


def test_a_candidate_that_was_given_up_during_the_evaluation() -> None:
    facts = report(
        [candidate("nan"), candidate("good")], {"nan": "outputs y hold NaN values", "good": (100, {"accuracy": 0.95})}
    )
    entry = by_name(facts)["nan"]
    assert entry["failure"] == {"step": "Evaluator", "error": "outputs y hold NaN values"}
    assert entry["reasons"] == ["Evaluator failed: outputs y hold NaN values"]
    assert not entry["blessed"]
    assert entry["bytes"] == 1000  # what is known of it stays


def test_a_candidate_whose_earlier_step_failed_is_missing_and_listed() -> None:
    facts = report([candidate("good")], {"good": (100, {"accuracy": 0.95})}, missing=["gone"])
    entry = by_name(facts)["gone"]
    assert not entry["blessed"]
    assert not entry["pareto"]
    assert entry["failure"]["step"] == "an earlier step"
    assert entry["reasons"] == ["it failed, so that there is nothing to evaluate; see the log"]
    assert entry.keys() == by_name(facts)["good"].keys()


def test_a_candidate_without_a_result_is_never_blessed() -> None:
    facts = report([candidate("unmeasured")], {})
    assert not facts["candidates"][0]["blessed"]
    assert facts["selected"] is None


def test_all_that_failed() -> None:
    failure = {"step": "TFLiteExporter", "error": "x"}
    facts = report([candidate("failed", failure=failure)], {}, missing=["gone"])
    assert facts["selected"] is facts["closest"] is None


def test_the_baseline_as_a_candidate() -> None:
    facts = report([candidate("float32", 4000, 2000)], {"float32": (100, {"accuracy": 0.95})})
    assert facts["candidates"][0]["ratio"] == 1.0
    assert facts["candidates"][0]["drop"] == 0.0
    assert facts["selected"] == "float32"


def test_an_error_wants_to_be_small() -> None:
    budget = Budget(metric="mae", direction="min", max_drop=0.5)
    facts = report(
        [candidate("better"), candidate("worse", zlib_bytes=100)],
        {"better": (9, {"mae": 0.5}), "worse": (9, {"mae": 2.0}), "baseline": (9, {"mae": 1.0})},
        budget,
    )
    found = by_name(facts)
    assert (found["better"]["drop"], found["worse"]["drop"]) == (-0.5, 1.0)
    assert facts["selected"] == "better"


def test_limits_that_are_off_are_none_in_the_report() -> None:
    facts = report([candidate("a")], {"a": (1, {"accuracy": 0.95})}, Budget(max_bytes=2000))
    assert facts["budget"] == {
        "metric": "accuracy",
        "direction": "max",
        "max_drop": 0.01,
        "max_bytes": 2000,
        "max_zlib_bytes": None,
        "max_latency_ms": None,
        "objective": "zlib_bytes",
    }


def test_a_metric_that_is_not_compiled() -> None:
    with pytest.raises(
        UserError, match=r"metric 'auc' is not compiled by the model module; the baseline has loss, accur"
    ):
        report([candidate("a")], {"a": (1, {"accuracy": 0.95})}, Budget(metric="auc"))


def test_a_baseline_that_cannot_be_evaluated() -> None:
    with pytest.raises(ValueError, match="the float32 baseline could not be evaluated: it crashed"):
        report([candidate("a")], {"baseline": "it crashed", "a": (1, {"accuracy": 0.95})})


def test_the_report_can_be_drawn() -> None:
    failure = {"step": "Quantizer", "error": "ValueError: <no>"}
    facts = report(
        [candidate("good"), candidate("failed", failure=failure)], {"good": (100, {"accuracy": 0.95})}, missing=["gone"]
    )
    html = render(facts)
    assert all(name in html for name in ("good", "failed", "gone"))


class Fixed:
    def result(self, state: State) -> dict[str, float]:
        return {"loss": state.loss}


def test_outcome() -> None:
    assert evaluation.outcome("it crashed", Fixed()) == "it crashed"
    assert evaluation.outcome(State(3, 1.5, [np.array(1.0)]), Fixed()) == (3, {"loss": 1.5})
    for empty in (None, State()):
        with pytest.raises(UserError, match="the eval split is empty: 0 examples were evaluated"):
            evaluation.outcome(empty, Fixed())
