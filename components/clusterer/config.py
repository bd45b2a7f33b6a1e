"""What the Clusterer may be asked."""

from __future__ import annotations

import dataclasses

from edgeline.config import RUN_WIDE, FineTuning, deviation_tag

CENTROID_INITIALIZATIONS = ("linear", "random", "density_based", "kmeans_plus_plus")


@dataclasses.dataclass(frozen=True)
class Cluster(FineTuning):
    """Let the weights of each layer share few values, and fine-tune those.

    Where the model was pruned before, its zeros are kept: zero is then one of the shared values.

    Attributes:
      clusters: shared values per kernel, at least 2.
      centroid_initialization: how the first shared values are chosen: `linear` (evenly between the smallest and the
        largest weight), `random`, `density_based` or `kmeans_plus_plus`.
      min_layer_share: layers that hold less than this fraction of the model's weights are left alone, in [0, 1).
    """

    clusters: int = 16
    centroid_initialization: str = "kmeans_plus_plus"
    min_layer_share: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("clusters", self.clusters >= 2, "at least 2")
        self.check_choice("centroid_initialization", CENTROID_INITIALIZATIONS)
        self.check("min_layer_share", 0 <= self.min_layer_share < 1, "at least 0 and below 1")

    @property
    def token(self) -> str:
        """The step in a recipe's name, e.g. `cluster16`: the number of shared values."""
        return f"cluster{self.clusters}" + deviation_tag(self, ("clusters", *RUN_WIDE))
