"""The Clusterer as a TFX component."""

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model, ModelRun

from edgeline.clusterer import clustering
from edgeline.clusterer.config import Cluster
from edgeline.training import delivery


@component
def Clusterer(
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    compressed: OutputArtifact[Model],
    model_run: OutputArtifact[ModelRun],
    module: Parameter[str],
    module_digest: Parameter[str],
    toolchain: Parameter[str],
    epochs: Parameter[int],
    batch_size: Parameter[int],
    seed: Parameter[int],
    deterministic: Parameter[int],
    clusters: Parameter[int],
    centroid_initialization: Parameter[str],
    min_layer_share: Parameter[float],
    layer_clusters: Parameter[str],
    per_channel: Parameter[int],
    include: Parameter[str],
    exclude: Parameter[str],
    protect: Parameter[str],
    distillation: Parameter[float],
    temperature: Parameter[float],
) -> None:
    """Gives each layer few shared weight values; verifies their number, and the zeros of a pruning before it."""
    config = Cluster(
        clusters=clusters, centroid_initialization=centroid_initialization, min_layer_share=min_layer_share,
        layer_clusters=layer_clusters, per_channel=per_channel, include=include, exclude=exclude, protect=protect,
        distillation=distillation, temperature=temperature,
        epochs=epochs, batch_size=batch_size, seed=seed, deterministic=deterministic,
    )  # fmt: skip
    delivery.compress(
        clustering.cluster, config, step="Clusterer", module=module, module_digest=module_digest, toolchain=toolchain,
        examples_uri=examples.uri, model_uri=model.uri, compressed_uri=compressed.uri, run_uri=model_run.uri,
    )  # fmt: skip
    compressed.set_string_custom_property("stage", "clustered")
