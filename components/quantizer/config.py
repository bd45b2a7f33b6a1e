"""What the Quantizer may be asked."""

from __future__ import annotations

import dataclasses
import difflib
import json

from edgeline.config import RUN_WIDE, Distilling, deviation_tag

#: Schemes that need no training. float32 changes nothing and stands here so that every recipe ends with one scheme.
POST_TRAINING = ("float32", "dynamic_range", "float16", "int8", "int16x8", "auto")
#: Schemes whose activations are integers, or may be: they need calibration samples or trained ranges.
CALIBRATED = ("int8", "int16x8", "auto")
TRAINED = ("qat8",)
SCHEMES = (*POST_TRAINING, *TRAINED)
IO_TYPES = ("float32", "int8", "uint8")


@dataclasses.dataclass(frozen=True)
class Quantize(Distilling):
    """Choose the number types of the TFLite model; fine-tune for them where the scheme is a trained one.

    Attributes:
      scheme: `float32` (as trained), `dynamic_range` (int8 weights, float activations), `float16` (weights), `int8`
        (weights and activations), `int16x8` (int8 weights, int16 activations), `auto` (the first that holds on the
        validation split of int8, int8 with the worst layers float, int16x8, dynamic_range and float16), or `qat8` (as
        int8, after a quantization-aware fine-tuning).
      io_type: number type of the model's inputs and outputs: `float32`, or, for `int8` and `qat8`, also `int8` or
        `uint8`.
      keep_float: for `int8` and `qat8`, the layers that stay float: a JSON list of names and patterns, e.g. `["logits",
        "conv*"]`.
      keep_float_ops: for `int8`, the kinds of TFLite ops that stay float: a JSON list such as `["SOFTMAX"]`.
      sensitivity_layers: for `int8`, how many of the most suspicious layers are tried alone, float and int8, for the
        passport's `sensitivity`; 0: none, and no layer is looked at. For `auto`, how many may stay float (0: 8), looked
        at only where int8 does not hold.
      auto_max_drop: for `auto`, how much worse than the float model the first compiled metric (the loss, where there is
        none) of the validation split may be, at least 0.
      sparse: for `float32`, after a Prune with policy xnnpack: 1 stores of the pruned kernels only the other values and
        their places, which XNNPACK's sparse kernels can run.
      epochs, batch_size, distillation, temperature: of the fine-tuning of `qat8`; no other scheme trains.
    """

    scheme: str = "int8"
    io_type: str = "float32"
    keep_float: str = "[]"
    keep_float_ops: str = "[]"
    sensitivity_layers: int = 0
    auto_max_drop: float = 0.01
    sparse: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scheme not in SCHEMES:
            near = difflib.get_close_matches(self.scheme, SCHEMES, 1)
            raise ValueError(
                f"{self.where('scheme')} must be one of {', '.join(SCHEMES)}, received {self.scheme!r}"
                + (f"; did you mean {near[0]}?" if near else "")
            )
        self.check_choice("io_type", IO_TYPES)
        if self.io_type != "float32" and self.scheme not in ("int8", "qat8"):
            raise ValueError(
                f"{self.where('io_type')} {self.io_type!r} needs scheme int8 or qat8 (integer activations of 8 bits), "
                f"received scheme {self.scheme!r}; use io_type='float32'"
            )
        for name in ("keep_float", "keep_float_ops"):
            self.check(name, _is_names(getattr(self, name)), 'a JSON list of strings such as ["logits", "conv*"]')
            # one spelling of the same request: it is a cache key
            object.__setattr__(self, name, json.dumps(sorted(set(json.loads(getattr(self, name))))))
            able = ("int8", "qat8") if name == "keep_float" else ("int8",)
            if getattr(self, name) != "[]" and self.scheme not in able:
                words = " or ".join(able)
                hint = "auto chooses them itself" if self.scheme == "auto" else f"only {words} can leave them float"
                raise ValueError(f"{self.where(name)} needs scheme {words}, received scheme {self.scheme!r}: {hint}")
        self.check("sensitivity_layers", self.sensitivity_layers >= 0, "at least 0")
        if self.sensitivity_layers and self.scheme not in ("int8", "auto"):
            raise ValueError(
                f"{self.where('sensitivity_layers')} needs scheme int8 or auto, received scheme {self.scheme!r}"
            )
        if self.distillation and not self.trains:
            trained = ", ".join(TRAINED)
            raise ValueError(f"{self.where('distillation')} needs scheme {trained}, received scheme {self.scheme!r}")
        self.check("auto_max_drop", self.auto_max_drop >= 0, "at least 0")
        self.check("sparse", self.sparse in (0, 1), "0 or 1")
        if self.sparse and self.scheme != "float32":
            raise ValueError(
                f"{self.where('sparse')} needs scheme float32, received scheme {self.scheme!r}: XNNPACK's sparse "
                f"kernels compute on floats, and a file that is quantized too converts and then may fail to load"
            )

    @property
    def trains(self) -> bool:
        """Whether this scheme fine-tunes the model."""
        return self.scheme in TRAINED

    @property
    def kept_layers(self) -> list[str]:
        """The patterns of keep_float."""
        return list(json.loads(self.keep_float))

    @property
    def kept_ops(self) -> list[str]:
        """The kinds of keep_float_ops."""
        return list(json.loads(self.keep_float_ops))

    @property
    def token(self) -> str:
        """The step in a recipe's name: the scheme, `_io` or `_uint8io` for integer inputs and outputs, `_sparse`."""
        io = {"float32": "", "int8": "_io", "uint8": "_uint8io"}[self.io_type]
        sparse = "_sparse" if self.sparse else ""
        named = ("scheme", "io_type", "sparse", "distillation", *RUN_WIDE)
        return self.scheme + io + sparse + self.distilled + deviation_tag(self, named)


def _is_names(text: str) -> bool:
    try:
        names = json.loads(text)
    except ValueError:
        return False
    return isinstance(names, list) and all(isinstance(name, str) and name for name in names)
