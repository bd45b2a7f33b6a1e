"""Who may import what: cli → runners → compression → component → noun → config, never back and never sideways."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: The folders of the packages `edgeline`, `edgeline.pipelines` and `edgeline.kubeflow`.
LIBRARY, PROGRAMS, CLUSTER = ROOT / "components", ROOT / "pipelines", ROOT / "kubeflow"
STEPS = {path.parent.name for path in LIBRARY.glob("*/component.py")}


def imports(path: Path) -> set[str]:
    """The dotted names of all that a file imports anywhere in it, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            # `from edgeline import data` and `from edgeline.data import x` are both edgeline.data
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def top(name: str) -> str:
    return name.split(".")[0]


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_the_steps_are_found() -> None:
    assert {"trainer", "pruner", "clusterer", "quantizer", "tflite_exporter", "evaluator"} <= STEPS


@pytest.mark.parametrize("path", [*LIBRARY.rglob("config.py"), *PROGRAMS.glob("recipe*.py")], ids=named)
def test_configs_and_recipes_need_the_standard_library_only(path: Path) -> None:
    allowed = {"edgeline.config", "edgeline.errors", "edgeline.targets", "edgeline.pipelines.recipe"}
    allowed |= {f"edgeline.{step}.config" for step in STEPS}
    foreign = {
        name
        for name in imports(path)
        if top(name) not in sys.stdlib_module_names and not any(within(name, package) for package in allowed)
    }
    assert not foreign


@pytest.mark.parametrize("path", files(LIBRARY), ids=named)
def test_only_components_and_artifacts_know_tfx(path: Path) -> None:
    knows = any(top(name) in ("tfx", "ml_metadata", "kfp") for name in imports(path))
    assert not knows or path.name in ("component.py", "artifacts.py", "pusher.py")


@pytest.mark.parametrize("path", files(LIBRARY), ids=named)
def test_the_library_does_not_know_the_programs(path: Path) -> None:
    assert not [n for n in imports(path) if within(n, "edgeline.pipelines") or within(n, "edgeline.kubeflow")]


@pytest.mark.parametrize("path", files(LIBRARY), ids=named)
def test_a_step_does_not_know_another(path: Path) -> None:
    own = path.relative_to(LIBRARY).parts[0]
    others = STEPS - {own}  # what all steps share knows none of them
    assert not [name for name in imports(path) if any(within(name, f"edgeline.{step}") for step in others)]


@pytest.mark.parametrize("path", files(LIBRARY), ids=named)
def test_nothing_but_a_program_imports_a_component(path: Path) -> None:
    assert not [name for name in imports(path) if any(within(name, f"edgeline.{step}.component") for step in STEPS)]


@pytest.mark.parametrize("path", sorted(LIBRARY.glob("*/component.py")), ids=named)
def test_components_have_real_annotations(path: Path) -> None:
    # TFX reads them raw: as strings it finds neither artifacts nor parameters
    assert "__future__.annotations" not in imports(path)


@pytest.mark.parametrize("path", files(LIBRARY, PROGRAMS, CLUSTER, ROOT / "tests"), ids=named)
def test_nobody_imports_the_folders_by_name(path: Path) -> None:
    # with the repository on sys.path, components.x and edgeline.x would be two modules with two sets of classes
    assert not {"components", "pipelines"} & {top(name) for name in imports(path)}


@pytest.mark.parametrize("path", files(LIBRARY, PROGRAMS, CLUSTER), ids=named)
def test_nobody_but_the_bridge_uses_keras_3(path: Path) -> None:
    assert path.name == "keras3_bridge.py" or not {"keras"} & {top(name) for name in imports(path)}


def test_tests_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
