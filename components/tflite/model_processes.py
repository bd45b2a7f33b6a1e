"""Runs `.tflite` files in child processes: a crash of LiteRT is an error of the model that it ran, and of nothing else.

There are as many processes as cores, for all that run models in this one: each imports LiteRT alone, and takes the next
model when it is done with one. Inputs lie in memory that they share with this process, so that they are copied once for
all models.
"""

from __future__ import annotations

import atexit
import itertools
import json
import mmap
import os
import pickle
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeline.errors import in_one_line
from edgeline.isolation import child_process
from edgeline.isolation.child_process import ChildProcess, DiedError, RaisedError, signal_name
from edgeline.tflite import device_cost
from edgeline.tflite.litert import TFLiteModel

#: A call runs a model on some thousand examples; of one that hangs nobody waits for the end.
_SECONDS = 6 * 3600.0
#: Processes for models that are not kept.
_PASSING = 2
#: What a CPU's vector instructions like best.
_ALIGNMENT = 64


class RunError(RuntimeError):
    """A model cannot be run, or LiteRT crashed on it; says in one line why."""


class SharedBatches:
    """Batches of inputs in memory that the processes can read.

    Attributes:
      sizes: examples of each batch.
    """

    def __init__(self, batches: Sequence[Mapping[str, np.ndarray]] = ()):
        self.sizes: list[int] = []
        self._file = os.memfd_create("edgeline-inputs")
        self._end = 0
        self._places: list[dict[str, tuple[int, str, tuple[int, ...]]]] = []
        for batch in batches:
            self.add(batch)

    def add(self, batch: Mapping[str, np.ndarray]) -> None:
        """Copies a batch: by input name, shape [batch, ...]."""
        places = {}
        for name, values in batch.items():
            texts = values.dtype.hasobject
            content = pickle.dumps(values) if texts else _buffer(np.ascontiguousarray(values))
            places[name] = (self._end, "" if texts else values.dtype.str, values.shape)
            written = 0
            while written < len(content):
                written += os.pwrite(self._file, content[written:], self._end + written)
            self._end += -(-len(content) // _ALIGNMENT) * _ALIGNMENT
        self._places.append(places)
        self.sizes.append(len(next(iter(batch.values()))))

    def described(self, count: int) -> tuple[int, list[dict[str, tuple[int, str, tuple[int, ...]]]]]:
        """Returns the descriptor of the memory, and where in it the first batches lie."""
        return self._file, self._places[:count]

    def close(self) -> None:
        """Frees the memory."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> SharedBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class ModelProcesses:
    """Models, each of which runs in one of the processes.

    Args:
      models: by name, path of the `.tflite` file; each is loaded when it is first run, and kept.
    """

    _numbers = itertools.count()

    def __init__(self, models: Mapping[str, str] | None = None):
        self._number = next(self._numbers)
        self._models = dict(models or {})
        self._owners = {name: index for index, name in enumerate(self._models)}
        for slot in _slots_for(len(self._models)):
            slot.prepare()

    def run(
        self, model: str | bytes, batches: SharedBatches, batch: int, outputs: Sequence[str], count: int | None = None
    ) -> list[np.ndarray]:
        """Runs a model; any number of threads may call this.

        Args:
          model: the name of one of those that were given; or the content of a `.tflite` file, which is not kept.
          batches: the inputs.
          batch: size that it runs with; see `TFLiteModel.run`.
          outputs: names of those that are returned.
          count: batches that are run; None: all.

        Returns:
          The outputs in the order of their names, real values, shape [examples, ...]; read-only.

        Raises:
          RunError: LiteRT crashed on it, or cannot run it with these inputs.
        """
        descriptor, places = batches.described(len(batches.sizes) if count is None else count)
        key = (self._number, model) if isinstance(model, str) else None
        source = self._models[model] if isinstance(model, str) else model
        slot = _slot(self._owners[model] if isinstance(model, str) else None)
        header, *parts = slot.call(run_batches, key, source, places, batch, list(outputs), descriptors=[descriptor])
        described = json.loads(header)
        return [
            np.frombuffer(part, dtype).reshape(shape) for part, (dtype, shape) in zip(parts, described, strict=True)
        ]

    def close(self) -> None:
        """Has the processes let go of the models."""
        for slot in _slots_for(len(self._models)):
            slot.forget(self._number)


class _Slot:
    """One of the processes, with a new one after each death."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: ChildProcess | None = None

    def prepare(self) -> None:
        """Starts the process, should it not be there, and does not wait for it."""
        with self._lock:
            self._started()

    def _started(self) -> ChildProcess:
        if self._child is None or not self._child.usable:
            if self._child is not None:
                self._child.stop()
            self._child = ChildProcess([__name__])
        return self._child

    def call(self, function: Any, *arguments: Any, descriptors: Sequence[int] = ()) -> list[bytes]:
        """Calls a function in the process.

        Raises:
          RunError: it raised, or the process died.
        """
        with self._lock:
            try:
                return self._started().call(function, *arguments, timeout=_SECONDS, descriptors=descriptors)
            except DiedError as error:
                raise RunError(_obituary(error)) from None
            except RaisedError as error:
                raise RunError(f"{error.kind}: {in_one_line(error.message)}") from None

    def forget(self, number: int) -> None:
        with self._lock:
            if self._child is not None and self._child.usable and self._child.calls:
                self._child.call(forget, number, timeout=_SECONDS)

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None


def call(function: Any, *arguments: Any) -> list[bytes]:
    """Calls another function of ours that runs a model, in one of the processes.

    Raises:
      RunError: it raised, or the process died.
    """
    return _slot(None).call(function, *arguments)


def _obituary(error: DiedError) -> str:
    if error.status is None:
        return f"LiteRT did not finish in {_SECONDS:g} s"
    return f"LiteRT crashed on the model with {signal_name(error.status)}"


_slots: list[_Slot] = []
_turns = itertools.count()


def _all() -> list[_Slot]:
    if not _slots:
        _slots.extend(_Slot() for _ in range(device_cost.usable_cores()))
    return _slots


def _slots_for(models: int) -> list[_Slot]:
    return _all()[:models]


def _slot(index: int | None) -> _Slot:
    """Returns the process of a model that is kept; for others a few take turns."""
    slots = _all()
    return slots[index % len(slots) if index is not None else next(_turns) % min(len(slots), _PASSING)]


@atexit.register
def stop() -> None:
    """Ends the processes; who runs a model next has new ones."""
    for slot in _slots:
        slot.stop()


# the child ------------------------------------------------------------------------------------------------------------

_loaded: dict[tuple[int, str], TFLiteModel] = {}


def run_batches(
    key: tuple[int, str] | None, source: str | bytes, places: list[dict[str, Any]], batch: int, outputs: list[str]
) -> list[Any]:
    """Runs a model on batches in shared memory: in one of the processes.

    Args:
      key: by which the model is kept; None: it is not.
      source: path or content of the `.tflite` file.
      places: of each batch, where each input lies, its number type (empty: a pickle) and shape.
      batch: size to run with.
      outputs: names of those that are returned.

    Returns:
      Number types and shapes of the outputs as JSON, and the outputs.
    """
    model = _loaded.get(key) if key is not None else None
    if model is None:
        model = TFLiteModel(source)
        if key is not None:
            _loaded[key] = model
    [descriptor] = child_process.handed()
    memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    ran = [
        model.run({name: _array(memory, *place) for name, place in batch_places.items()}, batch)
        for batch_places in places
    ]
    joined = [np.ascontiguousarray(np.concatenate([part[name] for part in ran])) for name in outputs]
    header = json.dumps([(values.dtype.str, values.shape) for values in joined])
    return [header.encode(), *map(_buffer, joined)]


def _buffer(values: np.ndarray) -> Any:
    return values.data.cast("B") if values.size else b""


def _array(memory: mmap.mmap, offset: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    if not dtype:
        strings: np.ndarray = pickle.loads(memoryview(memory)[offset:])
        return strings
    if 0 in shape:
        return np.empty(shape, dtype)
    return np.frombuffer(memory, dtype, int(np.prod(shape)), offset).reshape(shape)


def forget(number: int) -> list[Any]:
    """Lets go of the models of one `ModelProcesses`: in one of the processes."""
    for key in [key for key in _loaded if key[0] == number]:
        del _loaded[key]
    return []
