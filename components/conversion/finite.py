"""Where a model computes NaN or infinite values: no integer stands for them, and quantizers crash on them."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema_fb

from edgeline.conversion.failures import ConversionError
from edgeline.conversion.nodes import nodes

#: Calibration samples on which the place is looked for; one by one, since all tensors are kept.
_SAMPLES = 64
#: The calibrator makes this of an infinite value, sometimes.
_LARGEST = float(np.finfo(np.float32).max)

Batches = Callable[[], Iterable[dict[str, np.ndarray]]]


def check_calibrated(content: bytes, batches: Batches, layers: Collection[str] | None, scheme: str) -> None:
    """Checks the ranges that a calibration found.

    Args:
      content: of a float model with the range of each tensor that the calibrator saw numbers in.
      batches: gives the samples that it saw, by input name.
      layers: names of the model's layers; None: not known.
      scheme: what is made, for the message.

    Raises:
      ConversionError: a tensor has values that are NaN or infinite; names the first and its layer.
    """
    if suspicious := _without_range(content):
        refuse(content, batches, layers, scheme, suspicious)


def _without_range(content: bytes) -> dict[str, str]:
    """Returns the float tensors that may have values that are not finite, with their range where it is not, by name."""
    model = schema_fb.ModelT.InitFromPackedBuf(content, 0)
    suspicious = {}
    for graph in model.subgraphs:
        computed = [graph.tensors[index] for operator in graph.operators for index in operator.outputs if index >= 0]
        for tensor in (*(graph.tensors[index] for index in graph.inputs), *computed):
            if tensor.type != schema_fb.TensorType.FLOAT32:
                continue
            found = tensor.quantization
            if found is None or found.min is None or not len(found.min):
                suspicious[tensor.name.decode()] = ""
            elif not np.isfinite([*found.min, *found.max]).all():
                suspicious[tensor.name.decode()] = f"a range of {found.min[0]:g} to {found.max[0]:g}"
            elif np.max(np.abs([*found.min, *found.max])) >= _LARGEST:
                suspicious[tensor.name.decode()] = ""  # the calibrator's infinity, or what a mask adds
    return suspicious


def check_ranges(content: bytes, batches: Batches, scheme: str, ranges: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks the ranges that ai-edge-quantizer found: `min` and `max` by tensor; the rest is as `check_calibrated`."""
    ends = {name: [found[end] for end in ("min", "max") if end in found] for name, found in ranges.items()}
    broken = [name for name, values in ends.items() if not all(np.isfinite(value).all() for value in values)]
    if broken:
        refuse(content, batches, None, scheme, dict.fromkeys(broken, "NaN or infinite values"))


def refuse(
    content: bytes, batches: Batches, layers: Collection[str] | None, scheme: str, suspicious: dict[str, str]
) -> None:
    """Raises ConversionError with the first operator whose results are not finite, if there is one.

    Args:
      content: of the float model.
      batches: gives the samples by input name.
      layers: names of the model's layers; None: not known.
      scheme: what is made, for the message.
      suspicious: tensors by name, with what a calibration found there that is not finite; empty where it is.
    """
    in_order = nodes(content, layers)
    place = _first(content, itertools.islice(batches(), _SAMPLES))
    if place is None:
        # not among the first samples: the range tells only which tensor
        place = next(((node.name, suspicious[node.name]) for node in in_order if suspicious.get(node.name)), None)
        place = place or next(((name, what) for name, what in suspicious.items() if what), None)
    if place is None:
        return
    name, what = place
    node = next((node for node in in_order if node.name == name), None)
    where = f"layer {node.layers[0]} ({node.op}, tensor {name})" if node else f"tensor {name}"
    raise ConversionError(
        f"{scheme} needs the range of every tensor, but {where} has {what} on the calibration samples, which no "
        f"integer stands for. Bound its inputs, for example tf.math.log(tf.maximum(x, 1e-6)) or a mask of -1e4 in "
        f"place of -inf, or choose dynamic_range or float16"
    )


def _first(content: bytes, batches: Iterable[dict[str, np.ndarray]]) -> tuple[str, str] | None:
    """Returns the first tensor, in the order of the run, that is not finite on one of the batches, and what it has."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated", UserWarning)
        # the calibrator's own kernels: its model may have operators that LiteRT's interpreter does not take
        runner = tf.lite.Interpreter(
            model_content=content,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
    inputs = next(iter(runner._get_full_signature_list().values()))["inputs"]
    computed = [index for operator in runner._get_ops_details() for index in operator["outputs"]]
    details: dict[int, dict[str, Any]] = {}
    for batch in batches:
        if not details:
            for name, index in inputs.items():
                runner.resize_tensor_input(index, batch[name].shape)
            runner.allocate_tensors()
            details = {detail["index"]: detail for detail in runner.get_tensor_details()}
        runner.reset_all_variables()
        for name, index in inputs.items():
            runner.set_tensor(index, batch[name])
        runner.invoke()
        for index in (*inputs.values(), *computed):
            if index in details and details[index]["dtype"] == np.float32:
                values = runner.get_tensor(index)
                kinds = {"NaN": np.isnan(values).any(), "infinite values": np.isinf(values).any()}
                if any(kinds.values()):
                    return details[index]["name"], " and ".join(kind for kind, is_there in kinds.items() if is_there)
    return None


def check_weights(weights: Iterable[Any], scheme: str, *, infinite: bool) -> None:
    """Checks a model's weights.

    Args:
      weights: variables of TensorFlow's.
      scheme: what is made, for the message.
      infinite: whether values may be infinite.

    Raises:
      ConversionError: one has values that are not finite; names up to eight.
    """
    broken = {}
    for weight in weights:
        if weight.dtype.is_floating:
            values = weight.numpy()
            count = int((np.isnan(values) if infinite else ~np.isfinite(values)).sum())
            if count:
                broken[weight.name.partition(":")[0]] = f"{count} of {values.size}"
    if broken:
        words = [f"{name} ({count})" for name, count in list(broken.items())[:8]]
        more = f" and {len(broken) - 8} more" if len(broken) > 8 else ""
        raise ConversionError(
            f"{scheme} cannot be made of weights that are NaN{'' if infinite else ' or infinite'}: "
            f"{', '.join(words)}{more}. The training has diverged, or the file is damaged: train anew, with a smaller "
            f"learning rate for instance"
        )
