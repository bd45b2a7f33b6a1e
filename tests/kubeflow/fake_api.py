"""A Kubeflow Pipelines API server on the loopback interface, with the checks of the real one (2.16) and no cluster.

What it refuses, the real one refuses: other schema versions, fields that PipelineSpec does not have, executors that are
neither containers nor importers, resolvers, missing, unknown and mistyped parameters, cron expressions that robfig/cron
v1.2.0 cannot read, a concurrency outside 1 to 10, names that are taken, requests without the login or the namespace.
"""

import base64
import datetime
import json
import re
import threading
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

API = "/apis/v2beta1"
Json = dict[str, Any]


class Refusal(Exception):  # noqa: N818
    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        return json.loads(self.body)


@dataclass
class FakeApi:
    """The server; a context manager.

    Attributes:
        token: Wanted in every request, as a bearer token.
        cookies: Wanted in every request.
        multi_user: Whether requests must name a namespace.
        login_page: Whether it answers everything with a web page, as a proxy does that wants a login.
        failures: (method, end of the path) to (status, body): what to answer instead of doing it.
        version: What it says of itself.
        polls: The states of a run's tasks at one question after the other; the last is repeated.
    """

    token: str | None = None
    cookies: str | None = None
    multi_user: bool = False
    login_page: bool = False
    version: str = "2.16.1"
    failures: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    polls: list[Json] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    experiments: list[Json] = field(default_factory=list)
    pipelines: list[Json] = field(default_factory=list)
    versions: list[Json] = field(default_factory=list)
    runs: list[Json] = field(default_factory=list)
    recurring: list[Json] = field(default_factory=list)

    def __enter__(self) -> "FakeApi":
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                url = urlsplit(self.path)
                request = Request(
                    self.command,
                    url.path,
                    {name: values[0] for name, values in parse_qs(url.query).items()},
                    {name.lower(): value for name, value in self.headers.items()},
                    self.rfile.read(int(self.headers.get("Content-Length") or 0)),
                )
                fake.requests.append(request)
                status, kind = 200, "application/json"
                try:
                    if fake.login_page:
                        kind, text = "text/html", "<html>Log in to Your Account</html>"
                    else:
                        text = json.dumps(fake.handle(request))
                except Refusal as refusal:
                    status = refusal.status
                    text = json.dumps({"error": str(refusal), "code": 3, "message": str(refusal), "details": []})
                except _RawAnswer as raw:
                    status, text = raw.args
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def handle(self, request: Request) -> Json:
        for (method, end), answer in self.failures.items():
            if request.method == method and request.path.endswith(end):
                raise _RawAnswer(*answer)
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            raise Refusal(401, "Request header error: there is no user identity header.")
        if self.cookies and request.headers.get("cookie") != self.cookies:
            raise Refusal(401, "Request header error: there is no user identity header.")
        route = (request.method, re.sub(r"/id-\d+", "/ID", request.path.removeprefix(API)))
        action = {
            ("GET", "/healthz"): self._health,
            ("GET", "/experiments"): lambda r: self._list(r, "experiments", self.experiments),
            ("POST", "/experiments"): lambda r: self._create(r, "experiment", self.experiments),
            ("GET", "/pipelines"): lambda r: self._list(r, "pipelines", self.pipelines),
            ("POST", "/pipelines"): lambda r: self._create(r, "pipeline", self.pipelines),
            ("GET", "/pipelines/ID/versions"): self._list_versions,
            ("POST", "/pipelines/upload_version"): self._upload_version,
            ("POST", "/runs"): self._create_run,
            ("GET", "/runs/ID"): self._get_run,
            ("GET", "/recurringruns"): lambda r: self._list(r, "recurringRuns", self.recurring),
            ("POST", "/recurringruns"): self._create_recurring,
            ("POST", "/recurringruns/ID:enable"): lambda r: self._switch(r, "ENABLED"),
            ("POST", "/recurringruns/ID:disable"): lambda r: self._switch(r, "DISABLED"),
            ("DELETE", "/recurringruns/ID"): self._delete_recurring,
        }.get(route)
        if action is None:
            raise Refusal(404, "Not Found")
        return action(request)

    # ------------------------------------------------------------ what all kinds share

    def _health(self, request: Request) -> Json:
        # as backend/src/apiserver/main.go writes it
        return {"commit_sha": "unknown", "tag_name": self.version, "multi_user": self.multi_user}

    def _namespace(self, namespace: str | None) -> str:
        if self.multi_user and not namespace:
            raise Refusal(400, "Invalid input error: In multi-user mode, namespace must be specified.")
        return namespace or ""

    def _list(self, request: Request, name: str, entries: list[Json]) -> Json:
        namespace = self._namespace(request.query.get("namespace"))
        found = [entry for entry in entries if entry["namespace"] == namespace]
        if "filter" in request.query:
            [predicate] = json.loads(request.query["filter"])["predicates"]
            # protobuf's JSON takes an enum's name and its number
            if predicate["operation"] not in ("EQUALS", 1) or predicate["key"] != "display_name":
                raise Refusal(400, f"Invalid input error: this fake filters by display_name only, not {predicate}")
            found = [entry for entry in found if entry["display_name"] == predicate["stringValue"]]
        size = int(request.query.get("page_size") or 20)
        start = int(base64.b64decode(request.query.get("page_token", "")) or 0)
        page = {name: found[start : start + size], "total_size": len(found)}
        # as gRPC's gateway writes it: an empty list is left out
        if not page[name]:
            del page[name]
        if start + size < len(found):
            page["next_page_token"] = base64.b64encode(str(start + size).encode()).decode()
        return page

    def _new_id(self) -> str:
        everything = (self.experiments, self.pipelines, self.versions, self.runs, self.recurring)
        self._ids = getattr(self, "_ids", sum(map(len, everything))) + 1
        return f"id-{self._ids}"

    def _create(self, request: Request, kind: str, entries: list[Json]) -> Json:
        entry = request.json
        namespace = self._namespace(entry.get("namespace"))
        if any(e["display_name"] == entry["display_name"] and e["namespace"] == namespace for e in entries):
            raise Refusal(409, f"Already exist error: The {kind} {entry['display_name']} already exists.")
        entries.append({**entry, "namespace": namespace, f"{kind}_id": self._new_id()})
        return entries[-1]

    # ------------------------------------------------------------ pipelines

    def _list_versions(self, request: Request) -> Json:
        pipeline = request.path.split("/")[-2]
        mine = [{**version, "namespace": ""} for version in self.versions if version["pipeline_id"] == pipeline]
        multi_user, self.multi_user = self.multi_user, False  # a version needs no namespace: its pipeline has one
        try:
            return self._list(request, "pipeline_versions", mine)
        finally:
            self.multi_user = multi_user

    def _upload_version(self, request: Request) -> Json:
        message = BytesParser().parsebytes(
            b"Content-Type: " + request.headers["content-type"].encode() + b"\r\n\r\n" + request.body
        )
        [part] = [p for p in message.get_payload() if p.get_param("name", header="content-disposition") == "uploadfile"]
        name, pipeline = request.query["name"], request.query["pipelineid"]
        if not any(entry["pipeline_id"] == pipeline for entry in self.pipelines):
            raise Refusal(404, f"Resource not found: Pipeline {pipeline} not found.")
        if any((v["pipeline_id"], v["display_name"]) == (pipeline, name) for v in self.versions):
            raise Refusal(409, f"Already exist error: The name {name} already exist. Please specify a new name.")
        documents = parse_pipeline(part.get_payload(decode=True).decode())
        spec = documents[0]
        if len(documents) > 1:
            spec = {"pipeline_spec": documents[0], "platform_spec": documents[1]}
        version = {"pipeline_id": pipeline, "pipeline_version_id": self._new_id(), "display_name": name}
        self.versions.append({**version, "pipeline_spec": spec})
        return self.versions[-1]

    def _check_job(self, job: Json) -> None:
        reference = job["pipeline_version_reference"]
        found = [v for v in self.versions if v["pipeline_version_id"] == reference["pipeline_version_id"]]
        if not found:
            raise Refusal(404, f"Resource not found: PipelineVersion {reference['pipeline_version_id']} not found.")
        if not any(experiment["experiment_id"] == job["experiment_id"] for experiment in self.experiments):
            raise Refusal(404, f"Resource not found: Experiment {job['experiment_id']} not found.")
        spec = found[0]["pipeline_spec"]
        check_parameters(spec.get("pipeline_spec", spec), job["runtime_config"].get("parameters", {}))

    # ------------------------------------------------------------ runs

    def _create_run(self, request: Request) -> Json:
        self._check_job(request.json)
        run = {**request.json, "run_id": self._new_id(), "state": "PENDING"}
        if _number(self.version) >= (2, 16):
            given = run["runtime_config"].get("parameters", {})
            run["runtime_config"]["parameters"] = {k: _formatted(v, run["run_id"]) for k, v in given.items()}
        self.runs.append(run)
        return self.runs[-1]

    def _get_run(self, request: Request) -> Json:
        [run] = [run for run in self.runs if run["run_id"] == request.path.split("/")[-1]]
        poll = self.polls.pop(0) if len(self.polls) > 1 else self.polls[0]
        return {**run, **poll}

    # ------------------------------------------------------------ recurring runs

    def _create_recurring(self, request: Request) -> Json:
        entry = request.json
        self._check_job(entry)
        if not 1 <= int(entry.get("max_concurrency", 0)) <= 10:
            raise Refusal(
                400, "Invalid input error: The max concurrency of the recurring run is out of range. Support 1-10."
            )
        trigger = entry["trigger"]
        if "cron_schedule" in trigger:
            parse_cron(trigger["cron_schedule"]["cron"])
        elif int(trigger["periodic_schedule"]["interval_second"]) < 1:
            raise Refusal(400, "Invalid input error: Found invalid period schedule interval. Set at least 1 second.")
        else:
            # 64-bit numbers are texts in protobuf's JSON
            trigger["periodic_schedule"]["interval_second"] = str(trigger["periodic_schedule"]["interval_second"])
        [experiment] = [e for e in self.experiments if e["experiment_id"] == entry["experiment_id"]]
        self.recurring.append(
            {
                **entry,
                "recurring_run_id": self._new_id(),
                "namespace": experiment["namespace"],
                "max_concurrency": str(entry["max_concurrency"]),
                "status": {"ENABLE": "ENABLED", "DISABLE": "DISABLED"}[entry["mode"]],
                "service_account": entry.get("service_account") or "pipeline-runner",
            }
        )
        return self.recurring[-1]

    def fire(self, schedule: Json, at: datetime.datetime) -> Json:
        """Returns the parameters of the run that the controller makes of a schedule of one version at a time (UTC).

        The workflow was compiled when the schedule was made; the controller formats only `spec.workflow.parameters`,
        which no workflow of version 2 reads (2.5 to 2.17, crd/controller/scheduledworkflow/util/scheduled_workflow.go).
        Argo fills in its own variables (3.7, workflow/util/util.go and docs/variables.md); tried with 2.16.1 alone.
        """

        def filled(value: Any) -> Any:
            if not isinstance(value, str) or _number(self.version) != (2, 16):
                return value
            return re.sub(r"\{\{workflow\.creationTimestamp\.(\w)\}\}", lambda m: at.strftime(f"%{m[1]}"), value)

        return {name: filled(value) for name, value in schedule["runtime_config"].get("parameters", {}).items()}

    def _recurring(self, request: Request) -> Json:
        wanted = request.path.split("/")[-1].partition(":")[0]
        for entry in self.recurring:
            if entry["recurring_run_id"] == wanted:
                return entry
        raise Refusal(404, f"Resource not found: Job {wanted} not found.")

    def _switch(self, request: Request, status: str) -> Json:
        self._recurring(request)["status"] = status
        return {}

    def _delete_recurring(self, request: Request) -> Json:
        self.recurring.remove(self._recurring(request))
        return {}


class _RawAnswer(Exception):  # noqa: N818
    """(status, body) as they are."""


def parse_pipeline(text: str) -> list[Json]:
    """Reads a pipeline file as the server does, and refuses what it refuses."""
    documents = list(yaml.safe_load_all(text))
    try:
        json_format.ParseDict(documents[0], pipeline_spec_pb2.PipelineSpec())
        for platform in documents[1:]:
            json_format.ParseDict(platform, pipeline_spec_pb2.PlatformSpec())
    except (json_format.ParseError, AttributeError) as error:
        raise Refusal(400, f"Invalid input error: unknown template format: {error}") from None
    spec = documents[0]
    if spec.get("schemaVersion") != "2.1.0":
        raise Refusal(
            400, f"Invalid input error: KFP only supports schema version 2.1.0, but got {spec.get('schemaVersion')}"
        )
    if not re.fullmatch("[a-z0-9][a-z0-9-]{0,127}", spec.get("pipelineInfo", {}).get("name", "")):
        raise Refusal(
            400, "Invalid input error: invalid v2 pipeline spec: name should consist of lowercase alphanumerics"
        )
    if "dag" not in spec.get("root", {}):
        raise Refusal(400, "Invalid input error: invalid v2 pipeline spec: root component is empty")
    for name, executor in spec["deploymentSpec"]["executors"].items():
        if "resolver" in executor:
            raise Refusal(500, f"Internal Server Error: executor {name}: resolver not implemented yet")
        if not executor.keys() & {"container", "importer"}:
            raise Refusal(
                500, f"Internal Server Error: executor {name}: non-container and non-importer not implemented"
            )
    return documents


def check_parameters(spec: Json, given: Json) -> None:
    """Holds a run's parameters against the pipeline's declarations."""
    declared = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    kinds = {
        "STRING": str,
        "NUMBER_INTEGER": int,
        "NUMBER_DOUBLE": (int, float),
        "BOOLEAN": bool,
        "LIST": list,
        "STRUCT": dict,
    }
    for name, value in given.items():
        if name not in declared:
            raise Refusal(400, f"Invalid input error: parameter {name} is not declared by the pipeline")
        kind = declared[name]["parameterType"]
        if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "BOOLEAN"):
            raise Refusal(400, f"Invalid input error: input parameter {name} requires type {kind}")
    for name, declaration in declared.items():
        if name not in given and "defaultValue" not in declaration and not declaration.get("isOptional"):
            raise Refusal(
                400, f"Invalid input error: parameter {name} is not optional, yet has neither default nor value"
            )


def _number(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _formatted(value: Any, run_id: str) -> Any:
    """Fills in the macros of a submitted run (backend/src/common/util/parameter_formatter.go).

    Of these it knows the run's id and the time; all others stay as they are.
    """
    if not isinstance(value, str):
        return value
    go = {"2006": "%Y", "01": "%m", "02": "%d", "15": "%H", "04": "%M", "05": "%S"}

    def fill(match: re.Match[str]) -> str:
        if match[0] == "[[RunUUID]]":
            return run_id
        if not match[0].startswith(("[[CurrentTime]]", "[[CurrentTime.")):
            return match[0]
        layout = match[0][len("[[CurrentTime.") : -2] or "20060102150405"
        return datetime.datetime.now(datetime.UTC).strftime(
            re.sub("2006|01|02|15|04|05", lambda part: go[part[0]], layout)
        )

    return re.sub(r"\[\[(.*?)\]\]", fill, value)


_NAMES = {
    "month": ("", "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"),
    "weekday": ("sun", "mon", "tue", "wed", "thu", "fri", "sat"),
}
_BOUNDS = (("second", 0, 59), ("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 6))


def parse_cron(text: str) -> list[set[int]]:
    """Reads a cron expression as robfig/cron v1.2.0 does: seconds first, and what may be missing is the weekday."""
    fields = text.split()
    if not 5 <= len(fields) <= 6:
        raise Refusal(
            400, f"Schedule cron is not a supported format. Error: Expected 5 to 6 fields, found {len(fields)}"
        )
    return [
        {value for part in field.split(",") if part for value in _cron_range(part, *bounds)}
        for field, bounds in zip([*fields, "*"][:6], _BOUNDS, strict=True)
    ]


def _cron_range(part: str, kind: str, low: int, high: int) -> range:
    def number(word: str) -> int:
        names = _NAMES.get(kind, ())
        if not word.isdecimal() and word.lower() not in names:
            raise Refusal(400, f"Schedule cron is not a supported format. Error: Failed to parse int from {word}")
        return names.index(word.lower()) if word.lower() in names else int(word)

    span, slash, step = part.partition("/")
    first, hyphen, last = span.partition("-")
    if first in ("*", "?"):
        start, end = low, high
    else:
        start = number(first)
        end = number(last) if hyphen else high if slash else start
    if start < low or end > high or start > end or step == "0":
        raise Refusal(400, f"Schedule cron is not a supported format. Error: out of range: {part}")
    return range(start, end + 1, int(step) if slash else 1)
