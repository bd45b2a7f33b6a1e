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
        are restored, at least 1; None trains all epochs and keeps the last weights. Counted anew in each phase.
      warm_start: `.keras` file whose weights the training begins with, a path or a URI; None: the module's own.
      warm_start_digest: hexadecimal SHA-256 of that file, as a path is no cache key; None where it cannot be read
        from where the pipeline is built.
    """

    epochs: int = dataclasses.field(default=4, kw_only=True)
    early_stopping_patience: int | None = None
    warm_start: str | None = None
    warm_start_digest: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        patience = self.early_stopping_patience
        self.check("early_stopping_patience", patience is None or patience >= 1, "at least 1, or None to train on")
        self.check("warm_start_digest", not self.warm_start_digest or bool(self.warm_start), "None without warm_start")
