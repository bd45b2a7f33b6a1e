"""Who may import what: the rooms have an order, and nobody imports from a later one."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable, Iterable
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: The folders of the packages `edgeline`, `edgeline.pipelines` and `edgeline.kubeflow`.
LIBRARY, PROGRAMS, CLUSTER = ROOT / "components", ROOT / "pipelines", ROOT / "kubeflow"
STEPS = {path.parent.name for path in LIBRARY.glob("*/component.py")}

#: The rooms, from the ground up. A room is a module or a folder of a package; a step's folder is one too. A room may
#: import from the rooms before it, a step from all that come before the steps.
ORDER = (
    *("errors", "config", "files", "layout", "targets", "schemes", "progress", "artifacts", "passport", "toolchain"),
    *("budget", "isolation"),
    *("step", "keras_models", "model_module", "tflite", "data", "model_io", "conversion", "untrusted"),
    *("deployed", "report", "training", "steps", "recipe"),
    *(
        "pipelines.exit_codes",
        "pipelines.stopping",
        "pipelines.endings",
        "pipelines.root",
        "pipelines.console",
        "pipelines.recipes",
        "pipelines.job",
    ),
    "pipelines.compression",
    *("pipelines.datasets", "pipelines.records", "pipelines.run", "pipelines.cli", "kubeflow", "kubeflow.cli"),
)


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """The dotted names of all that a file imports anywhere in it, also inside functions; relative ones as dots."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # `from edgeline import data` and `from edgeline.data import x` are both edgeline.data
            found |= {f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def files(*folders: Path) -> list[Path]:
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


#: The one exception to "never upwards": which names the package exports, and where they live.
EXPORTS = LIBRARY / "__init__.py"
#: Every module of ours. A rule below names the files that break it, and what they import.
MODULES = files(LIBRARY, PROGRAMS, CLUSTER)


def breaking(paths: Iterable[Path], forbidden: Callable[[Path, str], bool]) -> dict[str, list[str]]:
    """The imports for which a rule does not hold, by the file that has them."""
    found = {named(path): sorted(name for name in imports(path) if forbidden(path, name)) for path in paths}
    return {path: names for path, names in found.items() if names}


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


def test_no_import_is_relative() -> None:
    assert not breaking([*MODULES, *files(ROOT / "tests")], lambda path, name: name.startswith("."))


def test_a_room_imports_from_earlier_rooms_alone() -> None:
    def is_later(path: Path, name: str) -> bool:
        own, used = room_of(module_of(path)), room_of(name) if top(name) == "edgeline" else None
        return None not in (own, used) and used not in ORDER[: ORDER.index(own) + 1]

    assert not breaking(MODULES, is_later)


def test_no_modules_import_each_other_in_a_circle() -> None:
    own = {module_of(path): path for path in MODULES}
    within_rooms = {
        name: {used if used in own else used.rpartition(".")[0] for used in imports(path)} & own.keys() - {name}
        for name, path in own.items()
    }
    TopologicalSorter(within_rooms).prepare()  # raises CycleError, which names the circle


def test_only_the_command_line_knows_its_parser() -> None:
    # the entrypoint of a pod is called by the cluster
    others = [path for path in MODULES if "cli" not in path.parts and path.name != "entrypoint.py"]
    assert not breaking(others, lambda path, name: within(name, "argparse"))


def test_no_folder_is_crowded() -> None:
    # what a person can look over; __init__.py is not looked at, and the steps are counted apart
    folders = {path.parent for path in MODULES} - {LIBRARY}
    crowded = {named(f): len(n) for f in folders if len(n := [p for p in f.glob("*.*") if p.stem[:2] != "__"]) > 14}
    assert not crowded
    assert len([path for path in LIBRARY.glob("*.py") if path.stem != "__init__"]) <= 13


def test_configs_and_recipes_need_the_standard_library_only() -> None:
    allowed = {f"edgeline.{name}" for name in ("budget", "config", "errors", "recipe", "schemes", "targets")}
    allowed |= {f"edgeline.{step}.config" for step in STEPS}
    configs = [*LIBRARY.rglob("config.py"), LIBRARY / "recipe.py", PROGRAMS / "recipes.py"]

    def is_foreign(path: Path, name: str) -> bool:
        return top(name) not in sys.stdlib_module_names and not any(within(name, package) for package in allowed)

    assert not breaking(configs, is_foreign)


def test_only_components_and_artifacts_know_tfx() -> None:
    others = [path for path in files(LIBRARY) if path.name not in ("component.py", "artifacts.py", "step.py")]
    assert not breaking(others, lambda path, name: top(name) in ("tfx", "ml_metadata", "kfp"))


def test_a_step_does_not_know_another() -> None:
    def is_of_another_step(path: Path, name: str) -> bool:
        own = path.relative_to(LIBRARY).parts[0]  # what all steps share knows none of them
        return any(within(name, f"edgeline.{step}") for step in STEPS - {own})

    order_of_the_steps = LIBRARY / "recipe.py"
    others = [path for path in files(LIBRARY) if path not in (order_of_the_steps, EXPORTS)]
    assert not breaking(others, is_of_another_step)


def test_nothing_but_a_program_imports_a_component() -> None:
    components = [f"edgeline.{step}.component" for step in STEPS]
    others = [path for path in files(LIBRARY) if path != EXPORTS]
    assert not breaking(others, lambda path, name: any(within(name, module) for module in components))


def test_components_have_real_annotations() -> None:
    # TFX reads them raw: as strings it finds neither artifacts nor parameters
    components = sorted(LIBRARY.glob("*/component.py"))
    assert not breaking(components, lambda path, name: name == "__future__.annotations")


def test_nobody_imports_the_folders_by_name() -> None:
    # with the repository on sys.path, components.x and edgeline.x would be two modules with two sets of classes
    everyone = [*MODULES, *files(ROOT / "tests")]
    assert not breaking(everyone, lambda path, name: top(name) in ("components", "pipelines"))


def test_nobody_but_the_bridge_uses_keras_3() -> None:
    others = [path for path in MODULES if path.name != "keras3_bridge.py"]
    assert not breaking(others, lambda path, name: top(name) == "keras")


def test_tests_are_no_packages() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))
