"""The Pruner as a TFX component."""

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model, ModelRun

from edgeline.pruner import pruning
from edgeline.pruner.config import Prune
from edgeline.training import delivery


@component
def Pruner(
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
    sparsity: Parameter[float],
    schedule: Parameter[str],
    initial_sparsity: Parameter[float],
    ramp: Parameter[float],
    min_layer_share: Parameter[float],
    layer_sparsity: Parameter[str],
    begin_step: Parameter[int],
    end_step: Parameter[int],
    frequency: Parameter[int],
    power: Parameter[float],
    block_size: Parameter[str],
    block_pooling: Parameter[str],
    m_by_n: Parameter[str],
    policy: Parameter[str],
    include: Parameter[str],
    exclude: Parameter[str],
    protect: Parameter[str],
    distillation: Parameter[float],
    temperature: Parameter[float],
) -> None:
    """Sets the smallest weights to zero while fine-tuning; verifies the sparsity of every pruned layer."""
    config = Prune(
        sparsity=sparsity, schedule=schedule, initial_sparsity=initial_sparsity, ramp=ramp,
        min_layer_share=min_layer_share, layer_sparsity=layer_sparsity, begin_step=begin_step, end_step=end_step,
        frequency=frequency, power=power, block_size=block_size, block_pooling=block_pooling, m_by_n=m_by_n,
        policy=policy, include=include, exclude=exclude, protect=protect,
        distillation=distillation, temperature=temperature,
        epochs=epochs, batch_size=batch_size, seed=seed, deterministic=deterministic,
    )  # fmt: skip
    delivery.compress(
        pruning.prune, config, step="Pruner", module=module, module_digest=module_digest, toolchain=toolchain,
        examples_uri=examples.uri, model_uri=model.uri, compressed_uri=compressed.uri, run_uri=model_run.uri,
    )  # fmt: skip
    compressed.set_string_custom_property("stage", "pruned")
