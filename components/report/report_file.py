"""Reading and writing report.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from edgeline.errors import UserError

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
_REQUIRED = ("created", "pipeline", "module", "dataset", "budget", "baseline", "candidates", "versions", "machine")
_REQUIRED_WITHIN = {"dataset": ("split", "examples"), "budget": ("metric", "direction", "objective")}
#: What version 2 added to version 1, as a report says it that does not know.
_ADDED: dict[str, dict[str, Any]] = {
    "": {"deployed": None, "like": None, "training": [], "run": None, "selected": None, "closest": None},
    "dataset": {"fingerprint": None, "label_names": None, "bad_records": None, "slice_features": []},
    "budget": {
        **dict.fromkeys(("max_bytes", "max_zlib_bytes", "max_latency_ms", "max_latency_p90_ms", "max_latency_p99_ms")),
        **dict.fromkeys(("max_latency_all_threads_ms", "max_latency_without_xnnpack_ms", "max_cold_start_ms")),
        **dict.fromkeys(("max_peak_rss_bytes", "max_deployed_drop", "min_slice_examples", "value_threshold")),
        **{"max_drop": None, "drop_bound": "point", "max_slice_drops": {}, "target": None},
    },
}


def read(path: Path) -> dict[str, Any]:
    """Reads a report.json of any version that is understood.

    Returns:
        The facts, laid out as schema version 2; what an older version does not know is None or empty.

    Raises:
        UserError: the file is no report, is of another version, or lacks something.
        OSError: it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # also of bytes that are no text
        raise UserError(f"{path}: expected a report.json of an Evaluator, found no JSON: {error}") from None
    return upgraded(content, str(path)) | {"schema_version": SCHEMA_VERSION}


def finite(value: Any) -> Any:
    """Copies JSON-like data with None for every number that JSON cannot say."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def upgraded(report: Any, where: str) -> dict[str, Any]:
    """Checks what nothing can be drawn without, and adds what version 2 has over version 1."""
    if not isinstance(report, dict):
        raise UserError(f"{where}: expected a report.json of an Evaluator, found {type(report).__name__} at its top")
    version = report.get("schema_version")
    if type(version) is not int or version not in READABLE_VERSIONS:
        known = " and ".join(map(str, READABLE_VERSIONS))
        raise UserError(
            f"{where}: has schema_version {version!r}; this version of edgeline reads {known}. Use the edgeline that "
            "wrote it, or run the pipeline again"
        )
    missing = [key for key in _REQUIRED if key not in report]
    for key, within in _REQUIRED_WITHIN.items():
        missing += [f"{key}.{name}" for name in within if name not in (report.get(key) or ())]
    candidates = report.get("candidates") or ()
    missing += [f"candidates[{i}].name" for i, entry in enumerate(candidates) if "name" not in entry]
    if missing:
        raise UserError(f"{where}: is no complete report.json, it lacks {', '.join(missing)}; run the pipeline again")
    parts = {key: _filled(report if not key else report[key], added) for key, added in _ADDED.items()}
    return parts.pop("") | parts


def _filled(part: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    return part | {key: value for key, value in added.items() if part.get(key) is None}
