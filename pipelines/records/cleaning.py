"""What of a pipeline's root can be deleted, and deleting it.

Nightly runs leave a copy of the data and all intermediate models behind. What is deleted is marked so in ML Metadata
first: TFX's cache serves no artifact that is not LIVE, so a later run makes anew what it needs of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2

from edgeline.deployed import versions
from edgeline.errors import UserError
from edgeline.pipelines.records import events, lineage, recovery
from edgeline.pipelines.root import Root

_OUTPUT, _INPUT = metadata_store_pb2.Event.OUTPUT, metadata_store_pb2.Event.INPUT
_LIVE, _DELETED = metadata_store_pb2.Artifact.LIVE, metadata_store_pb2.Artifact.DELETED


@dataclasses.dataclass(frozen=True)
class Garbage:
    """What can be deleted.

    Attributes:
      runs: how many runs there are.
      kept: how many of these are kept.
      folders: of artifacts, in the order of their making.
      logs: of runs before those that are kept.
      bytes: of all that.
    """

    runs: int
    kept: int
    folders: tuple[Path, ...]
    logs: tuple[Path, ...]
    bytes: int


def find(root: Root, keep: int, *, forget_blessed: bool = False) -> Garbage:
    """Returns what can be deleted; changes nothing.

    Args:
      root: of the pipeline.
      keep: how many of the latest runs keep all that they made or were served from the cache.
      forget_blessed: whether models that were blessed, but of which no version is in `pushed/`, can go too.

    Raises:
      UserError: `root` has no readable `metadata.db`.
    """
    with lineage.open_store(root) as store:
        return _find(store, root, keep, forget_blessed)[0]


def delete(root: Root, keep: int, *, forget_blessed: bool = False) -> Garbage:
    """Deletes what `find` returns; where it is killed half-way, the next call deletes the rest.

    Raises:
      UserError: `root` has no readable `metadata.db`, a run is working there, or something cannot be deleted.
    """
    with lineage.open_store(root):  # before the lock makes a folder
        pass
    with (
        root.locked("what it needs must not be deleted. Wait for it, or stop it."),
        lineage.open_store(root, write=True) as store,
    ):
        recovery.recover(root)
        garbage, artifacts = _find(store, root, keep, forget_blessed)
        marked = [artifact for artifact in artifacts if artifact.state != _DELETED]
        for artifact in marked:
            artifact.state = _DELETED
        # before the files: of a folder that is half deleted the cache must not know
        if marked:
            store.put_artifacts(marked)
        for path in (*garbage.folders, *garbage.logs):
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(
                    f"{error.filename or path} cannot be deleted: {error.strerror}; give this user the rights to it, "
                    "and run the same command again for the rest"
                ) from error
    return garbage


def _find(
    store: metadata_store.MetadataStore, root: Root, keep: int, forget_blessed: bool
) -> tuple[Garbage, list[metadata_store_pb2.Artifact]]:
    """Returns what can be deleted, and the artifacts whose folders are among it."""
    runs = store.get_contexts_by_type("pipeline_run")
    runs.sort(key=lambda context: context.id)  # a clock may be set back
    latest = runs[-keep:]
    graph = _Graph(store)
    needed = {i for run in latest for e in store.get_executions_by_context(run.id) for i in graph.around(e.id)}
    needed |= _of_models(graph, root, forget_blessed)

    inside = root.artifacts.resolve()
    artifacts, folders = [], []
    for artifact in graph.artifacts.values():
        folder = Path(artifact.uri).resolve()
        # what is marked was given up by a call that was killed before it had deleted the files
        if artifact.id in needed and artifact.state != _DELETED:
            continue
        if inside in folder.parents and folder.exists():
            artifacts.append(artifact)
            folders.append(folder)
    logs = _logs_before(latest, root) if len(latest) < len(runs) else []
    size = sum(map(_bytes, (*folders, *logs)))
    return Garbage(len(runs), len(latest), tuple(folders), tuple(logs), size), artifacts


def _logs_before(latest: list[Any], root: Root) -> list[Path]:
    """Returns the logs of runs before some: by the order of the event log, and by time those that it does not know."""
    log: list[dict[str, Any]] = []
    with contextlib.suppress(UserError):
        log = events.read(root)
    order = list(dict.fromkeys(event["run"] for event in log if event["run"] is not None))
    names = {run.name for run in latest}
    kept = {event["run"] for event in log if event["event"] == "finished" and event.get("mlmd_run") in names}
    first = next((i for i, run in enumerate(order) if run in kept), max(0, len(order) - len(latest)))
    place = {run: i for i, run in enumerate(order)}
    oldest = min(run.create_time_since_epoch for run in latest) / 1000

    def is_before(path: Path) -> bool:
        return place[path.stem] < first if path.stem in place else path.stat().st_mtime < oldest

    return sorted(filter(is_before, root.logs.glob("*.log")))


def _bytes(path: Path) -> int:
    return sum(file.lstat().st_size for file in (path.rglob("*") if path.is_dir() else (path,)) if not file.is_dir())


class _Graph:
    """Who made what of what: all executions that did their work, and all artifacts."""

    def __init__(self, store: metadata_store.MetadataStore):
        self.artifacts = {artifact.id: artifact for artifact in store.get_artifacts()}
        executions = store.get_executions()
        # a cached execution points to what another one made
        executed = {e.id for e in executions if e.last_known_state != metadata_store_pb2.Execution.CACHED}
        self._ids: dict[tuple[int, int], set[int]] = defaultdict(set)
        self._makers: dict[int, set[int]] = defaultdict(set)
        for event in store.get_events_by_execution_ids([e.id for e in executions]) if executions else ():
            self._ids[event.execution_id, event.type].add(event.artifact_id)
            if event.type == _OUTPUT and event.execution_id in executed:
                self._makers[event.artifact_id].add(event.execution_id)

    def around(self, execution: int) -> set[int]:
        """Returns what an execution took and gave, from the cache or new."""
        return self._ids[execution, _INPUT] | self._ids[execution, _OUTPUT]

    def inputs(self, artifact: int) -> set[int]:
        """Returns what an artifact was made of."""
        return {i for maker in self._makers[artifact] for i in self._ids[maker, _INPUT]}

    def siblings(self, artifact: int) -> set[int]:
        """Returns what was made with an artifact, and itself."""
        return {artifact}.union(*(self._ids[maker, _OUTPUT] for maker in self._makers[artifact]))

    def history(self, artifacts: Iterable[int]) -> set[int]:
        """Returns what artifacts were made of, back to the data, with their siblings."""
        ids: set[int] = set()
        waiting = list(artifacts)
        while waiting:
            artifact = waiting.pop()
            if artifact not in ids:
                ids.add(artifact)
                waiting += self.inputs(artifact)
        return ids.union(*map(self.siblings, ids))

    def live(self, kind: str) -> list[Any]:
        """Returns the artifacts of a type that were not deleted."""
        return [a for a in self.artifacts.values() if a.type == kind and a.state == _LIVE]


def _of_models(graph: _Graph, root: Root, forget_blessed: bool) -> set[int]:
    """Returns what pushed and blessed models were made of, and what the Evaluator and the Pusher said of them.

    The Evaluator's other inputs are not part of that: all candidates go into it.
    """
    models, value = graph.live("Model"), lineage.value
    there = {version.version: version.sha256 for version in versions.versions(str(root.pushed))}
    kept = set(filter(None, there.values()))
    for push in graph.live("PushedModel"):
        if value(push, "pushed_version") in there:  # also one whose file is missing or was changed
            kept |= {str(value(graph.artifacts[i], "sha256")) for i in graph.inputs(push.id) if i in graph.artifacts}
    blessings = {b.id: value(b, "current_model_id") for b in graph.live("ModelBlessing") if value(b, "blessed")}
    by_id = {model.id: model for model in models}
    blessed = {str(value(by_id[i], "sha256")) for i in blessings.values() if i in by_id}
    if not forget_blessed:
        kept |= blessed
    exports = [model.id for model in models if value(model, "sha256") in kept and not value(model, "candidate")]
    copies = [model.id for model in models if value(model, "sha256") in kept and value(model, "candidate")]
    pushes = [p.id for p in graph.live("PushedModel") if graph.inputs(p.id).intersection(copies)]
    return graph.history(exports).union(*map(graph.siblings, (*copies, *pushes)))
