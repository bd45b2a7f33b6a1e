"""The named recipes, one function each; `edgeline recipes` lists them."""

from __future__ import annotations

import inspect

from edgeline.clusterer.config import Cluster
from edgeline.pipelines.recipe import Recipe
from edgeline.pruner.config import Prune
from edgeline.quantizer.config import Quantize


def float32() -> Recipe:
    """As trained: the reference of every comparison, and a candidate where nothing else fits the budget."""
    return Recipe("float32", (Quantize("float32"),))


def float16() -> Recipe:
    """Weights as float16: half the size, for GPUs and for models that lose too much in integers."""
    return Recipe("float16", (Quantize("float16"),))


def dynamic_range() -> Recipe:
    """Weights as int8, activations as float: a quarter of the size, no calibration needed."""
    return Recipe("dynamic_range", (Quantize("dynamic_range"),))


def int8() -> Recipe:
    """Weights and activations as int8, inputs and outputs as float32: the fastest on most phones."""
    return Recipe("int8", (Quantize("int8"),))


def int8_io() -> Recipe:
    """Everything as int8, inputs and outputs too: for microcontrollers and integer-only accelerators."""
    return Recipe("int8_io", (Quantize("int8", "int8"),))


def int16x8() -> Recipe:
    """Weights as int8, activations as int16: for models whose accuracy collapses in int8."""
    return Recipe("int16x8", (Quantize("int16x8"),))


def qat8() -> Recipe:
    """As int8, after a fine-tuning that simulates it: wins back what post-training int8 loses."""
    return Recipe("qat8", (Quantize("qat8"),))


def prune80_float32() -> Recipe:
    """80% of the weights zero, float32: shows what the pruning alone costs, and saves only when compressed."""
    return Recipe("prune80_float32", (Prune(0.8), Quantize("float32")))


def prune80_dynamic_range() -> Recipe:
    """80% of the weights zero, the others int8: small over the air, no calibration needed."""
    return Recipe("prune80_dynamic_range", (Prune(0.8), Quantize("dynamic_range")))


def prune80_int8() -> Recipe:
    """80% of the weights zero, weights and activations int8: small over the air and fast."""
    return Recipe("prune80_int8", (Prune(0.8), Quantize("int8")))


def cluster16_float32() -> Recipe:
    """16 shared weight values per layer, float32: shows what the clustering alone costs."""
    return Recipe("cluster16_float32", (Cluster(16), Quantize("float32")))


def cluster16_dynamic_range() -> Recipe:
    """16 shared weight values per layer, stored as int8: small over the air, dense."""
    return Recipe("cluster16_dynamic_range", (Cluster(16), Quantize("dynamic_range")))


def prune80_cluster16_int8() -> Recipe:
    """80% of the weights zero, the others 15 shared values, int8: the smallest over the air."""
    return Recipe("prune80_cluster16_int8", (Prune(0.8), Cluster(16), Quantize("int8")))


_FUNCTIONS = (
    float32, float16, dynamic_range, int8, int8_io, int16x8, qat8,
    prune80_float32, prune80_dynamic_range, prune80_int8,
    cluster16_float32, cluster16_dynamic_range,
    prune80_cluster16_int8,
)  # fmt: skip

RECIPES: dict[str, Recipe] = {function.__name__: function() for function in _FUNCTIONS}
DESCRIPTIONS: dict[str, str] = {function.__name__: inspect.getdoc(function) or "" for function in _FUNCTIONS}

#: What `edgeline run` tries where no recipe is asked for: one of each kind.
DEFAULT = ("float16", "dynamic_range", "int8", "qat8", "prune80_int8", "prune80_cluster16_int8")
