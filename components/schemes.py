"""The quantization schemes as data: what each makes of a model, and what a file of it must keep. Standard library only.

A new scheme is an entry here. TensorFlow's converter and, for a `.tflite` file that was imported, the AI Edge quantizer
make it by its number types; a scheme that neither of them makes names its own entry in `conversion.converter`'s
CONVERTERS.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """How far a file's outputs may be from the source model's, on every output; None: any distance.

    Attributes:
      relative: the most that any value may differ, as a fraction of the largest one, at least 0.
      cosine: the least likeness of the outputs on all samples, -1 to 1.
    """

    relative: float | None = None
    cosine: float | None = None


@dataclasses.dataclass(frozen=True)
class Scheme:
    """The number types of a TFLite model, and how it gets them.

    Attributes:
      words: what it makes of a model, for lists of schemes.
      weights: number type in which the file stores them, as TFLite names it; None: that of the scheme it becomes.
      activations: number type in which the file computes; likewise.
      tolerance: how far its outputs may be from the source model's.
      calibrated: whether the ranges of its activations come from calibration samples.
      trained: whether it fine-tunes the model, and the ranges come from that.
      io: number types that the model's inputs and outputs may have; the first is the one where nothing is asked.
      settings: fields of Quantize that only some schemes know, of those that this one knows.
      ladder: names of the schemes of which it becomes the first that holds on the validation split, in this order;
        empty where it is made itself. Of a rung that knows `keep_float_ops`, the worst layers are left float next.
      note: what the passport says of a layer that was quantized.
      converter: what makes it: a key of `conversion.converter`'s CONVERTERS.
    """

    words: str
    weights: str | None
    activations: str | None
    tolerance: Tolerance
    calibrated: bool = False
    trained: bool = False
    io: tuple[str, ...] = ("float32",)
    settings: tuple[str, ...] = ()
    ladder: tuple[str, ...] = ()
    note: str = ""
    converter: str = "standard"

    @property
    def integers_only(self) -> bool:
        """Whether its operators compute on integers."""
        return (self.activations or "").startswith("int")

    @property
    def integer_io(self) -> str | None:
        """The first integer type that its inputs and outputs may have; None: they are floats."""
        return next((dtype for dtype in self.io if dtype.lstrip("u").startswith("int")), None)


_INTEGER_IO = ("float32", "int8", "uint8")

#: By name. The tolerances were measured on trained and untrained networks (convolutional, dense, recurrent, attention;
#: classifiers, regressors, autoencoders):
#: - float32 differs by 5e-7 of the largest value at most: 1e-3 leaves room for depth, and refuses any real fault;
#: - float16 by 1.4e-3: 2e-2 for the same reason;
#: - the others by 1% to 8%, since one saturated value decides it, so they are judged by the cosine, which was at least
#:   0.9997. At 0.98, noise has a fifth of the signal's amplitude: no sound model of a scheme with float or 16-bit
#:   activations shows that. int8 loses more in deep models that are still useful, and the Evaluator judges those on the
#:   metric that matters; at 0.9 noise has half of the signal's amplitude, and what is below has nothing to evaluate:
#:   constant or saturated outputs, another order or sign. Outputs of one sign and size (a regressor's) keep a cosine
#:   near 1 even so: for them this is no substitute for the Evaluator.
#: What an output's own quantization cannot show is never a fault: see `conversion.checks.check_parity`.
#: Argmax agreement is reported and not judged: an untrained or ambiguous sample flips it at any precision.
SCHEMES: dict[str, Scheme] = {
    "float32": Scheme(
        words="as trained, so that every recipe ends with one scheme",
        weights="float32",
        activations="float32",
        tolerance=Tolerance(relative=1e-3),
        settings=("sparse",),
    ),
    "dynamic_range": Scheme(
        words="int8 weights, float activations",
        weights="int8",
        activations="float32",
        tolerance=Tolerance(cosine=0.98),
        note="int8 weights where they are 1,024 or more",
    ),
    "float16": Scheme(
        words="float16 weights, float activations",
        weights="float16",
        activations="float32",
        tolerance=Tolerance(relative=2e-2),
        note="float16 weights",
    ),
    "int8": Scheme(
        words="int8 weights and activations",
        weights="int8",
        activations="int8",
        tolerance=Tolerance(cosine=0.9),
        calibrated=True,
        io=_INTEGER_IO,
        settings=("keep_float", "keep_float_ops", "sensitivity_layers"),
        note="int8",
    ),
    "int16x8": Scheme(
        words="int8 weights, int16 activations",
        weights="int8",
        activations="int16",
        tolerance=Tolerance(cosine=0.98),
        calibrated=True,
        note="int8 weights, int16 activations",
    ),
    "auto": Scheme(
        words="the first that holds on the validation split of int8, int8 with the worst layers float, int16x8, "
        "dynamic_range and float16",
        weights=None,
        activations=None,
        tolerance=Tolerance(),  # that of the scheme it becomes is what counts
        calibrated=True,
        settings=("sensitivity_layers",),
        ladder=("int8", "int16x8", "dynamic_range", "float16"),
    ),
    "qat8": Scheme(
        words="as int8, after a quantization-aware fine-tuning",
        weights="int8",
        activations="int8",
        tolerance=Tolerance(cosine=0.9),
        trained=True,
        io=_INTEGER_IO,
        settings=("keep_float", "distillation"),
        note="quantized to 8 bits",
    ),
}


def post_training() -> tuple[str, ...]:
    """Returns the names of the schemes that need no training."""
    return tuple(name for name, scheme in SCHEMES.items() if not scheme.trained)


def trained() -> tuple[str, ...]:
    """Returns the names of the schemes that fine-tune the model."""
    return tuple(name for name, scheme in SCHEMES.items() if scheme.trained)


def knowing(setting: str) -> tuple[str, ...]:
    """Returns the names of the schemes that know a field of Quantize.

    >>> knowing("keep_float")
    ('int8', 'qat8')
    """
    return tuple(name for name, scheme in SCHEMES.items() if setting in scheme.settings)


def settings() -> tuple[str, ...]:
    """Returns the fields of Quantize that only some schemes know."""
    return tuple(dict.fromkeys(setting for scheme in SCHEMES.values() for setting in scheme.settings))


def io_types() -> tuple[str, ...]:
    """Returns all number types that inputs and outputs can have by some scheme."""
    return tuple(dict.fromkeys(dtype for scheme in SCHEMES.values() for dtype in scheme.io))


def taking(io_type: str) -> tuple[str, ...]:
    """Returns the names of the schemes whose inputs and outputs may have a number type.

    >>> taking("uint8")
    ('int8', 'qat8')
    """
    return tuple(name for name, scheme in SCHEMES.items() if io_type in scheme.io)


def io_suffix(io_type: str) -> str:
    """Returns what a recipe's name says of the number type of its inputs and outputs.

    >>> [io_suffix(dtype) for dtype in ("float32", "int8", "uint8")]
    ['', '_io', '_uint8io']
    """
    return {"float32": "", "int8": "_io"}.get(io_type, f"_{io_type}io")
