from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeline.passport import Passport, Promise

IO = {
    "inputs": [{"name": "x", "shape": [None, 4], "dtype": "float32"}],
    "outputs": [{"name": "y", "shape": [None, 3], "dtype": "float32"}],
    "labels": ["a", "b", "c"],
}


def make() -> Passport:
    passport = Passport(io=IO)
    passport = passport.with_step(
        "Trainer",
        {"epochs": 1},
        inputs={"examples": "e1"},
        toolchain="t1",
        metrics={"loss": 0.5},
        layers=[],
        model="m1",
    )
    return passport.with_step(
        "Pruner",
        {"sparsity": 0.8},
        inputs={"model": "m1"},
        toolchain="t1",
        promises=(Promise("sparsity", "dense", (4, 3), 0.8),),
    )


def test_round_trip(tmp_path: Path) -> None:
    passport = make()
    passport.write(tmp_path)
    read = Passport.read(tmp_path)
    assert read == passport
    assert read.promises[0].shape == (4, 3)  # JSON has no tuples: as a list it would equal no kernel's shape
    assert json.loads((tmp_path / "passport.json").read_text())["schema_version"] == 1


def test_scheme_and_failure_survive(tmp_path: Path) -> None:
    failed = make().failed("Quantizer", ValueError("no layer can be quantized"))
    assert failed.failure == {"step": "Quantizer", "error": "ValueError: no layer can be quantized"}
    failed.write(tmp_path)
    assert Passport.read(tmp_path) == failed
    assert make().failure is None  # the original is as it was


def test_steps_are_appended_and_promises_add_up() -> None:
    first = make()
    second = first.with_step(
        "Clusterer", {}, inputs={}, toolchain="t2", promises=(Promise("clusters", "dense", (4, 3), 16),)
    )
    assert [step["step"] for step in second.steps] == ["Trainer", "Pruner", "Clusterer"]
    assert [promise.kind for promise in second.promises] == ["sparsity", "clusters"]
    assert len(first.steps) == 2
    assert second.steps[0] == {
        "step": "Trainer",
        "config": {"epochs": 1},
        "inputs": {"examples": "e1"},
        "toolchain": "t1",
        "model": "m1",
        "metrics": {"loss": 0.5},
        "layers": [],
    }
    assert "metrics" not in second.steps[1]
    assert "layers" not in second.steps[1]


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_version_of_the_format_is_refused(tmp_path: Path, version: object) -> None:
    make().write(tmp_path)
    path = tmp_path / "passport.json"
    content = json.loads(path.read_text())
    content["schema_version"] = version
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"passport.json has schema_version {version}; this version of Edgel"):
        Passport.read(tmp_path)
