"""Magnitude pruning: model and config in, pruned model and report out."""

from __future__ import annotations

import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras import prune_registry

from edgeline import layers, training
from edgeline.model_module import ModelModule
from edgeline.passport import Promise
from edgeline.pruner.config import Prune

#: Mask updates in one fine-tuning at most: each sorts all weights of every pruned layer.
_UPDATES = 50


def schedule(config: Prune, steps: int) -> tfmot.sparsity.keras.PruningSchedule:
    """Derives the schedule from the number of optimizer steps that will really be made.

    tfmot counts steps from 1 and looks at the sparsity only in every `frequency`-th; with its default of 100 a short
    fine-tuning is never pruned, without a word. Here the last update always falls on the end of the ramp.

    Args:
      config: what was asked.
      steps: optimizer steps of the whole fine-tuning, at least 1.

    Returns:
      A schedule that has reached the final sparsity at step `ramp * steps` at the latest.
    """
    end = max(int(steps * config.ramp), 1)
    if config.schedule == "constant" or end < 2:
        frequency = -(-steps // _UPDATES)
        return tfmot.sparsity.keras.ConstantSparsity(config.sparsity, begin_step=1, frequency=frequency)
    frequency = -(-end // _UPDATES)
    return tfmot.sparsity.keras.PolynomialDecay(
        config.initial_sparsity,
        config.sparsity,
        begin_step=0,
        end_step=end - end % frequency,
        frequency=frequency,
    )


def prune(
    model: tf_keras.Model,
    module: ModelModule,
    splits: training.Splits,
    config: Prune,
    promises: tuple[Promise, ...],
    log_dir: str,
) -> training.Outcome:
    """Fine-tunes a model while its smallest weights become zero.

    Args:
      model: trained; not to be used afterwards, since its layers go into the result.
      module: sets optimizer, loss and metrics.
      splits: opened for this config.
      config: what is asked.
      promises: of earlier steps, to be kept.
      log_dir: for TensorBoard logs.

    Returns:
      The stripped model, with the promise of its sparsity for each pruned kernel.

    Raises:
      ValueError: no layer can be pruned; names all layers and why.
      BrokenPromiseError: a layer did not reach its sparsity.
    """
    registry = prune_registry.PruneRegistry
    kernels = {
        layer.name: registry.make_prunable(layer).get_prunable_weights()
        for layer in model.layers
        if not isinstance(layer, tf_keras.Model) and registry.supports(layer)
    }
    reasons = layers.selection(model, kernels, config.min_layer_share, "tfmot has nothing to prune in")
    chosen = [name for name, reason in reasons.items() if reason is None]
    if not chosen:
        raise ValueError(f"Pruner: no layer can be pruned: {'; '.join(f'{n}: {r}' for n, r in reasons.items())}")
    made = tuple(
        Promise("sparsity", name, tuple(kernel.shape), config.sparsity) for name in chosen for kernel in kernels[name]
    )
    plan = schedule(config, splits.train.steps_per_epoch * config.epochs)

    def wrap(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        if layer.name not in chosen:
            return layer
        return tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=plan)

    wrapped = tf_keras.models.clone_model(model, clone_function=wrap)
    history = training.fit(
        wrapped,
        module,
        splits,
        config,
        step="Pruner",
        log_dir=log_dir,
        callbacks=[
            tfmot.sparsity.keras.UpdatePruningStep(),
            tfmot.sparsity.keras.PruningSummaries(log_dir, write_graph=False, profile_batch=0),
        ],
    )
    pruned = tfmot.sparsity.keras.strip_pruning(wrapped)
    layers.check_promises(pruned, (*promises, *made), "Pruner")
    notes = {name: reason or f"pruned to {config.sparsity:g}" for name, reason in reasons.items()}
    return training.Outcome(
        pruned, history, training.evaluate(pruned, module, splits), layers.facts(pruned, notes), made
    )
