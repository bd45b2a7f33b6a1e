"""Answers from ML Metadata: which runs there were, and what made a file.

Only `ml_metadata` is imported, which takes a fraction of a second; TFX would take nine. To answer, the store is opened
read-only, so a pipeline may run meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_metadata import errors, metadata_store
from ml_metadata.proto import metadata_store_pb2
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from edgeline.errors import UserError
from edgeline.pipelines.console import Console, format_seconds, say
from edgeline.pipelines.root import DEFAULT_ROOT, Root

Value = str | int | float

#: How long to wait for a locked database before that is said, and after.
LOCKED_SECONDS = (2, 8)


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a pipeline.

    Attributes:
      run_id: as TFX names it.
      started: with the local time zone.
      seconds: from its start to the end of its last step; a step that was killed has no end.
      steps: executions that were registered, the cached and failed among them; a skipped step has none.
      cached: of these, served from earlier runs.
      failed: of these, failed, or cancelled because their run was killed.
      selected: name of the candidate that the Evaluator chose; None if there was none.
    """

    run_id: str
    started: datetime.datetime
    seconds: float
    steps: int
    cached: int
    failed: int
    selected: str | None


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An artifact in ML Metadata; `properties` are those worth reading, by name, in alphabetical order."""

    id: int
    type: str
    uri: str
    properties: Mapping[str, Value]


@dataclasses.dataclass(frozen=True)
class Input:
    """What a step took in.

    Attributes:
      port: the step's name for it.
      artifact: what was taken.
      producer: id of the step that made it; None where it came from outside.
    """

    port: str
    artifact: Artifact
    producer: int | None


@dataclasses.dataclass(frozen=True)
class Step:
    """An execution that did its work; never a cached one, which only points to the outputs of such a one.

    Attributes:
      id: of the execution.
      node: its id in the pipeline.
      component: class name of the component.
      run: id of the run that it was part of.
      started: with the local time zone.
      seconds: how long it took.
      parameters: those worth reading, by name, in alphabetical order.
      inputs: the models first, then by port.
    """

    id: int
    node: str
    component: str
    run: str
    started: datetime.datetime
    seconds: float
    parameters: Mapping[str, Value]
    inputs: tuple[Input, ...]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What an Evaluator said of the file: as which candidate it was seen, and whether it was selected and blessed.

    A candidate may meet the budget without being the best; that is in the report, not in ML Metadata.
    """

    run: str
    time: datetime.datetime
    candidate: str
    blessed: bool


@dataclasses.dataclass(frozen=True)
class Push:
    """Where and when a file of the same content was pushed."""

    run: str
    time: datetime.datetime
    destination: str


@dataclasses.dataclass(frozen=True)
class Trace:
    """What made an artifact, back to the data.

    Attributes:
      root: folder of the pipeline.
      file: the file that was asked for; None when an id was.
      artifact: the one that is traced; for a file, the export that it is, or is a copy of.
      producer: id of the step that made it; None where it came from outside.
      steps: that step and all before it, each once and before those that it needed.
      same_content: ids of other exports with the same SHA-256.
      verdicts: on these exports, oldest first.
      pushes: of these exports, oldest first.
    """

    root: Root
    file: Path | None
    artifact: Artifact
    producer: int | None
    steps: tuple[Step, ...]
    same_content: tuple[int, ...]
    verdicts: tuple[Verdict, ...]
    pushes: tuple[Push, ...]


def runs(root: Root) -> list[Run]:
    """Returns the runs of the pipeline whose folder is `root`, newest first.

    Raises:
      UserError: `root` has no readable `metadata.db`.
    """
    with open_store(root) as store:
        contexts = store.get_contexts_by_type("pipeline_run")
        chosen = {a.id: value(a, "candidate") for a in store.get_artifacts_by_type("Model") if value(a, "candidate")}
        selected = {
            event.execution_id: chosen[event.artifact_id]
            for event in store.get_events_by_artifact_ids(list(chosen))
            if event.type == metadata_store_pb2.Event.OUTPUT
        }
        contexts.sort(key=lambda context: context.id, reverse=True)  # a clock may be set back
        return [_run(c, store.get_executions_by_context(c.id), selected) for c in contexts]


def _run(context: Any, executions: list[Any], selected: Mapping[int, Any]) -> Run:
    kind = metadata_store_pb2.Execution
    states = [execution.last_known_state for execution in executions]
    # a later run cancels what a killed one has left behind: that is not when it ended
    ends = [
        e.last_update_time_since_epoch
        if e.last_known_state in (kind.COMPLETE, kind.CACHED, kind.FAILED)
        else e.create_time_since_epoch
        for e in executions
    ]
    start = context.create_time_since_epoch
    return Run(
        context.name,
        _time(start),
        (max(ends, default=start) - start) / 1000,
        steps=len(executions),
        cached=states.count(kind.CACHED),
        failed=states.count(kind.FAILED) + states.count(kind.CANCELED),
        selected=next((selected[e.id] for e in executions if e.id in selected), None),
    )


def trace(target: str | int | Path, root: Root | None = None) -> Trace:
    """Returns what made a file or an artifact, step by step back to the data.

    Args:
      target: path of an exported `.tflite` file or of a copy of one, matched by its SHA-256; or an artifact's id.
      root: folder of the pipeline; None: the nearest folder above the file that has a `metadata.db`, else
        `runs/digits`.

    Raises:
      UserError: the file, the `metadata.db` or the artifact is not there, or the `metadata.db` cannot be read.
    """
    if str(target).isdecimal():
        root = root or DEFAULT_ROOT
        with open_store(root) as store:
            return _trace(store, root, None, _artifact_by_id(store, root, int(str(target))))
    file = Path(str(target))
    sha256 = _sha256(file)
    if root is None:
        root = Root.above(file.absolute()) or Root.above(file.resolve()) or DEFAULT_ROOT
    with open_store(root) as store:
        exports = [a for a in _models(store, sha256) if not value(a, "candidate")]
        if not exports:
            raise UserError(
                f"No export in {root.metadata_db} has the content of {file} (SHA-256 {sha256}). The file may come "
                "from another pipeline, then give its folder with --root, or it was changed after the export."
            )
        holds = [a for a in exports if file.resolve().is_relative_to(Path(a.uri).resolve())]
        return _trace(store, root, file, max(holds or exports, key=lambda artifact: artifact.id))


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the path of a .tflite file, or an artifact's id") from None
    except IsADirectoryError:
        files = sorted((*path.glob("*.tflite"), *path.glob("*/*.tflite")))
        inside = f": give {files[0]}" if files else ""
        raise UserError(f"{path} is a folder, expected a .tflite file{inside}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


@contextlib.contextmanager
def open_store(root: Root, *, write: bool = False) -> Iterator[metadata_store.MetadataStore]:
    """Yields the ML Metadata of the pipeline whose folder is `root`.

    Args:
      root: the folder.
      write: whether it may be changed; then no run may be working there.

    Raises:
      UserError: `root` has no readable `metadata.db`.
    """
    path = root.metadata_db
    other = "give the folder of a pipeline with --root, the same as for `edgeline run`"
    header = b"SQLite format 3\0"
    try:
        with path.open("rb") as file:
            is_database = file.read(len(header)) == header
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"There is no {path}, where a pipeline keeps its metadata; {other}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if not is_database:
        raise UserError(f"{path} is not an sqlite database: it is broken, or not of a pipeline; {other}.")
    wait_until_unlocked(path, write=write)
    config = metadata_store_pb2.ConnectionConfig()
    config.sqlite.filename_uri = str(path)
    modes = metadata_store_pb2.SqliteMetadataSourceConfig
    config.sqlite.connection_mode = modes.READWRITE if write else modes.READONLY
    try:
        store = metadata_store.MetadataStore(config)
    except (RuntimeError, errors.StatusError) as error:
        raise UserError(
            f"{path} cannot be read as ML Metadata ({_brief(error)}). If a run is writing it, try again; else {other}."
        ) from error
    try:
        yield store
    except errors.StatusError as error:
        raise UserError(f"Reading {path} failed ({_brief(error)}); if a run is writing it, try again.") from error


def _say(note: str) -> None:
    say(Console(stderr=True), f"edgeline: {note}", "yellow")


def wait_until_unlocked(path: Path, *, write: bool = False, note: Callable[[str], None] = _say) -> None:
    """Waits for who holds the lock of an sqlite database; ML Metadata would wait for most of a minute, in silence.

    Args:
      path: of the file.
      write: whether it is to be changed.
      note: is told that it is locked.

    Raises:
      UserError: it is locked for longer than `LOCKED_SECONDS`.
    """
    said = sum(LOCKED_SECONDS)
    for seconds in LOCKED_SECONDS:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={'rw' if write else 'ro'}", seconds, uri=True)
        try:
            connection.execute("BEGIN IMMEDIATE" if write else "SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
            connection.rollback()
        except sqlite3.Error as error:
            if "locked" not in str(error):
                return  # ML Metadata says what else is wrong with it
        else:
            return
        finally:
            connection.close()
        if seconds == LOCKED_SECONDS[0]:
            note(f"{path} is locked by another process, waiting up to {said:g} s for it")
    raise UserError(
        f"{path} is locked by another process for more than {said:g} s: a run does so for moments only. `fuser {path}` "
        "says who does; stop it, or try again"
    )


def _brief(error: BaseException) -> str:
    # MLMD puts the query after what is wrong
    return re.split(r"\n| query: {2}", str(error).strip())[0].removeprefix("Error when executing query: ")


def _artifact_by_id(store: metadata_store.MetadataStore, root: Root, wanted: int) -> Any:
    # protobuf refuses what does not fit into 64 bits
    if wanted < 2**63 and (artifacts := store.get_artifacts_by_id([wanted])):
        return artifacts[0]
    last = max((artifact.id for artifact in store.get_artifacts()), default=None)
    known = "it has none yet" if last is None else f"its ids go up to {last}"
    raise UserError(
        f"There is no artifact {wanted} in {root.metadata_db}: {known}. "
        "To look into another pipeline, give its folder with --root."
    )


def _models(store: metadata_store.MetadataStore, sha256: str) -> list[Any]:
    return [artifact for artifact in store.get_artifacts_by_type("Model") if value(artifact, "sha256") == sha256]


def _trace(store: metadata_store.MetadataStore, root: Root, file: Path | None, artifact: Any) -> Trace:
    producer = _producer(store, artifact.id)
    finished: dict[int, Step] = {}
    if producer:
        _walk(store, producer, finished)
    sha256 = value(artifact, "sha256")
    copies = _models(store, str(sha256)) if sha256 else [artifact]
    exports = [a.id for a in copies if not value(a, "candidate")]
    return Trace(
        root,
        file,
        _artifact(artifact),
        producer.id if producer else None,
        tuple(reversed(finished.values())),
        same_content=tuple(i for i in exports if i != artifact.id),
        verdicts=_verdicts(store, exports),
        pushes=_pushes(store, [a.id for a in copies]),
    )


def _walk(store: metadata_store.MetadataStore, execution: Any, finished: dict[int, Step]) -> None:
    """Adds a step to `finished`, after all those that it needed."""
    events = store.get_events_by_execution_ids([execution.id])
    ports = [(port, e.artifact_id) for e in events if e.type == metadata_store_pb2.Event.INPUT for port in _ports(e)]
    artifacts = {a.id: a for a in store.get_artifacts_by_id([i for _, i in ports])}
    ports.sort(key=lambda pair: (artifacts[pair[1]].type != "Model", pair))
    inputs = []
    for port, artifact_id in ports:
        producer = _producer(store, artifact_id)
        if producer and producer.id not in finished:
            _walk(store, producer, finished)
        inputs.append(Input(port, _artifact(artifacts[artifact_id]), producer.id if producer else None))
    names = _context_names(store, execution.id)
    finished[execution.id] = Step(
        execution.id,
        names.get("node", "").removeprefix(f"{names.get('pipeline', '')}."),
        execution.type.rsplit(".", 1)[-1],
        names.get("pipeline_run", ""),
        _time(execution.create_time_since_epoch),
        (execution.last_update_time_since_epoch - execution.create_time_since_epoch) / 1000,
        _worth_reading(execution),
        tuple(inputs),
    )


def _producer(store: metadata_store.MetadataStore, artifact_id: int) -> Any | None:
    events = store.get_events_by_artifact_ids([artifact_id])
    producers = [event.execution_id for event in events if event.type == metadata_store_pb2.Event.OUTPUT]
    return min(_executed(store, producers), key=lambda execution: execution.id, default=None)


def _executed(store: metadata_store.MetadataStore, ids: Iterable[int]) -> list[Any]:
    """Returns the executions without the cached ones, which have events of their own to the same artifacts."""
    executions = store.get_executions_by_id(sorted(set(ids)))
    return [e for e in executions if e.last_known_state != metadata_store_pb2.Execution.CACHED]


def _made_from(
    store: metadata_store.MetadataStore, artifact_ids: list[int], kind: str
) -> Iterator[tuple[Any, Any, str]]:
    """Yields (an INPUT event of one of the artifacts, an artifact of type `kind` made in that execution, its run)."""
    taken = [e for e in store.get_events_by_artifact_ids(artifact_ids) if e.type == metadata_store_pb2.Event.INPUT]
    for execution in _executed(store, [e.execution_id for e in taken]):
        events = store.get_events_by_execution_ids([execution.id])
        outputs = [e.artifact_id for e in events if e.type == metadata_store_pb2.Event.OUTPUT]
        run = _context_names(store, execution.id).get("pipeline_run", "")
        for artifact in store.get_artifacts_by_id(outputs):
            if artifact.type == kind:
                yield from ((event, artifact, run) for event in taken if event.execution_id == execution.id)


def _verdicts(store: metadata_store.MetadataStore, exports: list[int]) -> tuple[Verdict, ...]:
    verdicts = [
        Verdict(
            run,
            _time(blessing.create_time_since_epoch),
            port,
            bool(value(blessing, "blessed")) and value(blessing, "current_model_id") == event.artifact_id,
        )
        for event, blessing, run in _made_from(store, exports, "ModelBlessing")
        for port in _ports(event)
        if port != "baseline"  # what the candidates are compared with is not judged
    ]
    return tuple(sorted(verdicts, key=lambda verdict: verdict.time))


def _pushes(store: metadata_store.MetadataStore, copies: list[int]) -> tuple[Push, ...]:
    pushes = [
        Push(run, _time(pushed.create_time_since_epoch), str(value(pushed, "pushed_destination")))
        for _, pushed, run in _made_from(store, copies, "PushedModel")
        if value(pushed, "pushed")
    ]
    return tuple(sorted(pushes, key=lambda push: push.time))


def _context_names(store: metadata_store.MetadataStore, execution_id: int) -> dict[str, str]:
    return {context.type: context.name for context in store.get_contexts_by_execution(execution_id)}


def _artifact(proto: Any) -> Artifact:
    return Artifact(proto.id, proto.type, proto.uri, _worth_reading(proto))


def _ports(event: Any) -> list[str]:
    # TFX writes key, index, key, index...: one event where a step takes an artifact by several ports
    return [step.key for step in event.path.steps if step.key]


def _time(milliseconds: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(milliseconds / 1000).astimezone()


def value(proto: Any, name: str) -> Value | None:
    """Returns a property or custom property of an artifact or execution; None where it has no such one."""
    for properties in (proto.properties, proto.custom_properties):
        if name in properties:
            return getattr(properties[name], str(properties[name].WhichOneof("value")), None)
    return None


#: What TFX's own components keep for themselves, or twice: the fingerprint and the destination are the outputs' too.
_NOISE = {
    "custom_config", "file_format", "input_config", "input_fingerprint", "is_external", "output_config",
    "output_data_format", "output_file_format", "payload_format", "push_destination", "tfx_version",
}  # fmt: skip


def _worth_reading(proto: Any) -> dict[str, Value]:
    noise = _NOISE - {"input_fingerprint"} if isinstance(proto, metadata_store_pb2.Artifact) else _NOISE
    properties = {name: value(proto, name) for name in sorted({*proto.properties, *proto.custom_properties})}
    return {
        name: value
        for name, value in properties.items()
        if value not in (None, "", "null", "{}", "[]", "none")
        # runs of earlier versions have -1 where no limit was set
        and not (name in noise or name.startswith("__") or (name.startswith("max_") and value == -1))
    }


#: Parameters that are shown once where all steps agree on them.
_COMMON = ("module", "module_digest", "toolchain")


def render(trace: Trace) -> RenderableType:
    """Draws what is known of the file, then the tree of the steps that made it, back to the data."""
    steps = {step.id: step for step in trace.steps}
    values = {name: {s.parameters[name] for s in trace.steps if name in s.parameters} for name in _COMMON}
    common = {name: str(found.pop()) for name, found in values.items() if len(found) == 1}

    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, style="dim")
    grid.add_column(overflow="fold")
    for label, text, style in (*_of_file(trace), *_of_data(trace, steps)):
        grid.add_row(label, Text(text, style))
    for name, text in common.items():
        grid.add_row(name.replace("_", " "), Text(text))

    tree = Tree(_label("", trace.artifact, steps.get(trace.producer or 0), trace.root, common), guide_style="dim")
    if trace.producer:
        _grow(tree, steps[trace.producer], steps, {trace.producer}, trace.root, common)
    return Group(grid, "", tree)


def _of_file(trace: Trace) -> Iterator[tuple[str, str, str]]:
    """Yields (label, text, style)."""
    artifact = trace.artifact
    if trace.file:
        yield "file", str(trace.file), "bold"
    yield "root", str(trace.root), ""
    yield "artifact", f"{artifact.id}, {artifact.type}, {_short(artifact.uri, trace.root)}", ""
    if "sha256" not in artifact.properties:
        return
    yield "sha256", str(artifact.properties["sha256"]), ""
    if "bytes" in artifact.properties:
        size, compressed = artifact.properties["bytes"], artifact.properties.get("zlib_bytes", "?")
        yield "size", f"{size:,} bytes, {compressed:,} after zlib", ""
    if trace.same_content:
        yield "same file", f"also made as artifact {', '.join(map(str, trace.same_content))}", ""
    for verdict in trace.verdicts:
        answer, style = ("yes, blessed", "green") if verdict.blessed else ("no", "yellow")
        yield "selected", f"{answer}, as {verdict.candidate}, {_moment(verdict.time)}, run {verdict.run}", style
    if not trace.verdicts:
        yield "selected", "no, never evaluated as a candidate", "yellow"
    for push in trace.pushes:
        yield "pushed", f"{push.destination}, {_moment(push.time)}, run {push.run}", "green"
    if not trace.pushes:
        yield "pushed", "no", "yellow"


def _of_data(trace: Trace, steps: Mapping[int, Step]) -> Iterator[tuple[str, str, str]]:
    """Yields (label, text, style) of the examples that no earlier step of the pipeline made from others."""
    taken = [(i.artifact, i.producer) for step in trace.steps for i in step.inputs]
    examples = {
        a.id: (a, producer) for a, producer in (*taken, (trace.artifact, trace.producer)) if a.type == "Examples"
    }
    for artifact, producer in examples.values():
        step = steps.get(producer or 0)
        if step and step.inputs:
            continue
        source = step.parameters.get("input_base", artifact.uri) if step else artifact.uri
        known = [
            f"{name} {artifact.properties[name]}"
            for name in ("span", "spans", "version")
            if name in artifact.properties
        ]
        yield "data", ", ".join([str(source), *known]), ""
        for line in str(artifact.properties.get("input_fingerprint", "none recorded")).splitlines():
            yield (
                "fingerprint",
                re.sub("split:|num_|total_|_checksum", "", line).replace(":", " ").replace(",", ", "),
                "",
            )


def _grow(
    branch: Tree, step: Step, steps: Mapping[int, Step], shown: set[int], root: Root, common: Mapping[str, str]
) -> None:
    """Adds a step's inputs to its branch; a step that is in the tree already is only named."""
    for taken in step.inputs:
        producer = steps.get(taken.producer or 0)
        if producer and producer.id in shown:
            branch.add(Text(f"{taken.port} ← {producer.node} (above)", "dim"))
            continue
        twig = branch.add(_label(f"{taken.port} ← ", taken.artifact, producer, root, common))
        if producer:
            shown.add(producer.id)
            _grow(twig, producer, steps, shown, root, common)


def _label(prefix: str, artifact: Artifact, step: Step | None, root: Root, common: Mapping[str, str]) -> Text:
    label = Text(prefix)
    if step is None:
        label.append("made outside the recorded runs", "yellow")
    else:
        label.append(step.node, "bold")
        if step.node.split(".")[0] != step.component:
            label.append(f" ({step.component})")
        label.append(f"  {_moment(step.started)}, {format_seconds(step.seconds)}", "dim")
        if shown := {name: value for name, value in step.parameters.items() if name not in common}:
            label.append("\n" + ", ".join(f"{name} {value}" for name, value in shown.items()))
    return label.append(f"\n{artifact.type} {artifact.id}: {_short(artifact.uri, root)}", "dim")


def _short(uri: str, root: Root) -> str:
    return uri.removeprefix(f"{root.absolute()}/")


def _moment(time: datetime.datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}"
