"""One local run from request to outcome: build the pipeline, run it, publish the report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from tfx.dsl.components.base.base_node import BaseNode

from edgeline.pipelines.compression import Run, create_pipeline
from edgeline.pipelines.console import LiveView
from edgeline.pipelines.local_runner import BEAM_ARGS, LocalRunner, RunResult


@dataclasses.dataclass(frozen=True)
class Failure:
    """A step that failed.

    Attributes:
      text: for the user: the step and what was wrong.
      error: what it raised.
    """

    text: str
    error: BaseException | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
      failures: of steps; candidates that were merely rejected are in the report.
      report: content of report.json; None where the Evaluator did not run.
      report_path: the HTML report; None likewise.
      pushed: the pushed `.tflite` file; None where nothing was.
      states: how many nodes were done, cached, failed, skipped.
    """

    failures: tuple[Failure, ...]
    report: dict[str, Any] | None
    report_path: Path | None
    pushed: Path | None
    states: dict[str, int]

    def summary(self) -> dict[str, Any]:
        """Returns the outcome for machines: selected, pushed, report, steps, and each candidate's main numbers."""
        report = self.report or {}
        keys = (
            "name",
            "metrics",
            "drop",
            "bytes",
            "zlib_bytes",
            "ratio",
            "latency_ms",
            "sparsity",
            "blessed",
            "reasons",
        )
        return {
            "selected": report.get("selected"),
            "pushed": self.pushed and str(self.pushed),
            "report": self.report_path and str(self.report_path.with_suffix(".json")),
            "steps": self.states,
            "failures": [failure.text for failure in self.failures],
            "baseline": report.get("baseline"),
            "candidates": [{key: c[key] for key in keys} for c in report.get("candidates", [])],
        }


def run(request: Run, root: Path, examples: BaseNode, view: LiveView, *, enable_cache: bool = True) -> Outcome:
    """Runs the pipeline of a request on this machine.

    Args:
      request: what is asked.
      root: where everything of this pipeline is kept; its name is the pipeline's.
      examples: the component that gives the data.
      view: shows the nodes.
      enable_cache: whether nodes may be served from earlier runs.

    Raises:
      UserError: the root is in use by another run, or its disk is full or cannot be written.
    """
    name = re.sub("[^a-z0-9-]+", "-", root.name.lower()).strip("-") or "edgeline"
    pipeline = create_pipeline(
        name, request, root=root, examples=examples, beam_args=BEAM_ARGS, enable_cache=enable_cache
    )
    with view:
        result = LocalRunner(view).run(pipeline)
    failures = tuple(
        Failure(f"{node_id}: {_plain(node.exception)}", node.exception)
        for node_id, node in result.nodes.items()
        if node.state == "failed"
    )
    report = _publish(result, root)
    return Outcome(
        failures,
        report,
        root / "report" / "report.html" if report is not None else None,
        _pushed(result),
        {
            s: n
            for s in ("done", "cached", "failed", "skipped")
            if (n := [r.state for r in result.nodes.values()].count(s))
        },
    )


def _plain(error: BaseException | None) -> str:
    # Beam appends the transform in which an error was raised
    return re.sub(r" \[while running .*\]$", "", str(error).strip(), flags=re.DOTALL) or type(error).__name__


def _publish(result: RunResult, root: Path) -> dict[str, Any] | None:
    """Copies the latest report to its lasting place, each file at once, and returns it."""
    if not (found := result.outputs("Evaluator", "evaluation")):
        return None
    (root / "report").mkdir(exist_ok=True)
    for name in ("report.html", "report.json"):
        partial = root / "report" / f".{name}.{os.getpid()}"
        shutil.copy(Path(found[0].uri, name), partial)
        partial.replace(root / "report" / name)
    content: dict[str, Any] = json.loads((root / "report" / "report.json").read_text())
    return content


def _pushed(result: RunResult) -> Path | None:
    with contextlib.suppress(IndexError):
        artifact = result.outputs("Pusher", "pushed_model")[0]
        if artifact.get_int_custom_property("pushed"):
            return Path(artifact.get_string_custom_property("pushed_destination"), "model.tflite")
    return None
