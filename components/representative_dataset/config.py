"""What the RepresentativeDatasetGen may be asked."""

from __future__ import annotations

import dataclasses

from edgeline.config import StepConfig


@dataclasses.dataclass(frozen=True)
class Sample(StepConfig):
    """Draw calibration samples from the training split.

    Attributes:
      samples: how many, at least 1; a smaller training split gives all it has.
      seed: which ones, 0 to 2**31 - 1.
    """

    samples: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("samples", self.samples >= 1, "at least 1")
        self.check("seed", 0 <= self.seed < 2**31, "in [0, 2**31)")
