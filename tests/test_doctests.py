"""The worked examples in docstrings give what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"components": "edgeline", "pipelines": "edgeline.pipelines", "kubeflow": "edgeline.kubeflow"}
MODULES = [
    ".".join((package, *path.relative_to(ROOT / folder).with_suffix("").parts))
    for folder, package in PACKAGES.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ">>> " in path.read_text()
]


@pytest.mark.parametrize("name", MODULES)
def test_worked_examples_hold(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.attempted > 0
    assert results.failed == 0
