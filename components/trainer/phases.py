"""Training in phases, each with its layers and learning rate: first the top on a frozen base, then the base too."""

from __future__ import annotations

import dataclasses
from typing import Any

import tf_keras

from edgeline.errors import UserError
from edgeline.model_module.hooks import ModelModule, Phase
from edgeline.trainer.config import Train
from edgeline.training import loop


def lengths(phases: list[Phase], config: Train) -> Train:
    """Returns the config with as many epochs as the phases have in all; as it is where there are none."""
    total = sum(phase.epochs or config.epochs for phase in phases)
    return dataclasses.replace(config, epochs=total) if phases else config


def fit(
    model: tf_keras.Model, module: ModelModule, splits: loop.Splits, config: Train, log_dir: str
) -> tuple[dict[str, list[float]], list[dict[str, Any]]]:
    """Trains a model in the module's phases, or in one go where it has none.

    Each phase is a training of its own, with a new optimizer and a new patience. A phase that ended before the run was
    killed is not repeated. The model is left with the `trainable` of its last phase: the compression steps train what
    that one trains.

    Args:
      model: changed in place.
      module: whose hooks say what the phases are.
      splits: opened for `lengths(module.phases(), config)`.
      config: what is asked; its epochs are those of the phases that name none.
      log_dir: where TensorBoard logs go.

    Returns:
      Values by metric, one per epoch of all phases, None where a phase has no such metric; and the phases: `name`, and
      `epochs` that were trained.

    Raises:
      UserError: a phase leaves nothing to train, or the loss became NaN or infinite.
    """
    phases, whole = module.phases(), lengths(module.phases(), config)
    arguments: dict[str, Any] = {
        "step": "Trainer", "technique": __name__, "log_dir": log_dir, "patience": config.early_stopping_patience
    }  # fmt: skip
    if not phases:
        return loop.fit(model, module, splits, config, **arguments), []
    _rehearse(model, module, phases)
    history: dict[str, list[Any]] = {}
    done: list[dict[str, Any]] = []
    first = 0
    for phase in phases:
        phase.prepare(model)
        span = range(first, first + (phase.epochs or config.epochs))
        outcome = loop.fit(model, module, splits, whole, phase=phase.name, span=span, **arguments)
        epochs = len(outcome["loss"])
        for name in dict.fromkeys([*history, *outcome]):
            history.setdefault(name, [None] * first).extend(outcome.get(name, [None] * epochs))
        done.append({"name": phase.name, "epochs": epochs})
        first += epochs
    return history, done


def _rehearse(model: tf_keras.Model, module: ModelModule, phases: list[Phase]) -> None:
    """Lets mistakes of the last phase show before the first one is trained."""
    copy = tf_keras.models.clone_model(model)
    for phase in phases:
        phase.prepare(copy)
        if not copy.trainable_weights:
            raise UserError(
                f"phase {phase.name} of {module.source.reference} leaves nothing to train: every layer has "
                f"trainable=False"
            )
        module.compile_model(copy, phase.name)
