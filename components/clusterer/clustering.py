"""Weight clustering: model and config in, clustered model and report out."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras import (
    cluster_wrapper,
    clusterable_layer,
    clustering_registry,
)

from edgeline.clusterer.config import Cluster
from edgeline.errors import UserError
from edgeline.keras_models import layers, promise_checks, rebuilding
from edgeline.keras_models.promise_checks import KeepZeros
from edgeline.keras_models.promise_kinds import kind_of
from edgeline.model_module.hooks import ModelModule
from edgeline.passport import Promise
from edgeline.training import distillation, loop


class _Whole:
    """What tfmot's wrappers leave out: the mask of padded sequences, and whether the layer is being trained."""

    layer: tf_keras.layers.Layer
    build_input_shape: Any
    position_original_weights: dict[int, str]
    update_clustered_weights_associations: Callable[[], None]
    get_weight_from_layer: Callable[[str], Any]

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        return self.layer.compute_mask(inputs, mask) if self.layer.supports_masking else None

    def call(self, inputs: Any, training: Any = None, **kwargs: Any) -> Any:
        taken = inspect.signature(self.layer.call).parameters
        given = {**kwargs, "training": training}
        self.update_clustered_weights_associations()
        return self.layer.call(inputs, **{name: value for name, value in given.items() if name in taken})


class _Wrapper(_Whole, cluster_wrapper.ClusterWeights):
    pass


class _RecurrentWrapper(_Whole, cluster_wrapper.ClusterWeightsRNN):
    pass


def cluster(
    model: tf_keras.Model,
    module: ModelModule,
    splits: loop.Splits,
    config: Cluster,
    promises: tuple[Promise, ...],
    log_dir: str,
) -> loop.Outcome:
    """Gives each layer's weights few shared values, and fine-tunes those.

    Args:
      model: trained; not to be used afterwards, since its layers go into the result.
      module: sets optimizer, loss and metrics.
      splits: opened for this config.
      config: what is asked.
      promises: of earlier steps; where zeros were promised for a layer, zero stays one of its values.
      log_dir: for TensorBoard logs.

    Returns:
      The stripped model, with the promise of its number of values for each clustered kernel.

    Raises:
      UserError: a pattern matches no layer, a layer that is named cannot be clustered as asked, or a pruned layer is to
        have two values.
      ValueError: no layer can be clustered; names all layers and why.
      BrokenPromiseError: a layer has more values than asked, or lost its zeros.
    """
    if rebuilding.is_nested(model):
        model = rebuilding.flatten(model)
    kernels = {layer.name: _kernels(layer) for layer in model.layers if _is_clusterable(layer)}
    clusters = {layer.name: layers.by_pattern(layer, config.layer_clusters, config.clusters) for layer in model.layers}
    reasons = layers.selection(
        model, kernels, config, config.min_layer_share,
        values="layer_clusters",
        unable="tfmot has nothing to cluster in",
        unfit=lambda layer: _unfit(kernels[layer.name], clusters[layer.name]),
    )  # fmt: skip
    chosen = [layer for layer in model.layers if layer.name in reasons and reasons[layer.name] is None]
    if not chosen:
        raise ValueError(f"Clusterer: no layer can be clustered: {'; '.join(f'{n}: {r}' for n, r in reasons.items())}")
    sparse = {promise.layer for promise in promises if kind_of(promise).of_zeros}
    few = [layer.name for layer in chosen if layer.name in sparse and clusters[layer.name] < 3]
    if few:
        raise UserError(f"Cluster.clusters must be at least 3 for pruned layers, one of them zero: {', '.join(few)}")

    plans = {layer.name: _plan(layer, kernels[layer.name], clusters[layer.name], config, sparse) for layer in chosen}
    new_promises = tuple(
        Promise(
            "clusters", layer.name, tuple(kernel.shape), clusters[layer.name],
            promise_checks.weight_name(kernel, layer), "channel" if plans[layer.name].per_channel else "",
        )
        for layer in chosen
        for kernel in kernels[layer.name]
    )  # fmt: skip

    def wrap(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        if layer.name not in plans:
            return layer
        # not by tfmot's function, which passes over a Conv2D without bias when it clusters by channel
        wrapper = _Wrapper
        if isinstance(layer, tf_keras.layers.RNN | tf_keras.layers.Bidirectional):
            wrapper = _RecurrentWrapper
        plan = plans[layer.name]
        return wrapper(
            layer,
            clusters[layer.name],
            tfmot.clustering.keras.CentroidInitialization[plan.initialization.upper()],
            preserve_sparsity=layer.name in sparse,
            cluster_per_channel=plan.per_channel,
        )

    teacher = distillation.teacher(model, config)
    wrapped = tf_keras.models.clone_model(model, clone_function=wrap)
    history = loop.fit(
        wrapped, module, splits, config,
        step="Clusterer",
        technique=__name__,
        log_dir=log_dir,
        teacher=teacher,
        callbacks=[KeepZeros(wrapped, promises)],
    )  # fmt: skip
    clustered = tf_keras.models.clone_model(wrapped, clone_function=_stripped)
    promise_checks.check_promises(clustered, (*promises, *new_promises), "Clusterer")
    notes = {
        name: reason or f"clustered to {clusters[name]} values{plans[name].note}" for name, reason in reasons.items()
    }
    return loop.Outcome(
        clustered, history, loop.evaluate(clustered, module, splits), layers.facts(clustered, notes), new_promises
    )


def _stripped(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
    """Returns what is in a wrapper, with its shared values; other layers as they are."""
    if not isinstance(layer, _Whole):
        return layer
    layer.update_clustered_weights_associations()
    weights = layer.layer.get_weights()  # those that are not clustered
    for position, name in sorted(layer.position_original_weights.items()):
        weights.insert(position, np.asarray(layer.get_weight_from_layer(name)))
    plain = layer.layer.from_config(layer.layer.get_config())
    plain.build(layer.build_input_shape)
    # tfmot's function trusts `build` to say so: a layer of the user's own that does not is built, and drawn, again
    plain.built = True
    plain.set_weights(weights)
    return plain


def _is_clusterable(layer: tf_keras.layers.Layer) -> bool:
    own = isinstance(layer, clusterable_layer.ClusterableLayer)
    # tfmot has a wrapper for attention, but cannot take it off again once the model is trained
    unable = isinstance(layer, tf_keras.Model | tf_keras.layers.MultiHeadAttention)
    return not unable and (own or clustering_registry.ClusteringRegistry.supports(layer))


def _kernels(layer: tf_keras.layers.Layer) -> list[Any]:
    if not isinstance(layer, clusterable_layer.ClusterableLayer):
        clustering_registry.ClusteringRegistry.make_clusterable(layer)
    return [variable for _, variable in layer.get_clusterable_weights()]


def _unfit(kernels: list[Any], clusters: int) -> str | None:
    """Returns why a layer cannot or need not be clustered."""
    fewest = min(len(np.unique(kernel.numpy())) for kernel in kernels)
    size = min(int(np.prod(kernel.shape)) for kernel in kernels)
    if size < clusters:
        return f"has {size} weights, fewer than {clusters} clusters"
    return f"has {fewest} distinct values already" if fewest <= clusters else None


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How a layer is clustered: how its values begin, whether by channel, and where that is not as asked, why."""

    initialization: str
    per_channel: bool
    note: str


def _plan(layer: tf_keras.layers.Layer, kernels: list[Any], clusters: int, config: Cluster, sparse: set[str]) -> _Plan:
    values = [kernel.numpy() for kernel in kernels]
    notes = []
    # of a transposed convolution, tfmot takes the inputs for the channels; in the file they are its outputs
    per_channel = config.per_channel and type(layer) is tf_keras.layers.Conv2D
    if per_channel:
        fewest = min(len(np.unique(channel)) for channel in np.moveaxis(values[0], -1, 0))
        if fewest <= clusters:
            per_channel = False
            notes.append(f"one set for all channels, since one has {fewest} distinct values")
    parts = list(np.moveaxis(values[0], -1, 0)) if per_channel else values
    initialization = config.centroid_initialization
    # tfmot crashes where it shall draw more values than there are
    if initialization == "kmeans_plus_plus" and any(_is_scarce(p, clusters, layer.name in sparse) for p in parts):
        initialization = "linear"
        notes.append("begun as linear, since the weights of one sign have too few distinct values")
    return _Plan(initialization, per_channel, f" ({'; '.join(notes)})" if notes else "")


def _is_scarce(values: np.ndarray, clusters: int, sparse: bool) -> bool:
    """Returns whether tfmot would draw more first values than there are; of each sign where zero is one of them."""
    if not sparse:
        return len(np.unique(values)) < clusters
    negative, positive = values[values < 0], values[values > 0]
    # as tfmot does: in proportion to the weights of each sign, rounded to the even
    below = round((clusters - 1) * (len(negative) / max(len(negative) + len(positive), 1)))
    return len(np.unique(negative)) < below or len(np.unique(positive)) < clusters - 1 - below
