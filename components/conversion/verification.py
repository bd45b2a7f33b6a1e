"""Checking that a delivered `.tflite` file is what its own metadata, passport and golden vectors say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeline import files, layout
from edgeline.errors import UserError

#: Of a float output, as a fraction of its largest value: another processor adds in another order.
_ROUNDING = 1e-3
_TIMEOUT_SECONDS = 300


def check(model: Path) -> dict[str, dict[str, Any]]:
    """Checks a model against the files beside it.

    Args:
      model: path of a `.tflite` file.

    Returns:
      By check, in the order they are made: `differences` (in words, empty where there are none), `checked` (False where
      the bundle has nothing to check), and `found` in words. Where one finds that there is nothing to go on with, those
      that need it are left out.
    """
    from edgeline.passport import Passport
    from edgeline.tflite import inspection

    results: dict[str, dict[str, Any]] = {}

    def note(name: str, differences: Iterator[str] | list[str], found: str, checked: bool = True) -> None:
        results[name] = {"differences": list(differences), "checked": checked, "found": found}

    folder, content = model.parent, model.read_bytes()
    try:
        metadata = files.read_json(folder / layout.METADATA_FILE)
        note("file", _file(content, metadata), f"{len(content):,} bytes, SHA-256 {metadata['sha256'][:12]}…")
    except (OSError, ValueError, TypeError, KeyError) as error:
        metadata = None
        note("file", [_unreadable(layout.METADATA_FILE, error)], "")
    try:
        passport = Passport.read(folder)
        steps = " → ".join(step["step"] for step in passport.steps)
        note("passport", _passport(passport, hashlib.sha256(content).hexdigest()), steps)
        labelled = passport.io.get("labels") or []
    except Exception as error:  # any JSON may be in a file of that name
        passport, labelled = None, []
        note("passport", [_unreadable(layout.PASSPORT_FILE, error)], "")
    try:
        summary = inspection.read(model, weights=False)
    except UserError as error:
        note("model", [str(error)], "")
        return results
    if metadata is not None:
        note("ports", _ports(summary, metadata), "inputs and outputs are those of metadata.json")
    if passport is not None:
        labels = _labels(folder, summary, labelled)
        note("labels", labels, f"{len(labelled)} classes" if labelled else "none known", bool(labelled))
        note(
            "promises",
            _promises(content, passport),
            f"{len(passport.promises)} kept" if passport.promises else "none were made",
            bool(passport.promises),
        )
    note(*_golden(content, summary, folder, metadata))
    return results


def _unreadable(name: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{name} is missing"
    return f"{name} cannot be read ({type(error).__name__}: {error})"


def _file(content: bytes, metadata: dict[str, Any]) -> Iterator[str]:
    if len(content) != metadata["bytes"]:
        yield f"{len(content):,} bytes, expected {metadata['bytes']:,}"
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != metadata["sha256"]:
        yield f"SHA-256 {sha256}, expected {metadata['sha256']}"


def _passport(passport: Any, sha256: str) -> Iterator[str]:
    if passport.failure:
        yield f"{passport.failure['step']} failed: {passport.failure['error']}"
    exported = next((step["sha256"] for step in reversed(passport.steps) if "sha256" in step), None)
    if exported != sha256:
        yield f"SHA-256 {sha256}, passport.json is of {exported or 'no exported file'}"


def _ports(summary: dict[str, Any], metadata: dict[str, Any]) -> Iterator[str]:
    for side in ("inputs", "outputs"):
        received, expected = ({port["name"]: port for port in each.get(side, [])} for each in (summary, metadata))
        if list(received) != list(expected):
            yield f"{side} {', '.join(received)}, expected {', '.join(expected)}"
        for name in received.keys() & expected.keys():
            for key in ("shape", "dtype", "scale", "zero_point"):
                if received[name][key] != expected[name].get(key):
                    yield f"{side[:-1]} {name} has {key} {received[name][key]}, expected {expected[name].get(key)}"


def _labels(folder: Path, summary: dict[str, Any], expected: list[str]) -> Iterator[str]:
    path = folder / layout.LABELS_FILE
    try:
        received = files.read_bounded(path, files.MAX_TEXT_BYTES).decode().removesuffix("\n").split("\n")
    except FileNotFoundError:
        if expected:
            yield f"labels.txt is missing, expected {len(expected)} classes"
        return
    except (OSError, ValueError) as error:
        yield _unreadable(layout.LABELS_FILE, error)
        return
    if received != expected:
        where = next((i for i, pair in enumerate(zip(received, expected, strict=False)) if pair[0] != pair[1]), None)
        first = f"; line {where + 1} is {received[where]!r}, expected {expected[where]!r}" if where is not None else ""
        yield f"labels.txt has {len(received)} lines, passport.json {len(expected)} labels{first}"
    sizes = [port["shape"][-1] for port in summary["outputs"] if len(port["shape"]) > 1]
    if sizes and not {len(received), -1}.intersection(sizes):
        yield f"labels.txt has {len(received)} lines, but no output has so many values: {', '.join(map(str, sizes))}"


def _promises(content: bytes, passport: Any) -> Iterator[str]:
    from edgeline.conversion import checks
    from edgeline.keras_models.promise_checks import BrokenPromiseError
    from edgeline.keras_models.promise_kinds import UnknownPromiseError

    try:
        checks.check_promises(content, passport.promises)
    except (BrokenPromiseError, UnknownPromiseError) as error:
        yield str(error)
    except Exception as error:  # of a file that was changed, any tensor may be anything
        yield f"the weights cannot be read ({type(error).__name__}: {error})"


def _golden(
    content: bytes, summary: dict[str, Any], folder: Path, metadata: dict[str, Any] | None
) -> tuple[str, list[str], str, bool]:
    """Returns the check's name, the differences, what was found, and whether there was anything to check."""
    if metadata is not None and metadata.get("not_run"):
        return "golden", [], f"nothing to run: {metadata['not_run']}", False
    try:
        stored = files.read_strangers_arrays(folder / layout.GOLDEN_FILE)
    except FileNotFoundError:
        return "golden", ["golden.npz is missing"], "", True
    except Exception as error:  # a damaged archive makes anything of its reader
        return "golden", [_unreadable(layout.GOLDEN_FILE, error)], "", True
    ports = {f"{side}/{port['name']}": port for side in ("inputs", "outputs") for port in summary[side]}
    if stored.keys() != ports.keys():
        return "golden", [f"golden.npz has {', '.join(stored)}, the model {', '.join(ports)}"], "", True
    return _run(content, stored, ports)


def _run(content: bytes, stored: dict[str, Any], ports: dict[str, dict[str, Any]]) -> tuple[str, list[str], str, bool]:
    """Runs the model on golden inputs in a child process, and compares: integers by steps, floats by rounding."""
    import numpy as np

    from edgeline.conversion import trial
    from edgeline.conversion.failures import ExportError

    def real(key: str) -> np.ndarray:
        port, values = ports[key], stored[key]
        if not port["scale"]:
            return values
        return (values.astype(np.float32) - np.float32(port["zero_point"])) * np.float32(port["scale"])

    inputs = {key.removeprefix("inputs/"): real(key) for key in ports if key.startswith("inputs/")}
    count = len(next(iter(inputs.values())))
    try:
        outcome = trial.run(content, inputs, batch=1, timeout_seconds=_TIMEOUT_SECONDS)
    except ExportError as error:
        return "golden", [str(error)], "", True
    differences, exact = [], True
    for key, port in ports.items():
        side, name = key.split("/", 1)
        if side == "inputs":
            continue
        received, expected = outcome.alone[name], real(key)[: trial.ALONE_SAMPLES]
        if received.shape != expected.shape:
            differences.append(f"output {name} has shape {received.shape}, expected {expected.shape}")
            continue
        # a step of the output's quantization, also where the file ends with an operator that undoes it
        allowed = 1.01 * port["step"] if port["step"] else _ROUNDING * float(np.abs(expected).max(initial=0))
        distance = float(np.abs(received.astype(np.float64) - expected.astype(np.float64)).max(initial=0))
        exact = exact and distance == 0
        if not distance <= allowed:  # also of NaN
            differences.append(
                f"output {name} differs by {distance:.3g} on {count} examples, allowed are {allowed:.3g}"
            )
    return "golden", differences, f"{count} examples, {'equal' if exact else 'equal within rounding'}", True
