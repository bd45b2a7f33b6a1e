"""What a runner tells of its nodes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from google.protobuf import message
from tfx.orchestration import metadata
from tfx.orchestration.portable.mlmd import event_lib
from tfx.types import Artifact, artifact_utils

State = Literal["waiting", "running", "cached", "done", "failed", "skipped"]


@dataclass(frozen=True)
class Event:
    """A node has entered a state.

    Attributes:
        node_id: The node's id in the pipeline.
        state: `waiting` is sent once for every node before the first one runs, in the order they will run in.
        seconds: How long the node took; 0.0 while it is waiting or running, and when skipped.
        detail: One line for the reader: why it failed or was skipped. Else empty.
    """

    node_id: str
    state: State
    seconds: float = 0.0
    detail: str = ""


Listener = Callable[[Event], None]


@dataclass(frozen=True)
class NodeResult:
    """How a node ended.

    Attributes:
        state: `cached`, `done`, `failed` or `skipped`.
        seconds: How long it took; 0.0 when skipped.
        exception: What it raised, when failed.
        detail: One line: why it failed or was skipped. Else empty.
        execution_id: Its execution in MLMD; None when none was registered.
    """

    state: State
    seconds: float = 0.0
    exception: Exception | None = None
    detail: str = ""
    execution_id: int | None = None


@dataclass(frozen=True)
class RunResult:
    """How a run ended, by node id in the order the nodes ran in."""

    run_id: str
    nodes: Mapping[str, NodeResult]
    connection: message.Message = field(repr=False)

    @property
    def failed(self) -> tuple[str, ...]:
        """Ids of the nodes that raised; the skipped ones are not among them."""
        return tuple(node_id for node_id, node in self.nodes.items() if node.state == "failed")

    def outputs(self, node_id: str, key: str) -> list[Artifact]:
        """Returns the artifacts a node gave under an output key in this run, from the cache or new.

        Args:
            node_id: A node of this run.
            key: One of its output keys.

        Returns:
            The artifacts in the node's order; empty when the node failed, was skipped or has no such key.

        Raises:
            KeyError: If the run has no such node.
        """
        node = self.nodes[node_id]
        if node.state not in ("done", "cached") or node.execution_id is None:
            return []
        with metadata.Metadata(self.connection) as mlmd:
            # A cached execution has OUTPUT events of its own that point to the earlier run's artifacts.
            ids = [
                event.artifact_id
                for event in mlmd.store.get_events_by_execution_ids([node.execution_id])
                if event_lib.is_valid_output_event(event, key)
            ]
            artifacts = {artifact.id: artifact for artifact in mlmd.store.get_artifacts_by_id(ids)}
            types = {t.id: t for t in mlmd.store.get_artifact_types_by_id([a.type_id for a in artifacts.values()])}
        return [artifact_utils.deserialize_artifact(types[artifacts[i].type_id], artifacts[i]) for i in ids]
