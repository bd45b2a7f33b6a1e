"""Why a candidate cannot be exported: what is raised wherever it is found, and rejects that candidate alone."""

from __future__ import annotations

from typing import Any


class ExportError(Exception):
    """The model cannot be converted, or the converted model does not run or do what the Keras model does."""


class BatchError(ExportError):
    """The converted model runs one example, but not the batch that was asked for."""


class ConversionError(ExportError):
    """The model cannot be converted, calibrated or quantized."""


class RefusedGraphError(ConversionError):
    """The converter refuses the graph; with the batch size fixed it may not.

    Attributes:
      missing: operators that LiteRT does not have, by name, where that is why.
    """

    def __init__(self, message: str, missing: tuple[str, ...] = ()):
        super().__init__(message)
        self.missing = missing

    @property
    def details(self) -> dict[str, Any]:
        """What crosses the border between the processes besides the message."""
        return {"missing": list(self.missing)}
