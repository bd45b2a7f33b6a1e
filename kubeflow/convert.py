"""What TFX's Kubeflow compiler gets wrong, mended in its output.

Each function below mends one thing in a PipelineSpec in its JSON form (nested dicts), in place. They know nothing of
TFX but the shape of what it writes, and do nothing where there is nothing to mend.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from edgeline.errors import UserError

Json = dict[str, Any]

SPEC_FLAG = "--json_serialized_inputs_spec_args"

#: Names that Argo's or KFP's own templates have.
_TAKEN = ("root", "entrypoint")


def restore_defaults(spec: Json, defaults: Mapping[str, Any]) -> None:
    """Gives the pipeline's parameters their defaults, which TFX drops: the server refuses runs that omit one.

    Args:
      spec: the pipeline.
      defaults: by parameter; None for those that every run must give.
    """
    for name, parameter in _parameters(spec["root"]).items():
        if defaults.get(name) is not None:
            parameter["defaultValue"] = defaults[name]


def restore_types(spec: Json, values: Mapping[str, Mapping[str, Any]]) -> None:
    """Declares parameters that are bool, dict or list as such: TFX writes a bool as a number, the others as text.

    Args:
      spec: the pipeline, its nodes still named as in TFX.
      values: by node id and parameter, the values as they are in Python.
    """
    kinds = {bool: "BOOLEAN", dict: "STRUCT", list: "LIST"}
    for dag in _dags(spec):
        for node, task in dag["tasks"].items():
            for name, value in values.get(node, {}).items():
                if type(value) in kinds:
                    declared = _parameters(spec["components"][task["componentRef"]["name"]])
                    declared[name]["parameterType"] = kinds[type(value)]
                    task["inputs"]["parameters"][name] = {"runtimeValue": {"constant": value}}


def fix_producers(spec: Json) -> None:
    """Lets parameters that come from another task name that task, and have the type of what it gives.

    TFX appends `_task` to the name, which no task is called, and declares all such parameters as text.
    """
    for dag in _dags(spec):
        for task in dag["tasks"].values():
            for name, parameter in task.get("inputs", {}).get("parameters", {}).items():
                source = parameter.get("taskOutputParameter")
                if source is None:
                    continue
                if source["producerTask"] not in dag["tasks"]:
                    source["producerTask"] = source["producerTask"].removesuffix("_task")
                producer = spec["components"][dag["tasks"][source["producerTask"]]["componentRef"]["name"]]
                given = producer["outputDefinitions"]["parameters"][source["outputParameterKey"]]
                declared = _parameters(spec["components"][task["componentRef"]["name"]])
                declared[name]["parameterType"] = given["parameterType"]


def fix_conditions(spec: Json) -> None:
    """Lets conditions name the task's input; TFX writes `_Producer.output` even where the input has another name."""
    for dag in _dags(spec):
        for task in dag["tasks"].values():
            policy = task.get("triggerPolicy", {})
            if "condition" not in policy:
                continue
            artifacts = task.get("inputs", {}).get("artifacts", {})
            names = {}
            for name, artifact in artifacts.items():
                source = artifact["taskOutputArtifact"]
                names[f"_{source['producerTask']}.{source['outputArtifactKey']}"] = name

            def rename(match: re.Match[str], names: Json = names, known: Json = artifacts) -> str:
                key = match[1] if match[1] in known else names.get(match[1], match[1])
                return f"inputs.artifacts['{key}']"

            policy["condition"] = re.sub(r"inputs\.artifacts\['([^']+)'\]", rename, policy["condition"])


def forward_parameters(spec: Json) -> None:
    """Hands the pipeline's parameters into its sub-DAGs, which TFX makes for an exit handler and gives no inputs."""
    for outer in _dags(spec):
        for task in outer["tasks"].values():
            inner = spec["components"][task["componentRef"]["name"]]
            for name in _inherited(inner):
                if name not in _parameters(inner):
                    definition = {k: v for k, v in _parameters(spec["root"])[name].items() if k != "defaultValue"}
                    inner.setdefault("inputDefinitions", {}).setdefault("parameters", {})[name] = definition
                    given = task.setdefault("inputs", {}).setdefault("parameters", {})
                    given[name] = {"componentInputParameter": name}


def set_caching(spec: Json, enabled: bool) -> None:
    """Lets every step be served from earlier runs, or none; never an importer: it would hide new data."""
    for dag in _dags(spec):
        for task in dag["tasks"].values():
            executor = _executor(spec, task)
            task.pop("cachingOptions", None)
            # the end of a run must be reported for that run
            handler = task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED"
            if enabled and executor is not None and "importer" not in executor and not handler:
                task["cachingOptions"] = {"enableCache": True}


def set_environment(spec: Json, variables: Mapping[str, str]) -> None:
    """Sets environment variables in every container."""
    for executor in spec["deploymentSpec"]["executors"].values():
        if "container" in executor:
            executor["container"]["env"] = [{"name": name, "value": value} for name, value in variables.items()]


def bake_declarations(spec: Json) -> None:
    """Writes each component's mended declaration into its command line, from which the container takes its types."""
    for component in spec["components"].values():
        executor = spec["deploymentSpec"]["executors"].get(component.get("executorLabel"), {})
        arguments = executor.get("container", {}).get("args", [])
        if SPEC_FLAG in arguments:
            text = json.dumps(component.get("inputDefinitions", {}), sort_keys=True, separators=(",", ":"))
            arguments[arguments.index(SPEC_FLAG) + 1] = text


def rename_nodes(spec: Json) -> dict[str, str]:
    """Gives tasks, components and executors the names that KFP's own compiler would: no dots or underscores.

    Returns:
      The task's name by node id.

    Raises:
      UserError: two nodes would get the same name, or one that is taken.
    """
    names: dict[str, str] = {}
    for dag in _dags(spec):
        for node in dag["tasks"]:
            name = re.sub("[^A-Za-z0-9-]", "-", node)
            if name in _TAKEN or name.endswith("-driver"):
                raise UserError(f"a node cannot be called {node} on Kubeflow, which needs that name; give it another")
            if name in names.values():
                other = next(key for key, value in names.items() if value == name)
                raise UserError(
                    f"the nodes {other} and {node} are both called {name} on Kubeflow, where names have letters, "
                    f"digits and hyphens only; rename one"
                )
            names[node] = name

    executors = spec["deploymentSpec"]["executors"]
    components: Json = {}
    for node, component in spec["components"].items():
        name = names[node]
        components[f"comp-{name}"] = component
        if "executorLabel" in component:
            executors[f"exec-{name}"] = executors.pop(component["executorLabel"])
            component["executorLabel"] = f"exec-{name}"
    for dag in _dags(spec):
        for task in dag["tasks"].values():
            task["taskInfo"]["name"] = names[task["taskInfo"]["name"]]
            task["componentRef"]["name"] = f"comp-{names[task['componentRef']['name']]}"
            if "dependentTasks" in task:
                task["dependentTasks"] = sorted(names[node] for node in task["dependentTasks"])
            for source in _sources(task):
                source["producerTask"] = names[source["producerTask"]]
        dag["tasks"] = {names[node]: task for node, task in dag["tasks"].items()}
    spec["components"] = components
    return names


def check_wiring(spec: Json) -> None:
    """Checks what no schema says: that everything a task refers to is there, and that no artifact is two of its inputs.

    Raises:
      UserError: something is not; names the task and what it refers to.
    """
    for owner in (spec["root"], *spec["components"].values()):
        dag = owner.get("dag", {"tasks": {}})
        for name, task in sorted(dag["tasks"].items()):
            inputs = task.get("inputs", {})
            component = spec["components"][task["componentRef"]["name"]]
            producers = {
                ("task", source["producerTask"])
                for source in _sources(task)
                if source["producerTask"] not in dag["tasks"]
            }
            for parameter in inputs.get("parameters", {}).values():
                given = parameter.get("componentInputParameter")
                if given is not None and given not in _parameters(owner):
                    producers.add(("parameter", given))
            _check_distinct(name, inputs.get("artifacts", {}))
            for key in ("parameters", "artifacts"):
                for port in set(inputs.get(key, {})) - set(component.get("inputDefinitions", {}).get(key, {})):
                    producers.add((f"port of its {key}", port))
            for port in re.findall(
                r"inputs\.artifacts\['([^']+)'\]", task.get("triggerPolicy", {}).get("condition", "")
            ):
                if port not in inputs.get("artifacts", {}):
                    producers.add(("condition's input", port))
            for kind, missing in sorted(producers):
                raise UserError(
                    f"the compiled pipeline is broken: task {name} asks for the {kind} {missing!r}, which is not there"
                )


def _check_distinct(task: str, artifacts: Json) -> None:
    """Refuses one artifact as two inputs: the driver records each, and ML Metadata has one INPUT event for both."""
    ports: dict[str, str] = {}
    for port, source in sorted(artifacts.items()):
        if (other := ports.setdefault(json.dumps(source, sort_keys=True), port)) != port:
            given = source.get("taskOutputArtifact", {})
            raise UserError(
                f"the inputs {other} and {port} of task {task} are one artifact, {given.get('outputArtifactKey')} of "
                f"{given.get('producerTask')}, which Kubeflow Pipelines cannot record twice; give the node one input"
            )


def _parameters(component: Json) -> Json:
    declared: Json = component.get("inputDefinitions", {}).get("parameters", {})
    return declared


def _dags(spec: Json) -> Iterator[Json]:
    for owner in (spec["root"], *spec["components"].values()):
        if "dag" in owner:
            yield owner["dag"]


def _executor(spec: Json, task: Json) -> Json | None:
    label = spec["components"][task["componentRef"]["name"]].get("executorLabel")
    return None if label is None else spec["deploymentSpec"]["executors"][label]


def _inherited(component: Json) -> list[str]:
    """Returns the names of the owner's parameters that a sub-DAG's tasks ask for."""
    tasks = component.get("dag", {}).get("tasks", {}).values()
    given = [p for task in tasks for p in task.get("inputs", {}).get("parameters", {}).values()]
    return sorted({p["componentInputParameter"] for p in given if "componentInputParameter" in p})


def _sources(task: Json) -> Iterator[Json]:
    """Yields everything in a task that names the task it comes from."""
    for kind in ("artifacts", "parameters"):
        for value in task.get("inputs", {}).get(kind, {}).values():
            for key in ("taskOutputArtifact", "taskOutputParameter", "taskFinalStatus"):
                if key in value:
                    yield value[key]
