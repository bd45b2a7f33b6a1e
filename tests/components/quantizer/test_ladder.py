from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeline.conversion import converter
from edgeline.passport import Passport
from edgeline.quantizer import ladder
from edgeline.quantizer.ladder import LadderError, Walk
from edgeline.quantizer.scoring import Scorer
from edgeline.schemes import SCHEMES


def walk(model: Any, passport: Any, samples: dict[str, np.ndarray], scorer: Scorer, **limits: Any) -> Walk:
    calibrated = converter.calibrate(model, passport.io, samples)
    limits = {"max_drop": 0.02, "suspects": 8, **limits}
    return ladder.walk(SCHEMES["auto"].ladder, model, passport.io, samples, calibrated, scorer, **limits)


@pytest.fixture(scope="module")
def scorer(collapsing: Any) -> Scorer:
    return Scorer(collapsing.load(), collapsing.module, collapsing.passport.io, collapsing.examples, 1000)


def test_a_model_that_int8_destroys_keeps_its_worst_layers(collapsing: Any, scorer: Scorer) -> None:
    walked = walk(collapsing.load(), collapsing.passport, collapsing.samples(), scorer)
    first, *_, last = walked.rungs
    assert first.name == "int8"
    assert first.drop is not None
    assert first.drop > 0.2
    assert not first.held
    assert last.held
    assert set(last.keep_float) == {"wide", "narrow"}
    assert last.drop == pytest.approx(0, abs=0.02)
    assert last.facts()["rung"] == f"int8 with {', '.join(last.keep_float)} float"
    assert {damage.layer for damage in walked.sensitivity} == {"first", "wide", "narrow", "logits"}


def test_where_too_few_may_stay_float_the_next_scheme_comes(collapsing: Any, scorer: Scorer) -> None:
    walked = walk(collapsing.load(), collapsing.passport, collapsing.samples(), scorer, suspects=1)
    names = [rung.name for rung in walked.rungs]
    assert names[0] == "int8"
    assert names[1] in ("int8 with wide float", "int8 with narrow float")
    assert names[2] == "int16x8"
    assert [rung.held for rung in walked.rungs[:-1]] == [False] * (len(names) - 1)
    assert walked.rungs[-1].held
    assert all(rung.bytes and rung.zlib_bytes and rung.zlib_bytes < rung.bytes for rung in walked.rungs)


def test_where_int8_holds_nothing_else_is_looked_at(small: Any) -> None:
    passport = Passport.read(small.folder)
    scorer = Scorer(small.load(), small.module, passport.io, small.examples, 1000)
    walked = walk(small.load(), passport, {"image": small.images()}, scorer, max_drop=0.05)
    assert [rung.name for rung in walked.rungs] == ["int8"]
    assert walked.sensitivity == ()


def test_where_none_holds_the_error_shows_the_ladder(collapsing: Any, scorer: Scorer) -> None:
    with pytest.raises(LadderError) as caught:  # nothing is a whole point better than the float model
        walk(collapsing.load(), collapsing.passport, collapsing.samples(), scorer, max_drop=-1, suspects=1)
    text = str(caught.value)
    assert text.startswith("no scheme holds: accuracy of the validation split may be -1 worse than the float model's")
    for rung in ("int8: drop +0.", "float: drop +0.", "int16x8: drop ", "dynamic_range: drop ", "float16: drop +0"):
        assert rung in text
    assert text.endswith("Allow a larger auto_max_drop, or fine-tune with scheme qat8")


@pytest.mark.parametrize(
    ("name", "reference", "candidate", "drop"),
    [
        ("accuracy", 0.9, 0.8, 0.1),
        ("f1", 0.8, 0.9, -0.1),
        ("loss", 1.0, 1.5, 0.5),
        ("mean_absolute_error", 1.0, 1.5, 0.5),
        ("mse", 2.0, 1.5, -0.5),
        ("accuracy", 0.9, float("nan"), float("inf")),
    ],
)
def test_worse_is_less_or_more_by_metric(
    scorer: Scorer, name: str, reference: float, candidate: float, drop: float
) -> None:
    scores = [{"loss": value, "other_loss": 0.0, name: value} for value in (reference, candidate)]
    assert scorer.metric(scores[0]) == name
    assert scorer.drop(*scores) == pytest.approx(drop)
