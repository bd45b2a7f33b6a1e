from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeline.data import reading
from edgeline.evaluator.measuring import findings, transforms
from edgeline.evaluator.measuring.classification import Task
from edgeline.evaluator.measuring.findings import DEPLOYED, Findings
from edgeline.evaluator.measuring.measurements import Evaluated, Plan, Results
from edgeline.evaluator.measuring.metrics import CompiledMetrics, State
from edgeline.passport import Passport
from edgeline.report.schema import DeviceCost
from edgeline.tflite_exporter import conversion


@pytest.fixture(scope="module")
def shifted(small: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The small model, each of its logits greater by a quarter."""
    model = small.load()
    weights = model.get_weights()
    weights[-1] += np.float32(0.25)
    model.set_weights(weights)
    path = tmp_path_factory.mktemp("shifted") / "model.tflite"
    scheme = {"scheme": "float32", "io_type": "float32"}
    path.write_bytes(conversion.convert(model, Passport(Passport.read(small.folder).io, scheme=scheme), {}))
    return str(path)


def plan_of(small: Any, models: dict[str, str]) -> Plan:
    return Plan(small.path, ("image",), ("logits",), models, "baseline")


def test_what_was_found_can_be_read(small: Any, shifted: str) -> None:
    # of 4 examples 3 are right, and their losses are 2 in all
    state = State(4, np.array([2.0, 3.0]), np.array([4.0, 4.0]))
    merged = Results({"baseline": Evaluated(state), "broken": "it broke"})
    files = reading.split_files(small.examples, "eval")
    sample, found = findings.find(plan_of(small, {"baseline": shifted}), small.module, files, merged)
    [record] = [
        inputs for inputs, _, _ in reading.parsed_batches(files, reading.ExampleParser(small.module), 1).take(1)
    ]
    assert sample.keys() == {"image"}
    np.testing.assert_array_equal(sample["image"], record.numpy())
    assert found.results == merged.models
    assert found.metrics.result(state) == {"loss": 0.5, "accuracy": 0.75}
    assert found.task == Task(3, "sparse", True, "logits")
    assert found.slice_features == [["label"]]
    assert found.devices == {}


def test_one_file_may_have_several_names(small: Any) -> None:
    cost, evaluated = DeviceCost(cold_start_ms=1.0), Evaluated(State(4))
    found = Findings(
        {"baseline": evaluated, "a": "it broke", DEPLOYED: evaluated},
        {"baseline": cost, "a": "it crashed"},
        CompiledMetrics(small.module),
        None,
    )
    renamed = found.renamed({"baseline": "baseline", "float32": "baseline", "a": "a", "again": "a", "b": "b"})
    assert renamed.results.keys() == {"baseline", "float32", "a", "again", DEPLOYED}
    assert renamed.results["float32"] is evaluated
    assert renamed.results["again"] == "it broke"
    assert renamed.devices == {"baseline": cost, "float32": cost, "a": "it crashed", "again": "it crashed"}
    assert renamed.device("float32") == cost
    assert renamed.device("again") is renamed.device("b") is None
    assert found.results.keys() == {"baseline", "a", DEPLOYED}  # as it was


def test_costs_are_of_those_that_run(small: Any, shifted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "_SECONDS", 0.02)
    garbage = tmp_path / "garbage.tflite"
    garbage.write_bytes(b"no model at all")
    models = {"baseline": shifted, "garbage": str(garbage), "given_up": shifted, DEPLOYED: shifted}
    results: dict[str, Evaluated | str] = {**dict.fromkeys(models, Evaluated()), "given_up": "it broke"}
    found = Findings(results, {}, CompiledMetrics(small.module), None)
    sample = {"image": small.images()[:1]}
    devices = findings.measure(plan_of(small, models), found, sample)
    assert devices.keys() == {"baseline", "garbage"}
    cost = devices["baseline"]
    assert isinstance(cost, DeviceCost)
    # all that there is to measure, under the names that it is measured by
    assert None not in dataclasses.asdict(cost).values()
    assert cost.one_thread is not None
    assert cost.all_threads is not None
    assert None not in dataclasses.astuple(cost.all_threads)
    assert None not in dataclasses.astuple(dataclasses.replace(cost.one_thread, threads=1))
    assert isinstance(devices["garbage"], str)
    assert devices["garbage"].startswith("LiteRT cannot run the model: ")
    # a sample that fits no model is a failure of each, and of nothing more
    devices = findings.measure(plan_of(small, {"baseline": shifted}), found, {"picture": sample["image"]})
    assert devices == {"baseline": "LiteRT cannot run the model: the sample lacks the inputs image; it has picture"}


def test_the_keras_model_beside_the_baseline(small: Any, shifted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transforms, "BATCH_SIZE", 7)  # 32 examples: with a smaller last batch
    files = reading.split_files(small.examples, "eval")
    model = small.load()
    found = findings.check_keras(model, plan_of(small, {"baseline": shifted}), small.module, files)
    assert found.max_abs_difference == pytest.approx(0.25, abs=1e-5)
    small.module.compile_model(model)
    opened = reading.evaluation_data(files, small.module, batch_size=32)
    assert found.metrics == pytest.approx(model.evaluate(opened.dataset, verbose=0, return_dict=True), abs=1e-6)


def test_the_pass_and_keras_agree(small: Any, shifted: str) -> None:
    """Both ways to evaluate one model: a shift of all logits changes neither loss nor accuracy."""
    plan = plan_of(small, {"baseline": shifted})
    files = reading.split_files(small.examples, "eval")
    worker = transforms.EvaluateShards(plan)
    worker.setup()
    worker.start_bundle()
    for file in files:
        worker.process(file)
    [windowed] = worker.finish_bundle()
    worker.teardown()
    _, found = findings.find(plan, small.module, files, windowed.value)
    passed = found.results["baseline"]
    assert isinstance(passed, Evaluated)
    keras = findings.check_keras(small.load(), plan, small.module, files)
    assert found.metrics.result(passed.overall) == pytest.approx(keras.metrics, abs=1e-6)
