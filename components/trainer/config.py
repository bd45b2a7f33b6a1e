"""What the Trainer may be asked."""

from __future__ import annotations

import dataclasses

from edgeline.config import FineTuning


@dataclasses.dataclass(frozen=True)
class Train(FineTuning):
    """Train the model module's model from its initial weights, or from those of a trained one.

    Attributes:
      epochs: passes over the training split at most, at least 1; where the module trains in phases, those of each
        phase that does not say how many.
      early_stopping_patience: epochs without a better validation loss after which training stops and the best weights
        are restored; 0 trains all epochs and keeps the last weights. Counted anew in each phase.
      warm_start: `.keras` file whose weights the training begins with, a path or a URI; empty: none.
      warm_start_digest: hexadecimal SHA-256 of that file, as a path is no cache key; empty where it cannot be read
        from where the pipeline is built.
    """

    epochs: int = dataclasses.field(default=4, kw_only=True)
    early_stopping_patience: int = 0
    warm_start: str = ""
    warm_start_digest: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("early_stopping_patience", self.early_stopping_patience >= 0, "at least 0")
        self.check("warm_start_digest", not self.warm_start_digest or bool(self.warm_start), "empty without warm_start")
