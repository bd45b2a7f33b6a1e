"""Recipes beyond the named ones, for `benchmarks/quality.py`: how far can it go?"""

from edgeline.clusterer.config import Cluster
from edgeline.pruner.config import Prune
from edgeline.quantizer.config import Quantize
from edgeline.recipe import Recipe


def prune88_cluster8_int8() -> Recipe:
    """Fewer shared values."""
    return Recipe("prune88_cluster8_int8", (Prune(0.88), Cluster(8), Quantize("int8")))


def prune90_cluster8_int8() -> Recipe:
    """The smallest that was tried on the small CNN."""
    return Recipe("prune90_cluster8_int8", (Prune(0.9), Cluster(8), Quantize("int8")))


def prune95_cluster16_int8() -> Recipe:
    """For the large CNN, nearly all of which is one dense layer."""
    return Recipe("prune95_cluster16_int8", (Prune(0.95), Cluster(16), Quantize("int8")))


def prune90_from50_float32() -> Recipe:
    """As the field's notebooks prune the large CNN: from 50% to 90%."""
    return Recipe("prune90_from50_float32", (Prune(0.9, initial_sparsity=0.5), Quantize("float32")))


def prune90_from50_dynamic_range() -> Recipe:
    """And what they then quantize."""
    return Recipe("prune90_from50_dynamic_range", (Prune(0.9, initial_sparsity=0.5), Quantize("dynamic_range")))


def prune80_d50_cluster16_d50_int8() -> Recipe:
    """Whether distillation helps a mild compression too."""
    return _distilled(0.8, 16)


def prune85_d50_cluster16_d50_int8() -> Recipe:
    """As prune85_cluster16_int8."""
    return _distilled(0.85, 16)


def prune88_d50_cluster8_d50_int8() -> Recipe:
    """As prune88_cluster8_int8."""
    return _distilled(0.88, 8)


def prune93_d50_cluster8_d50_int8() -> Recipe:
    """Beyond prune90_d50_cluster8_d50_int8."""
    return _distilled(0.93, 8)


def prune95_d50_cluster16_d50_int8() -> Recipe:
    """As prune95_cluster16_int8."""
    return _distilled(0.95, 16)


def _distilled(sparsity: float, clusters: int) -> Recipe:
    steps = Prune(sparsity, distillation=0.5), Cluster(clusters, distillation=0.5), Quantize("int8")
    return Recipe(f"prune{100 * sparsity:.0f}_d50_cluster{clusters}_d50_int8", steps)
