"""What the Quantizer may be asked."""

from __future__ import annotations

import dataclasses

from edgeline.config import RUN_WIDE, FineTuning, deviation_tag

#: Schemes that need no training. float32 changes nothing and stands here so that every recipe ends with one scheme.
POST_TRAINING = ("float32", "dynamic_range", "float16", "int8", "int16x8")
#: Schemes whose activations are integers: their converter needs calibration samples or trained ranges.
CALIBRATED = ("int8", "int16x8")
TRAINED = ("qat8",)
SCHEMES = (*POST_TRAINING, *TRAINED)
IO_TYPES = ("float32", "int8", "uint8")


@dataclasses.dataclass(frozen=True)
class Quantize(FineTuning):
    """Choose the number types of the TFLite model; fine-tune for them where the scheme is a trained one.

    Attributes:
      scheme: `float32` (as trained), `dynamic_range` (int8 weights, float activations), `float16` (weights), `int8`
        (weights and activations), `int16x8` (int8 weights, int16 activations), or `qat8` (as int8, after a
        quantization-aware fine-tuning).
      io_type: number type of the model's inputs and outputs: `float32`, or, for `int8` and `qat8`, also `int8` or
        `uint8`.
      epochs, batch_size: of the fine-tuning of `qat8`; no other scheme trains.
    """

    scheme: str = "int8"
    io_type: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("scheme", SCHEMES)
        self.check_choice("io_type", IO_TYPES)
        if self.io_type != "float32" and self.scheme not in ("int8", "qat8"):
            raise ValueError(
                f"{self.where('io_type')} {self.io_type!r} needs scheme int8 or qat8 (integer activations of 8 bits), "
                f"received scheme {self.scheme!r}; use io_type='float32'"
            )

    @property
    def trains(self) -> bool:
        """Whether this scheme fine-tunes the model."""
        return self.scheme in TRAINED

    @property
    def token(self) -> str:
        """The step in a recipe's name: the scheme, then `_io` for int8 inputs and outputs, `_uint8io` for uint8."""
        io = {"float32": "", "int8": "_io", "uint8": "_uint8io"}[self.io_type]
        return self.scheme + io + deviation_tag(self, ("scheme", "io_type", *RUN_WIDE))
