"""What is said before one trusts a report: each doubt where there is cause, and not where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgeline.report import doubts, report_file
from edgeline.report.formats import Format

NAME = "prune80_cluster16_int8"
CHANCE = {"guess": "commonest class", "answer": 3, "value": 0.1, "margin": 0.02, "beaten": True}


@pytest.fixture
def sound(make_report: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """A report that leaves no doubt."""
    report = make_report()
    report["baseline"]["chance"] = {"accuracy": CHANCE}
    shown = chosen(report)
    shown["latency_ms"]["p50"] = 0.02
    shown["drop"], shown["drop_interval"] = 0.001, [-0.002, 0.004]
    shown["metrics"]["accuracy"] = report["baseline"]["metrics"]["accuracy"] - 0.001
    for entry in report["candidates"]:
        scheme = next(
            s for s in ("float32", "float16", "dynamic_range", "int16x8", "qat8", "int8") if s in entry["name"]
        )
        entry["recipe"].append({"step": "Quantizer", "config": {"scheme": scheme}})
    assert said(report) == []
    return report


def chosen(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(entry for entry in report["candidates"] if entry["name"] == NAME)
    return found


def said(report: dict[str, Any]) -> list[str]:
    return doubts.of(report_file.parse(report, "here"), Format.of(0.8825, 0.015))


@pytest.mark.parametrize(
    ("train", "validation", "is_said"), [(0.86, 0.156, True), (0.86, 0.77, False), (0.75, 0.86, False)]
)
def test_a_training_far_apart_on_train_and_validation(
    sound: dict[str, Any], train: float, validation: float, is_said: bool
) -> None:
    trainer = sound["training"][0]
    trainer["history"]["accuracy"][-1], trainer["history"]["val_accuracy"][-1] = train, validation
    expected = f"Trainer ended with accuracy {train} on its own examples and {validation} on the validation split: "
    assert [text.startswith(expected) for text in said(sound)] == [True] * is_said
    trainer["of"] = ["another"]
    assert said(sound) == []


@pytest.mark.parametrize(("validation", "is_said"), [(0.61, True), (0.59, False)])
def test_errors_are_compared_by_their_ratio(sound: dict[str, Any], validation: float, is_said: bool) -> None:
    for training in sound["training"]:
        training["history"] = {"loss": [0.9, 0.4], "val_loss": [0.9, validation]}
    expected = f"Trainer ended with loss 0.4 on its own examples and {validation} on the validation split: "
    assert [text.startswith(expected) for text in said(sound)] == [True] * is_said


@pytest.mark.parametrize(("agreement", "is_said"), [(0.899, True), (0.9, False), (None, False)])
def test_a_candidate_that_decides_otherwise(sound: dict[str, Any], agreement: float | None, is_said: bool) -> None:
    chosen(sound)["comparison"]["agreement"] = agreement
    expected = f"{NAME} decides as the baseline does on 89.9 % of the examples only: "
    assert [text.startswith(expected) for text in said(sound)] == [True] * is_said


@pytest.mark.parametrize(("p50", "is_said"), [(0.0226, True), (0.0225, False)])
def test_a_candidate_slower_than_the_baseline_by_half(sound: dict[str, Any], p50: float, is_said: bool) -> None:
    chosen(sound)["latency_ms"]["p50"] = p50  # the baseline takes 0.015 ms
    expected = f"{NAME} takes 1.5× the baseline's time on this machine (22.6 µs beside 15 µs): "
    assert [text.startswith(expected) for text in said(sound)] == [True] * is_said


def test_a_dynamic_range_file_that_is_float32(sound: dict[str, Any]) -> None:
    by_name = {entry["name"]: entry for entry in sound["candidates"]}
    by_name["dynamic_range"]["bytes"] = sound["baseline"]["bytes"]
    [text] = said(sound)
    assert text.startswith(
        "dynamic_range is as large as its float32 file: dynamic-range quantization leaves weights of"
    )
    # beside the float32 file of the same steps, not beside the baseline
    by_name["dynamic_range"]["bytes"] = 1000
    by_name["prune80_float32"]["bytes"] = by_name["prune80_dynamic_range"]["bytes"]
    by_name["cluster16_dynamic_range"]["bytes"] = by_name["cluster16_float32"]["bytes"] + 1
    [text] = said(sound)
    assert text.startswith("prune80_dynamic_range and cluster16_dynamic_range are as large as their float32 files: ")


@pytest.mark.parametrize(("max_drop", "is_said"), [(0.00099, True), (0.001, False), (0.0, False)])
def test_a_budget_finer_than_one_example(sound: dict[str, Any], max_drop: float, is_said: bool) -> None:
    sound["budget"]["max_drop"] = max_drop  # of 1,000 examples
    expected = (
        "The budget is finer than the data: one of 1,000 examples is 0.001 of accuracy, more than the drop of 0.00099 "
        "that it allows; more examples would tell."
    )
    assert said(sound) == [expected] * is_said
    sound["baseline"]["chance"] = {}  # no share of examples: no step is the least
    assert said(sound) == []


def test_a_candidate_that_was_trained_longer_than_the_baseline(sound: dict[str, Any]) -> None:
    chosen(sound)["drop"] = -0.0037
    assert said(sound) == [
        f"{NAME} is better than the baseline by 0.0037 of accuracy, but was trained for 14 epochs, the baseline for 8: "
        "train the baseline as long before you take that for what compression does."
    ]
    sound["training"] = sound["training"][:1]
    assert said(sound) == []


def test_an_old_report_leaves_no_doubt_that_it_has_no_numbers_for(make_report: Callable[..., dict[str, Any]]) -> None:
    report = make_report()
    for entry in (report["baseline"], *report["candidates"]):
        entry |= {"latency_ms": None, "bytes": None, "comparison": None, "drop": None}
    report["training"] = []
    assert said(report) == []
