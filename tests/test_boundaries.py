"""Who may import what: the rooms have an order, and nobody imports from a later one."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: The folders of the packages `edgeline`, `edgeline.pipelines` and `edgeline.kubeflow`.
LIBRARY, PROGRAMS, CLUSTER = ROOT / "components", ROOT / "pipelines", ROOT / "kubeflow"
STEPS = {path.parent.name for path in LIBRARY.glob("*/component.py")}

#: The rooms, from the ground up. A room is a module or a folder of a package; a step's folder is one too. A room may
#: import from the rooms before it, a step from all that come before the steps.
ORDER = (
    *("errors", "config", "files", "targets", "schemes", "progress", "artifacts", "passport", "toolchain", "budget"),
    *("step", "keras_models", "model_module", "tflite", "data", "model_io", "conversion", "deployed", "report"),
    *("training", "steps", "recipe"),
    *("pipelines.exit_codes", "pipelines.root_lock", "pipelines.console", "pipelines.recipes", "pipelines.compression"),
    *("pipelines.datasets", "pipelines.records", "pipelines.run", "pipelines.cli", "kubeflow", "kubeflow.cli"),
)


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


def module_of(path: Path) -> str:
    """The dotted name of a file's module: `edgeline.pipelines.cli.run`."""
    top, *inner = path.relative_to(ROOT).with_suffix("").parts
    package = {"components": "edgeline", "pipelines": "edgeline.pipelines", "kubeflow": "edgeline.kubeflow"}[top]
    return ".".join([package, *(part for part in inner if part != "__init__")])


def room_of(module: str) -> str | None:
    """The room that a module of ours lies in; None for a package itself, which holds names only, and for examples."""
    parts = module.split(".")[1:]
    if parts[:1] == ["pipelines"]:
        return ".".join(parts[:2]) if len(parts) > 1 and parts[1] != "examples" else None
    if parts[:1] == ["kubeflow"]:
        return "kubeflow.cli" if parts[1:2] == ["cli"] else "kubeflow"
    if not parts or parts[0][0].isupper():  # an export: only a table of names
        return None
    return "steps" if parts[0] in STEPS else parts[0]


@pytest.mark.parametrize("path", files(LIBRARY, PROGRAMS, CLUSTER), ids=named)
def test_a_room_imports_from_earlier_rooms_alone(path: Path) -> None:
    own = room_of(module_of(path))
    if own is None:
        return
    used = {room_of(name) for name in imports(path) if top(name) == "edgeline"} - {None, own}
    assert own in ORDER
    assert not [room for room in used if room not in ORDER or ORDER.index(room) > ORDER.index(own)]


#: What still takes the command line's arguments.
STILL = ("warm_start.py", "new_data.py")


@pytest.mark.parametrize("path", files(LIBRARY, PROGRAMS, CLUSTER), ids=named)
def test_only_the_command_line_knows_its_parser(path: Path) -> None:
    # the entrypoint of a pod is called by the cluster
    assert "argparse" not in imports(path) or "cli" in path.parts or path.name in ("entrypoint.py", *STILL)


def test_no_folder_is_crowded() -> None:
    # what a person can look over; __init__.py is not looked at, and the steps are counted apart
    folders = {path.parent for path in files(LIBRARY, PROGRAMS, CLUSTER)} - {LIBRARY}
    crowded = {named(f): len(n) for f in folders if len(n := [p for p in f.glob("*.*") if p.stem[:2] != "__"]) > 14}
    assert not crowded
    assert len([path for path in LIBRARY.glob("*.py") if path.stem != "__init__"]) <= 13


@pytest.mark.parametrize(
    "path", [*LIBRARY.rglob("config.py"), LIBRARY / "recipe.py", PROGRAMS / "recipes.py"], ids=named
)
def test_configs_and_recipes_need_the_standard_library_only(path: Path) -> None:
    allowed = {f"edgeline.{name}" for name in ("budget", "config", "errors", "recipe", "schemes", "targets")}
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
    assert not knows or path.name in ("component.py", "artifacts.py", "step.py")


@pytest.mark.parametrize("path", files(LIBRARY), ids=named)
def test_a_step_does_not_know_another(path: Path) -> None:
    own = path.relative_to(LIBRARY).parts[0]
    if own == "recipe.py":  # the order of the steps
        return
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
