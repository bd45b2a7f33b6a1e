"""Builds the documentation site, build/site, from docs/ and from the code: `make docs`.

A page says `<!-- build: NAME -->` where something is derived from the code; GENERATED says from which function. So that
every page can also be read where it lies, what surrounds such a line is written by hand.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import html
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Container, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import edgeline

ROOT = Path(__file__).parents[1]
#: What is built: the pages as the site's generator reads them, and links by which it finds the packages.
PAGES, PACKAGES = ROOT / "build" / "docs", ROOT / "build" / "docs-packages"
#: Where the packages' folders are.
PACKAGE_FOLDERS = {"edgeline": ROOT / "components", "edgeline.pipelines": ROOT / "pipelines"}
PACKAGE_FOLDERS["edgeline.kubeflow"] = ROOT / "kubeflow"
#: Pages that lie at the top of the repository, by their names in the site.
TOP_PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": ""}


# The command line


def command_line() -> str:
    """Describes every command: its usage, its options and their defaults."""
    from edgeline.pipelines.cli import main

    os.environ["COLUMNS"] = "84"  # what argparse wraps the usage at
    summaries = {name: command.summary for name, command in main.COMMANDS.items()}
    return "\n\n".join(_command(parser, line) for parser, line in _commands(main.parser(), summaries))


def _commands(parser: argparse.ArgumentParser, lines: dict[str, str]) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Yields each command that has none below it, with its line in the help of the command above.

    Args:
      parser: of the command above.
      lines: those that the parser itself does not know.
    """
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            own = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, below in action.choices.items():
                yield from [*_commands(below, {})] or [(below, (lines | own)[name])]


def _command(parser: argparse.ArgumentParser, line: str) -> str:
    usage = parser.format_usage().removeprefix("usage: ").rstrip().replace("\n" + " " * len("usage: "), "\n")
    about = parser.description or f"{line[:1].upper()}{line[1:]}."
    parts = [f"## {parser.prog}", f"<p>{html.escape(about)}</p>", f"```text\n{usage}\n```"]
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if not {"-h", "--debug"} & {*a.option_strings}]
        if actions:
            title = "arguments" if group.title == "positional arguments" else str(group.title)
            parts.append(f"**{title[:1].upper()}{title[1:]}**")
            parts.append(f'<dl class="options">{"".join(_option(parser, action) for action in actions)}</dl>')
    if parser.epilog:
        parts.append(f"<p>{html.escape(parser.epilog[:1].upper() + parser.epilog[1:])}.</p>")
    return "\n\n".join(parts)


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Describes an option or argument: how it is written, its default, and what the help says."""
    formatter = parser._get_formatter()
    text = formatter._expand_help(action) if action.help else ""
    said = re.search(r" ?\(default: (.*)\)$", text)
    if said:
        text = text[: said.start()]
    if action.required:
        default = "required"
    elif said:
        default = f"default: {said[1]}"
    elif action.nargs == 0 or action.default in (None, argparse.SUPPRESS, []):
        default = ""
    else:
        default = f"default: {action.default}"
    name, note = html.escape(formatter._format_action_invocation(action)), html.escape(default)
    return f"<dt><code>{name}</code> <small>{note}</small></dt><dd>{html.escape(text)}</dd>"


# The components

#: Those of the pipeline that is looked at.
CANDIDATES = ("int8", "prune80_cluster16_int8")


@cache
def _pipelines() -> tuple[list[Any], list[Any]]:
    """Returns the nodes of a real pipeline with a schema, and of one that imports its model."""
    from edgeline.model_importer.config import Import
    from edgeline.model_module import module_source
    from edgeline.pipelines import compression, recipes
    from edgeline.pipelines.job import Job
    from edgeline.pipelines.root import Root

    source = module_source.locate("edgeline.pipelines.examples.digits.model")
    candidates = tuple(getattr(recipes, name)() for name in CANDIDATES)
    with tempfile.TemporaryDirectory() as scratch:
        root = Root(Path(scratch))
        schema = Path(scratch, "schema.pbtxt")
        schema.touch()

        def nodes(job: Job, **checks: Any) -> list[Any]:
            ingest = compression.import_examples(Path("data"))
            return list(compression.create_pipeline("digits", job, root=root, examples=ingest, **checks).components)

        trained = nodes(Job(source, candidates), schema=compression.import_schema(schema, root))
        imported = Job(source, candidates, model=Import(source="model.keras", digest="0"))
        return trained, nodes(imported)


def artifacts() -> str:
    """Tables what each component takes and makes, from the specifications that TFX checks pipelines by."""
    level: dict[str, int] = {}
    kinds: dict[type, Any] = {}
    for node in itertools.chain(*_pipelines()):  # each behind those that it waits for
        level[node.id] = 1 + max((level[up.id] for up in node.upstream_nodes), default=0)
        kinds[type(node)] = node
    rows = ["| component | in | out |", "|---|---|---|"]
    for kind, node in sorted(kinds.items(), key=lambda item: level[item[1].id]):
        inputs = [f"`{port}`: {_type(c)}" for port, c in node.spec.INPUTS.items() if port not in CANDIDATES]
        if {*CANDIDATES} & {*node.spec.INPUTS}:
            inputs.append("one Model per candidate, by its name")
        outputs = [f"`{port}`: {_type(channel)}" for port, channel in node.spec.OUTPUTS.items()]
        name = kind.__name__ if kind.__module__.startswith("edgeline.") else f"{kind.__name__} (of TFX)"
        rows.append(f"| {name} | {'<br>'.join(inputs)} | {'<br>'.join(outputs)} |")
    return "\n".join(rows)


def _type(channel: Any) -> str:
    return f"{channel.type.__name__}{', optional' if getattr(channel, 'optional', False) else ''}"


def pipeline() -> str:
    """Draws the steps of a run with two candidates, from the pipeline that such a run builds."""
    from edgeline.report import run_graph
    from edgeline.report.schema import NodeReport

    trained, _ = _pipelines()
    nodes = [
        NodeReport(id=node.id, state="done", upstream=tuple(up.id for up in node.upstream_nodes)) for node in trained
    ]
    # the report's own layout, turned so that it goes down the page
    graph = run_graph.layout(nodes)
    across = 190 / graph.box_height

    def down(x: str) -> str:
        column, rest = divmod(float(x) - 4, 228)
        return f"{4 + column * 76 + (rest * 44 / graph.box_width if rest <= graph.box_width else rest - 148):g}"

    def turned(path: str) -> str:
        parts = []
        for letter, numbers in re.findall("([MHC])([^MHC]*)", path):
            values = numbers.split()
            if letter == "H":
                parts.append(f"V{down(values[0])}")
            else:
                pairs = zip(values[::2], values[1::2], strict=True)
                parts.append(letter + " ".join(f"{float(y) * across:g} {down(x)}" for x, y in pairs))
        return "".join(parts)

    width, height = graph.height * across, float(down(str(graph.width - 4))) + 4
    shapes = [f'<path d="{turned(path)}"/>' for path in graph.arrows]
    for box in graph.boxes:
        x, y = box.y * across, float(down(str(box.x)))
        name, _, prefix = box.node.id.partition(".")
        middle = x + 95
        shapes.append(f'<rect x="{x:g}" y="{y:g}" width="190" height="44" rx="7"/>')
        shapes.append(f'<text x="{middle:g}" y="{y + (19 if prefix else 27):g}">{html.escape(name)}</text>')
        if prefix:
            shapes.append(f'<text class="prefix" x="{middle:g}" y="{y + 35:g}">{html.escape(prefix)}</text>')
    label = "The steps of a run and what each waits for"
    return (
        f'<svg class="pipeline" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" aria-label="{label}">'
        f"{''.join(shapes)}</svg>"
    )


# The Python API


def components() -> str:
    """Describes the exported components: what they do, their ports, and which configs have their parameters."""
    nodes = {type(node): node for node in itertools.chain(*_pipelines())}
    parts = []
    for name in _exported("component"):
        spec = nodes[getattr(edgeline, name)].spec
        parts.append(_object(f"edgeline.{name}", heading_level=2, show_signature=False, separate_signature=False))
        ports = [f"`{port}` ({_type(channel)})" for port, channel in spec.INPUTS.items() if port not in CANDIDATES]
        if {*CANDIDATES} & {*spec.INPUTS}:
            ports.append("one Model per candidate, by its name")
        parts.append(f"**In:** {', '.join(ports)}")
        parts.append(f"**Out:** {', '.join(f'`{port}` ({_type(c)})' for port, c in spec.OUTPUTS.items())}")
        asked = [kind for kind in _configs() if {f.name for f in dataclasses.fields(kind)} <= {*spec.PARAMETERS}]
        spelt = {field.name for kind in asked for field in dataclasses.fields(kind)}
        others = [f"`{name}`" for name in spec.PARAMETERS if name not in spelt]
        configs = [f"the fields of [`{kind.__name__}`][{_path(kind)}]" for kind in asked]
        parts.append(f"**Parameters:** {', '.join([*others, *configs])}")
    return "\n\n".join(parts)


def configs() -> str:
    """Describes the recipe, the configs of all steps, and what several of them have in common."""
    return "\n\n".join(_object(_path(kind), heading_level=2, show_bases=True) for kind in _described())


def _described() -> list[type]:
    from edgeline.config import StepConfig
    from edgeline.recipe import Recipe

    shared = {base: None for kind in _configs() for base in kind.__mro__[1:] if issubclass(base, StepConfig)}
    return [Recipe, *_configs(), *shared]


def exports() -> str:
    """Describes what `import edgeline` offers besides components and configs."""
    described = {_path(kind) for kind in _described()}
    names = [name for name in _exported() if name not in _exported("component") and f"edgeline.{name}" not in described]
    return "\n\n".join(_object(f"edgeline.{name}", heading_level=3) for name in names)


def _exported(last: str | None = None) -> list[str]:
    """Returns the exported names, or those that come from a module with this last name."""
    return [name for name, module in edgeline._EXPORTS.items() if last in (None, module.rpartition(".")[2])]


def _configs() -> list[type]:
    """Returns what a step can be asked, in the order of the pipeline: the configs that no other one extends."""
    from edgeline.config import StepConfig

    _pipelines()  # imports all of them

    def leaves(kind: type[object]) -> Iterator[type]:
        extending = [sub for sub in kind.__subclasses__() if sub.__module__.startswith("edgeline.")]
        for extended in extending:
            yield from leaves(extended)
        if not extending:
            yield kind

    return sorted(leaves(StepConfig), key=lambda kind: kind.__name__)


def _path(kind: type) -> str:
    """Returns where the reference describes a class: by its exported name, if it has one."""
    name = kind.__name__
    return f"edgeline.{name}" if edgeline._EXPORTS.get(name) == kind.__module__ else f"{kind.__module__}.{name}"


def _object(path: str, **options: object) -> str:
    """Returns mkdocstrings' directive for an object."""
    return "\n".join([f"::: {path}", "    options:", *(f"      {k}: {str(v).lower()}" for k, v in options.items())])


# The report


def report() -> str:
    """Describes every key of report.json, from its JSON Schema."""
    from edgeline.report import schema

    described = schema.json_schema()
    return "\n\n".join(_keys(part) for part in (described, *described["$defs"].values()))


def _keys(part: dict[str, Any]) -> str:
    rows = ["| key | value | |", "|---|---|---|"]
    named = [(f"`{key}`", own) for key, own in part["properties"].items()]
    others = [("any other", own) for own in part.get("patternProperties", {}).values()]
    rows += [f"| {name} | {_value(own)} | {own['description']} |" for name, own in [*named, *others]]
    return "\n\n".join([f"## {part['title']}", part["description"], "\n".join(rows)])


def _value(own: dict[str, Any]) -> str:
    """Describes what a value may be; parts that have a table of their own are links."""
    if "$ref" in own:
        title = own["$ref"].rpartition("/")[2]
        return f"[{title}](#{title.lower()})"
    if "anyOf" in own:
        return " or ".join(map(_value, own["anyOf"]))
    if "enum" in own:
        return " or ".join(f"`{json.dumps(choice)}`" for choice in own["enum"])
    if "prefixItems" in own:
        return f"list of {len(own['prefixItems'])}: {_value(own['prefixItems'][0])}"
    if own.get("type") == "array":
        return f"list of ({_value(own['items'])})"
    if own.get("type") == "object":
        return f"object of ({_value(own['additionalProperties'])}) by name"
    kinds = own.get("type", "anything")
    return kinds if isinstance(kinds, str) else " or ".join(kinds)


# The rooms


def rooms() -> str:
    """Draws which package may import which: a row imports from rows below it only."""
    modules = {_module(path): path for folder in PACKAGE_FOLDERS.values() for path in folder.rglob("*.py")}
    below: dict[str, set[str]] = defaultdict(set)
    for name, path in modules.items():
        if name != "edgeline":  # a table of names and where they live, resolved when asked for
            below[_room(name)] |= {_room(other) for other in _imported(path, modules)} - {_room(name), ""}
    level: dict[str, int] = {}
    for room in TopologicalSorter(below).static_order():
        level[room] = 1 + max((level[inner] for inner in below[room]), default=-1)
    rows = []
    for row in range(max(level.values()), -1, -1):
        cells = []
        for room in sorted(room for room, number in level.items() if number == row):
            summary = (ast.get_docstring(ast.parse(modules[f"edgeline.{room}"].read_text())) or "").partition("\n")[0]
            cells.append(f'<div title="{html.escape(summary)}">{room}</div>')
        rows.append(f'<div class="row">{"".join(cells)}</div>')
    return f'<div class="rooms">{"".join(rows)}</div>'


def _module(path: Path) -> str:
    for package, folder in PACKAGE_FOLDERS.items():
        if path.is_relative_to(folder):
            parts = path.relative_to(folder).with_suffix("").parts
            return ".".join((package, *(part for part in parts if part != "__init__")))
    raise ValueError(f"{path} is in none of the packages")


def _room(module: str) -> str:
    """Returns the room that a module is in, as tests/test_boundaries.py has them."""
    _, *inner = module.split(".")
    if inner[:1] == ["kubeflow"]:  # one room and its command line
        return "kubeflow.cli" if inner[1:2] == ["cli"] else "kubeflow"
    return ".".join(inner[: 2 if inner[:1] == ["pipelines"] else 1])


def _imported(path: Path, modules: Container[str]) -> set[str]:
    """Returns the project's modules that a file imports anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in modules else str(node.module) for name in inner}
    return {name for name in names if name in modules}


GENERATED: dict[str, Callable[[], str]] = {
    "command-line": command_line,
    "artifacts": artifacts,
    "components": components,
    "configs": configs,
    "exports": exports,
    "pipeline": pipeline,
    "report": report,
    "rooms": rooms,
}


def assemble() -> None:
    """Writes the pages as the site's generator reads them, and the links to the packages."""
    shutil.rmtree(PAGES, ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES)
    shutil.copy(ROOT / "LICENSE", PAGES)
    for name, source in TOP_PAGES.items():
        text = (ROOT / source).read_text().replace("](docs/", "](")
        for page_name, top in TOP_PAGES.items():
            text = text.replace(f"]({top}", f"]({page_name}")
        (PAGES / name).write_text(text)
    for page in PAGES.rglob("*.md"):
        page.write_text(re.sub("<!-- build: ([a-z-]+) -->", lambda found: GENERATED[found[1]](), page.read_text()))

    shutil.rmtree(PACKAGES, ignore_errors=True)
    package = PACKAGES / "edgeline"
    package.mkdir(parents=True)
    for path in [*PACKAGE_FOLDERS["edgeline"].iterdir(), *list(PACKAGE_FOLDERS.values())[1:]]:
        if path.name not in ("__init__.py", "__pycache__"):
            (package / path.name).symlink_to(path)
    # what the package resolves when it is asked for, said such that it can be read without running it
    (package / "__init__.py").write_text(
        "".join(f"from {module} import {name}\n" for name, module in edgeline._EXPORTS.items())
    )


def main() -> int:
    """Builds the site; a warning is an error."""
    assemble()
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
