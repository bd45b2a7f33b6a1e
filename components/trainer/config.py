"""What the Trainer may be asked."""

from __future__ import annotations

import dataclasses

from edgeline.config import FineTuning


@dataclasses.dataclass(frozen=True)
class Train(FineTuning):
    """Train the model module's model from its initial weights.

    Attributes:
      epochs: passes over the training split at most, at least 1.
      early_stopping_patience: epochs without a better validation loss after which training stops and the best weights
        are restored; 0 trains all epochs and keeps the last weights.
    """

    epochs: int = dataclasses.field(default=4, kw_only=True)
    early_stopping_patience: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("early_stopping_patience", self.early_stopping_patience >= 0, "at least 0")
