"""The Trainer as a TFX component."""

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model, ModelRun

from edgeline import data, keras_io, model_module, training
from edgeline.passport import Passport
from edgeline.trainer.config import Train


@component
def Trainer(
    examples: InputArtifact[Examples],
    model: OutputArtifact[Model],
    model_run: OutputArtifact[ModelRun],
    module: Parameter[str],
    module_digest: Parameter[str],
    toolchain: Parameter[str],
    epochs: Parameter[int],
    batch_size: Parameter[int],
    seed: Parameter[int],
    deterministic: Parameter[int],
    early_stopping_patience: Parameter[int],
) -> None:
    """Trains the module's model on `train`, with `validation` for early stopping; writes Keras and SavedModel forms."""
    config = Train(
        epochs=epochs, batch_size=batch_size, seed=seed, deterministic=deterministic,
        early_stopping_patience=early_stopping_patience,
    )  # fmt: skip
    code = model_module.load(module, module_digest)
    training.start(config.seed, deterministic=bool(config.deterministic))
    keras_model = code.build_model()
    passport = Passport(io=keras_io.describe_io(keras_model, code))
    splits = training.open_splits(examples.uri, code, config)
    history = training.fit(
        keras_model, code, splits, config, step="Trainer", log_dir=model_run.uri, patience=early_stopping_patience
    )
    outcome = training.Outcome(keras_model, history, training.evaluate(keras_model, code, splits))
    inputs = {"examples": data.fingerprint(examples.uri), "module": module_digest}
    training.deliver(
        outcome, passport, step="Trainer", config=config, inputs=inputs, toolchain=toolchain,
        model_uri=model.uri, run_uri=model_run.uri,
    )  # fmt: skip
    keras_io.save_serving(keras_model, code, passport.io, model.uri)
    model.set_string_custom_property("stage", "trained")
