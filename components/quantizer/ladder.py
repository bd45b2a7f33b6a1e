"""A scheme such as `auto`: the first of a ladder of schemes that holds on the validation split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tf_keras

from edgeline.conversion import converter
from edgeline.conversion.converter import Calibrated
from edgeline.conversion.failures import ConversionError
from edgeline.model_io.graph_model import GraphModel
from edgeline.quantizer import sensitivity
from edgeline.quantizer.scoring import Scorer
from edgeline.quantizer.sensitivity import Damage
from edgeline.schemes import SCHEMES, trained
from edgeline.tflite import inspection


class LadderError(Exception):
    """No scheme holds; the message shows the ladder that was walked."""


@dataclasses.dataclass(frozen=True)
class Rung:
    """A scheme that was tried.

    Attributes:
      scheme: a name in SCHEMES.
      keep_float: names of the layers that stay float.
      drop: how much worse it is than the float model on the validation split; None: it could not be made or run.
      bytes: of the `.tflite` file.
      zlib_bytes: the same at zlib level 9.
      held: whether the drop is allowed.
      error: why it could not be made or run.
    """

    scheme: str
    keep_float: tuple[str, ...] = ()
    drop: float | None = None
    bytes: int | None = None
    zlib_bytes: int | None = None
    held: bool = False
    error: str | None = None

    @property
    def name(self) -> str:
        """The scheme and what of it stays float."""
        return f"{self.scheme} with {', '.join(self.keep_float)} float" if self.keep_float else self.scheme

    def facts(self) -> dict[str, Any]:
        """Returns what the passport says of it."""
        entry = {"rung": self.name, **dataclasses.asdict(self), "keep_float": list(self.keep_float)}
        if self.drop is not None and not np.isfinite(self.drop):
            entry["drop"] = None
        return entry

    def describe(self) -> str:
        """Returns it in words."""
        return f"{self.name}: {self.error or f'drop {self.drop:+.4g}'}"


@dataclasses.dataclass(frozen=True)
class Walk:
    """A ladder that was walked up to a rung that holds.

    Attributes:
      rungs: tried, in this order; the last one holds.
      sensitivity: of the layers, worst first, where int8 did not hold.
    """

    rungs: tuple[Rung, ...]
    sensitivity: tuple[Damage, ...]


def walk(
    schemes: Sequence[str],
    model: tf_keras.Model | GraphModel,
    io: dict[str, Any],
    calibration: dict[str, np.ndarray],
    calibrated: Calibrated,
    scorer: Scorer,
    *,
    max_drop: float,
    suspects: int,
) -> Walk:
    """Tries schemes one after another; of one that can leave operators float, next ever more of its worst layers float.

    Args:
      schemes: names in SCHEMES, in the order in which they are tried.
      model: float.
      io: the passport's.
      calibration: samples by input name, shape [samples, ...]; the same for every rung.
      calibrated: the model, calibrated on them.
      scorer: on the validation split.
      max_drop: how much worse than the float model a rung may be, at least 0.
      suspects: how many layers may be left float, at most.

    Raises:
      LadderError: none holds.
    """
    [reference] = scorer.scores([calibrated.content])
    rungs: list[Rung] = []
    damages: list[Damage] = []

    def whole(scheme: str) -> bytes:
        return converter.convert(model, io, {"scheme": scheme, "io_type": "float32"}, calibration)

    def steps() -> Iterator[tuple[Rung, Callable[[], bytes]]]:
        for scheme in schemes:
            if "keep_float_ops" not in SCHEMES[scheme].settings:
                yield Rung(scheme), lambda scheme=scheme: whole(scheme)  # type: ignore[misc]
                continue
            yield Rung(scheme), lambda: converter.quantize(calibrated)
            damages.extend(sensitivity.analyse(calibrated, calibration, scorer, suspects))
            worst = [damage.layer for damage in damages if damage.drop is not None]
            for count in range(1, min(len(worst), len(calibrated.layers) - 1) + 1):
                kept = tuple(worst[:count])
                yield Rung(scheme, kept), lambda kept=kept: converter.quantize(calibrated, calibrated.of(kept))  # type: ignore[misc]

    for rung, make in steps():
        try:
            content = make()
            [score] = scorer.scores([content])
        except (RuntimeError, ValueError, ConversionError) as error:
            lines = str(error).strip().splitlines()
            rungs.append(dataclasses.replace(rung, error=f"{type(error).__name__}: {lines[0] if lines else ''}"))
            continue
        drop = scorer.drop(reference, score)
        rungs.append(
            dataclasses.replace(
                rung,
                drop=drop,
                bytes=len(content),
                zlib_bytes=inspection.compressed_size(content),
                held=drop <= max_drop,
            )
        )
        if rungs[-1].held:
            return Walk(tuple(rungs), tuple(damages))
    raise LadderError(
        f"no scheme holds: {scorer.metric(reference)} of the validation split may be {max_drop:g} worse than the float "
        f"model's {reference[scorer.metric(reference)]:.4g}. Tried: {'; '.join(rung.describe() for rung in rungs)}. "
        f"Allow a larger auto_max_drop, or fine-tune with scheme {' or '.join(trained())}"
    )
