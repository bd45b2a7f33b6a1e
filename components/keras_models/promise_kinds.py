"""What a step can promise of a weight, as data: how it is checked in Keras and in a file, and kept while training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from edgeline.passport import Promise


class UnknownPromiseError(ValueError):
    """A promise is of a kind that nothing here can check."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A weight as its promises are checked on it.

    Attributes:
      values: in Keras the weight; in a file what is stored, which may be quantized.
      zeros: where they stand for zero, of the same shape.
      channel_axis: the axis of the output channels where each of them has its own shared values; None: the whole weight
        shares them.
    """

    values: np.ndarray
    zeros: np.ndarray
    channel_axis: int | None = None

    @property
    def most_values(self) -> int:
        """How many distinct values it has; per output channel those of the one that has most."""
        parts = [self.values] if self.channel_axis is None else np.moveaxis(self.values, self.channel_axis, 0)
        return max(len(np.unique(part)) for part in parts)


def zeros_and_values(promise: Promise, kernel: Kernel) -> str:
    """Returns what a weight has in words, e.g. `0.8000 zeros and 16 values`."""
    return f"{kernel.zeros.mean():.4f} zeros and {kernel.most_values} values"


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of promise.

    Attributes:
      of_zeros: whether it says that weights are zero, so that later steps must leave them so.
      technique: what the file's list of bytes calls a weight of which it was promised.
      in_keras: whether a weight of a Keras model keeps a promise.
      in_file: whether a weight of a flatbuffer does, in which output channels come first but for embeddings, and axes
        of size 1 may be missing.
      keep: what a training does to a weight after each step of the optimizer, so that the promise stays kept: given the
        promise, the variable, and whether each output channel has its own shared values, returns a function of the
        weight's tensor.
      describe: what of a weight a broken promise is compared with, in words.
    """

    of_zeros: bool
    technique: str
    in_keras: Callable[[Promise, Kernel], bool]
    in_file: Callable[[Promise, Kernel], bool]
    keep: Callable[[Promise, Any, bool], Callable[[Any], Any]]
    describe: Callable[[Promise, Kernel], str] = zeros_and_values


def kind_of(promise: Promise) -> Kind:
    """Returns what is known of a promise's kind.

    Raises:
      UnknownPromiseError: nothing is; names the layer and the kinds that are known.
    """
    if promise.kind not in KINDS:
        raise UnknownPromiseError(
            f"layer {promise.layer} was promised {promise.kind} {promise.value:g}, which cannot be checked: the known "
            f"kinds are {', '.join(KINDS)}. Use the version of Edgeline that made the model, or enter the kind in "
            f"{__name__}"
        )
    return KINDS[promise.kind]


# checks ---------------------------------------------------------------------------------------------------------------


def _sparsity(promise: Promise, kernel: Kernel) -> bool:
    return _reaches(promise, kernel.zeros)


def _blocks(promise: Promise, kernel: Kernel) -> bool:
    height, width = map(int, promise.pattern.split("x"))
    rows, columns = kernel.zeros.shape
    # what is missing at the edges counts as zero: tfmot fills up with zeros too
    filled = np.pad(kernel.zeros, [(0, -rows % height), (0, -columns % width)], constant_values=True)
    blocks = filled.reshape(filled.shape[0] // height, height, -1, width)
    return _reaches(promise, np.asarray(blocks.all((1, 3))))


def _m_by_n(promise: Promise, kernel: Kernel) -> bool:
    least, group = map(int, promise.pattern.split("x"))
    inputs = np.moveaxis(kernel.zeros, -2, -1)
    edges = [(0, 0)] * (inputs.ndim - 1) + [(0, -inputs.shape[-1] % group)]
    groups = np.pad(inputs, edges, constant_values=True).reshape(-1, group)
    return bool((groups.sum(-1) >= least).all())


def _clusters(promise: Promise, kernel: Kernel) -> bool:
    return kernel.most_values <= promise.value


def _reaches(promise: Promise, zero_parts: np.ndarray) -> bool:
    # one weight or block less than promised is rounding, not a breach
    return bool(zero_parts.mean() >= promise.value - 1 / zero_parts.size - 1e-9)


def _turned(check: Callable[[Promise, Kernel], bool]) -> Callable[[Promise, Kernel], bool]:
    """Returns a check of a file's weight for a kind that runs along axes: it is tried as Keras may have had it."""

    def check_file(promise: Promise, kernel: Kernel) -> bool:
        return any(check(promise, each) for each in _as_in_keras(promise, kernel))

    return check_file


def _as_in_keras(promise: Promise, kernel: Kernel) -> Iterator[Kernel]:
    shape = tuple(n for n in promise.shape if n != 1)
    for turn in (lambda array: np.moveaxis(array, 0, -1), lambda array: array):
        values, zeros = turn(kernel.values), turn(kernel.zeros)
        if tuple(n for n in zeros.shape if n != 1) == shape:
            yield Kernel(values.reshape(promise.shape), zeros.reshape(promise.shape))


# rules of a training --------------------------------------------------------------------------------------------------


def _keep_zeros(promise: Promise, weight: Any, by_channel: bool) -> Callable[[Any], Any]:
    mask = tf.cast(tf.not_equal(weight, 0), weight.dtype)
    return lambda value: value * mask


def _keep_shared(promise: Promise, weight: Any, by_channel: bool) -> Callable[[Any], Any]:
    values = weight.numpy()
    columns = values.reshape(-1, values.shape[-1]) if by_channel else values.reshape(-1, 1)
    groups, start = np.empty(columns.shape, np.int32), 0
    for channel in range(columns.shape[1]):
        distinct, groups[:, channel] = np.unique(columns[:, channel], return_inverse=True)
        start, groups[:, channel] = start + len(distinct), groups[:, channel] + start
    ids = tf.constant(groups.reshape(-1))

    def share(value: Any) -> Any:
        means = tf.math.unsorted_segment_mean(tf.reshape(value, [-1]), ids, start)
        return tf.reshape(tf.gather(means, ids), tf.shape(value))

    return share


#: By `Promise.kind`, where each is explained; a pass that promises something else enters its kind here.
KINDS: dict[str, Kind] = {
    "sparsity": Kind(True, "pruned", _sparsity, _sparsity, _keep_zeros),
    "blocks": Kind(True, "pruned", _blocks, _turned(_blocks), _keep_zeros),
    "m_by_n": Kind(True, "pruned", _m_by_n, _turned(_m_by_n), _keep_zeros),
    "clusters": Kind(False, "clustered", _clusters, _clusters, _keep_shared),
}
