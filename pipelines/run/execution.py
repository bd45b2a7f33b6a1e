"""Doing what was asked: a prepared request on this machine, from its data to the outcome."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

from edgeline.errors import UserError
from edgeline.isolation import fork_server, limits
from edgeline.pipelines import console
from edgeline.pipelines.console import Console
from edgeline.pipelines.datasets import mnist
from edgeline.pipelines.records import events
from edgeline.pipelines.root import CACHE, Root
from edgeline.pipelines.run import new_data, warm_start
from edgeline.pipelines.run.journal import Journal
from edgeline.pipelines.run.live_view import LiveView
from edgeline.pipelines.run.request import Prepared

if TYPE_CHECKING:
    from edgeline.pipelines.run.outcome import Outcome


def _say(note: str) -> None:
    console.say(Console(stderr=True), f"edgeline: {note}", "yellow")


def execute(prepared: Prepared, view: LiveView, journal: Journal, *, note: Callable[[str], None] = _say) -> Outcome:
    """Runs the pipeline of a request on this machine.

    Args:
      prepared: what is asked.
      view: shows the steps.
      journal: of this run; gets its events.
      note: is told what the user should know of the data, the cache and the weights that the training begins with, a
        line each.

    Raises:
      UserError: the data cannot be read, the module cannot be imported or does not fit, the root is in use by another
        run, or its disk is full or cannot be written.
    """
    request, job, window = prepared.request, prepared.job, prepared.window
    root, data = request.root, request.data
    root.make()
    if job.model is not None:
        fork_server.start()  # which imports TensorFlow while this process does
    with view.status("loading TensorFlow"):
        from edgeline.training import loop
    # all steps run in this process, and its first operation settles it: that of whoever reads the data below
    loop.use_threads(job.finetune.threads)
    if data is None:
        data = root.data
        if not data.exists():
            mnist.write_digits(data, console=view.console)
    train, cold = warm_start.resolved(job.train, root)
    job = dataclasses.replace(job, train=train)
    anew = _why_cache_starts_anew(root) if request.use_cache else None
    for text in filter(None, (*(window.notes if window else ()), cold, anew)):
        note(text)
    new_data.check_readable(data, window, root)
    journal.write("data", **new_data.facts(data, window, prepared.digest), cache=CACHE)

    if root.metadata_db.is_file():
        from edgeline.pipelines.records import lineage

        lineage.wait_until_unlocked(root.metadata_db, write=True, note=note)
    with view.status("loading TFX"):
        from edgeline.pipelines import compression
        from edgeline.pipelines.run import session
    compression.check(job)
    examples = compression.import_spans(window) if window else compression.import_examples(data)
    schema = compression.import_schema(request.schema, root) if request.schema else None
    with limits.memory(request.memory_limit):
        outcome = session.run(
            job, root, examples, view, schema=schema, enable_cache=request.use_cache, listen=journal.step
        )
    journal.outcome(outcome)
    return outcome


def _why_cache_starts_anew(root: Root) -> str | None:
    """Returns what to say where the last run of a root was made by a version whose steps no cache serves any more."""
    try:
        logged = events.read(root)
    except UserError:
        logged = []
    begun = [event for event in logged if event["event"] == "data"]
    if (begun[-1].get("cache") == CACHE) if begun else not root.metadata_db.exists():
        return None
    started = {event["run"]: event for event in logged if event["event"] == "started"}
    version = started.get(begun[-1]["run"], {}).get("version") if begun else None
    return (
        f"the cache of {root} starts anew: the version of Edgeline that made its last run"
        f"{f' ({version})' if version else ''} knew the steps by other parameters. Every step runs again, once"
    )
