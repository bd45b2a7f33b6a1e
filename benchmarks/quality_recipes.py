"""Recipes beyond the named ones, for `benchmarks/quality.py`: how far can it go?"""

from edgeline.clusterer.config import Cluster
from edgeline.pipelines.recipe import Recipe
from edgeline.pruner.config import Prune
from edgeline.quantizer.config import Quantize


def prune88_cluster16_int8() -> Recipe:
    """A little more than prune85_cluster16_int8."""
    return Recipe("prune88_cluster16_int8", (Prune(0.88), Cluster(16), Quantize("int8")))


def prune88_cluster8_int8() -> Recipe:
    """Fewer shared values."""
    return Recipe("prune88_cluster8_int8", (Prune(0.88), Cluster(8), Quantize("int8")))


def prune90_cluster8_int8() -> Recipe:
    """The smallest that was tried."""
    return Recipe("prune90_cluster8_int8", (Prune(0.9), Cluster(8), Quantize("int8")))
