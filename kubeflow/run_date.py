"""The date in a URI: `s3://bucket/{YYYY}-{MM}-{DD}` is of each run another folder.

The fields stand for the date on which a run is created, in UTC. Of a run that is submitted the client knows it. Of the
runs of a schedule only the cluster does, and each version of the server lets another text stand for it, or none. A
schedule that pins a version of its pipeline, as ours do, is compiled when it is made, and the server's own macros
(`[[ScheduledTime…]]`, `[[CurrentTime…]]`, `[[Index]]`) are then never filled in: the controller formats only those
arguments of Argo that no pipeline of version 2 reads (2.5 to 2.17, crd/controller/scheduledworkflow/util/
scheduled_workflow.go).
"""

from __future__ import annotations

import datetime
import re
from typing import Any

from edgeline.errors import UserError

#: What the fields are in strftime.
_FIELDS = {"YYYY": "%Y", "MM": "%m", "DD": "%d"}
_FIELD = re.compile(r"(?<!\{)\{(YYYY|MM|DD)\}(?!\})")
_BRACES = re.compile(r"(?<!\{)\{([^{}]*)\}(?!\})")
#: The server's own (backend/src/common/util/parameter_formatter.go).
_MACRO = re.compile(r"\[\[(?:RunUUID|ScheduledTime|CurrentTime|Index)\b.*?\]\]")

#: What stands for the fields in the parameters of a schedule, by version of the server; of those only that were tried
#: on their real parts. Argo itself fills these in, with the time at which the run was created.
_IN_A_SCHEDULE = {
    "2.16": {field: f"{{{{workflow.creationTimestamp.{format[1]}}}}}" for field, format in _FIELDS.items()}
}
#: The macros that a server fills in when a run is submitted (2.16, backend/src/apiserver/resource/resource_manager.go,
#: CreateRun); before that it has none.
_SUBMITTED = {"2.16": ("[[CurrentTime", "[[RunUUID]]")}


def has_date(value: Any) -> bool:
    """Returns whether a parameter has a date to be filled in."""
    return isinstance(value, str) and _FIELD.search(value) is not None


def check(option: str, uri: str) -> None:
    """Checks what in a URI is to be filled in.

    Raises:
      UserError: a field is unknown, or the server would never fill in what stands there.
    """
    for field in _BRACES.findall(uri) if "://" in uri else ():
        if field not in _FIELDS:
            raise UserError(f"{option} {uri}: {{{field}}} is no field of a date; there are {{YYYY}}, {{MM}} and {{DD}}")
    if "[[ScheduledTime" in uri:
        raise UserError(
            f"{option} {uri}: Kubeflow Pipelines never fills in [[ScheduledTime]] of a pipeline of version 2; write "
            f"{{YYYY}}-{{MM}}-{{DD}}, the date on which the run is created (UTC)"
        )


def submitted(name: str, text: str, date: datetime.date, version: str) -> str:
    """Returns a parameter of a run that is submitted now.

    Args:
      name: of the parameter.
      text: may have fields of a date, and macros of the server.
      date: what the fields stand for.
      version: of the server; empty where it does not say.

    Raises:
      UserError: a field is unknown, or has a macro that this server leaves as it is.
    """
    check(f"--param {name}:", text)
    for macro in _MACRO.findall(text):
        if not macro.startswith(_SUBMITTED.get(_minor(version), ())):
            raise UserError(
                f"--param {name}: {text}: of a server of version {version or 'unknown'} it is not known that it fills "
                f"in {macro}; write {{YYYY}}-{{MM}}-{{DD}} for the date, or the value itself"
            )
    return _FIELD.sub(lambda field: date.strftime(_FIELDS[field[1]]), text)


def scheduled(name: str, text: str, version: str) -> str:
    """Returns a parameter of a schedule, in which the cluster will fill in the date of each run.

    Args:
      name: of the parameter.
      text: may have fields of a date.
      version: of the server; empty where it does not say.

    Raises:
      UserError: a field is unknown, has a macro of the server, or nothing is known to stand for the date there.
    """
    check(f"--param {name}:", text)
    if macros := _MACRO.findall(text):
        raise UserError(
            f"--param {name}: {text}: Kubeflow Pipelines never fills in {macros[0]} in a schedule of one version of a "
            f"pipeline; write {{YYYY}}-{{MM}}-{{DD}}, the date on which the run is created (UTC)"
        )
    if not has_date(text):
        return text
    fields = _IN_A_SCHEDULE.get(_minor(version))
    if fields is None:
        raise UserError(
            f"--param {name}: {text}: what a server of version {version or 'unknown'} fills in as the date of a "
            f"schedule's runs was never tried (known: {', '.join(_IN_A_SCHEDULE)}); let cron start each run instead, "
            f"with: edgeline kubeflow submit --date YYYY-MM-DD"
        )
    return _FIELD.sub(lambda field: fields[field[1]], text)


def _minor(version: str) -> str:
    """Returns the first two numbers of a version; empty where it has none.

    >>> _minor("2.16.1"), _minor("unknown")
    ('2.16', '')
    """
    found = re.match(r"v?(\d+\.\d+)(\.|$)", version)
    return found[1] if found else ""
