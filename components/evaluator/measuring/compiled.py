"""Which metrics a module compiles, told before there is a trained model or an example."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import tensorflow as tf

from edgeline.data.reading import ExampleParser
from edgeline.evaluator.measuring.metrics import CompiledMetrics
from edgeline.model_module.hooks import ModelModule


def directions_of(module: ModelModule) -> dict[str, str | None]:
    """Returns the loss and the metrics that a module compiles for the model that it builds.

    Returns:
      By name, in their order: `max`, `min`, or None where the class does not say what is better. Empty where the module
      cannot be asked: the step that needs what fails here says why in its own words.
    """
    try:
        _, label = ExampleParser(module).compiled.get_concrete_function().structured_outputs[:2]
        metrics = CompiledMetrics(module)
        metrics.prepare(
            tf.nest.map_structure(_zeros, label),
            [_zeros(output).numpy() for output in tf.nest.flatten(metrics.model.output)],
        )
    except Exception:  # of the module's hooks, whatever they raise
        logging.info("the module's metrics are not known before the training", exc_info=True)
        return {}
    return metrics.directions


def _zeros(spec: Any) -> tf.Tensor:
    """Returns one example of zeros, with open sizes of 1."""
    return tf.zeros(np.array([1, *(size or 1 for size in spec.shape[1:])], int), spec.dtype)
