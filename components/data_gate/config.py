"""What the DataGate may be asked."""

from __future__ import annotations

import dataclasses

from edgeline.config import StepConfig


@dataclasses.dataclass(frozen=True)
class Gate(StepConfig):
    """Compare the training split with that of the last run (drift) and with the eval split (skew).

    Attributes:
      max_drift: how far a feature may be away that has no comparator of its own in the schema, above 0 and at most 1:
        of numbers the Jensen-Shannon divergence, of categories the largest difference of a share. None: any.
      allow_drift: whether to say what has drifted, and go on, instead of stopping.
      last_statistics: folder, also a gs:// URI, that keeps the statistics of the last data that were let through;
        None: nothing is kept, and no drift is seen.
    """

    max_drift: float | None = 0.1
    allow_drift: bool = False
    last_statistics: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(
            "max_drift",
            self.max_drift is None or 0 < self.max_drift <= 1,
            "above 0 and at most 1, or None for any",
        )
