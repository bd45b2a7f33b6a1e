"""The gate on data that are made by hand: what stops a run, and which features are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2
from tfx.types.standard_artifacts import ExampleAnomalies, ExampleStatistics, Schema

from edgeline.data_gate import checks
from edgeline.data_gate.component import DataGate
from edgeline.data_gate.config import Gate
from edgeline.errors import UserError

COLOURS = ("blue", "green", "red")


def rows(seed: int, count: int = 400, shift: float = 0.0, shares: tuple[float, ...] = (0.5, 0.3, 0.2)) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "x": rng.normal(shift, 1.0, count).astype("float32"),
            "label": rng.integers(0, 3, count),
            "colour": rng.choice(COLOURS, count, p=shares),
            "image": [f"{i} {seed} {'.' * 100}" for i in range(count)],
        }
    )


@pytest.fixture(scope="module")
def schema() -> schema_pb2.Schema:
    found = tfdv.infer_schema(tfdv.generate_statistics_from_dataframe(rows(0)))
    [label] = [feature for feature in found.feature if feature.name == "label"]
    label.int_domain.min, label.int_domain.max = 0, 2
    return found


class Folder:
    """The artifacts of one run, and the gate on them; the kept statistics stay from run to run."""

    def __init__(self, root: Path, schema: schema_pb2.Schema):
        self._root = root
        self._runs = 0
        self.schema = schema_pb2.Schema()
        self.schema.CopyFrom(schema)
        self.last = root / "last"

    def __call__(self, train: pd.DataFrame, evaluated: pd.DataFrame | None = None, **asked: object) -> list[str]:
        """Runs the gate; returns what it has let through."""
        self._runs += 1
        folder = self._root / str(self._runs)
        artifacts = {"statistics": ExampleStatistics(), "schema": Schema(), "anomalies": ExampleAnomalies()}
        for name, artifact in artifacts.items():
            artifact.uri = str(folder / name)
        for split, data in (("train", train), ("eval", train if evaluated is None else evaluated)):
            statistics = tfdv.generate_statistics_from_dataframe(data)
            found = tfdv.validate_statistics(statistics, self.schema)  # as TFX's ExampleValidator does
            for name, file, content in (
                ("statistics", checks.STATISTICS_FILE, statistics),
                ("anomalies", checks.ANOMALIES_FILE, found),
            ):
                (folder / name / f"Split-{split}").mkdir(parents=True)
                (folder / name / f"Split-{split}" / file).write_bytes(content.SerializeToString())
        (folder / "schema").mkdir()
        tfdv.write_schema_text(self.schema, str(folder / "schema" / "schema.pbtxt"))
        drift = ExampleAnomalies()
        drift.uri = str(folder / "drift")
        config = Gate(**{"last_statistics": str(self.last), **asked})
        module = {"module": "m", "module_digest": "d", "toolchain": "t"}
        DataGate.EXECUTOR_SPEC.executor_class._FUNCTION(**artifacts, drift=drift, **module, **config.encoded())
        anomalies_pb2.Anomalies.FromString(Path(drift.uri, "Split-train", checks.ANOMALIES_FILE).read_bytes())
        return json.loads(drift.get_string_custom_property("drifted"))

    def refused(self, *data: pd.DataFrame, **asked: object) -> str:
        with pytest.raises(UserError) as caught:
            self(*data, **asked)
        return str(caught.value)


@pytest.fixture
def gate(tmp_path: Path, schema: schema_pb2.Schema) -> Folder:
    return Folder(tmp_path, schema)


def test_data_like_the_last_pass_and_are_kept(gate: Folder) -> None:
    assert gate(rows(1)) == []
    first = (gate.last / checks.STATISTICS_FILE).read_bytes()
    assert gate(rows(2)) == []
    assert (gate.last / checks.STATISTICS_FILE).read_bytes() != first
    assert [path.name for path in gate.last.iterdir()] == [checks.STATISTICS_FILE]


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (lambda data: data.drop(columns="x"), ["in x:", "x (eval): Column is completely missing"]),
        (
            lambda data: data.assign(label=data.label.replace(2, 7)),
            ["in label:", "(train): Unexpectedly large value: 7"],
        ),
        (lambda data: data.assign(colour=data.colour.replace("red", "grey")), ["in colour:", "grey (~"]),
        (lambda data: data.assign(x=data.x.astype(str)), ["in x:", "Expected data of type: FLOAT but got STRING"]),
        (lambda data: data.assign(more=1), ["in more:", "New column"]),
    ],
)
def test_data_that_break_the_schema_stop(
    change: Callable[[pd.DataFrame], pd.DataFrame], lines: list[str], gate: Folder
) -> None:
    message = gate.refused(change(rows(1)), allow_drift=True)
    assert message.startswith("the data break the schema, in ")
    assert [line for line in lines if line not in message] == []
    assert "change the schema" in message
    assert not gate.last.exists()


def test_one_bad_split_is_enough_and_is_named(gate: Folder) -> None:
    message = gate.refused(rows(1), rows(1).assign(label=9))
    assert "label (eval)" in message
    assert "label (train)" not in message


def test_a_mere_warning_does_not_stop(tmp_path: Path) -> None:
    def anomaly(severity: int) -> Path:
        found = anomalies_pb2.Anomalies()
        found.anomaly_info["x"].path.step.append("x")
        found.anomaly_info["x"].severity = severity
        found.anomaly_info["x"].reason.add(description="is odd.")
        folder = tmp_path / str(severity)
        (folder / "Split-train").mkdir(parents=True)
        (folder / "Split-train" / checks.ANOMALIES_FILE).write_bytes(found.SerializeToString())
        return folder

    assert checks.breaches(str(anomaly(anomalies_pb2.AnomalyInfo.WARNING))) == []
    assert checks.breaches(str(anomaly(anomalies_pb2.AnomalyInfo.ERROR))) == ["x (train): is odd"]


def test_a_number_that_moves_stops_until_it_is_allowed(gate: Folder) -> None:
    gate(rows(1))
    message = gate.refused(rows(2, shift=2.0))
    assert message.startswith("the data have moved, in x:\n  x: Jensen-Shannon divergence from the last run 0.")
    assert "allowed 0.1" in message
    assert "--allow-drift" in message
    assert gate.refused(rows(2, shift=2.0))  # what was refused is nothing to compare with
    [line] = gate(rows(2, shift=2.0), allow_drift=True)
    assert line.startswith("x: Jensen-Shannon divergence from the last run 0.")
    assert gate(rows(3, shift=2.0)) == []  # now these are the last


def test_a_category_that_moves_stops(gate: Folder) -> None:
    gate(rows(1, shares=(0.5, 0.3, 0.2)))
    message = gate.refused(rows(2, shares=(0.2, 0.3, 0.5)))
    assert message.startswith("the data have moved, in colour:\n  colour: largest difference of a share from the last")
    assert gate(rows(2, shares=(0.2, 0.3, 0.5)), max_drift=0.5) == []


def test_the_largest_difference_of_a_share_by_hand(gate: Folder) -> None:
    def colours(*counts: int) -> pd.DataFrame:
        return rows(1, 10).assign(colour=[c for c, n in zip(COLOURS, counts, strict=True) for _ in range(n)])

    gate(colours(5, 3, 2))
    [line] = gate(colours(2, 3, 5), allow_drift=True)
    assert line == "colour: largest difference of a share from the last run 0.300, allowed 0.1"


def test_the_eval_split_may_not_be_another_world(gate: Folder) -> None:
    message = gate.refused(rows(1), rows(2, shift=3.0))
    assert "x: Jensen-Shannon divergence from the eval split" in message


def test_comparators_of_the_schema_win(gate: Folder) -> None:
    [feature] = [feature for feature in gate.schema.feature if feature.name == "x"]
    feature.drift_comparator.jensen_shannon_divergence.threshold = 0.9
    gate(rows(1))
    assert gate(rows(2, shift=2.0)) == []
    feature.drift_comparator.jensen_shannon_divergence.threshold = 0.001
    assert "allowed 0.001" in gate.refused(rows(3, shift=0.5))
    assert "allowed 0.001" in gate.refused(rows(3, shift=0.5), max_drift=None)


def test_without_a_bound_or_a_folder_nothing_drifts(gate: Folder) -> None:
    gate(rows(1))
    assert gate(rows(2, shift=2.0), max_drift=None) == []
    assert gate(rows(1), last_statistics=None) == []
    assert gate(rows(2, shift=2.0), last_statistics=None) == []


def test_images_never_drift(gate: Folder) -> None:
    gate(rows(1))
    assert gate(rows(1).assign(image=[f"other {i} {'.' * 100}" for i in range(400)])) == []
