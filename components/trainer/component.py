"""The Trainer as a TFX component."""

import logging
from typing import Any

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact
from tfx.types.standard_artifacts import Examples, HyperParameters, Model, ModelRun, TransformGraph

from edgeline.data import transformation
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.step import step
from edgeline.trainer import hyperparameters as tuned
from edgeline.trainer import phases
from edgeline.trainer.config import Train
from edgeline.trainer.warm_start import begin
from edgeline.training import delivery, loop


@step(Train)
def Trainer(
    config: Train,
    examples: InputArtifact[Examples],
    model: OutputArtifact[Model],
    model_run: OutputArtifact[ModelRun],
    module: str,
    module_digest: str,
    toolchain: str,
    transform_graph: InputArtifact[TransformGraph] = None,
    hyperparameters: InputArtifact[HyperParameters] = None,
) -> None:
    """Trains the module's model on `train`, with `validation` for early stopping; writes Keras and SavedModel forms.

    `transform_graph` is what made the examples: the SavedModel then takes raw ones. `hyperparameters` are the module's.
    """
    loop.use_threads(config.threads)  # before the module can do anything
    tuned_values = tuned.read(hyperparameters.uri) if hyperparameters is not None else None
    code = hooks.load(module, module_digest, hyperparameters=tuned_values)
    transformed = transformation.opened(transform_graph.uri if transform_graph is not None else None, code)
    loop.start(config.seed, deterministic=config.deterministic, threads=config.threads)
    keras_model = code.build_model()
    passport = Passport(io=keras_file.describe_io(keras_model, code))
    splits = loop.open_splits(examples.uri, code, phases.lengths(code.phases(), config))
    facts: dict[str, Any] = {} if tuned_values is None else {"hyperparameters": tuned_values.values}
    if config.warm_start:
        facts["warm_start"] = begin(keras_model, code, config)
        logging.info("warm start: %s", facts["warm_start"]["note"])
    history, done = phases.fit(keras_model, code, splits, config, model_run.uri)
    if done:
        facts["phases"] = done
    outcome = loop.Outcome(keras_model, history, loop.evaluate(keras_model, code, splits), facts=facts)
    inputs = {"examples": splits.fingerprint, "module": module_digest}
    delivery.deliver(
        outcome, passport, step="Trainer", config=config, inputs=inputs, toolchain=toolchain,
        model_uri=model.uri, run_uri=model_run.uri,
    )  # fmt: skip
    keras_file.save_serving(keras_model, code, passport.io, model.uri, transformed)
    model.set_string_custom_property("stage", "trained")
