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
      batch_size: the batch size that it has to run in beside single examples, at least 1: the one it will be evaluated
        in.
      timeout_seconds: how long the TFLite model may take to load and run them in a child process, at least 1.
      allow_select_tf_ops: whether the file may hold operators of TensorFlow, which an app must link. The runtime here
        does not have them, so such a model is converted and listed, and never selected.
      allow_custom_ops: whether it may hold custom operators. Those that the runtime knows, such as
        TFLite_Detection_PostProcess, are run; a model with others is treated likewise.
      one_example: whether the file is made for one example at a time, so that no size is open: some targets need that.
    """

    parity_samples: int = 32
    batch_size: int = 256
    timeout_seconds: int = 300
    allow_select_tf_ops: bool = False
    allow_custom_ops: bool = False
    one_example: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("parity_samples", self.parity_samples >= 1, "at least 1")
        self.check("batch_size", self.batch_size >= 1, "at least 1")
        self.check("timeout_seconds", self.timeout_seconds >= 1, "at least 1")
