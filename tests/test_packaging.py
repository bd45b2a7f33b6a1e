"""What works in an editable installation and would be absent from the wheel."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import edgeline

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {"edgeline": "components", "edgeline.pipelines": "pipelines", "edgeline.kubeflow": "kubeflow"}


def packages() -> dict[str, Path]:
    """Every folder that is a package, by its import name."""
    found = {}
    for name, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("__init__.py"):
            inner = path.parent.relative_to(ROOT / folder).parts
            found[".".join((name, *inner))] = path.parent
    return found


def test_the_packages_list_is_complete() -> None:
    setuptools = SETTINGS["tool"]["setuptools"]
    assert setuptools["package-dir"] == FOLDERS
    assert setuptools["packages"] == sorted(packages())


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for folder in FOLDERS.values() for path in (ROOT / folder).rglob("*.py")}
    assert folders == set(packages().values())


def test_files_that_are_no_code_are_listed() -> None:
    listed = SETTINGS["tool"]["setuptools"]["package-data"]
    for name, folder in packages().items():
        matched = {path for pattern in listed.get(name, []) for path in folder.glob(pattern)}
        inside = {
            path
            for path in folder.rglob("*")
            if not any((p / "__init__.py").exists() for p in path.parents if p.is_relative_to(folder) and p != folder)
        }
        others = {path for path in inside if path.is_file() and path.suffix not in (".py", ".pyc")}
        # what is only read by people stays behind
        others = {path for path in others if path.suffix != ".md" and not path.name.startswith("Dockerfile")}
        assert others == matched, name


def test_the_version_is_the_installed_one() -> None:
    assert importlib.metadata.version("edgeline") == SETTINGS["project"]["version"] == edgeline.__version__


def test_the_command_prints_the_version() -> None:
    [command] = importlib.metadata.entry_points(group="console_scripts", name="edgeline")
    module, function = command.value.split(":")
    code = f"import sys; from {module} import {function}; sys.exit({function}(['--version']))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout == f"edgeline {edgeline.__version__}\n"


def test_importing_the_package_does_not_look_up_its_version() -> None:
    code = "import edgeline, sys; print('importlib.metadata' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout == "False\n"


def test_the_licence_travels_with_the_distribution() -> None:
    assert SETTINGS["project"]["license"] == "Apache-2.0"
    assert SETTINGS["project"]["license-files"] == ["LICENSE"]
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_tests_use_this_checkout() -> None:
    assert edgeline.__file__ == str(ROOT / "components" / "__init__.py")


def test_the_command_exists() -> None:
    [command] = importlib.metadata.entry_points(group="console_scripts", name="edgeline")
    assert command.value == SETTINGS["project"]["scripts"]["edgeline"]
