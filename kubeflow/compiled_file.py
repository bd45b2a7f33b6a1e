"""Compiled pipelines: what they can be asked, and with which values."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeline.errors import UserError, suggest

if TYPE_CHECKING:
    pass

# ---------------------------------------------------------------- schedules


@dataclass(frozen=True)
class Parameter:
    """A parameter that the pipeline declares.

    Attributes:
        type: As in the file: STRING, NUMBER_INTEGER, NUMBER_DOUBLE, BOOLEAN, LIST or STRUCT.
        required: Whether a run must give it.
        default: What it is else.
    """

    type: str
    required: bool
    default: Any = None


@dataclass(frozen=True)
class CompiledPipeline:
    """What `edgeline kubeflow compile` wrote, as far as a client needs to know it.

    Attributes:
        path: The file.
        name: The pipeline's.
        version: `<version of Edgeline>-<12 digits of the file's SHA-256>`: the same file is the same version.
        root: The pipeline root it was compiled for, if it says.
        fixed_data: Whether it takes what is behind a URI for what it was the first time: compiled with --fixed-data.
        parameters: By name.
        images: Container image to the executors that use it.
        tasks: Names of the steps, each after those it needs.
    """

    path: Path
    name: str
    version: str
    root: str | None
    fixed_data: bool
    parameters: Mapping[str, Parameter]
    images: Mapping[str, Sequence[str]]
    tasks: Sequence[str]


def read_compiled(path: Path) -> CompiledPipeline:
    """Reads a compiled pipeline.

    Raises:
        UserError: If the file cannot be read, is not for Kubeflow Pipelines, or is another Edgeline's.
    """
    import yaml

    again = "compile it with: edgeline kubeflow compile"
    try:
        text = path.read_text(encoding="utf-8")
        documents = list(yaml.safe_load_all(text))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; {again}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} is no YAML ({' '.join(str(error).split())}); {again}") from None
    spec = documents[0] if documents else None
    if not isinstance(spec, dict) or not 1 <= len(documents) <= 2:
        raise UserError(f"{path} holds no pipeline; {again}")
    if "pipelineSpec" in spec:
        raise UserError(f"{path} is a Vertex AI job, which Kubeflow Pipelines does not read; {again}")

    header = re.match(r"# .*, compiled by edgeline (\S+) for --target (\S+)$", text, re.M)
    if header is None:
        raise UserError(f"{path} was not compiled by Edgeline (its first line would say so); {again}")
    theirs, target = header.groups()
    ours = importlib.metadata.version("edgeline")
    if theirs != ours:
        raise UserError(f"{path} was compiled by Edgeline {theirs}, this is {ours}; {again}")
    if target != "oss":
        raise UserError(f"{path} was compiled for --target {target}; for a server of Kubeflow Pipelines {again}")
    if spec.get("schemaVersion") != "2.1.0" or "root" not in spec or "pipelineInfo" not in spec:
        raise UserError(f"{path} is no pipeline of schema 2.1.0 (it says {spec.get('schemaVersion')}); {again}")

    images: dict[str, list[str]] = {}
    executors = spec.get("deploymentSpec", {}).get("executors", {})
    for executor, content in executors.items():
        if "container" in content:
            images.setdefault(content["container"]["image"], []).append(executor)
    declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    return CompiledPipeline(
        path=path,
        name=spec["pipelineInfo"]["name"],
        version=f"{ours}-{hashlib.sha256(text.encode()).hexdigest()[:12]}",
        root=spec.get("defaultPipelineRoot"),
        fixed_data=any(
            "importer" in content and not content["importer"].get("reimport") for content in executors.values()
        ),
        parameters={
            name: Parameter(
                content["parameterType"],
                "defaultValue" not in content and not content.get("isOptional"),
                content.get("defaultValue"),
            )
            for name, content in declared.items()
        },
        images=images,
        tasks=tuple(_task_names(spec["root"]["dag"], spec.get("components", {}))),
    )


def _task_names(dag: Mapping[str, Any], components: Mapping[str, Any]) -> Iterator[str]:
    """Yields the names of the tasks that run something, each after those it depends on."""
    waiting = dict(dag["tasks"])
    while waiting:
        ready = [name for name, task in waiting.items() if not set(task.get("dependentTasks", ())) & waiting.keys()]
        for name in ready or list(waiting):  # a circle is the server's to refuse
            inner = components.get(waiting.pop(name)["componentRef"]["name"], {}).get("dag")
            if inner:
                yield from _task_names(inner, components)
            else:
                yield name


def check_images(compiled: CompiledPipeline) -> None:
    """Checks that every image is named by its digest.

    Behind a tag, the image may change between two runs and even between two steps of one; and the server's cache, which
    knows images by name, would serve what the old one made.

    Raises:
        UserError: If one is not.
    """
    for image, executors in compiled.images.items():
        if not re.search(r"@sha256:[0-9a-f]{64}$", image):
            raise UserError(
                f"{compiled.path}: the image {image} of {executors[0]} is named by a tag, which can come to mean "
                "another image between two steps, unseen by the cache. Compile with its digest (NAME@sha256:...; "
                "docker push prints it), or allow it with --allow-mutable-tag"
            )


def coerce_parameters(declared: Mapping[str, Parameter], given: Sequence[str]) -> dict[str, Any]:
    """Returns the values of `NAME=VALUE` texts in the types that the pipeline declares.

    Raises:
        UserError: If a name is unknown or given twice, a required one is missing, or a value is not of its type.
    """
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--param {text}: expected NAME=VALUE")
        if name not in declared:
            raise UserError(
                f"--param {text}: the pipeline has no parameter {name!r}; {suggest(name, sorted(declared))}"
            )
        if name in values:
            raise UserError(f"--param {text}: {name!r} is given twice")
        values[name] = _coerce(name, value, declared[name].type)
    missing = [name for name, parameter in declared.items() if parameter.required and name not in values]
    if missing:
        raise UserError(f"the pipeline needs a value for {', '.join(missing)}: give --param {missing[0]}=VALUE")
    return values


def _coerce(name: str, text: str, kind: str) -> Any:
    value: Any = text
    if kind == "BOOLEAN":
        value = {"true": True, "false": False}.get(text.lower())
        expected = "true or false"
    elif kind in ("NUMBER_INTEGER", "NUMBER_DOUBLE"):
        whole = kind == "NUMBER_INTEGER"
        expected = "a whole number" if whole else "a number"
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = None
        # on the way, every number is a double
        if value is not None and not (abs(value) <= 2**53 if whole else math.isfinite(value)):
            value = None
    elif kind in ("LIST", "STRUCT"):
        expected = "a JSON list" if kind == "LIST" else "a JSON object"
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, list if kind == "LIST" else dict):
            value = None
    if value is None:
        raise UserError(f"--param {name}={text}: {name} is a {kind}; expected {expected}")
    return value


# ---------------------------------------------------------------- the server
