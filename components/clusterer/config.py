"""What the Clusterer may be asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from edgeline.config import RUN_WIDE, LayerChoice, Values, deviation_tag

CENTROID_INITIALIZATIONS = ("linear", "random", "density_based", "kmeans_plus_plus")


@dataclasses.dataclass(frozen=True)
class Cluster(LayerChoice):
    """Let the weights of each layer share few values, and fine-tune those.

    Where the model was pruned before, its zeros are kept: zero is then one of the shared values.

    Attributes:
      clusters: shared values per kernel, at least 2; at least 3 where it was pruned.
      centroid_initialization: how the first shared values are chosen: `linear` (evenly between the smallest and the
        largest weight), `random`, `density_based` or `kmeans_plus_plus`, which is `linear` where there is too little
        to choose from.
      min_layer_share: layers that hold less than this fraction of the model's weights are left alone, in [0, 1); of
        many such layers the smallest, five times this fraction in all. `include` and `layer_clusters` overrule it.
      layer_clusters: from patterns to the number of values of the layers that they match, at least 2; the first
        pattern that matches counts.
      per_channel: whether each output channel of a Conv2D has its own `clusters` values: closer to the weights, and no
        worse once the file is quantized per channel; other layers, and those with too few weights, have one set.
    """

    clusters: int = 16
    centroid_initialization: str = "kmeans_plus_plus"
    min_layer_share: float = 0.01
    layer_clusters: Mapping[str, int] = dataclasses.field(default=Values({}), kw_only=True)
    per_channel: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("clusters", self.clusters >= 2, "at least 2")
        self.check_choice("centroid_initialization", CENTROID_INITIALIZATIONS)
        self.check("min_layer_share", 0 <= self.min_layer_share < 1, "at least 0 and below 1")
        self.check_by_layer(
            "layer_clusters",
            lambda value: value >= 2,
            'a number of values of at least 2, such as {"Dense": 8}',
        )

    @property
    def token(self) -> str:
        """The step in a recipe's name, e.g. `cluster16`: the number of shared values."""
        return f"cluster{self.clusters}{self.distilled}" + deviation_tag(self, ("clusters", "distillation", *RUN_WIDE))
