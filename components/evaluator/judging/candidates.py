"""The models that are judged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from edgeline import layout
from edgeline.passport import Passport


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A TFLiteExporter's output, opened.

    Attributes:
      name: of the recipe.
      folder: with `model.tflite`, `metadata.json` and `passport.json`.
      passport: what was done to it.
      metadata: its sizes and ports; None where it failed earlier.
    """

    name: str
    folder: Path
    passport: Passport
    metadata: dict[str, Any] | None

    @property
    def model_path(self) -> str:
        """The `.tflite` file."""
        return str(self.folder / layout.TFLITE_FILE)
