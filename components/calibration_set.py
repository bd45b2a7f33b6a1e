"""The file layout of a RepresentativeDataset: `samples.npz` and `manifest.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from edgeline import arrays

SAMPLES_FILE = "samples.npz"
MANIFEST_FILE = "manifest.json"


def write(folder: str, samples: dict[str, np.ndarray], manifest: dict[str, Any]) -> None:
    """Writes both files into a folder, which is made.

    Args:
      folder: of the artifact.
      samples: by model input name, shape [samples, ...].
      manifest: what is to be known about them.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    arrays.write(Path(folder, SAMPLES_FILE), samples, compress=True)
    Path(folder, MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n")


def read(folder: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Returns the samples by input name, shape [samples, ...], and the manifest."""
    return arrays.read(Path(folder, SAMPLES_FILE)), read_manifest(folder)


def read_manifest(folder: str) -> dict[str, Any]:
    """Returns the manifest alone."""
    content: dict[str, Any] = json.loads(Path(folder, MANIFEST_FILE).read_text())
    return content
