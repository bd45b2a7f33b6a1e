"""What the RepresentativeDatasetGen may be asked."""

from __future__ import annotations

import dataclasses

from edgeline.config import StepConfig

STRATEGIES = ("uniform", "stratified", "diverse")

#: What `by` calls the label, whatever the examples call it.
LABEL = "label"


@dataclasses.dataclass(frozen=True)
class Sample(StepConfig):
    """Draw calibration samples from the training split.

    Attributes:
      samples: how many, at least 1; a smaller training split gives all it has.
      seed: which ones, 0 to 2**31 - 1.
      strategy: `uniform`: each example is as likely; `stratified`: as many of each value of `by`, as far as they reach;
        `diverse`: those that cover the ranges of the inputs and the classes, without outliers.
      by: for `stratified`, `label` or the name of a feature of `feature_spec` (one string or int64 per example).
      winsor_percent: for `diverse`, which share of the examples at each end of an input's range counts as outliers, in
        percent, at least 0 and below 50.
      max_bad_fraction: share of the training examples that may hold NaN or infinite values; they are counted and never
        drawn. At least 0 and below 1.
    """

    samples: int = 256
    seed: int = 0
    strategy: str = "uniform"
    by: str = LABEL
    winsor_percent: float = 0.1
    max_bad_fraction: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("samples", self.samples >= 1, "at least 1")
        self.check("seed", 0 <= self.seed < 2**31, "in [0, 2**31)")
        self.check_choice("strategy", STRATEGIES)
        self.check("by", bool(self.by), "label, or the name of a feature")
        self.check("winsor_percent", 0 <= self.winsor_percent < 50, "at least 0 and below 50")
        self.check("max_bad_fraction", 0 <= self.max_bad_fraction < 1, "at least 0 and below 1")
