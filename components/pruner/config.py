"""What the Pruner may be asked."""

from __future__ import annotations

import dataclasses

from edgeline.config import RUN_WIDE, FineTuning, deviation_tag

SCHEDULES = ("polynomial_decay", "constant")


@dataclasses.dataclass(frozen=True)
class Prune(FineTuning):
    """Set the smallest weights of each layer to zero while fine-tuning.

    Attributes:
      sparsity: fraction of zero weights in each pruned kernel at the end, in (0, 1).
      schedule: `polynomial_decay` raises the sparsity from `initial_sparsity` over the first part of the fine-tuning;
        `constant` has it from the first step on.
      initial_sparsity: where `polynomial_decay` starts, in [0, sparsity].
      ramp: fraction of the optimizer steps in which the final sparsity is reached, in (0, 1]; the rest recovers
        accuracy. The steps are counted on the real training split, so that a short fine-tuning prunes too.
      min_layer_share: layers that hold less than this fraction of the model's weights are left alone, in [0, 1): a
        first convolution of 108 weights costs accuracy and saves nothing.
    """

    sparsity: float = 0.5
    schedule: str = "polynomial_decay"
    initial_sparsity: float = 0.0
    ramp: float = 0.75
    min_layer_share: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("sparsity", 0 < self.sparsity < 1, "above 0 and below 1")
        self.check_choice("schedule", SCHEDULES)
        self.check("initial_sparsity", 0 <= self.initial_sparsity <= self.sparsity, f"in [0, {self.sparsity}]")
        self.check("ramp", 0 < self.ramp <= 1, "above 0 and at most 1")
        self.check("min_layer_share", 0 <= self.min_layer_share < 1, "at least 0 and below 1")

    @property
    def token(self) -> str:
        """The step in a recipe's name, e.g. `prune80`: the final sparsity in percent."""
        # not :g, which has six digits: two sparsities that differ at all are two names
        percent = f"{self.sparsity * 100:.10f}".rstrip("0").rstrip(".").replace(".", "p")
        return f"prune{percent}" + deviation_tag(self, ("sparsity", *RUN_WIDE))
