"""The Pruner as a TFX component."""

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact
from tfx.types.standard_artifacts import Examples, Model, ModelRun

from edgeline.pruner import pruning
from edgeline.pruner.config import Prune
from edgeline.step import step
from edgeline.training import delivery


@step(Prune)
def Pruner(
    config: Prune,
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    compressed: OutputArtifact[Model],
    model_run: OutputArtifact[ModelRun],
    module: str,
    module_digest: str,
    toolchain: str,
) -> None:
    """Sets the smallest weights to zero while fine-tuning; verifies the sparsity of every pruned layer."""
    delivery.compress(
        pruning.prune, config, step="Pruner", module=module, module_digest=module_digest, toolchain=toolchain,
        examples_uri=examples.uri, model_uri=model.uri, compressed_uri=compressed.uri, run_uri=model_run.uri,
    )  # fmt: skip
    compressed.set_string_custom_property("stage", "pruned")
