"""The data of a run: which of them are read, whether they are new, and what they must look like.

Whether they are new is known within a second: nothing here imports TensorFlow or TFX, but for `edgeline data schema`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeline import toolchain
from edgeline.data import data_folder, spans
from edgeline.errors import UserError
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.job import Job
from edgeline.pipelines.records import events
from edgeline.pipelines.root import Root


def window(data: Path | None, length: int | None) -> spans.Window | None:
    """Returns the spans that are read, None for a data folder.

    Args:
      data: a pattern of spans, or a data folder.
      length: how many spans, None where it is not said: one.

    Raises:
      UserError: the pattern is wrong, no span is complete, or a length is given for a data folder.
    """
    if data is not None and spans.is_pattern(data):
        return spans.resolve(data, 1 if length is None else length)
    if length is not None:
        raise UserError("--window needs spans: --data 'DIR/day-{SPAN}', or 'DIR/{YYYY}-{MM}-{DD}'")
    return None


def digest(job: Job, schema: Path | None) -> str:
    """Returns a digest of everything that decides what a run makes of its data.

    Args:
      job: what the run makes; weights that are `latest` are the same job, whatever that means each time.
      schema: what the data must look like.

    Raises:
      UserError: there is no such schema, or it is none.
    """
    configs = (job.budget, job.evaluation, job.export, job.train, job.finetune, job.sample, job.gate, job.model)
    content = {
        "module": [job.module.reference, job.module.digest],
        "recipes": [[recipe.name, *(step.describe() for step in recipe.steps)] for recipe in job.recipes],
        "asked": [config and [type(config).__name__, config.parameters()] for config in configs],
        "schema": schema and _read_schema(schema),
        "toolchain": toolchain.of_all_steps(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _read_schema(path: Path) -> str:
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    try:
        text = path.read_text(encoding="utf-8")
        schema = text_format.Parse(text, schema_pb2.Schema())
    except OSError as error:
        raise UserError(
            f"--schema {path} cannot be read: {error.strerror}; make one with `edgeline data schema DATA -o {path}`"
        ) from None
    except (UnicodeDecodeError, text_format.ParseError) as error:
        raise UserError(f"--schema {path} is no schema of TensorFlow Metadata in text form: {error}") from None
    if not schema.feature:
        raise UserError(f"--schema {path} describes no feature")
    return text


def facts(data: Path, found: spans.Window | None, requested: str) -> dict[str, Any]:
    """Returns what the event `data` says: digests by which the next run knows these data again, and the spans."""
    folders = [span.folder for span in found.spans] if found else [data]
    return {
        "fingerprint": spans.fingerprint(folders),
        "request": requested,
        "spans": [span.name for span in found.spans] if found else None,
    }


def why_nothing_is_new(root: Root, data: Path, found: spans.Window | None, requested: str) -> str | None:
    """Says since when neither the data nor what is asked of them have changed, None where one has.

    Args:
      root: of the pipeline.
      data: the data folder, or a pattern of spans.
      found: the spans; None for a data folder.
      requested: what `digest` returns.

    Raises:
      UserError: a folder of the data is missing or holds something else.
    """
    last = last_finished(root)
    now = facts(data, found, requested)
    if last is None or any(last.get(key) != now[key] for key in ("fingerprint", "request")):
        return None
    where = f"{found.base}, {_range(now['spans'])}" if found else str(data)
    when = last["time"][:16].replace("T", " ")
    verdict = "; of that run no candidate was selected" if last["exit_code"] == ExitCode.NOTHING_FITS else ""
    return f"no new data since the run of {when} UTC ({where}): nothing trained, nothing pushed{verdict}"


def _range(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"


def check_readable(data: Path, found: spans.Window | None, root: Root) -> None:
    """Reads every shard that was not read by an earlier run, see `datasets.check_readable`."""
    if found is None:
        data_folder.check_readable(data, root.data_checked())
        return
    for span in found.spans:
        data_folder.check_readable(span.folder, root.data_checked(span.name))


def last_finished(root: Root) -> Mapping[str, Any] | None:
    """Returns the event `data` and the `exit_code` of the last run of a root that came to a verdict, None without one.

    A verdict is exit code 0 or 1; runs that found no new data have no such event.
    """
    try:
        logged = events.read(root)
    except UserError:
        return None
    runs: dict[str, dict[str, Any]] = {}
    for event in logged:
        if event["run"] is not None and event["event"] in ("data", "finished"):
            runs.setdefault(event["run"], {})[event["event"]] = event
    for run in reversed(runs.values()):
        if "data" in run and run.get("finished", {}).get("exit_code") in (ExitCode.DONE, ExitCode.NOTHING_FITS):
            return {**run["data"], "exit_code": run["finished"]["exit_code"]}
    return None
