"""What a result is made with, as part of every cache key and passport: the code that a step runs, and tools' versions.

TFX's cache key knows neither. So every node takes as a parameter, `toolchain`, the versions of the distributions that
its step imports, and a digest of those of our modules that run in it:

    ai-edge-litert==2.3.0 numpy==2.4.6 tensorflow==2.21.0 tfx==1.21.0 sources=5d1f0c0e8f7f8a52

These modules are what the step's `component.py` imports, and what those import, at their top or in functions. Data
files of a package, such as templates, count as part of each of its modules. The package `edgeline` itself does not
count: it is only a table of names.

A module counts as its text without docstrings, comments and blank lines, which decide no result. The text is the same
wherever it is read. A syntax tree spelt out would take the time a second time and, like compiled code, would not be the
same under another version of Python; compiled code keeps traces of where docstrings and lines were.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from edgeline import files

#: What decides what comes out, for a reader; the keys of the cache have what each step imports.
_TOOLS = (
    "tensorflow", "tf-keras", "tensorflow-model-optimization", "ai-edge-litert", "ai-edge-quantizer", "tfx",
    "apache-beam",
)  # fmt: skip

#: Of the distributions that are not called as what they let import.
_DISTRIBUTIONS = {"google": "protobuf", "sklearn": "scikit-learn"}

#: The endings of files that modules open in their own package.
DATA_SUFFIXES = (".jinja",)

#: Strings, to be kept, and in no string: lines that are blank but for a comment, and comments behind code.
_NO_CODE = re.compile(
    rb'''("""(?:[^\\]|\\.)*?"""|\'\'\'(?:[^\\]|\\.)*?\'\'\'|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')'''
    rb"|(?:\n[ \t]*(?:#[^\n]*)?)+(?=\n|\Z)|[ \t]*#[^\n]*",
    re.DOTALL,
)


def versions() -> dict[str, str]:
    """Returns the versions of Edgeline and of the tools under it that decide what comes out."""
    return {name: importlib.metadata.version(name) for name in ("edgeline", *_TOOLS)}


def toolchain(module: str) -> str:
    """Returns what decides what a module of ours makes: tools' versions and a digest of the code, as one string.

    Args:
      module: its dotted name; of a step, that of its component, such as `edgeline.pruner.component`. One of another
        package, whose step has entered by `edgeline.pipelines.compression.COMPONENTS`, must be imported or importable.

    Raises:
      ValueError: there is no such module, or it has no source.
    """
    return _installed().toolchain(module)


def of_all_steps() -> str:
    """Returns a digest of the toolchains of all steps: what changes when any of them has to run again."""
    sources = _installed()
    return files.digest_of_bytes(*(sources.toolchain(module).encode() for module in sources.components()))


@functools.cache
def _installed() -> Sources:
    return Sources(Path(__file__).parent)


@dataclasses.dataclass(frozen=True)
class _Module:
    """What is known of one module.

    Attributes:
      digest: of its code, and of the data files of its package.
      imports: dotted names of all that it may import; some are names within a module, or modules that do not exist.
    """

    digest: str
    imports: frozenset[str]


class Sources:
    """The sources of a package.

    Args:
      root: its folder.
      package: its name.
    """

    def __init__(self, root: Path, package: str = "edgeline"):
        self._root = root
        self._package = package
        self._modules: dict[str, _Module | None] = {package: None}  # what a package makes of names on demand is no code

    def components(self) -> list[str]:
        """Returns the names of the modules of all steps' components."""
        return sorted(f"{self._package}.{path.parent.name}.component" for path in self._root.glob("*/component.py"))

    def toolchain(self, module: str) -> str:
        """Returns the toolchain of a module, see `edgeline.toolchain.toolchain`."""
        modules, foreign = self.closure(module)
        tools = {name.replace("_", "-"): _version(name) for name in foreign}
        sources = files.digest_of_bytes(*(part.encode() for pair in sorted(modules.items()) for part in pair))
        return " ".join(
            [*(f"{name}=={version}" for name, version in sorted(tools.items()) if version), f"sources={sources[:16]}"]
        )

    def closure(self, module: str) -> tuple[dict[str, str], set[str]]:
        """Returns what runs where a module does.

        Returns:
          The digests of modules of this package, and of the module's own if it is another's, by dotted name; and the
          names of distributions of all others.

        Raises:
          ValueError: there is no such module.
        """
        ours: dict[str, str] = {}
        foreign: set[str] = set()
        waiting = [module]
        while waiting:
            name = waiting.pop()
            if name in ours:
                continue
            top, *inner = name.split(".")
            if top not in (self._package, module.partition(".")[0]):
                if top not in sys.stdlib_module_names:
                    foreign.add(_DISTRIBUTIONS.get(top, top))
                continue
            if (known := self._module(name)) is not None:
                ours[name] = known.digest
                waiting += known.imports
            # importing a module runs the packages around it, and what is imported may be a name in one
            if inner:
                waiting.append(name.rpartition(".")[0])
        if module not in ours:
            raise ValueError(f"there is no source of a module {module} in {self._root}, nor can it be imported")
        return ours, foreign

    def _module(self, name: str) -> _Module | None:
        if name not in self._modules:
            self._modules[name] = self._read(name)
        return self._modules[name]

    def _read(self, name: str) -> _Module | None:
        source = self._source(name)
        if source is None or not source.is_file() or source.suffix != ".py":
            return None
        code, imports = _parsed(source.read_bytes(), self._package)
        parts = [code]
        in_package = self._root in source.parents and source.parent != self._root
        for data in sorted(source.parent.rglob("*")) if in_package else ():
            if data.suffix in DATA_SUFFIXES and _package_of(data) == source.parent:
                parts += [str(data.relative_to(self._root)).encode(), data.read_bytes()]
        return _Module(files.digest_of_bytes(*parts), imports)

    def _source(self, name: str) -> Path | None:
        top, *inner = name.split(".")
        if top == self._package:
            path = self._root.joinpath(*inner)
            return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):  # it is a name in a module, or a script's
            return None
        return Path(spec.origin) if spec is not None and spec.origin else None


def _package_of(data: Path) -> Path:
    """Returns the folder of the package that a data file belongs to."""
    return next(folder for folder in data.parents if (folder / "__init__.py").is_file())


@functools.cache
def _version(distribution: str) -> str | None:
    """Returns a version, None of what is not installed: an extra, whose import then fails."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


@functools.cache
def _parsed(source: bytes, package: str) -> tuple[bytes, frozenset[str]]:
    """Returns the code of a module without comments, docstrings and blank lines, and the names of what it imports.

    Of `from a import b` these are `a` and `a.b`. What a child process is started with counts: `"-m", "edgeline.a"`; a
    module that starts itself by `__name__` is counted already. What `importlib` is given by name does not count.
    """
    lines = source.splitlines(keepends=True)
    names: set[str] = set()
    for node in _statements(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            _cut_docstring(node.body[:1], lines)
    code = _NO_CODE.sub(rb"\1", b"".join(lines)).strip()
    children = re.findall(rf"""["']-m["'],\s*["']({package}(?:\.\w+)+)["']""".encode(), code)
    return code, frozenset({*names, *(name.decode() for name in children)})


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """Yields a module, all its statements, and what groups them, but not what only the type checker reads."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        types_only = isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for field in ("orelse",) if types_only else ("body", "orelse", "handlers", "finalbody", "cases"):
            waiting += getattr(node, field, ())


def _cut_docstring(first: list[ast.stmt], lines: list[bytes]) -> None:
    """Empties the places of the lines where the first statement of a body is a docstring."""
    for node in first:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            begin, end = node.lineno - 1, (node.end_lineno or node.lineno) - 1
            rest = lines[end][node.end_col_offset :]
            lines[begin : end + 1] = [lines[begin][: node.col_offset] + rest, *[b""] * (end - begin)]
