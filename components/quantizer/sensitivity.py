"""Which layers quantization hurts: each one alone, float against int8."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgeline.conversion import converter
from edgeline.conversion.converter import Calibrated
from edgeline.conversion.nodes import Node
from edgeline.data.calibration_set import batches
from edgeline.quantizer.scoring import Scorer

SENSITIVITY_FILE = "sensitivity.json"

#: Calibration samples on which float and int8 are compared; one by one, since all tensors are kept.
_SAMPLES = 64
#: Validation examples on which single layers are tried.
_EXAMPLES = 768
#: Bars of a histogram.
_BINS = 24
#: Stands for an error of 0.
_MOST_DB = 100.0


@dataclasses.dataclass(frozen=True)
class Damage:
    """What int8 does to a layer.

    The first four compare int8 with float on the same inputs, at the layer's worst op, on calibration samples. SQNR
    and cosine go by energy and do not see that small channels drown beside a huge one; channel_sqnr_db does.

    Attributes:
      layer: its name.
      sqnr_db: signal to quantization noise of all values, in dB.
      channel_sqnr_db: mean over the channels of the last axis of each one's own, in dB.
      cosine: of float and int8 values, -1 to 1.
      max_error: largest absolute difference.
      range: (low, high) of what int8 can hold there, by the calibration.
      histogram: how many float values lie in each of 24 equal parts of that range.
      drop: how much worse the model is when this layer alone is int8, by the metric that `auto` judges by; None: not
        tried.
      drop_when_float: how much worse when all but this layer is int8.
    """

    layer: str
    sqnr_db: float
    channel_sqnr_db: float
    cosine: float
    max_error: float
    range: tuple[float, float] = (0.0, 0.0)
    histogram: tuple[int, ...] = ()
    drop: float | None = None
    drop_when_float: float | None = None


@dataclasses.dataclass
class _Sums:
    """Of one tensor over all samples; signal and noise per channel."""

    signal: Any = 0.0
    noise: Any = 0.0
    quantized: float = 0.0
    dot: float = 0.0
    max_error: float = 0.0
    range: tuple[float, float] = (0.0, 0.0)
    histogram: Any = dataclasses.field(default_factory=lambda: np.zeros(_BINS, np.int64))

    def add(self, real: np.ndarray, error: np.ndarray) -> None:
        axes = tuple(range(real.ndim - 1))
        real, error = real.astype(np.float64), error.astype(np.float64)
        self.signal = self.signal + (real**2).sum(axes)
        self.noise = self.noise + (error**2).sum(axes)
        self.quantized += float(((real + error) ** 2).sum())
        self.dot += float((real * (real + error)).sum())
        self.max_error = max(self.max_error, float(np.abs(error).max(initial=0.0)))
        if self.range[0] < self.range[1]:
            self.histogram = self.histogram + np.histogram(real.clip(*self.range), _BINS, self.range)[0]

    def damage(self, layer: str) -> Damage:
        norms = math.sqrt(float(np.sum(self.signal)) * self.quantized)
        channels = [_decibel(s, n) for s, n in zip(np.ravel(self.signal), np.ravel(self.noise), strict=True) if s > 0]
        return Damage(
            layer=layer,
            sqnr_db=_decibel(float(np.sum(self.signal)), float(np.sum(self.noise))),
            channel_sqnr_db=float(np.mean(channels)) if channels else _MOST_DB,
            cosine=min(self.dot / norms, 1.0) if norms else 0.0,
            max_error=self.max_error,
            range=self.range,
            histogram=tuple(self.histogram.tolist()),
        )


def _decibel(signal: float, noise: float) -> float:
    if not noise:
        return _MOST_DB
    return min(10 * math.log10(signal / noise), _MOST_DB) if signal else -_MOST_DB


def compare(calibrated: Calibrated, samples: dict[str, np.ndarray]) -> list[Damage]:
    """Compares each layer's int8 ops with their float twins, on the same inputs.

    Layers that only pass values on (a pooling, a reshape) have no error of their own and are left out.

    Args:
      calibrated: the float model.
      samples: by input name, shape [samples, ...].

    Returns:
      One per layer, in the order in which they run.
    """
    content = converter.quantize(calibrated, verify=True)
    interpreter = Interpreter(
        model_content=content,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    inputs = next(iter(interpreter._get_full_signature_list().values()))["inputs"]
    batch = int(interpreter.get_input_details()[0]["shape"][0])
    for name, index in inputs.items():
        interpreter.resize_tensor_input(index, [batch, *samples[name].shape[1:]])
    interpreter.allocate_tensors()
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    twins = [op for op in interpreter._get_ops_details() if op["op_name"] == "NumericVerify"]
    sums: dict[str, _Sums] = {}
    for sample in itertools.islice(batches(samples, batch), _SAMPLES):
        interpreter.reset_all_variables()
        for name, index in inputs.items():
            interpreter.set_tensor(index, sample[name])
        interpreter.invoke()
        for op in twins:
            real = interpreter.get_tensor(op["inputs"][1])
            if real.ndim:
                quantized = details[op["inputs"][0]]["quantization"]
                twin = sums.setdefault(details[op["inputs"][1]]["name"], _Sums(range=_range(*quantized)))
                twin.add(real, interpreter.get_tensor(op["outputs"][0]).reshape(real.shape))
    worst: dict[str, Damage] = {}
    for node in calibrated.nodes:
        # the float twin of a model's last op has another name: the model's output is the int8 one's
        node_sums = next((s for n, s in sums.items() if n == node.name), None) or next(
            (s for n, s in sums.items() if re.fullmatch(re.escape(node.name) + r"\d", n)), None
        )
        if node_sums is None or node_sums.max_error == 0:
            continue
        damage = node_sums.damage(node.layers[0])
        if damage.layer not in worst or damage.channel_sqnr_db < worst[damage.layer].channel_sqnr_db:
            worst[damage.layer] = damage
    return list(worst.values())


def _range(scale: float, zero_point: int) -> tuple[float, float]:
    return (-128 - zero_point) * scale, (127 - zero_point) * scale


def suspects(calibrated: Calibrated, damages: Sequence[Damage], count: int) -> list[str]:
    """Returns the layers to look at, worst first, at most so many.

    A tensor that int8 cannot hold is lost by the layer that makes it and by those that read it: each layer is judged by
    its own channel_sqnr_db and those of the layers it reads.
    """
    own = {damage.layer: damage.channel_sqnr_db for damage in damages}
    by_name = {node.name: node for node in calibrated.nodes}

    def read(node: Node) -> list[str]:
        """The layers that make what a node reads, those that only pass values on left out."""
        layers = []
        for source in (by_name[name] for name in node.inputs):
            layers += [source.layers[0]] if source.layers[0] in own else read(source)
        return layers

    score = dict(own)
    for node in calibrated.nodes:
        layer = node.layers[0]
        if layer in own:
            score[layer] = min([score[layer], *(own[source] for source in read(node))])
    return sorted(own, key=lambda layer: (score[layer], own[layer]))[:count]


def analyse(calibrated: Calibrated, samples: dict[str, np.ndarray], scorer: Scorer, count: int) -> list[Damage]:
    """Compares all layers, and tries the most suspicious ones alone: only that one int8, and only that one float.

    Args:
      calibrated: the float model.
      samples: of the calibration.
      scorer: on the validation split, of which 768 examples are used.
      count: how many are tried.

    Returns:
      Worst first: by the drop of those that were tried, the others by channel_sqnr_db.
    """
    damages = compare(calibrated, samples)
    tried = suspects(calibrated, damages, count)
    everything = [node.name for node in calibrated.nodes]
    kept = []
    for layer in tried:
        own = calibrated.of([layer])
        kept += [[name for name in everything if name not in own], own]
    contents = converter.quantize_each(calibrated, kept)
    reference, *scores = scorer.scores([calibrated.content, *contents], _EXAMPLES)
    drops = [scorer.drop(reference, score) for score in scores]
    drops_by_layer = {layer: (drops[2 * i], drops[2 * i + 1]) for i, layer in enumerate(tried)}
    result = [
        dataclasses.replace(d, drop=drops_by_layer[d.layer][0], drop_when_float=drops_by_layer[d.layer][1])
        if d.layer in drops_by_layer
        else d
        for d in damages
    ]
    return sorted(result, key=lambda d: (d.drop is None, -(d.drop or 0.0), d.channel_sqnr_db))


def facts(damages: Sequence[Damage]) -> list[dict[str, Any]]:
    """Returns what the passport and `sensitivity.json` say; an infinite drop becomes None, which JSON knows."""
    return [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in dataclasses.asdict(damage).items()}
        for damage in damages
    ]


def write(damages: Sequence[Damage], run_uri: str) -> None:
    """Writes `sensitivity.json` into a ModelRun."""
    Path(run_uri).mkdir(parents=True, exist_ok=True)
    Path(run_uri, SENSITIVITY_FILE).write_text(json.dumps(facts(damages), indent=1) + "\n")
