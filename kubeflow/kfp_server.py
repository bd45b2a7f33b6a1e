"""A Kubeflow Pipelines server as this project needs it: upload, run, watch and schedule a compiled pipeline.

The functions above `Server` need no server. kfp is imported inside functions: it is an optional dependency.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgeline.errors import UserError, suggest
from edgeline.kubeflow.compiled_file import CompiledPipeline
from edgeline.kubeflow.cron import Trigger

if TYPE_CHECKING:
    import kfp_server_api

# ---------------------------------------------------------------- schedules

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
#: What the server calls its task before each step, and before the whole run (KFP 2.5 to 2.17, argocompiler/dag.go).
_DRIVER = "-driver"
_FIRST = "root-driver"


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

    Attributes:
        host: Its URL; None inside the cluster.
        namespace: Of the runs; None where the server does not keep its users apart.
        version: What it says of itself, such as `2.16.1`; empty where it says nothing.
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
            said = json.loads(health)
            multi_user = said.get("multi_user", False)
            # the API server's own word (backend/src/apiserver/main.go), and that of the UI's server before it
            # (frontend/server/handlers/healthz.ts)
            self.version = str(said.get("tag_name") or said.get("apiServerTagName") or "")
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
            pipelines = self._client.list_pipelines(namespace=self.namespace, filter=_named(compiled.name)).pipelines
            if pipelines:
                pipeline = pipelines[0].pipeline_id
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
                if not message and any(t.display_name == _FIRST and t.state == "FAILED" for t in _details(run)):
                    message = f"{_FIRST} failed, which reads the run's parameters and pipeline root"
                return run.state == "SUCCEEDED", f"{run.state.lower()}{message and ': ' + _one_line(message)}"
            time.sleep(interval)

    def schedules(self) -> list[Schedule]:
        """Returns all schedules of the namespace, oldest first."""
        schedules: list[Schedule] = []
        token = ""
        with self._explained("list the schedules"):
            while True:
                page = self._client.list_recurring_runs(
                    page_token=token, page_size=100, sort_by="created_at asc", namespace=self.namespace
                )
                schedules.extend(_schedule(run) for run in page.recurring_runs or ())
                token = page.next_page_token
                if not token:
                    return schedules

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
                created = self._client.create_recurring_run(
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
        return ("updated" if old else "created"), asked(created.recurring_run_id)

    def find(self, name: str) -> list[Schedule]:
        """Returns the schedules of a name; more than one only when others than this program made them.

        Raises:
            UserError: If there is none.
        """
        everything = self.schedules()
        matching = [schedule for schedule in everything if schedule.name == name]
        if not matching:
            near = suggest(name, sorted({schedule.name for schedule in everything}))
            raise UserError(f"{self._where} has no schedule {name!r}; {near}")
        return matching

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


def _details(run: kfp_server_api.V2beta1Run) -> list[Any]:
    return (run.run_details.task_details if run.run_details else None) or []


def steps(run: kfp_server_api.V2beta1Run, tasks: Iterable[str]) -> list[Step]:
    """Returns the steps of a run that the server knows so far, without its own drivers and groups.

    A step whose driver has failed has failed, whatever the server says of the step itself: it never began.
    """
    wanted = set(tasks)
    listed: dict[str, Step] = {}
    for task in _details(run):
        # a task `X-driver` records the step X and resolves its inputs before it; of a failure the server says no more
        step_name = task.display_name.removesuffix(_DRIVER) if task.display_name not in wanted else task.display_name
        state = _STATES.get(task.state, "waiting")
        its_driver = step_name != task.display_name
        if step_name not in wanted or (state != "failed" if its_driver else step_name in listed):
            continue
        ended = state not in ("waiting", "running")
        # the server fills in 1970 for what it does not know
        known = ended and task.start_time and task.end_time and task.end_time >= task.start_time
        seconds = (task.end_time - task.start_time).total_seconds() if known else 0.0
        detail = ""
        if state == "failed":
            said = _one_line(task.error.message) if task.error and task.error.message else ""
            detail = said or (f"{task.display_name} failed, before the step" if its_driver else task.state.lower())
        listed[step_name] = Step(step_name, state, seconds, detail)
    return list(listed.values())


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
