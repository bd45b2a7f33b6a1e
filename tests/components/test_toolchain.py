from __future__ import annotations

from pathlib import Path

import pytest

from edgeline import toolchain as tools
from edgeline.toolchain import toolchain, versions


def test_toolchain_names_every_tool_and_the_sources() -> None:
    text = toolchain()
    assert text == toolchain()
    names = [part.split("==")[0] for part in text.split()[:-1]]
    assert names == ["edgeline", "tensorflow", "tf-keras", "tensorflow-model-optimization", "ai-edge-litert",
                     "ai-edge-quantizer", "tfx", "apache-beam"]  # fmt: skip
    assert "tensorflow==2.21.0" in text
    assert versions()["tensorflow"] == "2.21.0"
    name, digest = text.split()[-1].split("=")
    assert name == "sources"
    assert len(bytes.fromhex(digest)) == 8


def test_toolchain_changes_with_the_library_and_not_with_what_only_wires(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the package as a wheel installs it: pipelines and kubeflow lie inside
    for folder in ("pruner", "evaluator", "pipelines", "kubeflow"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pruner" / "pruning.py").write_text("a = 1\n")
    monkeypatch.setattr(tools, "__file__", str(tmp_path / "toolchain.py"))
    uncached = toolchain.__wrapped__
    first = uncached()
    (tmp_path / "pipelines" / "cli.py").write_text("b = 1\n")
    (tmp_path / "kubeflow" / "compile.py").write_text("b = 1\n")
    (tmp_path / "pruner" / "notes.txt").write_text("no source\n")
    assert uncached() == first
    (tmp_path / "evaluator" / "report.html.jinja").write_text("<p>\n")
    second = uncached()
    assert second != first
    (tmp_path / "pruner" / "pruning.py").write_text("a = 2\n")
    third = uncached()
    assert third != second
    (tmp_path / "pruner" / "pruning.py").rename(tmp_path / "pruner" / "other.py")
    assert uncached() != third
