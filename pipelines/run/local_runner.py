"""Runs a pipeline on this machine, node by node, and goes on where it can when a node fails.

TFX's LocalDagRunner stops at the first exception and tells nobody how far it is. This runner launches the nodes of the
same compiled pipeline through the same portable launcher, so MLMD, cache and lineage are those of the stock runner, and
either can continue what the other began.
"""

import contextlib
import datetime
import errno
import logging
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from google.protobuf import message
from ml_metadata.proto import metadata_store_pb2
from tfx.dsl.compiler import constants
from tfx.orchestration import metadata
from tfx.orchestration.local import runner_utils
from tfx.orchestration.portable import cache_utils, launcher, runtime_parameter_utils, tfx_runner
from tfx.orchestration.portable.mlmd import execution_lib
from tfx.proto.orchestration import pipeline_pb2

from edgeline.errors import UserError
from edgeline.pipelines import endings, stopping
from edgeline.pipelines import root as roots
from edgeline.pipelines.run.node_events import Event, Listener, NodeResult, RunResult
from edgeline.pipelines.run.published_files import PublishedFiles
from edgeline.report import formats

# FnApiRunner, because DirectRunner first tries to download another runner. The image is never used: a runner inside
# this process needs none. But a Beam step given no image makes TFX pack its whole installation into an sdist, for
# workers that do not exist, which takes about two seconds per step. These strings are part of TFX's cache key.
BEAM_ARGS: tuple[str, ...] = ("--runner=FnApiRunner", "--sdk_container_image=unused")

_REFUSAL = (
    "two runs in one folder would mix their results. Wait for it or stop it, or give this run a folder of its own."
)


class LocalRunner(tfx_runner.IrBasedRunner):
    """Runs pipelines on this machine: `LocalRunner(listener).run(pipeline)`.

    When a node raises, the nodes that need its outputs are skipped and all others still run. A node that has lost
    nothing but optional inputs runs without them, unless it has lost all of its optional inputs.

    What a node makes is signed in ML Metadata; an earlier run's output whose files are no longer those that were
    published is given up, as if it had been deleted, and made anew.

    Args:
        listener: Is told of the nodes' states.
        is_of_use: Whether an artifact of an earlier run may be served from the cache, besides.
        check: Is given the run so far and the id of each node whose outputs are there, before the next node begins;
            what it raises ends the run.
    """

    def __init__(
        self,
        listener: Listener = lambda event: None,
        is_of_use: Callable[[metadata_store_pb2.Artifact], bool] = lambda artifact: True,
        check: Callable[[RunResult, str], None] = lambda result, node_id: None,
    ):
        self._listener = listener
        self._check = check
        self._is_of_use = is_of_use

    def run_with_ir(
        self, pipeline: pipeline_pb2.Pipeline, run_options: pipeline_pb2.RunOptions | None = None
    ) -> RunResult:
        """Runs a compiled pipeline; it is not changed.

        Args:
            pipeline: The compiler's proto of a pipeline without subpipelines. `run` takes a `tfx.dsl.Pipeline`.
            run_options: Not supported: finished nodes come from the cache instead.

        Returns:
            How each node ended. A failed node does not raise.

        Raises:
            UserError: If another run uses the pipeline root, or if the disk is full, read-only or closed to this user;
                or by `check`.
            KeyboardInterrupt: If interrupted; finished nodes are cached for the next run.
        """
        if run_options is not None:
            raise ValueError("LocalRunner takes no run_options: finished nodes are taken from the cache.")
        run_id = datetime.datetime.now().isoformat()
        ir = pipeline_pb2.Pipeline()
        ir.CopyFrom(pipeline)
        runtime_parameter_utils.substitute_runtime_parameter(ir, {constants.PIPELINE_RUN_ID_PARAMETER_NAME: run_id})
        root = Path(ir.runtime_spec.pipeline_root.field_value.string_value)
        deployment = runner_utils.extract_local_deployment_config(ir)
        config = deployment.metadata_connection_config
        connection = getattr(config, config.WhichOneof("connection_config"))

        try:
            with roots.lock(root, _REFUSAL), _hidden_command_line():
                _cancel_abandoned(ir, root, connection)
                published = PublishedFiles(root)

                def is_of_use(artifact: metadata_store_pb2.Artifact) -> bool:
                    if published.are_intact(artifact):
                        return self._is_of_use(artifact)
                    logging.warning("%s is made anew: its files are not those that were published", artifact.uri)
                    return False

                with _served_only(is_of_use):
                    nodes = self._run_nodes(ir, root, deployment, connection, published, run_id)
        except Exception as error:
            if user_error := _disk_error(error, f"The run in {root}", root):
                raise user_error from error
            raise
        return RunResult(run_id, nodes, connection)

    def _run_nodes(
        self,
        ir: pipeline_pb2.Pipeline,
        root: Path,
        deployment: message.Message,
        connection: message.Message,
        published: PublishedFiles,
        run_id: str,
    ) -> dict[str, NodeResult]:
        nodes = [node.pipeline_node for node in ir.nodes]  # the compiler has sorted them topologically
        producers = {_node_context(node): node.node_info.id for node in nodes}
        for node in nodes:
            self._listener(Event(node.node_info.id, "waiting"))
        results: dict[str, NodeResult] = {}
        for node in nodes:
            node_id = node.node_info.id
            if lost := _missing_upstream(node, producers, results):
                result = NodeResult("skipped", detail=f"needs {', '.join(lost)}")
            else:
                self._listener(Event(node_id, "running"))
                start = time.monotonic()
                try:
                    with _signals_heeded():
                        result = _launch(node, ir, deployment, connection, published)
                except Exception as error:
                    logging.exception("Step %s failed.", node_id)
                    result = _failure(error, time.monotonic() - start)
                    if user_error := _disk_error(error, f"Step {node_id}", root):
                        # Every later node would meet the same disk, perhaps after hours of training.
                        self._listener(Event(node_id, "failed", result.seconds, str(user_error).splitlines()[0]))
                        raise user_error from error
                except BaseException:
                    self._listener(Event(node_id, "failed", time.monotonic() - start, "interrupted"))
                    raise
            results[node_id] = result
            self._listener(Event(node_id, result.state, result.seconds, result.detail))
            if result.state in ("done", "cached"):
                self._check(RunResult(run_id, results, connection), node_id)
        return results


@contextlib.contextmanager
def _signals_heeded() -> Iterator[None]:
    """Raises `Stopped` where a signal came while a node ran, whatever Beam or TensorFlow have made of it."""
    try:
        yield
    except SystemExit as error:  # of code that the node calls: the process is not its to end
        raise RuntimeError(endings.of(error).text) from error
    except Exception:
        stopping.check()
        raise
    stopping.check()


class _Launcher(launcher.Launcher):
    """TFX's launcher; what an executor has made is signed before it is published, so that both are there or neither."""

    def __init__(self, published: PublishedFiles, **arguments: Any):
        super().__init__(**arguments)
        self._published = published

    def _run_executor(self, execution_info: Any) -> Any:
        output = super()._run_executor(execution_info)
        told = output.output_artifacts
        for key, artifacts in execution_info.output_dict.items():
            for artifact in told[key].artifacts if key in told else [each.mlmd_artifact for each in artifacts]:
                self._published.sign(artifact)
        return output


@contextlib.contextmanager
def _served_only(is_of_use: Callable[[metadata_store_pb2.Artifact], bool]) -> Iterator[None]:
    """Lets the cache serve nothing but what is of use; what is not is marked as deleted in ML Metadata."""
    stock = cache_utils.get_cached_outputs

    def of_use(metadata_handle: Any, cache_context: Any) -> Any:
        while (outputs := stock(metadata_handle=metadata_handle, cache_context=cache_context)) is not None:
            served = [artifact.mlmd_artifact for artifacts in outputs.values() for artifact in artifacts]
            refused = [artifact.id for artifact in served if not is_of_use(artifact)]
            if not refused:
                return outputs
            artifacts = metadata_handle.store.get_artifacts_by_id(refused)
            for artifact in artifacts:
                artifact.state = metadata_store_pb2.Artifact.DELETED
            metadata_handle.store.put_artifacts(artifacts)
        return None

    cache_utils.get_cached_outputs = of_use
    try:
        yield
    finally:
        cache_utils.get_cached_outputs = stock


def _launch(
    node: pipeline_pb2.PipelineNode,
    ir: pipeline_pb2.Pipeline,
    deployment: message.Message,
    connection: message.Message,
    published: PublishedFiles,
) -> NodeResult:
    node_id = node.node_info.id
    start = time.monotonic()
    execution_info = _Launcher(
        published,
        pipeline_node=node,
        mlmd_connection=metadata.Metadata(connection),
        pipeline_info=ir.pipeline_info,
        pipeline_runtime_spec=ir.runtime_spec,
        executor_spec=runner_utils.extract_executor_spec(deployment, node_id),
        custom_driver_spec=runner_utils.extract_custom_driver_spec(deployment, node_id),
    ).launch()
    seconds = time.monotonic() - start
    if execution_info is None or not execution_info.execution_id:
        return NodeResult("skipped", detail="its condition does not hold")
    # The launcher does not say whether it took the outputs from the cache, and it does not raise when it could not
    # resolve the inputs: MLMD knows both.
    with metadata.Metadata(connection) as mlmd:
        [execution] = mlmd.store.get_executions_by_id([execution_info.execution_id])
    if execution.last_known_state == metadata_store_pb2.Execution.CACHED:
        return NodeResult("cached", seconds, execution_id=execution.id)
    if execution.last_known_state == metadata_store_pb2.Execution.COMPLETE:
        return NodeResult("done", seconds, execution_id=execution.id)
    outcome = execution_lib.get_execution_result(execution, ignore_parse_errors=True)
    traceback = outcome.result_message.strip().splitlines() if outcome else []
    return _failure(RuntimeError(traceback[-1] if traceback else "its inputs are not there"), seconds, execution.id)


def _failure(error: Exception, seconds: float, execution_id: int | None = None) -> NodeResult:
    text = str(error).strip()
    line = text.splitlines()[0] if text else ""
    detail = line if isinstance(error, UserError) else f"{type(error).__name__}: {line}".removesuffix(": ")
    return NodeResult("failed", seconds, error, detail, execution_id)


def _node_context(node: pipeline_pb2.PipelineNode) -> str:
    [name] = [c.name for c in node.contexts.contexts if c.type.name == constants.NODE_CONTEXT_TYPE_NAME]
    return str(name.field_value.string_value)


def _missing_upstream(
    node: pipeline_pb2.PipelineNode, producers: Mapping[str, str], results: Mapping[str, NodeResult]
) -> list[str]:
    """Returns the failed or skipped nodes that keep this one from running; empty when it can run.

    Args:
        node: The node to run next.
        producers: Node ids by the name of their node context, by which an input refers to its producer.
        results: How the nodes before this one ended.
    """
    lost = [up for up in node.upstream_nodes if results[up].state in ("failed", "skipped")]
    if not lost:
        return []
    required: set[str] = set()
    optional: set[str] = set()
    for spec in node.inputs.inputs.values():
        if not spec.hidden:  # hidden inputs are parts of visible ones
            (required if spec.min_count else optional).update(_producers_of(spec, node, producers))
    # What is in neither set is upstream by an explicit dependency, which is as good as a required input.
    needed = [up for up in lost if up in required or up not in optional]
    return needed or ([] if optional.difference(lost) else lost)


def _producers_of(
    spec: pipeline_pb2.InputSpec, node: pipeline_pb2.PipelineNode, producers: Mapping[str, str]
) -> set[str]:
    """Returns the ids of the nodes of this pipeline that an input's artifacts come from."""
    names = {
        producers[query.name.field_value.string_value]
        for channel in spec.channels
        for query in channel.context_queries
        if query.name.field_value.string_value in producers
    }
    parts = list(spec.mixed_inputs.input_keys)  # of a union
    if graph_id := spec.input_graph_ref.graph_id:  # of a resolver function
        graph = node.inputs.input_graphs[graph_id]
        parts += [n.input_node.input_key for n in graph.nodes.values() if n.WhichOneof("kind") == "input_node"]
    return names.union(*(_producers_of(node.inputs.inputs[key], node, producers) for key in parts))


@contextlib.contextmanager
def _hidden_command_line() -> Iterator[None]:
    """Hides our arguments: TFX's Beam steps parse sys.argv as absl flags and fail at, for instance, `-v`."""
    saved = sys.argv
    sys.argv = saved[:1]
    try:
        yield
    finally:
        sys.argv = saved


def _cancel_abandoned(ir: pipeline_pb2.Pipeline, root: Path, connection: message.Message) -> None:
    """Cancels what a killed run has left as running, and deletes its half-written outputs. Call under the lock."""
    pipeline_id = ir.pipeline_info.id
    with metadata.Metadata(connection) as mlmd:
        context = mlmd.store.get_context_by_type_and_name(constants.PIPELINE_CONTEXT_TYPE_NAME, pipeline_id)
        executions = mlmd.store.get_executions_by_context(context.id) if context else []
        for execution in filter(execution_lib.is_execution_active, executions):
            for node in mlmd.store.get_contexts_by_execution(execution.id):
                if node.type == constants.NODE_CONTEXT_TYPE_NAME:
                    folder = root / node.name.removeprefix(f"{pipeline_id}.")
                    for leftover in (*folder.glob(f"*/{execution.id}"), *folder.glob(f".system/*/{execution.id}")):
                        shutil.rmtree(leftover, ignore_errors=True)
            execution.last_known_state = metadata_store_pb2.Execution.CANCELED
            mlmd.store.put_executions([execution])


# (errno, the words of the same error in TensorFlow, Beam and sqlite, what happened, how to mend it)
_DISK_ERRORS = (
    (
        errno.ENOSPC,
        ("No space left on device", "disk is full"),
        "ran out of disk space",
        "Free some space or choose a folder on another disk.",
    ),
    (
        errno.EDQUOT,
        ("Disk quota exceeded",),
        "used up the disk quota",
        "Delete what you no longer need or ask for more quota, or choose a folder on another disk.",
    ),
    (
        errno.EROFS,
        ("Read-only file system",),
        "met a read-only file system",
        "Mount it writable or choose another folder.",
    ),
    (
        errno.EACCES,
        ("[Errno 13]", "; Permission denied", "readonly database", "unable to open database file"),
        "was denied access",
        "Give this user the rights to it or choose another folder.",
    ),
    (
        errno.EUCLEAN,
        ("database disk image is malformed", "file is not a database"),
        "met a damaged metadata.db",
        "Put back a copy of it, or move it away: then every step runs again.",
    ),
)


def _disk_error(error: BaseException | None, who: str, root: Path) -> UserError | None:
    """Returns what to tell the user when an error, or one that led to it, is the disk's; None when it is not."""
    if isinstance(error, UserError):
        return None  # it says already what is wrong
    chain: list[BaseException] = []
    while error and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    for link in reversed(chain):  # the first cause says it best
        text = str(link)
        for number, phrases, event, remedy in _DISK_ERRORS:
            if isinstance(link, OSError) and link.errno == number:
                evidence = text
            elif phrase := next((phrase for phrase in phrases if phrase in text), None):
                # Beam and MLMD quote whole tracebacks; one line of them is the message.
                evidence = next(line for line in text.splitlines() if phrase in line).strip()
            else:
                continue
            return UserError(
                f"{who} {event}: {textwrap.shorten(evidence, 200)}\n"
                f"Outputs go to {root}{_free_space(root)}. {remedy}\n"
                "Finished steps are kept; run the same command again to go on."
            )
    return None


def _free_space(root: Path) -> str:
    try:
        return f" ({formats.size(shutil.disk_usage(root).free)} free)"
    except OSError:
        return ""
