"""A Kubeflow Pipelines server as this project needs it: upload, run, watch and schedule a compiled pipeline.

The functions above `Server` need no server. kfp is imported inside functions: it is an optional dependency.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.metadata
import io
import json
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeline.errors import UserError

if TYPE_CHECKING:
    import kfp_server_api

# ---------------------------------------------------------------- schedules

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_LONGEST_MONTHS = dict(zip(range(1, 13), (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31), strict=True))


@dataclass(frozen=True)
class _CronField:
    name: str
    low: int
    high: int
    names: Sequence[str] = ()


_CRON_FIELDS = (
    _CronField("second", 0, 59),
    _CronField("minute", 0, 59),
    _CronField("hour", 0, 23),
    _CronField("day of the month", 1, 31),
    _CronField("month", 1, 12, _MONTHS),
    _CronField("day of the week", 0, 7, _WEEKDAYS),
)
_CRON_SHORTHANDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_CRON_PART = re.compile(r"(?:[*?]|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<step>\d+))?")


def to_kfp_cron(expression: str) -> str:
    """Returns a cron expression in the six fields that Kubeflow Pipelines reads: seconds first.

    Its parser (robfig/cron v1) takes five fields too, but then as a six-field expression without the day of the week:
    it would read Unix's `0 2 * * *` (02:00) as minute 2 of every hour. It also knows no weekday 7 and no range that
    ends on Sunday; both are written out here, and names become numbers.

    Args:
        expression: Unix's five fields (minute, hour, day of the month, month, day of the week), six fields with the
            seconds first, or a shorthand such as `@daily`.

    Raises:
        UserError: If it cannot be read, or no day ever fits it.
    """
    text = _CRON_SHORTHANDS.get(expression.strip().lower(), expression)
    if text.startswith("@"):
        near = "--every is for intervals" if text.startswith("@every") else f"known are {', '.join(_CRON_SHORTHANDS)}"
        raise UserError(f"--cron {expression!r}: no such shorthand; {near}")
    fields = text.split()
    if len(fields) == 5:
        fields = ["0", *fields]
    if len(fields) != 6:
        raise UserError(
            f"--cron {expression!r} has {len(fields)} fields; expected five (minute, hour, day of the month, month, "
            "day of the week), or six with the second before them. Example: --cron '30 2 * * *' is 02:30 every night"
        )
    parsed = [_parse_cron_field(field, what, expression) for field, what in zip(fields, _CRON_FIELDS, strict=True)]
    (_, days), (_, months), (weekdays, _) = parsed[3:]
    if weekdays == "*" and min(days) > max(_LONGEST_MONTHS[month] for month in months):
        raise UserError(f"--cron {expression!r} never comes: no month it names has {min(days)} days")
    return " ".join(field for field, _ in parsed)


def _parse_cron_field(text: str, field: _CronField, expression: str) -> tuple[str, set[int]]:
    """Returns the field in the server's words, and all values it stands for."""

    def number(word: str) -> int:
        value = int(word) if word.isdecimal() else -1
        if word.lower() in field.names:
            value = field.low + field.names.index(word.lower())
        if not field.low <= value <= field.high:
            names = f" or {', '.join(field.names)}" if field.names else ""
            raise UserError(
                f"--cron {expression!r}: {word!r} is no {field.name}; expected {field.low} to {field.high}{names}"
            )
        return value

    written, values = [], set[int]()
    for part in text.split(","):
        match = _CRON_PART.fullmatch(part)
        if match is None or match["step"] == "0":
            raise UserError(
                f"--cron {expression!r}: cannot read {part!r} as the {field.name}; expected a value, *, a range A-B, "
                "each with or without a step /N, or several of them joined by commas"
            )
        step = int(match["step"] or 1)
        if match["first"] is None:
            low, high = field.low, min(field.high, 6) if field.names is _WEEKDAYS else field.high
            written.append("*" if step == 1 else f"*/{step}")
        else:
            low = number(match["first"])
            high = number(match["last"]) if match["last"] else low if match["step"] is None else field.high
            if field.names is _WEEKDAYS and match["last"] and high == 0 < low:
                high = 7  # a range that ends on Sunday
            if low > high:
                raise UserError(
                    f"--cron {expression!r}: the range {part!r} goes backwards; write it as two, joined by a comma"
                )
            if field.names is _WEEKDAYS and high == 7:
                written.extend(dict.fromkeys(str(day % 7) for day in range(low, high + 1, step)))
            else:
                written.append(f"{low}-{high}" if high > low else str(low))
                written[-1] += f"/{step}" if step > 1 else ""
        values.update(range(low, high + 1, step))
    return ",".join(dict.fromkeys(written)), values


def parse_duration(text: str) -> int:
    """Returns a duration such as `6h`, `90m` or `1d12h` in seconds.

    Raises:
        UserError: If it cannot be read, or is zero.
    """
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text.strip().lower())
    parts = match.groups(default="0") if match else ()
    seconds = sum(int(part) * unit for part, unit in zip(parts, (86400, 3600, 60, 1), strict=False))
    if seconds == 0:
        raise UserError(f"--every {text!r} is no duration; expected days, hours, minutes, seconds: 6h, 90m, 1d12h")
    return seconds


@dataclass(frozen=True)
class Trigger:
    """When a schedule runs: exactly one of the two.

    Attributes:
        cron: Six fields, as `to_kfp_cron` returns them.
        every: Seconds between two runs.
    """

    cron: str | None = None
    every: int | None = None


# ---------------------------------------------------------------- the compiled file


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
            raise UserError(f"--param {text}: the pipeline has no parameter {name!r}; {_nearest(name, declared)}")
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


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are {', '.join(known)}" if known else "there is none"


# ---------------------------------------------------------------- the server

State = Literal["waiting", "running", "cached", "done", "failed", "skipped"]
_STATES: dict[str | None, State] = {
    "RUNNING": "running",
    "SUCCEEDED": "done",
    "CACHED": "cached",
    "SKIPPED": "skipped",
    "FAILED": "failed",
    "CANCELING": "failed",
    "CANCELED": "failed",
}
_ENDS = ("SUCCEEDED", "SKIPPED", "FAILED", "CANCELED")


@dataclass(frozen=True)
class Step:
    """A step of a run that has entered a state; the fields are those of the local runner's events.

    Attributes:
        node_id: The step's name.
        state: The state.
        seconds: How long it took; 0.0 unless it has ended.
        detail: Why it failed, in one line. Else empty.
    """

    node_id: str
    state: State = "waiting"
    seconds: float = 0.0
    detail: str = ""


@dataclass(frozen=True)
class Schedule:
    """A recurring run on the server.

    Attributes:
        id: The server's.
        name: Its name.
        enabled: Whether it runs; False when paused.
        trigger: When it runs.
        pipeline_id: Of what it runs.
        version_id: Of what it runs.
        parameters: Given to each run.
        root: The pipeline root of each run.
        max_concurrency: How many of its runs may go on at once, 1 to 10.
        catchup: Whether runs that were missed are made up for.
        service_account: The Kubernetes service account of each run; empty: the server's default.
    """

    id: str
    name: str
    enabled: bool
    trigger: Trigger
    pipeline_id: str
    version_id: str
    parameters: Mapping[str, Any]
    root: str
    max_concurrency: int = 1
    catchup: bool = False
    service_account: str = ""


@dataclass(frozen=True)
class Connection:
    """How to reach a server.

    Attributes:
        host: Its URL. None: the environment's (KF_PIPELINES_ENDPOINT), the cluster this runs in, or kubectl's.
        namespace: The user's, where the server keeps users apart.
        token: A bearer token. None: the service account's that is mounted into a pod, if there is one.
        cookies: The header `Cookie`, as a browser sends it after logging in.
        ca_cert: File with the certificates to trust. None: the usual ones.
    """

    host: str | None = None
    namespace: str | None = None
    token: str | None = None
    cookies: str | None = None
    ca_cert: str | None = None


class Server:
    """A Kubeflow Pipelines server.

    Every method raises UserError when the server cannot be reached or refuses.
    """

    def __init__(self, connection: Connection):
        try:
            import kfp.client
            from kfp.client import set_volume_credentials
        except ImportError:
            raise UserError("Kubeflow needs more packages: pip install 'edgeline[kubeflow]'") from None

        class _Client(kfp.client.Client):
            def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
                """Asks once: kfp's own asks five times in half a minute, whatever the answer was."""
                return self._healthz_api.healthz_service_get_healthz(_request_timeout=20)

        host = connection.host or os.environ.get("KF_PIPELINES_ENDPOINT")
        self.host = host.rstrip("/") if host else None
        self._where = self.host or "the cluster's server"
        if host and not re.match(r"https?://", host):
            raise UserError(f"--host {host}: expected a URL that begins with http:// or https://")
        in_cluster = "KUBERNETES_SERVICE_HOST" in os.environ
        if not (host or in_cluster or "KUBECONFIG" in os.environ or Path("~/.kube/config").expanduser().exists()):
            raise UserError(
                "no server: give --host URL (or set KF_PIPELINES_ENDPOINT), for example --host http://localhost:8080 "
                "beside: kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
            )
        credentials = None
        mounted = os.environ.get(kfp.client.KF_PIPELINES_SA_TOKEN_ENV) or kfp.client.KF_PIPELINES_SA_TOKEN_PATH
        if connection.token is None and Path(mounted).exists():
            credentials = set_volume_credentials.ServiceAccountTokenVolumeCredentials(mounted)
        # it warns of each attempt, and the last one is an error anyway
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
        with self._explained("log in"), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            self._client = _Client(
                host=self.host,
                existing_token=connection.token,
                cookies=connection.cookies,
                credentials=credentials,
                ssl_ca_cert=connection.ca_cert,
            )
            health = self._client._healthz_api.healthz_service_get_healthz(
                _preload_content=False, _request_timeout=20
            ).data
        try:
            multi_user = json.loads(health).get("multi_user", False)
        except (ValueError, AttributeError):
            raise UserError(
                f"{self._where} answers with a web page where the API should be: perhaps a login page. Give a token "
                "(--token-file) or the browser's session cookie (--cookies-file), or correct --host"
            ) from None
        self.namespace = connection.namespace or self._client.get_user_namespace() or None
        if multi_user and not self.namespace:
            raise UserError(f"{self._where} keeps its users apart: say whose runs these are with --namespace NAME")

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        """Turns what kfp raises into a UserError with the remedy, and keeps kfp from printing."""
        import kfp_server_api
        import urllib3

        try:
            with contextlib.redirect_stdout(io.StringIO()):
                yield
        except kfp_server_api.ApiException as error:
            raise UserError(f"{self._where} could not {doing}: {_explain(error)}") from error
        except urllib3.exceptions.HTTPError as error:
            raise UserError(
                f"cannot reach {self._where} ({_last_reason(error)}). Check --host; from outside the cluster it is "
                "often http://localhost:8080 beside: kubectl port-forward -n kubeflow svc/ml-pipeline-ui 8080:80"
            ) from error

    def upload(self, compiled: CompiledPipeline) -> tuple[str, str]:
        """Returns the ids of the pipeline and of its version; uploads the version unless it is there already."""
        import kfp_server_api

        with self._explained(f"upload {compiled.path.name}"):
            found = self._client.list_pipelines(namespace=self.namespace, filter=_named(compiled.name)).pipelines
            if found:
                pipeline = found[0].pipeline_id
                versions = self._client.list_pipeline_versions(pipeline, filter=_named(compiled.version))
                if versions.pipeline_versions:
                    return pipeline, versions.pipeline_versions[0].pipeline_version_id
            else:
                # not kfp's upload_pipeline: it names the first version like the pipeline
                body = kfp_server_api.V2beta1Pipeline(display_name=compiled.name, namespace=self.namespace)
                pipeline = self._client.pipelines.pipeline_service_create_pipeline(pipeline=body).pipeline_id
            uploaded = self._client.upload_pipeline_version(
                str(compiled.path), pipeline_version_name=compiled.version, pipeline_id=pipeline
            )
            return pipeline, uploaded.pipeline_version_id

    def _experiment(self, name: str) -> str:
        return self._client.create_experiment(name, namespace=self.namespace).experiment_id

    def submit(
        self,
        compiled: CompiledPipeline,
        parameters: Mapping[str, Any],
        root: str,
        experiment: str | None = None,
        run_name: str | None = None,
        service_account: str | None = None,
    ) -> str:
        """Starts a run and returns its id.

        The experiment is made when it is not there; its default is the pipeline's name.
        """
        pipeline_id, version_id = self.upload(compiled)
        with self._explained("start the run"):
            run = self._client.run_pipeline(
                experiment_id=self._experiment(experiment or compiled.name),
                job_name=run_name or f"{compiled.name} {datetime.now():%Y-%m-%d %H:%M:%S}",
                params=dict(parameters),
                pipeline_id=pipeline_id,
                version_id=version_id,
                pipeline_root=root,
                service_account=service_account,
            )
        return run.run_id

    def url(self, run_id: str) -> str | None:
        """Returns where a browser shows a run; None inside the cluster, where that is not known."""
        return f"{self.host}/#/runs/details/{run_id}" if self.host else None

    def wait(
        self,
        run_id: str,
        tasks: Sequence[str],
        listener: Callable[[Step], None],
        interval: float = 5.0,
        patience: int = 10,
    ) -> tuple[bool, str]:
        """Waits until a run has ended.

        Args:
            run_id: The run.
            tasks: Its steps: what the server adds (drivers, groups) is left out.
            listener: Called with each step once as waiting, then at every change.
            interval: Seconds between two questions.
            patience: How many questions in a row may fail: a connection that is forwarded breaks now and then.

        Returns:
            Whether it succeeded, and the server's word for how it ended, with its message if it has one.
        """
        shown = {name: Step(name) for name in tasks}
        for step in shown.values():
            listener(step)
        failures = 0
        while True:
            try:
                with self._explained("show the run"):
                    run = self._client.get_run(run_id)
            except UserError:
                failures += 1
                if failures >= patience:
                    raise
                time.sleep(interval)
                continue
            failures = 0
            for step in steps(run, shown):
                if step.state != shown[step.node_id].state:
                    shown[step.node_id] = step
                    listener(step)
            if run.state in _ENDS:
                message = run.error.message if run.error and run.error.message else ""
                return run.state == "SUCCEEDED", f"{run.state.lower()}{message and ': ' + _one_line(message)}"
            time.sleep(interval)

    def schedules(self) -> list[Schedule]:
        """Returns all schedules of the namespace, oldest first."""
        found: list[Schedule] = []
        token = ""
        with self._explained("list the schedules"):
            while True:
                page = self._client.list_recurring_runs(
                    page_token=token, page_size=100, sort_by="created_at asc", namespace=self.namespace
                )
                found.extend(_schedule(run) for run in page.recurring_runs or ())
                token = page.next_page_token
                if not token:
                    return found

    def schedule(
        self,
        name: str,
        compiled: CompiledPipeline,
        parameters: Mapping[str, Any],
        root: str,
        trigger: Trigger,
        catchup: bool = False,
        max_concurrency: int = 1,
        experiment: str | None = None,
        service_account: str | None = None,
    ) -> tuple[Literal["created", "updated", "unchanged"], Schedule]:
        """Makes the one schedule of this name, or brings it to what is asked; one that is paused stays paused.

        The server cannot change a schedule, and lets several have one name. So the old one is paused, a new one is
        made, and the old one is deleted: at no time do two of them run. What an interrupted call left is put in order
        by the next.
        """
        pipeline_id, version_id = self.upload(compiled)
        old = [schedule for schedule in self.schedules() if schedule.name == name]
        enabled = not old or any(schedule.enabled for schedule in old)

        def asked(id_: str) -> Schedule:
            return Schedule(
                id=id_,
                name=name,
                enabled=enabled,
                trigger=trigger,
                pipeline_id=pipeline_id,
                version_id=version_id,
                parameters=dict(parameters),
                root=root,
                max_concurrency=max_concurrency,
                catchup=catchup,
                service_account=service_account or "",
            )

        # the server may have filled in an account of its own where none was asked for
        if len(old) == 1 and asked(old[0].id) in (old[0], replace(old[0], service_account="")):
            return "unchanged", old[0]
        running = [schedule for schedule in old if schedule.enabled]
        for schedule in running:
            self.pause(schedule)
        try:
            with self._explained(f"schedule {name}"):
                made = self._client.create_recurring_run(
                    experiment_id=self._experiment(experiment or compiled.name),
                    job_name=name,
                    cron_expression=trigger.cron,
                    interval_second=trigger.every,
                    max_concurrency=max_concurrency,
                    no_catchup=not catchup,
                    params=dict(parameters),
                    pipeline_id=pipeline_id,
                    version_id=version_id,
                    enabled=enabled,
                    pipeline_root=root,
                    service_account=service_account,
                )
        except UserError:
            for schedule in running:
                self.resume(schedule)
            raise
        for schedule in old:
            self.delete(schedule)
        return ("updated" if old else "created"), asked(made.recurring_run_id)

    def find(self, name: str) -> list[Schedule]:
        """Returns the schedules of a name; more than one only when others than this program made them.

        Raises:
            UserError: If there is none.
        """
        everything = self.schedules()
        found = [schedule for schedule in everything if schedule.name == name]
        if not found:
            near = _nearest(name, {schedule.name for schedule in everything})
            raise UserError(f"{self._where} has no schedule {name!r}; {near}")
        return found

    def pause(self, schedule: Schedule) -> None:
        """Stops a schedule from starting runs; runs that go on are left alone."""
        with self._explained(f"pause {schedule.name}"):
            self._client.disable_recurring_run(schedule.id)

    def resume(self, schedule: Schedule) -> None:
        """Lets a paused schedule start runs again."""
        with self._explained(f"resume {schedule.name}"):
            self._client.enable_recurring_run(schedule.id)

    def delete(self, schedule: Schedule) -> None:
        """Deletes a schedule; the runs it made stay."""
        with self._explained(f"delete {schedule.name}"):
            self._client.delete_recurring_run(schedule.id)


def steps(run: kfp_server_api.V2beta1Run, tasks: Iterable[str]) -> list[Step]:
    """Returns the steps of a run that the server knows so far, without its own drivers and groups."""
    details = run.run_details.task_details if run.run_details and run.run_details.task_details else []
    wanted = set(tasks)
    found = []
    for task in details:
        if task.display_name in wanted:
            state = _STATES.get(task.state, "waiting")
            ended = state not in ("waiting", "running")
            # the server fills in 1970 for what it does not know
            known = ended and task.start_time and task.end_time and task.end_time >= task.start_time
            seconds = (task.end_time - task.start_time).total_seconds() if known else 0.0
            detail = ""
            if state == "failed":
                detail = _one_line(task.error.message) if task.error and task.error.message else task.state.lower()
            found.append(Step(task.display_name, state, seconds, detail))
    return found


def _schedule(run: kfp_server_api.V2beta1RecurringRun) -> Schedule:
    cron = run.trigger.cron_schedule if run.trigger else None
    periodic = run.trigger.periodic_schedule if run.trigger else None
    reference, config = run.pipeline_version_reference, run.runtime_config
    return Schedule(
        id=run.recurring_run_id,
        name=run.display_name,
        enabled=run.status == "ENABLED",
        # 64-bit numbers come as texts
        trigger=Trigger(cron.cron if cron else None, int(periodic.interval_second) if periodic else None),
        pipeline_id=reference.pipeline_id if reference else "",
        version_id=reference.pipeline_version_id if reference else "",
        parameters=(config.parameters or {}) if config else {},
        root=(config.pipeline_root or "") if config else "",
        max_concurrency=int(run.max_concurrency or 1),
        catchup=not run.no_catchup,
        service_account=run.service_account or "",
    )


def _named(name: str) -> str:
    """Returns the server's filter for a name."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "stringValue": name}]})


_REMEDIES = {
    400: "the server refuses what was asked",
    401: "it wants a login. Give a token (--token-file) or the browser's session cookie (--cookies-file); both expire",
    403: "this account may not. Ask for the role kubeflow-edit in the namespace (--namespace)",
    404: "it is not there. Check --host (its path too) and --namespace",
    409: "something of that name is there already, made at the same time; run the same command again",
}


def _explain(error: kfp_server_api.ApiException) -> str:
    """Returns one line: the status, the remedy, and what the server said."""
    try:
        said = json.loads(error.body)
        said = said.get("message") or said.get("error") or ""
    except (TypeError, ValueError, AttributeError):
        said = ""  # a proxy's page
    remedy = _REMEDIES.get(error.status)
    if remedy is None:
        remedy = "an error of its own. See: kubectl logs -n kubeflow deployment/ml-pipeline"
    return f"{remedy} ({error.status or 'TLS'} {_one_line(said or error.reason or '')})"


def _last_reason(error: Exception) -> str:
    """Returns the innermost cause that urllib3 wraps, in a few words."""
    reason = getattr(error, "reason", None)
    while isinstance(getattr(reason, "reason", None), Exception):
        reason = reason.reason  # type: ignore[union-attr]
    text = str(reason or error)
    return _one_line(text.partition(": ")[2] or text)


def _one_line(text: str, length: int = 400) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
