"""The versions that a result was made with, as part of every cache key and passport."""

from __future__ import annotations

import functools
import importlib.metadata
from pathlib import Path

from edgeline import files

_TOOLS = (
    "tensorflow", "tf-keras", "tensorflow-model-optimization", "ai-edge-litert", "ai-edge-quantizer", "tfx",
    "apache-beam",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Returns the versions of Edgeline and of the tools under it that decide what comes out."""
    return {name: importlib.metadata.version(name) for name in ("edgeline", *_TOOLS)}


@functools.cache
def toolchain() -> str:
    """Returns all versions and a digest of this package's sources as one string.

    Every node takes it as a parameter: TFX's cache key knows neither code nor tool versions.
    """
    root = Path(__file__).parent
    sources = [
        (str(path.relative_to(root)).encode(), path.read_bytes())
        for path in sorted(root.rglob("*"))
        # an installed package has the pipelines inside this folder; they only wire, and are no part of any result
        if path.suffix in (".py", ".jinja") and path.relative_to(root).parts[0] not in ("pipelines", "kubeflow")
    ]
    digest = files.digest_of_bytes(*(part for pair in sources for part in pair))
    return " ".join([f"{name}=={version}" for name, version in versions().items()] + [f"sources={digest[:16]}"])
