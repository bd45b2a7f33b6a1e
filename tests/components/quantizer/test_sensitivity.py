from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from edgeline.conversion import converter
from edgeline.conversion.converter import Calibrated
from edgeline.conversion.nodes import Node
from edgeline.quantizer import sensitivity
from edgeline.quantizer.scoring import Scorer
from edgeline.quantizer.sensitivity import Damage
from edgeline.quantizer.twins import Sums
from edgeline.tflite.model_processes import RunError


@pytest.fixture(scope="module")
def scorer(collapsing: Any) -> Scorer:
    return Scorer(collapsing.load(), collapsing.module, collapsing.passport.io, collapsing.examples, 1000)


def test_numbers_by_hand() -> None:
    sums = Sums()
    # channel 0: signal 100, noise 1: 20 dB; channel 1: signal 1, noise 1: 0 dB
    sums.add(np.array([[10.0, 0.0]]), np.array([[1.0, 0.0]]))
    sums.add(np.array([[0.0, 1.0]]), np.array([[0.0, -1.0]]))
    damage = sensitivity._damage(sums, "x")
    assert damage.sqnr_db == pytest.approx(10 * np.log10(101 / 2))
    assert damage.channel_sqnr_db == pytest.approx(10.0)
    assert damage.cosine == pytest.approx(110 / np.sqrt(101 * 121))
    assert damage.max_error == 1.0


def test_no_noise_and_no_signal() -> None:
    same = Sums()
    same.add(np.ones([1, 2]), np.zeros([1, 2]))
    nothing = {"range": (0.0, 0.0), "histogram": (0,) * 24}
    assert sensitivity._damage(same, "x") == Damage("x", 100.0, 100.0, 1.0, 0.0, **nothing)
    silent = Sums()
    silent.add(np.zeros([1, 2]), np.ones([1, 2]))
    assert sensitivity._damage(silent, "x") == Damage("x", -100.0, 100.0, 0.0, 1.0, **nothing)


def test_a_histogram_by_hand() -> None:
    sums = Sums(range=(-12.0, 12.0))
    sums.add(np.array([-12.0, -11.5, 0.5, 12.0, 99.0]), np.zeros(5))
    sums.add(np.array([0.0]), np.zeros(1))
    expected = [0] * 24
    expected[0], expected[12], expected[23] = 2, 2, 2  # 12 is the last part's, 99 is cut to it
    assert sensitivity._damage(sums, "x").histogram == tuple(expected)


def test_small_channels_that_drown_show_by_channel_only(collapsing: Any) -> None:
    damages = {d.layer: d for d in sensitivity.compare(collapsing.calibrated(), collapsing.samples())}
    assert list(damages) == ["first", "wide", "narrow", "logits"]
    assert damages["first"].sqnr_db > 40
    assert damages["first"].channel_sqnr_db > 40
    assert damages["wide"].sqnr_db > 40
    assert damages["wide"].channel_sqnr_db < 10
    # few values are near the ends of the range that the huge ones need
    wide = damages["wide"]
    assert wide.range[1] - wide.range[0] == pytest.approx(2000, rel=0.05)
    assert sum(wide.histogram) == 64 * 8
    assert wide.histogram[0] > 300
    # a step of the tensor is 2,000 / 255, rounded to its nearest
    assert 3 < damages["wide"].max_error <= 2000 / 255 / 2 * 1.01


def test_who_makes_and_who_reads_a_lost_tensor_are_the_ones_that_hurt(collapsing: Any, scorer: Scorer) -> None:
    damages = sensitivity.analyse(collapsing.calibrated(), collapsing.samples(), scorer, 4)
    drops = {damage.layer: damage.drop for damage in damages}
    assert {d.layer for d in damages[:2]} == {"wide", "narrow"}
    assert drops["wide"] is not None
    assert drops["wide"] > 0.2
    assert drops["narrow"] == pytest.approx(drops["wide"])
    assert drops["first"] == drops["logits"] == 0
    # to keep one of the two alone does not help
    assert all(damage.drop_when_float is not None and damage.drop_when_float > 0.2 for damage in damages)


def test_only_so_many_are_tried(collapsing: Any, scorer: Scorer) -> None:
    damages = sensitivity.analyse(collapsing.calibrated(), collapsing.samples(), scorer, 1)
    assert len(damages) == 4
    assert [damage.drop is None for damage in damages] == [False, True, True, True]


def test_suspicion_passes_from_a_layer_to_its_readers_through_what_only_passes_on() -> None:
    nodes = (
        Node("a", "CONV_2D", ("a",), 9, ()),
        Node("b", "CONV_2D", ("b",), 9, ("a",)),
        Node("pool", "MAX_POOL_2D", ("pool",), 0, ("b",)),
        Node("c", "CONV_2D", ("c",), 9, ("pool",)),
        Node("d", "CONV_2D", ("d",), 9, ("c",)),
    )
    damages = [Damage(n, 40, db, 1, 0.1) for n, db in (("a", 40.0), ("b", 5.0), ("c", 45.0), ("d", 35.0))]
    assert sensitivity.suspects(Calibrated(b"", nodes), damages, 9) == ["b", "c", "d", "a"]
    assert sensitivity.suspects(Calibrated(b"", nodes), damages, 2) == ["b", "c"]


def test_it_is_written_as_json(tmp_path: Path) -> None:
    sensitivity.write([Damage("a", 1.0, 2.0, 0.5, 0.1, (-1.0, 1.0), (3, 4), float("inf"))], str(tmp_path / "run"))
    [entry] = json.loads((tmp_path / "run" / "sensitivity.json").read_text())
    assert entry == {
        "layer": "a",
        "sqnr_db": 1.0,
        "channel_sqnr_db": 2.0,
        "cosine": 0.5,
        "max_error": 0.1,
        "range": [-1.0, 1.0],
        "histogram": [3, 4],
        "drop": None,
        "drop_when_float": None,
    }


def test_a_layer_that_crashes_litert_is_the_worst(
    collapsing: Any, scorer: Scorer, crashing: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    calibrated, make = collapsing.calibrated(), converter.quantize_each
    [port], [output] = collapsing.passport.io["inputs"], collapsing.passport.io["outputs"]
    source = tf.TensorSpec([None, *port["shape"][1:]], tf.float32, name=port["name"])
    content = crashing(source, output["name"])

    def quantize_each(*arguments: Any) -> list[bytes]:
        return [*make(*arguments)[:-2], content, content]

    monkeypatch.setattr(converter, "quantize_each", quantize_each)
    worst, *others = sensitivity.analyse(calibrated, collapsing.samples(), scorer, 2)
    assert (worst.drop, worst.drop_when_float) == (float("inf"), float("inf"))
    assert others[0].drop is not None
    assert others[0].drop < 1
    with pytest.raises(RunError, match=r"^LiteRT crashed on the model with SIG\w+$"):
        scorer.scores([calibrated.content, content], 256)
