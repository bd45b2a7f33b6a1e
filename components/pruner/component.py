"""The Pruner as a TFX component."""

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model, ModelRun

from edgeline import data, keras_io, model_module, training
from edgeline.passport import Passport
from edgeline.pruner import pruning
from edgeline.pruner.config import Prune


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
    sparsity: Parameter[float],
    schedule: Parameter[str],
    initial_sparsity: Parameter[float],
    ramp: Parameter[float],
    min_layer_share: Parameter[float],
) -> None:
    """Sets the smallest weights to zero while fine-tuning; verifies the sparsity of every pruned layer."""
    config = Prune(
        sparsity=sparsity, schedule=schedule, initial_sparsity=initial_sparsity, ramp=ramp,
        min_layer_share=min_layer_share, epochs=epochs, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    code = model_module.load(module, module_digest)
    training.start(config.seed)
    splits = training.open_splits(examples.uri, code, config)
    passport = Passport.read(model.uri)
    outcome = pruning.prune(keras_io.load(model.uri, code), code, splits, config, passport.promises, model_run.uri)
    inputs = {"examples": data.fingerprint(examples.uri), "module": module_digest, "model": passport.steps[-1]["model"]}
    training.deliver(
        outcome, passport, step="Pruner", config=config, inputs=inputs, toolchain=toolchain,
        model_uri=compressed.uri, run_uri=model_run.uri,
    )  # fmt: skip
    compressed.set_string_custom_property("stage", "pruned")
