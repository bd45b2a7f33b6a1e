"""What the TFLiteExporter may be asked."""

from __future__ import annotations

import dataclasses

from edgeline.config import StepConfig


@dataclasses.dataclass(frozen=True)
class Export(StepConfig):
    """Convert a model to TFLite by its passport and prove the result.

    Attributes:
      parity_samples: calibration samples on which the TFLite model's outputs are compared with the Keras model's, at
        least 1.
      timeout_seconds: how long the TFLite model may take to load and run them in a child process, at least 1.
    """

    parity_samples: int = 32
    timeout_seconds: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("parity_samples", self.parity_samples >= 1, "at least 1")
        self.check("timeout_seconds", self.timeout_seconds >= 1, "at least 1")
