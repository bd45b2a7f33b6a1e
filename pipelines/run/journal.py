"""Writing the events of one run, however it ends."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import os
import secrets
import socket
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgeline.pipelines import endings
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.records import events, prometheus, recovery
from edgeline.pipelines.root import Root
from edgeline.pipelines.run.outcome import unmet
from edgeline.report.schema import Report

if TYPE_CHECKING:  # both import TFX, which takes nine seconds
    from edgeline.pipelines.run.node_events import Event
    from edgeline.pipelines.run.outcome import Outcome


@contextlib.contextmanager
def recorded(root: Root, command: str, **asked: Any) -> Iterator[Journal]:
    """Yields the journal of a run, and brings the root's metrics up to date when the run has ended, however it does.

    First, what earlier commands that were killed have left half done is finished.

    Args:
      root: of the pipeline.
      command: `run` or `optimize`.
      **asked: what else is worth knowing of the request.
    """
    recovery.recover(root)
    try:
        with Journal(root, command, **asked) as journal:
            yield journal
    finally:
        prometheus.write(root)


class Journal:
    """Writes the events of one run; within its `with` block, every end of the run leaves its line.

    A root that does not exist yet gets the lines once it does: a mistake in a command must not make a folder.

    Args:
      root: of the pipeline.
      command: `run` or `optimize`.
      **asked: what else is worth knowing of the request.

    Attributes:
      run: id of the run.
      exit_code: to be set by whoever ends the run; of a run that raises it is that of the error.
      error: why it failed; likewise.
    """

    def __init__(self, root: Root, command: str, **asked: Any):
        self.root = root
        self.run = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        self.exit_code: int = ExitCode.STEP_FAILED
        self.error: str | None = None
        self._mlmd_run: str | None = None
        self._start = time.monotonic()
        self._waiting: list[str] = []
        self.write(
            "started", command=command, host=socket.gethostname(), pid=os.getpid(),
            version=importlib.metadata.version("edgeline"), **asked,
        )  # fmt: skip

    def write(self, event: str, **facts: Any) -> None:
        """Appends an event of this run."""
        self._waiting.append(events.line({"time": events.now(), "run": self.run, "event": event, **facts}))
        if self.root.path.is_dir():
            events.append_lines(self.root, self._waiting)
            self._waiting = []

    def step(self, event: Event) -> None:
        """Takes an event of the runner."""
        if event.state != "waiting":
            self.write(
                "step", step=event.node_id, state=event.state, seconds=round(event.seconds, 3), detail=event.detail
            )

    def outcome(self, outcome: Outcome) -> None:
        """Writes what a run came to."""
        self._mlmd_run = outcome.run_id
        self.error = "; ".join(failure.text for failure in outcome.failures) or None
        if outcome.report is not None:
            self._evaluated(outcome.report)
        if outcome.pushed_now and outcome.pushed is not None:
            name = outcome.report.selected if outcome.report else None
            self.write("pushed", version=outcome.pushed.parent.name, name=name)
        elif outcome.pushed is not None:
            self.write("not_pushed", why=f"version {outcome.pushed.parent.name}, pushed earlier, is this model")
        elif outcome.not_pushed is not None:
            self.write("not_pushed", why=outcome.not_pushed)
        elif outcome.report is not None and not outcome.report.selected:
            self.write("not_pushed", why=unmet(outcome.report))

    def _evaluated(self, report: Report) -> None:
        metric, deployed, chosen = report.budget.metric, report.deployed, report.chosen
        more = [judged.metric for judged in report.budget.more_metrics]
        self.write(
            "evaluated",
            metric=metric,
            baseline=report.baseline.value(metric),
            examples=report.dataset.examples,
            candidates=len(report.candidates),
            blessed=sum(candidate.blessed for candidate in report.candidates),
            deployed=deployed
            and {
                "version": deployed.version,
                "value": deployed.value(metric),
                "zlib_bytes": deployed.zlib_bytes,
                "more_metrics": {name: {"value": deployed.value(name)} for name in more},
            },
        )
        numbers: dict[str, Any] = {}
        if chosen is not None:
            numbers = {"sha256": chosen.sha256, "drop": chosen.drop, "bytes": chosen.bytes}
            numbers |= {"zlib_bytes": chosen.zlib_bytes, "metric": metric, "value": chosen.value(metric)}
            numbers["more_metrics"] = {
                name: {"value": chosen.value(name), "drop": chosen.lost(name).drop} for name in more
            }
        if report.selected:
            self.write("selected", name=report.selected, **numbers)
        else:
            self.write("none_selected", closest=report.closest, **numbers)

    def __enter__(self) -> Journal:
        """Begins the run."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Ends it: with the exit code that was set, or with that of the error."""
        if error is not None:
            self.exit_code, self.error = endings.of(error)
        self.write(
            "finished",
            exit_code=self.exit_code,
            seconds=round(time.monotonic() - self._start, 3),
            error=self.error,
            mlmd_run=self._mlmd_run,
        )
