"""Named arrays in `.npz` files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def write(path: str | Path, arrays: dict[str, np.ndarray], *, compress: bool = False) -> None:
    """Writes arrays by name; the path is taken as it is, with no suffix added."""
    content: dict[str, Any] = arrays
    with Path(path).open("wb") as file:
        (np.savez_compressed if compress else np.savez)(file, **content)


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file by name."""
    # NumPy leaves a file that it opened itself open where it is damaged
    with Path(path).open("rb") as file:
        return dict(np.load(file))
