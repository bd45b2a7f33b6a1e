"""The Clusterer as a TFX component."""

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact
from tfx.types.standard_artifacts import Examples, Model, ModelRun

from edgeline.clusterer import clustering
from edgeline.clusterer.config import Cluster
from edgeline.step import step
from edgeline.training import delivery


@step(Cluster)
def Clusterer(
    config: Cluster,
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    compressed: OutputArtifact[Model],
    model_run: OutputArtifact[ModelRun],
    module: str,
    module_digest: str,
    toolchain: str,
) -> None:
    """Gives each layer few shared weight values; verifies their number, and the zeros of a pruning before it."""
    delivery.compress(
        clustering.cluster, config, step="Clusterer", module=module, module_digest=module_digest, toolchain=toolchain,
        examples_uri=examples.uri, model_uri=model.uri, compressed_uri=compressed.uri, run_uri=model_run.uri,
    )  # fmt: skip
    compressed.set_string_custom_property("stage", "clustered")
