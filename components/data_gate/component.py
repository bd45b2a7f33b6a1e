"""The DataGate as a TFX component."""

import json
from pathlib import Path

import tensorflow_data_validation as tfdv
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact
from tfx.types.standard_artifacts import ExampleAnomalies, ExampleStatistics, Schema

from edgeline import progress
from edgeline.data_gate import checks
from edgeline.data_gate.config import Gate
from edgeline.errors import UserError
from edgeline.step import step


@step(Gate)
def DataGate(
    config: Gate,
    statistics: InputArtifact[ExampleStatistics],
    schema: InputArtifact[Schema],
    anomalies: InputArtifact[ExampleAnomalies],
    drift: OutputArtifact[ExampleAnomalies],
) -> None:
    """Stops the run where the data break the schema, or have moved too far; else keeps their statistics."""
    if breaches := checks.breaches(anomalies.uri):
        raise UserError(
            f"the data break the schema, in {_names(breaches)}:\n{_listed(breaches)}\n"
            "Mend the data, or change the schema where it is the data that are right"
        )
    [schema_file] = Path(schema.uri).iterdir()
    distances, measured = checks.distances(
        statistics.uri,
        tfdv.load_schema_text(str(schema_file)),
        config.max_drift,
        checks.read_last(config.last_statistics),
    )
    moved = [str(distance) for distance in distances]
    if moved and not config.allow_drift:
        raise UserError(
            f"the data have moved, in {_names(moved)}:\n{_listed(moved)}\n"
            "Where they are wrong, mend them or move them away, and run again. Where they are right, --allow-drift "
            "goes on, and the next run is compared with these data; --max-drift, or comparators in the schema, allow "
            "more every time"
        )
    folder = Path(drift.uri, "Split-train")
    folder.mkdir(parents=True)
    (folder / checks.ANOMALIES_FILE).write_bytes(measured.SerializeToString(deterministic=True))
    drift.split_names = json.dumps(["train"])
    drift.set_string_custom_property("drifted", json.dumps(moved))
    # ready for the next run once these have been let through, whatever becomes of the training
    checks.keep(checks.read(statistics.uri, "train"), config.last_statistics)
    progress.report(1, 1, f"{len(moved)} features have drifted" if moved else "fits the schema, no drift")


def _names(lines: list[str]) -> str:
    """Returns the features that lines such as `camera: ...` and `camera (eval): ...` begin with."""
    return ", ".join(dict.fromkeys(line.partition(":")[0].partition(" (")[0] for line in lines))


def _listed(lines: list[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
