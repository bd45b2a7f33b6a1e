"""What a run came to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgeline.report import words
from edgeline.report.dataclass_json import to_json
from edgeline.report.schema import Report

#: What the summary says of each candidate: fields of its report.
_SUMMARY = (
    *("name", "metrics", "drop", "more_drops", "bytes", "zlib_bytes", "ratio", "latency_ms", "sparsity"),
    *("blessed", "reasons"),
)


def unmet(report: Report) -> str:
    """Returns why nothing was selected: what the closest candidate missed, else the first one."""
    candidates = sorted(report.candidates, key=lambda candidate: candidate.name != report.closest)
    missed = [f"{candidate.name}: {'; '.join(candidate.reasons)}" for candidate in candidates[:1]]
    return "; ".join([words.nothing_selected(report).line, *missed])


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
      report: None where the Evaluator did not run.
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
    report: Report | None
    report_path: Path | None
    pushed: Path | None
    not_pushed: str | None
    states: dict[str, int]
    pushed_now: bool
    run_id: str
    drifted: tuple[str, ...] = ()

    def summary(self) -> dict[str, Any]:
        """Returns the outcome for machines: selected, pushed or not, report, steps, each candidate's main numbers."""
        report = self.report
        return {
            "selected": report and report.selected,
            "pushed": self.pushed and str(self.pushed),
            "not_pushed": self.not_pushed or (unmet(report) if report and not report.selected else None),
            "report": self.report_path and str(self.report_path.with_suffix(".json")),
            "steps": self.states,
            "failures": [failure.text for failure in self.failures],
            "drifted": list(self.drifted),
            "baseline": to_json(report.baseline) if report else None,
            "candidates": [
                {name: to_json(getattr(candidate, name)) for name in _SUMMARY}
                for candidate in (report.candidates if report else ())
            ],
        }
