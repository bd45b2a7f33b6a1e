"""What a step's cache key knows of our code. Every edit is done to a copy of the package."""

from __future__ import annotations

import ast
import importlib.metadata
import io
import os
import shutil
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline import toolchain as tools
from edgeline.toolchain import Sources, toolchain, versions

ROOT = Path(__file__).parents[2]

TRAINING = {"trainer", "pruner", "clusterer", "quantizer"}
#: The steps that open the user's module: all that make or judge a model.
WITH_A_MODULE = {*TRAINING, "model_importer", "representative_dataset", "tflite_exporter", "evaluator"}
NONE: set[str] = set()


def copied(folder: Path) -> Path:
    """A copy of the package as a wheel installs it: pipelines and kubeflow lie inside."""
    root = folder / "edgeline"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "components", root, ignore=ignored)
    for name in ("pipelines", "kubeflow"):
        shutil.copytree(ROOT / name, root / name, ignore=ignored)
    return root


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package, for a test to change."""
    return copied(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A copy of the package that is always put back as it was, and the toolchain of each step."""
    root = copied(tmp_path_factory.mktemp("shared"))
    return root, keys(root)


def keys(package: Path) -> dict[str, str]:
    """The toolchain of each step, by the name of its folder."""
    sources = Sources(package)
    return {module.split(".")[1]: sources.toolchain(module) for module in sources.components()}


def changed(package: Path, edit: Callable[[], object]) -> set[str]:
    before = keys(package)
    edit()
    after = keys(package)
    assert before.keys() == after.keys()
    return {step for step in before if before[step] != after[step]}


def append(path: Path, text: str) -> Callable[[], object]:
    return lambda: path.write_text(path.read_text() + text)


@pytest.mark.parametrize(
    ("file", "steps"),
    [
        ("pruner/pruning.py", {"pruner"}),
        ("pruner/xnnpack.py", {"pruner"}),  # imported by another module of the step
        ("pruner/config.py", {"pruner"}),
        ("clusterer/clustering.py", {"clusterer"}),
        ("quantizer/quantization.py", {"quantizer"}),
        ("quantizer/ladder.py", {"quantizer"}),  # imported within a function
        ("trainer/phases.py", {"trainer"}),
        ("training/loop.py", {*TRAINING, "representative_dataset"}),  # which takes its seed from there
        ("training/delivery.py", {"trainer", "pruner", "clusterer", "quantizer"}),
        ("evaluator/measuring/metrics.py", {"evaluator"}),
        ("report/templates/report.html.jinja", {"evaluator"}),
        ("report/words.py", {"evaluator"}),
        ("report/__init__.py", {"evaluator"}),  # a package around a module that is imported
        ("span_example_gen/component.py", {"span_example_gen"}),
        ("data/spans.py", {"span_example_gen"}),
        ("data/reading.py", WITH_A_MODULE),
        ("model_module/hooks.py", WITH_A_MODULE),
        ("conversion/converter.py", {"quantizer", "tflite_exporter"}),
        ("conversion/worker.py", {"quantizer", "tflite_exporter"}),
        ("conversion/trial.py", {"tflite_exporter"}),  # it runs in a process of its own
        # likewise, and the quantizer takes from it how many processes it may start
        ("tflite/device_cost.py", {"quantizer", "tflite_exporter", "evaluator"}),
        ("keras_models/promise_checks.py", {"pruner", "clusterer", "quantizer", "tflite_exporter"}),
        ("data_gate/checks.py", {"data_gate"}),
        ("pusher/component.py", {"pusher"}),
        ("__init__.py", NONE),  # the table of names
        ("recipe.py", NONE),
        ("conversion/onnx.py", NONE),
        ("pipelines/cli/verdict.py", NONE),
        ("pipelines/records/history.html.jinja", NONE),
        ("kubeflow/compile.py", NONE),
    ],
)
def test_an_edit_runs_again_the_steps_that_run_the_file(
    shared: tuple[Path, dict[str, str]], file: str, steps: set[str]
) -> None:
    package, before = shared
    path = package / file
    content = path.read_bytes()
    path.write_bytes(content + (b"\n<p>\n" if path.suffix == ".jinja" else b"\n_new = 1\n"))
    after = keys(package)
    path.write_bytes(content)
    assert {step for step in before.keys() | after.keys() if before.get(step) != after.get(step)} == steps


def test_what_runs_in_no_step_or_decides_nothing_changes_no_key(package: Path) -> None:
    path = package / "pruner" / "pruning.py"
    assert changed(package, append(path, "\n\n# a comment\n")) == NONE
    code = path.read_text()
    docstring = ast.get_docstring(ast.parse(code), clean=False)
    assert docstring
    assert changed(package, lambda: path.write_text("# first\n\n" + code.replace(docstring, "Other.", 1))) == NONE
    assert changed(package, append(path, "\n\ndef _new():\n    return 1\n")) == {"pruner"}
    assert changed(package, append(path, '\n\ndef _newer():\n    """Says one thing."""\n    return 1\n')) == {"pruner"}
    said = path.read_text()
    assert changed(package, lambda: path.write_text(said.replace("Says one thing", "Says another"))) == NONE
    assert changed(package, lambda: path.write_text(said.replace('    """Says one thing."""\n', ""))) == NONE
    assert changed(package, lambda: (package / "pruner" / "notes.txt").write_text("no source")) == NONE
    assert changed(package, lambda: (package / "pruner" / "unused.py").write_text("a = 1\n")) == NONE


SPACE = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING)


def tokens(source: bytes) -> list[tokenize.TokenInfo]:
    """All tokens but white space."""
    return [t for t in tokenize.tokenize(io.BytesIO(source).readline) if t.type not in SPACE and t.string]


def test_of_a_file_all_but_docstrings_comments_and_blank_lines_counts() -> None:
    for path in (ROOT / "components").rglob("*.py"):
        source = path.read_bytes()
        docstrings = {
            (node.body[0].lineno, node.body[0].col_offset)
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None
        }
        code, _ = tools._parsed(source, "edgeline")
        kept = [t.string for t in tokens(source) if t.type != tokenize.COMMENT and t.start not in docstrings]
        assert [t.string for t in tokens(code)] == kept, path  # so that there is no comment among them


KEPT = rb"""a = 'it''s # no comment' + "\"#" + r'\'#' + \
    f"{a!r:#>4}"
b = '''

    # text "
'''
c = {
    1: 2,
}"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"a = ", b"#!/bin/sh\n\n# it's\na = "),
        (b"c = {", b"\n  \n# \"\nc = {  # {'"),
        (b"1: 2,", b"# '''\n\n    1: 2,\t# a"),
        (b"\n}", b"\n\n}  # '\n\n#\n"),
    ],
)
def test_comments_and_blank_lines_are_told_from_strings(old: bytes, new: bytes) -> None:
    assert KEPT.count(old) == 1
    assert tools._parsed(KEPT, "edgeline")[0] == tools._parsed(KEPT.replace(old, new), "edgeline")[0] == KEPT


def test_constants_count(package: Path) -> None:
    path = package / "pruner" / "xnnpack.py"
    append(path, "\n_A, _B, _C = 1, 0.0, lambda x: x in {'a', 'b'}\n")()
    for old, new in (("1, 0.0", "True, 0.0"), ("True, 0.0", "True, -0.0"), ("'b'}", "'c'}")):
        text = path.read_text()
        assert text.count(old) == 1
        assert changed(package, lambda: path.write_text(text.replace(old, new))) == {"pruner"}  # noqa: B023


@pytest.mark.parametrize(
    "line",
    [
        "import edgeline.conversion.onnx",
        "import edgeline.conversion.onnx as o",
        "from edgeline.conversion import onnx",
        "from edgeline.conversion import checks as c, onnx as o",
        "from edgeline.conversion.onnx import export",
        "def late():\n    from edgeline.conversion import onnx",
        "def late():\n    match 1:\n        case 1:\n            import edgeline.conversion.onnx",
        "with open('a'):\n    for a in ():\n        pass\n    else:\n        import edgeline.conversion.onnx",
        "try:\n    from edgeline.conversion import onnx\nexcept ImportError:\n    pass",
        "COMMAND = ('python', '-m', 'edgeline.conversion.onnx')",
    ],
)
def test_every_way_to_import_counts(package: Path, line: str) -> None:
    append(package / "pruner" / "xnnpack.py", f"\n{line}\n")()
    ours, _ = Sources(package).closure("edgeline.pruner.component")
    assert {"edgeline.conversion", "edgeline.conversion.onnx"} <= ours.keys()
    assert "pruner" in changed(package, append(package / "conversion" / "onnx.py", "\n_new = 1\n"))


def test_what_only_the_type_checker_imports_does_not_count(package: Path) -> None:
    lines = "\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from edgeline.conversion import onnx\n"
    append(package / "pruner" / "xnnpack.py", lines)()
    ours, foreign = Sources(package).closure("edgeline.pruner.component")
    assert "edgeline.conversion.onnx" not in ours
    assert "onnx" not in foreign
    assert changed(package, append(package / "conversion" / "onnx.py", "\n_new = 1\n")) == NONE


def test_what_is_imported_by_name_does_not_count(package: Path) -> None:
    # `Prune(0.8) >> Quantize("int8")` makes a recipe, which no step runs
    append(
        package / "pruner" / "xnnpack.py", "\nimport importlib\nimportlib.import_module('edgeline.conversion.onnx')\n"
    )()
    assert "edgeline.conversion.onnx" not in Sources(package).closure("edgeline.pruner.component")[0]


def test_a_killed_training_goes_on_unless_what_trains_was_edited(package: Path) -> None:
    # checkpoints are kept under the toolchain of the module that trains
    techniques = ("trainer.phases", "pruner.pruning", "clusterer.clustering", "quantizer.quantization")

    def toolchains() -> dict[str, str]:
        sources = Sources(package)
        return {technique: sources.toolchain(f"edgeline.{technique}") for technique in techniques}

    before = toolchains()
    for elsewhere in ("report/words.py", "evaluator/component.py", "data_gate/checks.py", "recipe.py"):
        append(package / elsewhere, "\n_new = 1\n")()
    assert toolchains() == before
    append(package / "pruner" / "pruning.py", "\n_new = 1\n")()
    assert {name for name, each in toolchains().items() if each != before[name]} == {"pruner.pruning"}
    append(package / "training" / "distillation.py", "\n_new = 1\n")()
    assert {name for name, each in toolchains().items() if each != before[name]} == set(techniques)


def test_a_step_of_another_package_is_keyed_by_its_code_and_ours(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own_pass"
    own.mkdir()
    (own / "__init__.py").write_text("")
    (own / "component.py").write_text(
        "import numpy\nfrom own_pass import rounding\nfrom edgeline.training import delivery\n"
    )
    (own / "rounding.py").write_text("a = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def key() -> str:
        return Sources(package).toolchain("own_pass.component")

    seen = [key()]
    assert "numpy==" in seen[0]
    for path in (own / "rounding.py", package / "training" / "delivery.py", own / "component.py"):
        append(path, "\n_new = 1\n")()
        assert key() not in seen
        seen.append(key())
    append(package / "report" / "words.py", "\n_new = 1\n")()
    assert key() == seen[-1]


def test_a_circle_ends(package: Path) -> None:
    append(package / "pruner" / "xnnpack.py", "\nfrom edgeline.pruner import component\n")()
    assert "edgeline.pruner.xnnpack" in Sources(package).closure("edgeline.pruner.component")[0]


def test_a_toolchain_names_the_versions_of_what_is_imported() -> None:
    text = toolchain("edgeline.quantizer.component")
    *pairs, sources = text.split()
    tools_of_it = dict(pair.split("==") for pair in pairs)
    assert list(tools_of_it) == sorted(tools_of_it)
    assert {"tensorflow", "tf-keras", "ai-edge-litert", "ai-edge-quantizer", "tfx", "numpy"} <= tools_of_it.keys()
    assert tools_of_it["tensorflow"] == versions()["tensorflow"] == "2.21.0"
    name, digest = sources.split("=")
    assert name == "sources"
    assert len(bytes.fromhex(digest)) == 8
    assert "ai-edge-quantizer" not in toolchain("edgeline.pruner.component")
    assert "plotly" in toolchain("edgeline.evaluator.component")
    ingest = toolchain("edgeline.span_example_gen.component")
    assert {"tfx", "apache-beam"} <= {pair.split("==")[0] for pair in ingest.split()}
    assert "tf-keras" not in ingest


def test_another_version_of_a_tool_changes_the_steps_that_import_it(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = tools._version
    newer = {"ai_edge_quantizer": "99"}
    anew = lambda: monkeypatch.setattr(tools, "_version", lambda name: newer.get(name) or version(name))  # noqa: E731
    assert changed(package, anew) == {"quantizer", "tflite_exporter"}


def test_every_distribution_is_found_by_its_name() -> None:
    # 0.5 s, so the code goes by a table of those that are not called as what they let import
    providers = importlib.metadata.packages_distributions()
    sources = Sources(ROOT / "components")
    named = set().union(*(sources.closure(module)[1] for module in sources.components()))
    by_import = {tools._DISTRIBUTIONS.get(top, top): found for top, found in providers.items()}
    for name in named:
        if name != "keras_tuner":  # of the user's own pipeline, if at all
            canonical = name.replace("_", "-")
            assert canonical in {found.lower().replace("_", "-") for found in by_import[name]}
            assert tools._version(name) == importlib.metadata.version(canonical)


def test_a_digest_is_the_same_in_every_process() -> None:
    code = "from edgeline import toolchain as t; print([t.toolchain(m) for m in t._installed().components()])"
    said = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(said) == 1
    assert "sources=" in said.pop()


def test_no_step_imports_by_the_table_of_names() -> None:
    # what edgeline/__init__ resolves on demand is seen by no digest
    for path in (ROOT / "components").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "edgeline":
                for alias in node.names:
                    assert (ROOT / "components" / alias.name).with_suffix(".py").is_file(), (path, alias.name)


def test_files_that_the_package_installs_are_seen() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    # py.typed is for type checkers, pipelines and kubeflow are no part of any result
    patterns = {pattern for name, each in settings.items() if name.split(".")[1:2] != ["pipelines"] for pattern in each}
    assert {Path(pattern).suffix for pattern in patterns} - {".typed"} <= set(tools.DATA_SUFFIXES)


def test_an_unknown_module_is_an_error(package: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no source of a module edgeline\.prunr\.component in "):
        Sources(package).toolchain("edgeline.prunr.component")


def test_of_all_steps_changes_with_any() -> None:
    assert tools.of_all_steps() == tools.of_all_steps()
    assert len(bytes.fromhex(tools.of_all_steps())) == 32
