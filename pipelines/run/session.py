"""One local run from job to outcome: build the pipeline, run it, publish the report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.components.base.base_node import BaseNode
from tfx.orchestration.pipeline import Pipeline

from edgeline import files, layout, progress
from edgeline.conversion import worker
from edgeline.deployed import pointer_file, versions
from edgeline.errors import MachineError, UserError
from edgeline.pipelines.compression import check_imported, create_pipeline
from edgeline.pipelines.job import Job
from edgeline.pipelines.root import Root
from edgeline.pipelines.run.live_view import LiveView
from edgeline.pipelines.run.local_runner import BEAM_ARGS, LocalRunner
from edgeline.pipelines.run.node_events import Event, Listener, RunResult
from edgeline.pipelines.run.outcome import Failure, Outcome
from edgeline.report import report_file
from edgeline.report.rendering import write_report
from edgeline.report.schema import NodeReport, Report, RunReport
from edgeline.training import checkpoints


@contextlib.contextmanager
def _kept_checkpoints(folder: Path) -> Iterator[None]:
    """Lets trainings keep each epoch, unless the user has said where they are kept."""
    if checkpoints.FOLDER_VARIABLE in os.environ:
        yield
        return
    os.environ[checkpoints.FOLDER_VARIABLE] = str(folder)
    try:
        yield
    finally:
        del os.environ[checkpoints.FOLDER_VARIABLE]


class _Warming(logging.Handler):
    """Starts the process that converts when the first training has begun, so that it is ready after it.

    Attributes:
      node_id: of the node that runs.
    """

    node_id = ""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._is_started = False

    def emit(self, record: logging.LogRecord) -> None:
        # these two report what they do as well, and no conversion need follow
        if self._is_started or not hasattr(record, "progress") or self.node_id in ("DataGate", "Evaluator"):
            return
        self._is_started = True
        with contextlib.suppress(MachineError):  # the first conversion says so
            worker.prepare()


@contextlib.contextmanager
def _listening(handler: logging.Handler) -> Iterator[None]:
    """Lets a handler hear of the progress of steps."""
    logger = logging.getLogger(progress.LOGGER_NAME)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def run(
    job: Job,
    root: Root,
    examples: BaseNode,
    view: LiveView,
    *,
    schema: BaseNode | None = None,
    enable_cache: bool = True,
    listen: Listener = lambda event: None,
) -> Outcome:
    """Runs the pipeline of a job on this machine.

    Args:
      job: what is made.
      root: where everything of this pipeline is kept; its name is the pipeline's.
      examples: the component that gives the data.
      view: shows the nodes.
      schema: the component that gives the schema to check the data by; None: they are not checked.
      enable_cache: whether nodes may be served from earlier runs.
      listen: is told of the nodes' states too.

    Raises:
      UserError: the root is in use by another run, or its disk is full or cannot be written; or the budget names a
        metric that the module does not compile for the imported model.
    """
    pipeline = create_pipeline(
        root.pipeline,
        job,
        root=root,
        examples=examples,
        schema=schema,
        beam_args=BEAM_ARGS,
        enable_cache=enable_cache,
    )

    warming = _Warming()

    def tell(event: Event) -> None:
        if event.state == "running":
            warming.node_id = event.node_id
        view(event)
        listen(event)

    def check(so_far: RunResult, node_id: str) -> None:
        if node_id == "ModelImporter":
            [model] = so_far.outputs(node_id, "model")
            check_imported(job, model.uri)

    deployed_before = pointer_file.path_of(str(root.pushed)).get("version")
    start = time.monotonic()
    with view, _kept_checkpoints(root.checkpoints), _listening(warming):
        result = LocalRunner(tell, functools.partial(_is_pushed, root), check).run(pipeline)
    if all(node.state in ("done", "cached") for node in result.nodes.values()):
        shutil.rmtree(root.checkpoints, ignore_errors=True)
    seconds = time.monotonic() - start
    failures = tuple(
        Failure(f"{node_id}: {_plain(node.exception)}", node.exception)
        for node_id, node in result.nodes.items()
        if node.state == "failed"
    )
    report = _publish(result, root, RunReport(seconds=seconds, nodes=_nodes(result, pipeline)))
    pushed, not_pushed = _pushed(result), None
    pusher = result.nodes["Pusher"].state
    # a model that is deployed already is not pushed a second time
    pushed_now = pushed is not None and pusher == "done" and pushed.parent.name != deployed_before
    if report is not None and report.selected and not pushed_now and pusher in ("done", "cached"):
        pushed, not_pushed, lost = _in_the_field(pushed, report, root.pushed)
        if lost:
            failures = (*failures, Failure(f"Pusher: {not_pushed}", None))
    return Outcome(
        failures,
        report,
        root.report / layout.REPORT_PAGE if report is not None else None,
        pushed,
        not_pushed,
        {
            s: n
            for s in ("done", "cached", "failed", "skipped")
            if (n := [r.state for r in result.nodes.values()].count(s))
        },
        pushed_now,
        result.run_id,
        _drifted(result) if schema is not None else (),
    )


def _drifted(result: RunResult) -> tuple[str, ...]:
    drift = result.outputs("DataGate", "drift")
    return tuple(json.loads(drift[0].get_string_custom_property("drifted"))) if drift else ()


def _plain(error: BaseException | None) -> str:
    # Beam appends the transform in which an error was raised
    return re.sub(r" \[while running .*\]$", "", str(error).strip(), flags=re.DOTALL) or type(error).__name__


def _nodes(result: RunResult, pipeline: Pipeline) -> tuple[NodeReport, ...]:
    """Returns the steps as the report says them, in the order they ran in."""
    upstream = {node.id: sorted(before.id for before in node.upstream_nodes) for node in pipeline.components}
    return tuple(
        NodeReport(id=node_id, state=node.state, seconds=node.seconds, upstream=tuple(upstream[node_id]))
        for node_id, node in result.nodes.items()
    )


def _publish(result: RunResult, root: Root, run: RunReport) -> Report | None:
    """Copies the latest report to its lasting place, each file at once, adds the run to it, and returns it."""
    if not (evaluations := result.outputs("Evaluator", "evaluation")):
        return None
    folder = root.report
    files.make_folder(folder)
    for name in (layout.REPORT_FILE, layout.REPORT_PAGE):
        files.write_bytes(folder / name, Path(evaluations[0].uri, name).read_bytes())
    report = dataclasses.replace(report_file.read(folder / layout.REPORT_FILE), run=run)
    try:
        write_report(report, folder)
    except Exception:  # the run is done and the Evaluator's own page is in place; only its steps are not drawn
        logging.exception("The report could not be drawn anew with the steps of the run.")
    return report


def _pushed(result: RunResult) -> Path | None:
    with contextlib.suppress(IndexError):
        artifact = result.outputs("Pusher", "pushed_model")[0]
        if artifact.get_int_custom_property("pushed"):
            return Path(artifact.get_string_custom_property("pushed_destination"), layout.TFLITE_FILE)
    return None


def _is_pushed(root: Root, artifact: metadata_store_pb2.Artifact) -> bool:
    """Returns whether what an earlier push says still holds; where nothing is deployed any more, it does not."""
    if artifact.type != "PushedModel":
        return True
    if not (root.pushed / pointer_file.POINTER_FILE).exists():
        return False
    known = artifact.custom_properties  # asked for a name that it lacks, it gets one
    version = known["pushed_version"].string_value if "pushed_version" in known else None
    if not version or pointer_file.path_of(str(root.pushed)).get("version") != version:
        return True  # another model is deployed since, or the pointer cannot be read: that is for the user to say
    with contextlib.suppress(UserError):
        return pointer_file.latest(str(root.pushed)) is not None
    return False


def _in_the_field(pushed: Path | None, report: Report, push_to: Path) -> tuple[Path | None, str | None, bool]:
    """Returns what to say of a selected model that this run did not push: where it is deployed, or why it is not.

    Since an earlier run pushed it (None: none did), a rollback or another run may have deployed another model. The last
    of the three is whether it is not known of any model that it is deployed.
    """
    again = f"{report.selected} is not pushed again (cached); use --no-cache to push it"
    try:
        deployed = pointer_file.latest(str(push_to))
    except UserError as error:
        return None, f"{error}\n{again}", True
    if deployed is None:
        return None, f"no model is deployed in {push_to}, {again}", True
    # another version may have the same content
    selected = report.candidate(report.selected)
    sha256 = selected.sha256 if selected and selected.sha256 else ""
    if deployed.sha256 == sha256 or (pushed and deployed.version == pushed.parent.name):
        return Path(deployed.path), None, False
    if entry := versions.withdrawal(str(push_to), sha256):
        return (
            None,
            (
                f"{deployed.name or 'another model'} (version {deployed.version}) is deployed, {report.selected} is "
                f"version {entry['version']}, which {entry['by']} rolled back on {entry['at'][:10]}"
                f"{': ' + entry['why'] if entry['why'] else ''}; `edgeline push --root {push_to.parent} --rollback "
                f"{entry['version']}` deploys it again"
            ),
            False,
        )
    return None, f"{deployed.name or 'another model'} (version {deployed.version}) is deployed, {again}", False
