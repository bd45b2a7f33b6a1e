"""Batch inference with `.tflite` files in Apache Beam pipelines: a model handler for its RunInference."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from apache_beam.io.filesystems import FileSystems
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from edgeline.errors import UserError, did_you_mean
from edgeline.tflite.litert import Port, TFLiteModel

#: One example: an array (no batch axis) by input name, or the array itself where the model has one input.
Example = dict[str, np.ndarray] | np.ndarray


class LoadedModel:
    """A `.tflite` file in memory, with as many interpreters as batches run at the same time.

    Beam shares a loaded model between the threads of a worker, and an interpreter can run one batch at a time only.
    Where it shares a model between processes, only methods can be reached from outside.

    Args:
      path: of the file, on any of Beam's file systems.
      threads: LiteRT threads of each interpreter.
      xnnpack: whether to use XNNPACK.

    Raises:
      UserError: there is no such file, it is no TFLite model, or the model does not take batches.
    """

    def __init__(self, path: str, threads: int, xnnpack: bool):
        self._path = path
        self._settings: dict[str, Any] = {"threads": threads, "xnnpack": xnnpack}
        try:
            with FileSystems.open(path) as file:
                self._content: bytes = file.read()
        except OSError as error:
            raise UserError(f"the model {path} cannot be read: {error}") from error
        try:
            first = TFLiteModel(self._content, **self._settings)
        except ValueError as error:
            raise UserError(
                f"{path} is no TFLite model that LiteRT can run: {error}. Give the path of a .tflite file, as a "
                f"pushed model's folder holds it"
            ) from error
        self._inputs = first.inputs
        self._check(first)
        self._idle: queue.SimpleQueue[TFLiteModel] = queue.SimpleQueue()
        self._idle.put(first)

    def _check(self, model: TFLiteModel) -> None:
        rows = self._inputs[0].shape[:1]
        for port in self._inputs:
            if not rows or port.shape[:1] != rows or -1 in port.shape[1:]:
                self._refuse_port(
                    "input", port, "all inputs with the batch as first axis, and fixed sizes in all others"
                )
        for port in model.outputs:
            # converters do not always see that an output's first axis follows the inputs': some say 1
            if port.shape[:1] != rows and not (model.any_batch and port.shape[:1] == (1,)):
                self._refuse_port("output", port, "the batch as first axis")

    def _refuse_port(self, what: str, port: Port, expected: str) -> NoReturn:
        raise UserError(f"{what} {port.name!r} of {self._path} has shape {_text(port.shape)}; expected {expected}")

    def run(self, batch: Sequence[Example], largest: int) -> list[dict[str, np.ndarray]]:
        """Returns the outputs of each example by name, shapes without batch axis; any number of threads may call it.

        Args:
          batch: at least one example.
          largest: batch size that is not exceeded.

        Raises:
          UserError: an example's input names, shapes or dtypes are not the model's.
        """
        inputs = self._stack(batch)
        size = min(1 << (len(batch) - 1).bit_length(), largest)
        try:
            model = self._idle.get_nowait()
        except queue.Empty:
            model = TFLiteModel(self._content, **self._settings)
        try:
            outputs = model.run(inputs, size)
        finally:
            self._idle.put(model)
        for name, values in outputs.items():
            if len(values) != len(batch):
                raise UserError(
                    f"output {name!r} of {self._path} has {len(values)} rows for a batch of {len(batch)} examples"
                )
        return [{name: values[row] for name, values in outputs.items()} for row in range(len(batch))]

    def _stack(self, batch: Sequence[Example]) -> dict[str, np.ndarray]:
        """Returns the inputs of a batch by name, shape [batch, ...]."""
        names = [port.name for port in self._inputs]
        examples: list[dict[str, Any]] = []
        for example in batch:
            if not isinstance(example, dict):
                if len(names) > 1:
                    self._refuse(f"an example is one {type(example).__name__}", "give a dict from input name to array")
                examples.append({names[0]: example})
            elif example.keys() == set(names):
                examples.append(example)
            else:
                unknown = next((name for name in example if name not in names), None)
                if unknown is None:
                    missing = ", ".join(repr(name) for name in names if name not in example)
                    self._refuse(f"an example has no input {missing}", "add it")
                remedy = did_you_mean(str(unknown), names, "did you mean {!r}?") or "give those"
                self._refuse(f"an example has an input {unknown!r}", remedy)
        return {port.name: self._column([example[port.name] for example in examples], port) for port in self._inputs}

    def _column(self, values: list[Any], port: Port) -> np.ndarray:
        shape = port.shape[1:]
        # a real value goes into a quantized port whatever its own type; into others, no fraction may be cut off
        dtype = np.dtype(np.float32) if port.scale else port.dtype
        arrays = [np.asarray(value) for value in values]
        for array in arrays:
            if array.shape != shape:
                batched = array.shape[1:] == shape
                hint = "leave out the batch axis: Beam makes the batches" if batched else "reshape it"
                self._refuse(f"input {port.name!r} of an example has shape {_text(array.shape)}", hint)
            if not np.can_cast(array.dtype, dtype, "same_kind"):
                self._refuse(f"input {port.name!r} of an example holds {array.dtype}", f"convert it to {dtype}")
        return np.stack(arrays)

    def _refuse(self, what: str, hint: str) -> NoReturn:
        takes = ", ".join(f"{port.name}: {port.dtype} {_text(port.shape[1:])}" for port in self._inputs)
        raise UserError(f"{what}, but the model {self._path} takes {{{takes}}} per example; {hint}")


def _text(shape: tuple[int, ...]) -> str:
    return str(list(shape)).replace("-1", "any")


class LiteRTModelHandler(ModelHandler[Example, PredictionResult, LoadedModel]):
    """Runs a `.tflite` model in Beam's RunInference.

    Values are real ones on both sides: a quantized model's inputs are quantized with rounding, its outputs dequantized.
    Batches are padded to powers of two, so that a model is prepared for a few sizes only; a model that was converted
    for a fixed batch size runs in that size.

    Examples are dicts from input name to array or number, without batch axis, or just the array for a model with one
    input. Each yields a `PredictionResult` of the example, a dict from output name to array, and the model's path.

    Args:
      model_path: of the `.tflite` file, on any of Beam's file systems; read when a worker starts.
      min_batch_size: fewest examples that Beam aims at in a batch, at least 1.
      max_batch_size: most examples in a batch, at least min_batch_size; what activations need memory for.
      threads: LiteRT threads per batch, at least 1. Beam itself runs a batch per worker thread.
      xnnpack: whether to use XNNPACK; False runs LiteRT's built-in kernels.

    Raises:
      UserError: a value out of range; in a worker: the model cannot be loaded, or an example does not fit it.
    """

    def __init__(
        self,
        model_path: str | Path,
        *,
        min_batch_size: int = 1,
        max_batch_size: int = 256,
        threads: int = 1,
        xnnpack: bool = True,
    ):
        if not 1 <= min_batch_size <= max_batch_size:
            raise UserError(
                f"batch sizes must be 1 <= min_batch_size <= max_batch_size, received {min_batch_size} and "
                f"{max_batch_size}"
            )
        if threads < 1:
            raise UserError(f"threads must be at least 1, received {threads}")
        super().__init__(min_batch_size=min_batch_size, max_batch_size=max_batch_size)
        self._path = str(model_path)
        self._largest = max_batch_size
        self._threads = threads
        self._xnnpack = xnnpack

    def load_model(self) -> LoadedModel:
        """Returns the model at the current path; called by Beam."""
        return LoadedModel(self._path, self._threads, self._xnnpack)

    def update_model_path(self, model_path: str | None = None) -> None:
        """Sets the path of the next model to load; called by Beam when the side input names a new one."""
        self._path = model_path or self._path

    def run_inference(
        self, batch: Sequence[Example], model: LoadedModel, inference_args: dict[str, Any] | None = None
    ) -> Iterator[PredictionResult]:
        """Yields the result of each example; called by Beam.

        Raises:
          UserError: an example's input names, shapes or dtypes are not the model's.
        """
        for example, outputs in zip(batch, model.run(batch, self._largest), strict=True):
            yield PredictionResult(example, outputs, self._path)

    def validate_inference_args(self, inference_args: dict[str, Any] | None) -> None:
        """Refuses arguments for the model: it has none; called by Beam."""
        if inference_args:
            raise UserError(f"a TFLite model takes no inference_args, received {sorted(inference_args)}")

    def get_num_bytes(self, batch: Sequence[Example]) -> int:
        """Returns the size of a batch's arrays; called by Beam."""
        parts = [list(example.values()) if isinstance(example, dict) else [example] for example in batch]
        return sum(np.asarray(value).nbytes for values in parts for value in values)

    def get_metrics_namespace(self) -> str:
        """Returns the namespace of Beam's counters and latencies of this transform; called by Beam."""
        return "BeamML_LiteRT"
