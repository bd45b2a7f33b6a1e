"""`metrics.prom` in a pipeline's root: its state in Prometheus' text format, for node_exporter's textfile collector.

It is written anew after every run and every rollback from the event log alone.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
from collections.abc import Iterator
from typing import Any

from edgeline import files
from edgeline.deployed import pointer_file
from edgeline.errors import UserError
from edgeline.pipelines.records import events
from edgeline.pipelines.root import Root

_HELP = {
    "edgeline_last_run_timestamp_seconds": "When the last run ended.",
    "edgeline_last_run_exit_code": "0 deployed or nothing new, 1 nothing fits, 2 refused, 3 failed, over 100 stopped.",
    "edgeline_last_run_duration_seconds": "How long the last run took.",
    "edgeline_last_push_timestamp_seconds": "When a run last pushed a model.",
    "edgeline_deployed_metric": "The deployed model's metrics, as they were last measured.",
    "edgeline_deployed_zlib_bytes": "What a download of the deployed model transfers.",
    "edgeline_examples": "Examples of the eval split that the last evaluation used.",
    "edgeline_candidates": "Candidates that the last evaluation judged.",
    "edgeline_candidates_blessed": "Of these, candidates that met the budget.",
}


def write(root: Root) -> None:
    """Writes `metrics.prom`, atomically; one that cannot be written stops nothing."""
    with contextlib.suppress(OSError, UserError):
        text = render(root.absolute().path.name, events.read(root), _version(root))
        files.write_text(root.metrics, text, mode=0o644)  # the collector is another user


def _version(root: Root) -> str | None:
    with contextlib.suppress(UserError):
        deployed = pointer_file.latest(str(root.pushed))
        return deployed.version if deployed else None
    return None


def render(pipeline: str, log: list[dict[str, Any]], version: str | None) -> str:
    """Returns the exposition text.

    Args:
      pipeline: value of the label `pipeline`, which tells several roots on one machine apart.
      log: events, oldest first.
      version: that is deployed, if one is.
    """
    lines: list[str] = []
    for name, samples in itertools.groupby(_samples(log, version), key=lambda sample: sample[0]):
        lines += [f"# HELP {name} {_HELP[name]}", f"# TYPE {name} gauge"]
        for _, labels, value in samples:
            pairs = ",".join(f'{key}="{_escaped(text)}"' for key, text in {"pipeline": pipeline, **labels}.items())
            lines.append(f"{name}{{{pairs}}} {value!r}")
    return "".join(f"{line}\n" for line in lines)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _samples(log: list[dict[str, Any]], version: str | None) -> Iterator[tuple[str, dict[str, str], float]]:
    """Yields (name, labels, value), those of one name together; what is not known has no sample."""
    last = {event["event"]: event for event in log}
    if finished := last.get("finished"):
        yield "edgeline_last_run_timestamp_seconds", {}, _seconds(finished)
        yield "edgeline_last_run_exit_code", {}, finished["exit_code"]
        yield "edgeline_last_run_duration_seconds", {}, finished["seconds"]
    if pushed := last.get("pushed"):
        yield "edgeline_last_push_timestamp_seconds", {}, _seconds(pushed)
    metric, known = _measured(log).get(version or "", (None, {}))
    for name, numbers in {metric: known, **(known.get("more_metrics") or {})}.items():
        if name and numbers.get("value") is not None:
            yield "edgeline_deployed_metric", {"metric": name}, numbers["value"]
    if known.get("zlib_bytes") is not None:
        yield "edgeline_deployed_zlib_bytes", {}, known["zlib_bytes"]
    if evaluated := last.get("evaluated"):
        yield "edgeline_examples", {}, evaluated["examples"]
        yield "edgeline_candidates", {}, evaluated["candidates"]
        yield "edgeline_candidates_blessed", {}, evaluated["blessed"]


def _measured(log: list[dict[str, Any]]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Returns by version the metric's name, and value and zlib_bytes as they were measured last."""
    measured: dict[str, tuple[str, dict[str, Any]]] = {}
    selected: dict[str, dict[str, Any]] = {}
    for event in log:
        if event["event"] == "evaluated" and event["deployed"]:
            measured[event["deployed"]["version"]] = (event["metric"], event["deployed"])
        elif event["event"] == "selected":
            selected[event["run"]] = event
        elif event["event"] == "pushed" and (model := selected.get(event["run"])):
            measured[event["version"]] = (model["metric"], model)
    return measured


def _seconds(event: dict[str, Any]) -> float:
    return datetime.datetime.fromisoformat(event["time"]).timestamp()
