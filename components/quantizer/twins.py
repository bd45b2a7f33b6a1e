"""What int8 does to every operator of a model: the run that `sensitivity` reads, in a process without TensorFlow."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgeline.tflite import model_processes

#: Bars of a histogram.
BINS = 24

_ARRAYS = ("signal", "noise", "histogram")


@dataclasses.dataclass
class Sums:
    """What came of a pair over all samples.

    Attributes:
      signal, noise: sums of squares of the float values and of the errors, by channel.
      quantized, dot: sums of squares of the int8 values, and of the products of float and int8 ones.
      max_error: largest absolute error.
      range: (low, high) of what int8 can hold there.
      histogram: how many float values lie in each of BINS equal parts of that range.
    """

    signal: Any = 0.0
    noise: Any = 0.0
    quantized: float = 0.0
    dot: float = 0.0
    max_error: float = 0.0
    range: tuple[float, float] = (0.0, 0.0)
    histogram: Any = dataclasses.field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, real: np.ndarray, error: np.ndarray) -> None:
        """Adds the float values of a batch, shape [..., channels], and int8's errors."""
        axes = tuple(range(real.ndim - 1))
        real, error = real.astype(np.float64), error.astype(np.float64)
        self.signal = self.signal + (real**2).sum(axes)
        self.noise = self.noise + (error**2).sum(axes)
        self.quantized += float(((real + error) ** 2).sum())
        self.dot += float((real * (real + error)).sum())
        self.max_error = max(self.max_error, float(np.abs(error).max(initial=0.0)))
        if self.range[0] < self.range[1]:
            self.histogram = self.histogram + np.histogram(real.clip(*self.range), BINS, self.range)[0]


def compare(content: bytes, samples: list[dict[str, np.ndarray]]) -> dict[str, Sums]:
    """Compares int8 operators with their float twins, on the same inputs, in a child process.

    Args:
      content: of a `.tflite` file in which a NumericVerify compares each pair.
      samples: by input name, in batches that the model takes.

    Returns:
      What came of each pair, by the name of the float tensor.

    Raises:
      RunError: LiteRT crashed on the model, or cannot run it.
    """
    [told] = model_processes.call(run_twins, content, samples)
    return {
        name: Sums(
            **{**sums, **{key: np.asarray(sums[key]) for key in _ARRAYS}, "range": (sums["range"][0], sums["range"][1])}
        )
        for name, sums in json.loads(told).items()
    }


def run_twins(content: bytes, samples: list[dict[str, np.ndarray]]) -> list[bytes]:
    """Returns as JSON what `compare` returns: in a child process, which LiteRT may crash."""
    interpreter = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    inputs = next(iter(interpreter._get_full_signature_list().values()))["inputs"]
    for name, index in inputs.items():
        interpreter.resize_tensor_input(index, samples[0][name].shape)
    interpreter.allocate_tensors()
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    twins = [op for op in interpreter._get_ops_details() if op["op_name"] == "NumericVerify"]
    sums: dict[str, Sums] = {}
    for sample in samples:
        interpreter.reset_all_variables()
        for name, index in inputs.items():
            interpreter.set_tensor(index, sample[name])
        interpreter.invoke()
        for op in twins:
            real = interpreter.get_tensor(op["inputs"][1])
            if real.ndim:
                quantized = details[op["inputs"][0]]["quantization"]
                twin = sums.setdefault(details[op["inputs"][1]]["name"], Sums(range=_range(*quantized)))
                twin.add(real, interpreter.get_tensor(op["outputs"][0]).reshape(real.shape))
    told = {
        name: {**vars(twin), **{key: np.asarray(getattr(twin, key)).tolist() for key in _ARRAYS}}
        for name, twin in sums.items()
    }
    return [json.dumps(told).encode()]


def _range(scale: float, zero_point: int) -> tuple[float, float]:
    return (-128 - zero_point) * scale, (127 - zero_point) * scale
