"""What the DataGate may be asked."""

from __future__ import annotations

import dataclasses

from edgeline.config import StepConfig


@dataclasses.dataclass(frozen=True)
class Gate(StepConfig):
    """Compare the training split with that of the last run (drift) and with the eval split (skew).

    Attributes:
      max_drift: how far a feature may be away that has no comparator of its own in the schema, above 0 and at most 1:
        of numbers the Jensen-Shannon divergence, of categories the largest difference of a share. -1: any.
      allow_drift: 1: say what has drifted, and go on; 0: stop.
      last_statistics: folder, also a gs:// URI, that keeps the statistics of the last data that were let through;
        empty: nothing is kept, and no drift is seen.
    """

    max_drift: float = 0.1
    allow_drift: int = 0
    last_statistics: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("max_drift", self.max_drift == -1 or 0 < self.max_drift <= 1, "above 0 and at most 1, or -1 for any")
        self.check("allow_drift", self.allow_drift in (0, 1), "0 or 1")
