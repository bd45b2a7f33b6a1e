"""What each step needs of the cluster: one YAML file, turned into what Kubeflow Pipelines and Vertex take.

default:                      # for every step; `steps` has precedence, field by field
  cpu: 1                      # request and limit in one; Kubernetes' notation: 500m is half a core
  memory: 4Gi
  retries: 2                  # at most, after a first failure; or with what is else taken by default:
                              # {count: 2, backoff_seconds: 0, backoff_factor: 2, backoff_max_seconds: 86400}
steps:                        # by component (Trainer: all its nodes) or by node (Pruner.prune80), which comes first
  Trainer:
    cpu: {request: 2, limit: 4}
    memory: {request: 4Gi, limit: 8Gi}
    gpu: {count: 1, type: nvidia.com/gpu}     # on Vertex its own names: NVIDIA_TESLA_T4
    # of these Vertex has none
    node_selector: {cloud.google.com/gke-accelerator: nvidia-tesla-t4}
    tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
    secrets:
      - {name: store, env: {access_key: AWS_ACCESS_KEY_ID}}         # key of the secret: variable
      - {name: certificates, path: /etc/certificates}
    volumes: [{claim: models, path: /mnt/models}]                   # existing PersistentVolumeClaims
    timeout_seconds: 7200
  Evaluator:
    beam_args: [--direct_num_workers=4, --direct_running_mode=multi_threading]   # appended; Beam steps only
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from edgeline.errors import UserError, suggest

Json = dict[str, Any]

#: How failed steps are tried again, all of it written: KFP's compiler (2.5 to 2.17, backend/src/v2/compiler/
#: argocompiler/container.go) fills in 0 for what is missing, and Argo (3.7, workflow/controller/operator.go,
#: processNodeRetries) fails a step whose first attempt began longer ago than the greatest duration, here a day; a later
#: attempt that still runs then is ended. KFP's own SDK takes an hour, which the training of a larger model exceeds.
_RETRIES = {"count": 1, "backoff_seconds": 0, "backoff_factor": 2, "backoff_max_seconds": 86400}

_CPU = re.compile(r"\d+(\.\d+)?|\d+m")
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)(|[kMGTPE]|[KMGTPE]i)")
_UNITS = {"": 1, "k": 10**3} | {
    f"{letter}{i}": (1024 if i else 1000) ** (power + 1) for power, letter in enumerate("KMGTPE") for i in ("", "i")
}
_VERTEX_GPU = re.compile("[A-Z][A-Z0-9_]+")
#: What only a Kubernetes cluster of one's own knows.
_CLUSTER_ONLY = ("node_selector", "tolerations", "secrets", "volumes", "timeout_seconds")


@dataclass(frozen=True)
class Settings:
    """The content of a settings file, checked.

    Attributes:
      default: fields for every step.
      steps: fields by component or node.
      source: where it came from, for messages.
    """

    default: Json = field(default_factory=dict)
    steps: dict[str, Json] = field(default_factory=dict)
    source: str = "settings"

    def of(self, node_id: str) -> Json:
        """Returns all fields of a node: its own, then its component's, then the default ones."""
        own = self.steps.get(node_id, {})
        return {**self.default, **self.steps.get(node_id.split(".")[0], {}), **own}


def load(path: Path) -> Settings:
    """Reads a settings file.

    Raises:
      UserError: it cannot be read, or something in it has a wrong name, type or form; says where.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text()) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the settings file {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"the settings file {path} is not valid YAML: {error}") from None
    source = str(path)
    _check_keys(content, ("default", "steps"), source)
    default, steps = content.get("default") or {}, content.get("steps") or {}
    _check_step(default, f"{source}: default")
    if not isinstance(steps, dict):
        raise UserError(f"{source}: steps must be a mapping from step to fields, received {steps!r}")
    for name, fields in steps.items():
        _check_step(fields, f"{source}: steps.{name}")
    return Settings(default, steps, source)


def check_fits(settings: Settings, nodes: Iterable[str], beam_nodes: Iterable[str], target: str) -> None:
    """Holds the settings against a pipeline and a target.

    Args:
      settings: what to check.
      nodes: ids of the nodes that run in containers.
      beam_nodes: ids of those that use Beam.
      target: `oss` or `vertex`.

    Raises:
      UserError: a step is unknown, asks for what the target has not, or takes Beam arguments without using Beam.
    """
    nodes, beam = list(nodes), {name for node in beam_nodes for name in (node, node.split(".")[0])}
    known = sorted({*nodes, *(node.split(".")[0] for node in nodes)})
    for name, fields in settings.steps.items():
        if name not in known:
            raise UserError(f"{settings.source}: steps.{name}: the pipeline has no such step; {suggest(name, known)}")
        if "beam_args" in fields and name not in beam:
            raise UserError(
                f"{settings.source}: steps.{name}.beam_args: this step does not use Beam; {', '.join(sorted(beam))} do"
            )
    if "beam_args" in settings.default:
        raise UserError(f"{settings.source}: default.beam_args: give them to the steps that use Beam")
    for name, fields in {"default": settings.default, **{f"steps.{n}": f for n, f in settings.steps.items()}}.items():
        where = f"{settings.source}: {name}"
        if target == "vertex" and (refused := [key for key in _CLUSTER_ONLY if key in fields]):
            raise UserError(f"{where}: Vertex has no {', '.join(refused)}; leave that to --target oss")
        kind = fields.get("gpu", {}).get("type", "nvidia.com/gpu")
        if "gpu" in fields and target == "vertex" and not _VERTEX_GPU.fullmatch(kind):
            raise UserError(f"{where}.gpu.type: Vertex wants its own name, e.g. NVIDIA_TESLA_T4, received {kind!r}")
        if "gpu" in fields and target == "oss" and "/" not in kind:
            raise UserError(
                f"{where}.gpu.type: Kubernetes wants the name of a resource, e.g. nvidia.com/gpu, received {kind!r}; "
                f"choose the model by node_selector"
            )


def apply(settings: Settings, spec: Json, names: dict[str, str]) -> Json | None:
    """Writes the settings into a compiled pipeline.

    Args:
      settings: checked by `check_fits`.
      spec: the pipeline in its JSON form, nodes already renamed; changed in place.
      names: the task's name by node id.

    Returns:
      The platform document that belongs behind the pipeline, None where nothing asks for one.
    """
    from google.protobuf import json_format

    executors = spec["deploymentSpec"]["executors"]
    platform = {}
    for node, name in names.items():
        fields = settings.of(node)
        executor = executors.get(f"exec-{name}", {})
        if not fields or "container" not in executor:
            continue
        resources = json_format.MessageToDict(_resources(fields))
        if resources:
            executor["container"]["resources"] = resources
        if (policy := _retry_policy(fields.get("retries", 0))) is not None:
            for owner in (spec["root"], *spec["components"].values()):
                if name in (tasks := owner.get("dag", {}).get("tasks", {})):
                    tasks[name]["retryPolicy"] = policy
        config = json_format.MessageToDict(_kubernetes(fields))
        if config:
            platform[f"exec-{name}"] = config
    if not platform:
        return None
    return {"platforms": {"kubernetes": {"deploymentSpec": {"executors": platform}}}}


def mounted_at(settings: Settings, node_id: str, path: str) -> bool:
    """Returns whether a step has a volume mounted at a path or above it."""
    parents = (PurePosixPath(path), *PurePosixPath(path).parents)
    return any(PurePosixPath(volume["path"]) in parents for volume in settings.of(node_id).get("volumes", []))


def _retry_policy(retries: int | Json) -> Json | None:
    """Returns the retryPolicy of a task, None where it is not to be tried again."""
    whole = _RETRIES | (retries if isinstance(retries, dict) else {"count": retries})
    if not whole["count"]:
        return None
    return {
        "maxRetryCount": whole["count"],
        "backoffDuration": f"{whole['backoff_seconds']}s",
        "backoffFactor": float(whole["backoff_factor"]),
        "backoffMaxDuration": f"{whole['backoff_max_seconds']}s",
    }


def _resources(fields: Json) -> Any:
    """Returns the ResourceSpec of a step: Kubernetes' notation, and the numbers that Vertex and old servers read."""
    from kfp.pipeline_spec import pipeline_spec_pb2

    result = pipeline_spec_pb2.PipelineDeploymentConfig.PipelineContainerSpec.ResourceSpec()
    for name, to_number in (("cpu", _cores), ("memory", _gigabytes)):
        if name in fields:
            amounts = (
                fields[name] if isinstance(fields[name], dict) else {"request": fields[name], "limit": fields[name]}
            )
            for kind, value in amounts.items():
                setattr(result, f"resource_{name}_{kind}", str(value))
                setattr(result, f"{name}_{kind}", to_number(str(value)))
    if "gpu" in fields:
        kind, count = fields["gpu"].get("type", "nvidia.com/gpu"), fields["gpu"]["count"]
        result.accelerator.type = result.accelerator.resource_type = kind
        result.accelerator.count, result.accelerator.resource_count = count, str(count)
    return result


def _kubernetes(fields: Json) -> Any:
    from kfp.kubernetes import kubernetes_executor_config_pb2 as pb

    config = pb.KubernetesExecutorConfig()
    config.node_selector.labels.update(fields.get("node_selector", {}))
    if not config.node_selector.labels:
        config.ClearField("node_selector")
    for toleration in fields.get("tolerations", []):
        config.tolerations.add(**toleration)
    for secret in fields.get("secrets", []):
        # only `secret_name` and `constant`, which all servers understand; later ones would also take a parameter
        if "path" in secret:
            config.secret_as_volume.add(secret_name=secret["name"], mount_path=secret["path"])
        else:
            pairs = [pb.SecretAsEnv.SecretKeyToEnvMap(secret_key=k, env_var=v) for k, v in secret["env"].items()]
            config.secret_as_env.add(secret_name=secret["name"], key_to_env=pairs)
    for volume in fields.get("volumes", []):
        config.pvc_mount.add(constant=volume["claim"], mount_path=volume["path"])
    config.active_deadline_seconds = fields.get("timeout_seconds", 0)
    return config


def _cores(value: str) -> float:
    return float(value[:-1]) / 1000 if value.endswith("m") else float(value)


def _gigabytes(value: str) -> float:
    match = _MEMORY.fullmatch(value)
    if match is None:
        raise ValueError(f"no amount of memory: {value!r}")
    return float(match[1]) * _UNITS[match[2]] / 1e9


def _check_step(fields: Any, where: str) -> None:
    _check_keys(fields, tuple(_CHECKS), where)
    for name, value in fields.items():
        expected = _CHECKS[name](value)
        if expected:
            raise UserError(f"{where}.{name} must be {expected}, received {value!r}")


def _check_keys(value: Any, known: tuple[str, ...], where: str) -> None:
    if not isinstance(value, dict):
        raise UserError(f"{where} must be a mapping with some of {', '.join(known)}, received {value!r}")
    for key in value:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}; {suggest(str(key), known)}")


def _amount(form: re.Pattern[str], example: str, to_number: Callable[[str], float]) -> Callable[[Any], str]:
    def check(value: Any) -> str:
        parts = value.values() if isinstance(value, dict) else [value]
        fits = all(isinstance(p, int | float | str) and form.fullmatch(str(p)) for p in parts)
        fits = fits and (not isinstance(value, dict) or (bool(value) and set(value) <= {"request", "limit"}))
        if not fits:
            return f"an amount like {example}, or a mapping of request and limit to such"
        numbers = {key: to_number(str(part)) for key, part in value.items()} if isinstance(value, dict) else {}
        fits = numbers.get("request", 0) <= numbers.get("limit", math.inf)
        return "" if fits else "a request that is not above its limit"

    return check


def _number(least: int) -> Callable[[Any], str]:
    return lambda value: "" if type(value) is int and value >= least else f"an integer of at least {least}"


def _retries(value: Any) -> str:
    given = value if isinstance(value, dict) else {"count": value}
    # Argo reads the factor as a whole number, and none of less than 1 would make a later attempt wait longer
    least = {"count": 0, "backoff_seconds": 0, "backoff_factor": 1, "backoff_max_seconds": 1}
    fits = "count" in given and all(
        key in least and type(number) is int and number >= least[key] for key, number in given.items()
    )
    if not fits:
        return f"an integer of at least 0, or a mapping like {{count: 2, backoff_seconds: 60}} (of {', '.join(least)})"
    whole = _RETRIES | given
    waits = whole["backoff_seconds"] < whole["backoff_max_seconds"]
    return "" if waits else "such that backoff_seconds is below backoff_max_seconds (86400 unless given)"


def _gpu(value: Any) -> str:
    fits = isinstance(value, dict) and {"count"} <= set(value) <= {"count", "type"}
    fits = fits and type(value["count"]) is int and value["count"] >= 1 and isinstance(value.get("type", ""), str)
    return "" if fits else "a mapping like {count: 1, type: nvidia.com/gpu}"


def _texts(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(part, str) for kv in value.items() for part in kv)


def _selector(value: Any) -> str:
    return "" if _texts(value) else "a mapping from label to value, both text"


def _listing(fits: Callable[[Any], bool], example: str) -> Callable[[Any], str]:
    return lambda value: "" if isinstance(value, list) and all(map(fits, value)) else f"a list like [{example}]"


def _toleration(value: Any) -> bool:
    texts = {k: v for k, v in value.items() if k != "toleration_seconds"} if isinstance(value, dict) else None
    return (
        _texts(texts)
        and set(value) <= {"key", "operator", "value", "effect", "toleration_seconds"}
        and value.get("operator", "Equal") in ("Equal", "Exists")
        and value.get("effect", "NoSchedule") in ("NoSchedule", "PreferNoSchedule", "NoExecute")
        and type(value.get("toleration_seconds", 0)) is int
    )


def _secret(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return False
    if set(value) == {"name", "env"}:
        return _texts(value["env"])
    return set(value) == {"name", "path"} and str(value["path"]).startswith("/")


def _volume(value: Any) -> bool:
    return _texts(value) and set(value) == {"claim", "path"} and value["path"].startswith("/")


#: By field, what says how a value would have to be; "" where it is so.
_CHECKS: dict[str, Callable[[Any], str]] = {
    "cpu": _amount(_CPU, "2 or 500m", _cores),
    "memory": _amount(_MEMORY, "4Gi", _gigabytes),
    "gpu": _gpu,
    "node_selector": _selector,
    "tolerations": _listing(_toleration, "{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}"),
    "secrets": _listing(_secret, "{name: store, env: {access_key: AWS_ACCESS_KEY_ID}}, {name: c, path: /etc/c}"),
    "volumes": _listing(_volume, "{claim: models, path: /mnt/models}"),
    "retries": _retries,
    "timeout_seconds": _number(1),
    "beam_args": _listing(lambda value: isinstance(value, str) and value.startswith("--"), "--direct_num_workers=4"),
}
