"""Weight clustering: model and config in, clustered model and report out."""

from __future__ import annotations

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow_model_optimization.python.core.clustering.keras import clustering_registry
from tensorflow_model_optimization.python.core.clustering.keras.experimental import cluster as tfmot_cluster

from edgeline import layers, training
from edgeline.clusterer.config import Cluster
from edgeline.model_module import ModelModule
from edgeline.passport import Promise


def cluster(
    model: tf_keras.Model,
    module: ModelModule,
    splits: training.Splits,
    config: Cluster,
    promises: tuple[Promise, ...],
    log_dir: str,
) -> training.Outcome:
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
      ValueError: no layer can be clustered; names all layers and why.
      BrokenPromiseError: a layer has more values than asked, or lost its zeros.
    """
    registry = clustering_registry.ClusteringRegistry
    kernels = {
        layer.name: [variable for _, variable in registry.make_clusterable(layer).get_clusterable_weights()]
        for layer in model.layers
        if not isinstance(layer, tf_keras.Model) and registry.supports(layer)
    }
    reasons = layers.selection(model, kernels, config.min_layer_share, "tfmot has nothing to cluster in")
    for name in [name for name, reason in reasons.items() if reason is None]:
        fewest = min(len(np.unique(kernel.numpy())) for kernel in kernels[name])
        if fewest <= config.clusters:
            # tfmot's KMEANS_PLUS_PLUS crashes on fewer distinct weights than clusters
            reasons[name] = f"has {fewest} distinct values already"
    chosen = [name for name, reason in reasons.items() if reason is None]
    if not chosen:
        raise ValueError(f"Clusterer: no layer can be clustered: {'; '.join(f'{n}: {r}' for n, r in reasons.items())}")
    made = tuple(
        Promise("clusters", name, tuple(kernel.shape), config.clusters) for name in chosen for kernel in kernels[name]
    )
    sparse = {promise.layer for promise in promises if promise.kind == "sparsity"}
    initialization = tfmot.clustering.keras.CentroidInitialization[config.centroid_initialization.upper()]

    def wrap(layer: tf_keras.layers.Layer) -> tf_keras.layers.Layer:
        if layer.name not in chosen:
            return layer
        return tfmot_cluster.cluster_weights(
            layer,
            number_of_clusters=config.clusters,
            cluster_centroids_init=initialization,
            preserve_sparsity=layer.name in sparse,
        )

    wrapped = tf_keras.models.clone_model(model, clone_function=wrap)
    history = training.fit(wrapped, module, splits, config, step="Clusterer", log_dir=log_dir)
    clustered = tfmot.clustering.keras.strip_clustering(wrapped)
    layers.check_promises(clustered, (*promises, *made), "Clusterer")
    notes = {name: reason or f"clustered to {config.clusters} values" for name, reason in reasons.items()}
    return training.Outcome(
        clustered, history, training.evaluate(clustered, module, splits), layers.facts(clustered, notes), made
    )
