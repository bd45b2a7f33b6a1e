"""What an app relies on: a model's contract. A model that keeps it can take another one's place unnoticed.

A contract is JSON: `inputs` and `outputs`, each a list of name, shape (-1 where any size goes) and dtype, `labels` in
the order of the outputs (empty where they are not known), and `target` (see `edgeline.targets`; null where it is not
known). Scales and zero points are no part of it: they differ after every training, and a runtime reads them from the
file.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeline import files, layout
from edgeline.errors import UserError
from edgeline.targets import spelled

_SIDES = ("inputs", "outputs")


def of(metadata: dict[str, Any], labels: Sequence[str], target: str | None) -> dict[str, Any]:
    """Returns the contract of a model.

    Args:
      metadata: with inputs and outputs, as the TFLiteExporter's metadata or `inspection.facts` has them.
      labels: in the order of the outputs; empty where they are not known.
      target: what it is for; None where that is not known.
    """
    sides = {side: [_port(port) for port in metadata[side]] for side in _SIDES}
    return {**sides, "labels": list(labels), "target": target}


def _port(port: dict[str, Any]) -> dict[str, Any]:
    shape = [-1 if size is None else size for size in port["shape"]]
    return {"name": port["name"], "shape": shape, "dtype": port["dtype"]}


def read_labels(content: bytes) -> list[str]:
    """Returns the labels in the content of a `labels.txt`, one per line."""
    return content.decode().removesuffix("\n").split("\n")


def of_file(path: Path) -> dict[str, Any]:
    """Returns the contract of a `.tflite` file, whoever made it.

    The ports are those of its signature. The labels are those of a `labels.txt` beside it, else of one that is packed
    into it; the target is that of a `metadata.json` beside it which describes this very file.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    from edgeline.tflite import inspection  # needs NumPy, which a reader of latest.json can do without

    summary = inspection.read(path, weights=False)
    beside = path.parent / layout.LABELS_FILE
    try:
        if beside.is_file():
            labels = read_labels(files.read_bounded(beside, files.MAX_TEXT_BYTES))
        else:
            labels = _packed_labels(path)
    except Exception as error:  # a damaged archive makes anything of its reader
        raise UserError(f"the labels of {path} cannot be read: {error}") from error
    return of(summary, labels, _target_beside(path))


def _packed_labels(path: Path) -> list[str]:
    """Returns the labels that TFLite's metadata tools append to a model, as a file in a zip archive."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if "label" in name.lower() and name.endswith(".txt")]
        if not names:
            return []
        with archive.open(names[0]) as file:
            content = file.read(files.MAX_TEXT_BYTES + 1)
    if len(content) > files.MAX_TEXT_BYTES:
        raise ValueError(f"{names[0]!r} in it has more than {files.MAX_TEXT_BYTES:,} bytes")
    return read_labels(content)


def _target_beside(path: Path) -> str | None:
    try:
        metadata = files.read_json(path.parent / layout.METADATA_FILE)
        target = metadata.get("target") if metadata["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None  # anybody may have a file of that name
    return target if isinstance(target, str) else None


def differences(ours: dict[str, Any], theirs: dict[str, Any], who: str) -> list[str]:
    """Returns what an app that relies on one contract would find different under another; empty where it is kept.

    Args:
      ours: of the model that is to come.
      theirs: of the model whose place it is to take. Labels and target that are not known there say nothing.
      who: what that model is called, e.g. `deployed`.
    """
    lines = [line for side in _SIDES for line in _ports(side, ours[side], theirs[side], who)]
    lines += _labels(ours["labels"], theirs["labels"], who)
    if theirs.get("target") and ours["target"] != theirs["target"]:
        lines.append(f"target: {ours['target']}, {who} has {theirs['target']}")
    return lines


def _ports(side: str, ours: list[dict[str, Any]], theirs: list[dict[str, Any]], who: str) -> Iterator[str]:
    names, expected = ([port["name"] for port in ports] for ports in (ours, theirs))
    if names != expected:
        # in another order, too: an app may go by position
        yield f"{side}: {', '.join(names) or 'none'}, {who} has {', '.join(expected) or 'none'}"
    by_name = {port["name"]: port for port in ours}
    for port in theirs:
        own = by_name.get(port["name"])
        if own is None:
            continue
        if own["shape"] != port["shape"]:
            what = f"shape {spelled(own['shape'])}, {who} has {spelled(port['shape'])}"
            yield f"{side[:-1]} {port['name']}: {what}"
        if own["dtype"] != port["dtype"]:
            yield f"{side[:-1]} {port['name']}: dtype {own['dtype']}, {who} has {port['dtype']}"


def _labels(ours: list[str], theirs: list[str], who: str) -> list[str]:
    if not theirs or ours == theirs:
        return []
    if len(ours) != len(theirs):
        return [f"labels: {len(ours) or 'none'}, {who} has {len(theirs)}"]
    wrong = [index for index, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
    first = wrong[0]
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    return [f"label order: {first} is {ours[first]!r}, {who} has {theirs[first]!r}{more}"]
