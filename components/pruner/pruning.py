"""Magnitude pruning: model and config in, pruned model and report out."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.sparsity.keras import prunable_layer, prune_registry, pruning_wrapper

from edgeline.errors import UserError
from edgeline.keras_models import layers, promise_checks, rebuilding
from edgeline.model_module.hooks import ModelModule
from edgeline.passport import Promise
from edgeline.pruner import xnnpack
from edgeline.pruner.config import Prune
from edgeline.training import distillation, loop

#: Mask updates in one fine-tuning at most: each sorts all weights of every pruned layer.
_UPDATES = 50

#: How far below the final sparsity a schedule may stay without a word.
_SHORTFALL = 1e-3

#: The layers whose kernels tfmot's m_by_n pattern runs through along the inputs, in Keras and in the flatbuffer.
_PATTERNED = (tf_keras.layers.Dense, tf_keras.layers.Conv2D, tf_keras.layers.RNN, prunable_layer.PrunableLayer)


class PruneLowMagnitude(pruning_wrapper.PruneLowMagnitude):
    """tfmot's wrapper, which else drops the mask of padded sequences: the layers behind it would train on padding.

    It has the same name, so that `prune_scope` loads what was saved with it.
    """

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """Returns the wrapped layer's mask."""
        return self.layer.compute_mask(inputs, mask) if self.layer.supports_masking else None

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        """Returns the wrapped layer's outputs; gives it the mask only where it takes one."""
        if "mask" not in inspect.signature(self.layer.call).parameters:
            kwargs.pop("mask", None)
        return super().call(inputs, training=training, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Returns tfmot's, and the m_by_n pattern, without which a model that is loaded goes on unpatterned."""
        return {**super().get_config(), "sparsity_m_by_n": self.sparsity_m_by_n}


def schedule(config: Prune, steps: int, sparsity: float | None = None) -> tfmot.sparsity.keras.PruningSchedule:
    """Derives the schedule from the number of optimizer steps that will really be made.

    tfmot counts steps from 1 and looks at the sparsity only in every `frequency`-th; with its default of 100 a short
    fine-tuning is never pruned, without a word. Here the last update falls on the end of the ramp, as far as begin,
    end and frequency are not asked for.

    Args:
      config: what was asked.
      steps: optimizer steps of the whole fine-tuning, at least 1.
      sparsity: the final one, where it is not the config's.

    Returns:
      A schedule that, where it is all derived, has reached the final sparsity at step `ramp * steps` at the latest.
    """
    final = config.sparsity if sparsity is None else sparsity
    is_derived = config.begin_step is None and config.end_step is None
    if config.schedule == "constant" or (is_derived and int(steps * config.ramp) < 2):
        last = steps if config.end_step is None else min(config.end_step, steps)
        frequency = config.frequency or -(-max(last, 1) // _UPDATES)
        return tfmot.sparsity.keras.ConstantSparsity(
            final,
            begin_step=1 if config.begin_step is None else config.begin_step,
            end_step=-1 if config.end_step is None else config.end_step,
            frequency=frequency,
        )
    begin = config.begin_step or 0
    end = max(int(steps * config.ramp), begin + 1) if config.end_step is None else config.end_step
    frequency = config.frequency or -(-(end - begin) // _UPDATES)
    rest = (end - begin) % frequency
    if config.end_step is None and rest < end - begin:
        end -= rest
    elif config.begin_step is None:
        begin += rest
    return tfmot.sparsity.keras.PolynomialDecay(
        min(config.initial_sparsity, final), final, begin_step=begin, end_step=end, power=config.power,
        frequency=frequency,
    )  # fmt: skip


def reached(plan: tfmot.sparsity.keras.PruningSchedule, steps: int) -> float:
    """Returns the sparsity of a schedule's last mask update within so many optimizer steps; 0.0 if there is none."""
    last = steps if plan.end_step < 0 else min(plan.end_step, steps)
    last -= (last - plan.begin_step) % plan.frequency
    return float(plan(last)[1]) if last >= max(plan.begin_step, 1) else 0.0


def prune(
    model: tf_keras.Model,
    module: ModelModule,
    splits: loop.Splits,
    config: Prune,
    promises: tuple[Promise, ...],
    log_dir: str,
) -> loop.Outcome:
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
      UserError: a pattern matches no layer, a layer that is named cannot be pruned as asked, the schedule prunes
        nothing in the steps there are, or the model does not qualify for the policy.
      ValueError: no layer can be pruned; names all layers and why.
      BrokenPromiseError: a layer did not reach its sparsity.
    """
    if rebuilding.is_nested(model):
        model = rebuilding.flatten(model)
    if config.policy == "xnnpack":
        xnnpack.check(model)
    kernels = {layer.name: _kernels(layer) for layer in model.layers if _is_prunable(layer)}
    reasons = layers.selection(
        model, kernels, config, config.min_layer_share,
        values="layer_sparsity",
        unable="tfmot has nothing to prune in",
        unfit=lambda layer: _unfit(layer, kernels[layer.name], config),
    )  # fmt: skip
    chosen = [layer for layer in model.layers if layer.name in reasons and reasons[layer.name] is None]
    if not chosen:
        raise ValueError(f"Pruner: no layer can be pruned: {'; '.join(f'{n}: {r}' for n, r in reasons.items())}")

    steps = splits.train.steps_per_epoch * config.epochs
    sparsity_of = {layer.name: layers.by_pattern(layer, config.layer_sparsity, config.sparsity) for layer in chosen}
    plans = {sparsity: schedule(config, steps, sparsity) for sparsity in sparsity_of.values()}
    # tfmot imposes an m_by_n pattern once and for all at the first step
    sparsities = {s: s if config.m_by_n else _promised(config, plan, steps, s) for s, plan in plans.items()}
    new_promises = tuple(
        _promise(config, layer, kernel, sparsities[sparsity_of[layer.name]])
        for layer in chosen
        for kernel in kernels[layer.name]
    )

    def wrap(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        if layer.name not in sparsity_of:
            return layer
        return PruneLowMagnitude(
            layer,
            pruning_schedule=plans[sparsity_of[layer.name]],
            block_size=config.block_size,
            block_pooling_type=config.block_pooling.upper(),
            sparsity_m_by_n=config.m_by_n,
        )

    teacher = distillation.teacher(model, config)
    wrapped = tf_keras.models.clone_model(model, clone_function=wrap)
    history = loop.fit(
        wrapped,
        module,
        splits,
        config,
        step="Pruner",
        technique=__name__,
        log_dir=log_dir,
        teacher=teacher,
        callbacks=[
            tfmot.sparsity.keras.UpdatePruningStep(),
            tfmot.sparsity.keras.PruningSummaries(log_dir, write_graph=False, profile_batch=0),
        ],
    )
    pruned = tfmot.sparsity.keras.strip_pruning(wrapped)
    promise_checks.check_promises(pruned, (*promises, *new_promises), "Pruner")
    notes = {
        name: reason or _note(config, sparsity_of[name], sparsities[sparsity_of[name]])
        for name, reason in reasons.items()
    }
    return loop.Outcome(
        pruned, history, loop.evaluate(pruned, module, splits), layers.facts(pruned, notes), new_promises
    )


def _is_prunable(layer: tf_keras.layers.Layer) -> bool:
    own = isinstance(layer, prunable_layer.PrunableLayer) or hasattr(layer, "get_prunable_weights")
    return not isinstance(layer, tf_keras.Model) and (own or prune_registry.PruneRegistry.supports(layer))


def _kernels(layer: tf_keras.layers.Layer) -> list[Any]:
    if not hasattr(layer, "get_prunable_weights"):
        prune_registry.PruneRegistry.make_prunable(layer)
    return list(layer.get_prunable_weights())


def _unfit(layer: tf_keras.layers.Layer, kernels: list[Any], config: Prune) -> str | None:
    """Returns why a layer cannot be pruned in the structure that is asked for."""
    shapes = [tuple(kernel.shape) for kernel in kernels]
    if config.policy == "xnnpack" and not tfmot.sparsity.keras.PruneForLatencyOnXNNPack().allow_pruning(layer):
        return "is no 1x1 Conv2D, which XNNPACK's sparse kernels are for"
    if config.block_size != (1, 1) and any(len(shape) != 2 for shape in shapes):
        return f"has a kernel of shape {next(s for s in shapes if len(s) != 2)}; blocks need a matrix"
    if config.m_by_n:
        m, n = config.m_by_n
        patterned = isinstance(layer, _PATTERNED) and not isinstance(layer, tf_keras.layers.Conv2DTranspose)
        if not patterned or any(len(shape) not in (2, 4) for shape in shapes):
            kind = f"is a {type(layer).__name__} with a kernel of shape {shapes[0]}"
            return f"{kind}; the {_spelled(config.m_by_n)} pattern is for Dense, Conv2D and recurrent layers"
        inputs = min(shape[-2] for shape in shapes)
        if inputs <= n - m:
            return f"has {inputs} inputs only; of every {n}, the {_spelled(config.m_by_n)} pattern leaves {n - m}"
    return None


def _promised(config: Prune, plan: tfmot.sparsity.keras.PruningSchedule, steps: int, sparsity: float) -> float:
    """Returns what sparsity the schedule really reaches, and says where that is less than what is asked."""
    share = reached(plan, steps)
    if share <= 0:
        last = steps if plan.end_step < 0 else min(plan.end_step, steps)
        raise UserError(
            f"Prune: nothing would be pruned: the schedule begins at step {plan.begin_step}, ends at step "
            f"{plan.end_step} and updates the masks every {plan.frequency} steps, which makes no update above sparsity "
            f"0 in the {last} steps that count (the training has {steps}). Lower begin_step (None: the first) or "
            f"frequency (None: derived), or train for more epochs (--finetune-epochs)"
        )
    if share < sparsity - _SHORTFALL:
        logging.warning(
            "Pruner: the schedule asks for sparsity %g, but its last update in the training's %d steps has %.4f: "
            "it ends at step %d and updates every %d steps. That is what is promised; more epochs give more",
            sparsity, steps, share, plan.end_step, plan.frequency,
        )  # fmt: skip
        return share
    return min(share, sparsity) if share < sparsity - 1e-6 else sparsity


def _promise(config: Prune, layer: tf_keras.layers.Layer, kernel: Any, sparsity: float) -> Promise:
    kind, pattern = "sparsity", ""
    if config.m_by_n:
        kind, pattern = "m_by_n", _spelled(config.m_by_n)
    elif config.block_size != (1, 1):
        kind, pattern = "blocks", _spelled(config.block_size)
    return Promise(kind, layer.name, tuple(kernel.shape), sparsity, promise_checks.weight_name(kernel, layer), pattern)


def _spelled(sizes: tuple[int, int]) -> str:
    """Returns a block's size or a pattern as passports have it: `1x4`."""
    return "x".join(map(str, sizes))


def _note(config: Prune, target_sparsity: float, sparsity: float) -> str:
    if config.m_by_n:
        return f"pruned by pattern {_spelled(config.m_by_n)}"
    unit = f" in blocks of {_spelled(config.block_size)}" if config.block_size != (1, 1) else ""
    ended = (
        ""
        if sparsity >= target_sparsity - _SHORTFALL
        else f" of {target_sparsity:g}: the training ended before the schedule"
    )
    return f"pruned to {sparsity:.4g}{unit}{ended}" if ended else f"pruned to {target_sparsity:g}{unit}"
