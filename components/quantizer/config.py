"""What the Quantizer may be asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgeline import schemes
from edgeline.config import RUN_WIDE, Distilling, deviation_tag
from edgeline.errors import did_you_mean
from edgeline.schemes import SCHEMES

#: Why a scheme cannot have what is asked of it, by the field.
_HINTS = {
    "keep_float": "only these can leave them float",
    "keep_float_ops": "only these can leave them float",
    "sparse": "XNNPACK's sparse kernels compute on floats, and a file that is quantized too converts and then may fail "
    "to load",
}


@dataclasses.dataclass(frozen=True)
class Quantize(Distilling):
    """Choose the number types of the TFLite model; fine-tune for them where the scheme is a trained one.

    Attributes:
      scheme: one of SCHEMES of `edgeline.schemes`: `float32` (as trained), `dynamic_range` (int8 weights, float
        activations), `float16` (weights), `int8` (weights and activations), `int16x8` (int8 weights, int16
        activations), `auto` (the first that holds on the validation split of int8, int8 with the worst layers float,
        int16x8, dynamic_range and float16), or `qat8` (as int8, after a quantization-aware fine-tuning).
      io_type: number type of the model's inputs and outputs: `float32`, or, for `int8` and `qat8`, also `int8` or
        `uint8`.
      keep_float: for `int8` and `qat8`, names and patterns of the layers that stay float, e.g. `["logits", "conv*"]`.
      keep_float_ops: for `int8`, the kinds of TFLite ops that stay float, e.g. `["SOFTMAX"]`.
      sensitivity_layers: for `int8`, how many of the most suspicious layers are tried alone, float and int8, for the
        passport's `sensitivity`, at least 1; None: no layer is looked at. For `auto`, how many may stay float (None:
        8), looked at only where int8 does not hold.
      auto_max_drop: for `auto`, how much worse than the float model the first compiled metric (the loss, where there is
        none) of the validation split may be, at least 0.
      sparse: for `float32`, after a Prune with policy xnnpack: whether of the pruned kernels only the other values and
        their places are stored, which XNNPACK's sparse kernels can run.
      epochs, batch_size, distillation, temperature: of the fine-tuning of `qat8`; no other scheme trains.
    """

    scheme: str = "int8"
    io_type: str = "float32"
    keep_float: Sequence[str] = ()
    keep_float_ops: Sequence[str] = ()
    sensitivity_layers: int | None = None
    auto_max_drop: float = 0.01
    sparse: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheme not in SCHEMES:
            raise ValueError(
                f"{self.where('scheme')} must be one of {', '.join(SCHEMES)}, received {self.scheme!r}"
                + did_you_mean(self.scheme, SCHEMES, "; did you mean {}?")
            )
        self.check_choice("io_type", schemes.io_types())
        if self.io_type not in SCHEMES[self.scheme].io:
            raise ValueError(
                f"{self.where('io_type')} {self.io_type!r} needs scheme {' or '.join(schemes.taking(self.io_type))} "
                f"(integer activations of that size), received scheme {self.scheme!r}; use io_type="
                f"{SCHEMES[self.scheme].io[0]!r}"
            )
        for name in ("keep_float", "keep_float_ops"):
            self.check(name, all(getattr(self, name)), 'a list of names such as ["logits", "conv*"]')
            self.sort(name)
        layers = self.sensitivity_layers
        self.check("sensitivity_layers", layers is None or layers >= 1, "at least 1, or None")
        self.check("auto_max_drop", self.auto_max_drop >= 0, "at least 0")
        self._check_known()

    def _check_known(self) -> None:
        """Raises ValueError where something is asked that the scheme does not know."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for name in schemes.settings():
            if name in SCHEMES[self.scheme].settings or getattr(self, name) == defaults[name]:
                continue
            hint = _HINTS.get(name)
            if SCHEMES[self.scheme].ladder and name.startswith("keep_float"):
                hint = f"{self.scheme} chooses them itself"
            raise ValueError(
                f"{self.where(name)} needs scheme {' or '.join(schemes.knowing(name))}, received scheme "
                f"{self.scheme!r}{f': {hint}' if hint else ''}"
            )

    @property
    def trains(self) -> bool:
        """Whether this scheme fine-tunes the model."""
        return SCHEMES[self.scheme].trained

    @property
    def token(self) -> str:
        """The step in a recipe's name: the scheme, `_io` or `_uint8io` for integer inputs and outputs, `_sparse`."""
        io = schemes.io_suffix(self.io_type)
        sparse = "_sparse" if self.sparse else ""
        named = ("scheme", "io_type", "sparse", "distillation", *RUN_WIDE)
        return self.scheme + io + sparse + self.distilled + deviation_tag(self, named)
