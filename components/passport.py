"""The lineage that travels with a model: `passport.json`, to which each step appends what it did.

ML Metadata is the index over it; nothing depends on MLMD for correctness.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from edgeline import files, layout

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Promise:
    """What a step did to a weight, and what every later step and the flatbuffer must still show.

    Attributes:
      kind: a key of KINDS of `keras_models.promise_kinds`: `sparsity` (at least `value` of the weights are zero, a
        fraction 0-1), `blocks` (at least `value` of the blocks of `pattern` are zero, a fraction 0-1), `m_by_n` (of
        every N weights along the inputs at least M are zero; `value` is M / N) or `clusters` (at most `value` distinct
        values, in a flatbuffer per output channel).
      layer: name of the Keras layer.
      shape: shape of its kernel in Keras.
      value: see kind.
      weight: the end of the weight's name in Keras, as long as it takes to tell it from the layer's others, such as
        `recurrent_kernel`; empty: any of this shape.
      pattern: of `blocks`, `HEIGHTxWIDTH`, inputs by outputs; of `m_by_n`, `MxN`; of `clusters`, `channel` where in
        Keras too they are those of an output channel.
    """

    kind: str
    layer: str
    shape: tuple[int, ...]
    value: float
    weight: str = ""
    pattern: str = ""


@dataclasses.dataclass(frozen=True)
class Passport:
    """What was done to a model so far.

    Attributes:
      io: `{"inputs": [...], "outputs": [...], "labels": [...]}`; inputs and outputs as name, shape (None where it
        varies) and dtype, fixed by the first step, so that all candidates are called alike.
      steps: one entry per step, oldest first: step, config, inputs (digests), metrics (validation split), layers.
      promises: what later steps must keep.
      scheme: how to convert: the Quantize config's scheme and io_type, and what it is calibrated on; None before it.
      failure: step and error, where a step could not do its work; the model is then a rejected candidate.
    """

    io: dict[str, Any]
    steps: tuple[dict[str, Any], ...] = ()
    promises: tuple[Promise, ...] = ()
    scheme: dict[str, Any] | None = None
    failure: dict[str, str] | None = None

    def with_step(
        self,
        step: str,
        config: dict[str, Any],
        *,
        inputs: dict[str, str],
        toolchain: str,
        metrics: dict[str, float] | None = None,
        layers: list[dict[str, Any]] | None = None,
        promises: tuple[Promise, ...] = (),
        **facts: Any,
    ) -> Passport:
        """Returns the passport with one more entry.

        Args:
          step: name of the component.
          config: what was asked.
          inputs: digests of what went in, by name.
          toolchain: the versions it was done with.
          metrics: the Keras model's quality after the step, on the validation split.
          layers: what was done to each layer, or skipped and why.
          promises: what this step adds to what later steps must keep.
          **facts: anything else worth keeping, e.g. the digest of the model.
        """
        entry = {"step": step, "config": config, "inputs": inputs, "toolchain": toolchain, **facts}
        if metrics is not None:
            entry["metrics"] = metrics
        if layers is not None:
            entry["layers"] = layers
        return dataclasses.replace(self, steps=(*self.steps, entry), promises=(*self.promises, *promises))

    def failed(self, step: str, error: BaseException) -> Passport:
        """Returns the passport of a rejected candidate."""
        return dataclasses.replace(self, failure={"step": step, "error": f"{type(error).__name__}: {error}"})

    def write(self, folder: str | Path) -> None:
        """Writes `passport.json` into a folder that exists."""
        content = {"schema_version": SCHEMA_VERSION, **dataclasses.asdict(self)}
        Path(folder, layout.PASSPORT_FILE).write_text(json.dumps(content, indent=1) + "\n")

    @staticmethod
    def read(folder: str | Path) -> Passport:
        """Reads `passport.json` from a folder.

        Raises:
          ValueError: it was written by another version of the format, or is no JSON, too long or nested too deep.
        """
        path = Path(folder, layout.PASSPORT_FILE)
        content = files.read_json(path)
        version = content.pop("schema_version", None)
        if version != SCHEMA_VERSION:
            raise ValueError(f"{path} has schema_version {version}; this version of Edgeline reads {SCHEMA_VERSION}")
        promises = tuple(Promise(**{**p, "shape": tuple(p["shape"])}) for p in content.pop("promises"))
        return Passport(promises=promises, steps=tuple(content.pop("steps")), **content)
