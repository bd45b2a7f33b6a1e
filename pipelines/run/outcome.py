"""What a run came to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any


def unmet(report: dict[str, Any]) -> str:
    """Returns why nothing was selected: what the closest candidate missed, else the first one."""
    candidates = sorted(report["candidates"], key=lambda c: c["name"] != report["closest"])
    missed = [f"{c['name']}: {'; '.join(c['reasons'])}" for c in candidates[:1]]
    return "; ".join(["no candidate met the budget", *missed])


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
      pushed: the pushed `.tflite` file; None where nothing was, or where another model has been deployed since.
      not_pushed: why the selected model is not the one that is deployed, for the user; None where it is, and where no
        model was selected.
      states: how many nodes were done, cached, failed, skipped.
      pushed_now: whether this run pushed `pushed`; else an earlier one did.
      run_id: of the run in ML Metadata.
      drifted: what has moved in the data and was let through, a line for each feature.
    """

    failures: tuple[Failure, ...]
    report: dict[str, Any] | None
    report_path: Path | None
    pushed: Path | None
    not_pushed: str | None
    states: dict[str, int]
    pushed_now: bool
    run_id: str
    drifted: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Returns the outcome for machines: selected, pushed or not, report, steps, each candidate's main numbers."""
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
            "not_pushed": self.not_pushed or (unmet(report) if report and not report["selected"] else None),
            "report": self.report_path and str(self.report_path.with_suffix(".json")),
            "steps": self.states,
            "failures": [failure.text for failure in self.failures],
            "drifted": list(self.drifted),
            "baseline": report.get("baseline"),
            "candidates": [{key: c[key] for key in keys} for c in report.get("candidates", [])],
        }
