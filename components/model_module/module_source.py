"""Where a model module lies, what it must hold, and the digest of its code: read, not run."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib
import importlib.util
import os
import threading
from pathlib import Path
from typing import Any

from edgeline.errors import UserError, did_you_mean

REQUIRED_HOOKS = {
    "feature_spec": "feature_spec() -> dict[str, tf.io.FixedLenFeature]",
    "preprocess": "preprocess(features) -> (inputs, label)",
    "build_model": "build_model() -> tf_keras.Model",
    "compile_model": "compile_model(model) -> None",
}
#: `compile_model` may have one more parameter, called `phase`: the name of the phase of `phases`, None outside of them.
#: It and `build_model` may have one called `hyperparameters`, which must have a default: what a Tuner found.
OPTIONAL_HOOKS = {
    "class_names": "class_names() -> list[str]",
    "output_names": "output_names() -> list[str]",
    "slice_features": "slice_features() -> list[str | tuple[str, ...]]",
    "custom_objects": "custom_objects() -> dict[str, object]",
    "augment": "augment(inputs, label, seed) -> (inputs, label)",
    "example_weight": "example_weight(features) -> tf.Tensor",
    "phases": "phases() -> list[tuple[str, int | None, Callable[[tf_keras.Model], None]]]",
}
HOOKS = REQUIRED_HOOKS | OPTIONAL_HOOKS

#: Beam's worker threads load the module at the same time: none may see it half imported, and CPython 3.11 counts the
#: depth of all threads' parsers in one place.
IMPORTING = threading.RLock()


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model module's code is, and what it says, found without running it.

    Attributes:
      reference: as the user gave it (a dotted name), or the absolute path of the file.
      path: the file.
      digest: hexadecimal SHA-256 over the contents of the file and of the local modules it imports.
      local: names of those modules.
    """

    reference: str
    path: Path
    digest: str
    local: tuple[str, ...] = ()


def locate(reference: str, *, needs_model: bool = True) -> Source:
    """Finds a model module and checks its hooks by reading its source, so that mistakes show at once.

    Args:
      reference: path of a `.py` file, or the dotted name of an installed module.
      needs_model: whether it must have `build_model`; False where the model comes from a file.

    Raises:
      UserError: not found, not Python, a hook is missing or has a wrong signature.
    """
    is_path = reference.endswith(".py") or os.sep in reference
    path = Path(reference).resolve() if is_path else _file_of(reference)
    if not path.is_file():
        raise UserError(f"model module {reference}: no such file ({path})")
    try:
        tree = _parse(path.read_bytes(), str(path))
    except SyntaxError as error:
        raise UserError(f"model module {reference} is not valid Python: line {error.lineno}: {error.msg}") from None
    _check_hooks(tree, reference, needs_model)
    if is_path:
        return Source(str(path), path, *_local_code(path, path.parent, None))
    # beside its top-level package lies all else that is installed
    root = path.parents[reference.count(".") + (path.name == "__init__.py")]
    return Source(reference, path, *_local_code(path, root, reference.split(".")[0]))


def _file_of(dotted: str) -> Path:
    try:
        spec = importlib.util.find_spec(dotted)
    except (ImportError, ValueError) as error:
        raise UserError(f"model module {dotted} cannot be imported: {error}") from None
    if spec is None or spec.origin is None:
        raise UserError(
            f"model module {dotted} is not installed; give the dotted name of an installed module or the path of a "
            f".py file"
        )
    return Path(spec.origin)


def arity(hook: str) -> int:
    """Returns how many arguments a hook is called with."""
    arguments = HOOKS[hook].split("(", 1)[1].split(")", 1)[0]
    return len([a for a in arguments.split(",") if a.strip()])


def _parse(content: bytes, file: str) -> ast.Module:
    with IMPORTING:
        return ast.parse(content, filename=file)


def _check_hooks(tree: ast.Module, reference: str, needs_model: bool) -> None:
    """Checks what the source alone shows.

    Hooks that are imported, assigned, or defined in a branch are checked when the module is loaded.
    """
    functions = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    others = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    others |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    others |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    for hook in HOOKS:
        if hook not in functions:
            if hook in REQUIRED_HOOKS and (needs_model or hook != "build_model") and not others & {hook, "*"}:
                raise_missing(hook, reference, functions)
            continue
        a = functions[hook]
        positional = len(a.posonlyargs) + len(a.args)
        fits = positional - len(a.defaults) <= arity(hook) and (positional >= arity(hook) or a.vararg)
        if not fits or any(default is None for default in a.kw_defaults):
            raise_signature(hook, reference, f"{hook}({ast.unparse(a)})")


def raise_missing(hook: str, reference: str, names: Any) -> None:
    """Raises UserError for a hook that the module lacks, naming the function that comes closest."""
    others = [name for name in names if not name.startswith("_") and name not in HOOKS]
    hint = did_you_mean(hook, others, " (did you mean that by {}?)")
    raise UserError(f"model module {reference} has no function {hook}{hint}; expected: def {HOOKS[hook]}")


def raise_signature(hook: str, reference: str, received: str) -> None:
    """Raises UserError for a hook that cannot be called as it has to be."""
    raise UserError(
        f"model module {reference}: {hook} has a wrong signature; expected {HOOKS[hook]}, received {received}"
    )


def _local_code(path: Path, root: Path, package: str | None) -> tuple[str, tuple[str, ...]]:
    """Returns a digest over a file and the local modules it imports, and the names of those.

    Args:
      path: the file.
      root: the folder in which imports are looked up.
      package: the one top-level package in it that is local; None: all are.

    Raises:
      UserError: one of them is not valid Python.
    """
    seen: dict[str, bytes] = {}
    local: set[str] = set()

    def visit(file: Path) -> None:
        key = os.path.relpath(file, path.parent)  # not from root: the digest must not depend on where a checkout lies
        if key in seen:
            return
        seen[key] = file.read_bytes()
        try:
            tree = _parse(seen[key], str(file))
        except SyntaxError as error:
            raise UserError(f"{file}, imported by the model module, is not valid Python: {error}") from None
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                here = file.relative_to(root).parts[: -node.level] if node.level else ()
                base = ".".join((*here, node.module) if node.module else here)
                names = [base, *(f"{base}.{alias.name}".removeprefix(".") for alias in node.names)]
            else:
                continue
            relative = isinstance(node, ast.ImportFrom) and node.level
            for parts in (name.split(".") for name in names if name):
                if package is not None and not relative and parts[0] != package:
                    continue
                # an import of a.b runs a/__init__.py too
                for end in range(1, len(parts) + 1):
                    stem = root.joinpath(*parts[:end])
                    for candidate in (stem.with_suffix(".py"), stem / "__init__.py"):
                        if candidate.is_file():
                            local.add(".".join(parts[:end]))
                            visit(candidate)

    visit(path)
    total = hashlib.sha256()
    for key in sorted(seen):
        total.update(f"{key}\0{len(seen[key])}\0".encode())
        total.update(seen[key])
    return total.hexdigest(), tuple(sorted(local))
