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

from edgeline.conversion import converter
from edgeline.conversion.converter import Calibrated
from edgeline.conversion.nodes import Node
from edgeline.data.calibration_set import batches
from edgeline.quantizer import twins
from edgeline.quantizer.scoring import Scorer
from edgeline.quantizer.twins import Sums
from edgeline.tflite import inspection

SENSITIVITY_FILE = "sensitivity.json"

#: Calibration samples on which float and int8 are compared; one by one, since all tensors are kept.
_SAMPLES = 64
#: Validation examples on which single layers are tried.
_EXAMPLES = 768
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


def _damage(sums: Sums, layer: str) -> Damage:
    norms = math.sqrt(float(np.sum(sums.signal)) * sums.quantized)
    channels = [_decibel(s, n) for s, n in zip(np.ravel(sums.signal), np.ravel(sums.noise), strict=True) if s > 0]
    return Damage(
        layer=layer,
        sqnr_db=_decibel(float(np.sum(sums.signal)), float(np.sum(sums.noise))),
        channel_sqnr_db=float(np.mean(channels)) if channels else _MOST_DB,
        cosine=min(sums.dot / norms, 1.0) if norms else 0.0,
        max_error=sums.max_error,
        range=sums.range,
        histogram=tuple(sums.histogram.tolist()),
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

    Raises:
      RunError: LiteRT crashed on the model, or cannot run it.
    """
    content = converter.quantize(calibrated, verify=True)
    [size, *_] = inspection.structure(content)["inputs"][0]["shape"]
    sums = twins.compare(content, list(itertools.islice(batches(samples, max(size, 1)), _SAMPLES)))
    worst: dict[str, Damage] = {}
    for node in calibrated.nodes:
        # the float twin of a model's last op has another name: the model's output is the int8 one's
        node_sums = next((s for n, s in sums.items() if n == node.name), None) or next(
            (s for n, s in sums.items() if re.fullmatch(re.escape(node.name) + r"\d", n)), None
        )
        if node_sums is None or node_sums.max_error == 0:
            continue
        damage = _damage(node_sums, node.layers[0])
        if damage.layer not in worst or damage.channel_sqnr_db < worst[damage.layer].channel_sqnr_db:
            worst[damage.layer] = damage
    return list(worst.values())


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
    [reference] = scorer.scores([calibrated.content], _EXAMPLES)
    scores = scorer.scores_or_errors(contents, _EXAMPLES)
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
