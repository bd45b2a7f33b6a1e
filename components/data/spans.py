"""Data in spans: a folder per day or per number, of which a run takes a window that ends at the newest.

A pattern such as `data/day-{SPAN}` or `data/{YYYY}-{MM}-{DD}/v{VERSION}` names the folders, in TFX's placeholders:
`{SPAN}` is a number (`{SPAN:3}`: of three digits); `{YYYY}`, `{MM}` and `{DD}` together are a date, its number the
days since 1970-01-01; of `{VERSION}` the largest counts. Each folder is a data folder.

Standard library only: whether there is anything new is known before TFX is imported.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeline.data import data_folder
from edgeline.data.data_folder import SHARD_SUFFIX, SPLITS
from edgeline.errors import UserError, suggest

_PLACEHOLDER = re.compile(r"\{([A-Za-z]+)(?::(\d*))?\}")
_DATE = {"YYYY": 4, "MM": 2, "DD": 2}
_KNOWN = ("SPAN", "VERSION", *_DATE)
_NUMBERED = re.compile(r"-(\d{5})-of-(\d{5})" + re.escape(SHARD_SUFFIX))
_EPOCH = datetime.date(1970, 1, 1)


@dataclass(frozen=True)
class Span:
    """One span of a window.

    Attributes:
      number: of the span; of a date, days since 1970-01-01.
      name: path of the folder below the base of the window, such as `day-7`.
      folder: the data folder.
    """

    number: int
    name: str
    folder: Path


@dataclass(frozen=True)
class Window:
    """The spans that a run reads.

    Attributes:
      base: the folder above all of them.
      spans: oldest first, at least one.
      notes: what else the pattern found, or did not, and why it is not used; for the user.
    """

    base: Path
    spans: tuple[Span, ...]
    notes: tuple[str, ...]


def is_pattern(data: Path) -> bool:
    """Whether a path has placeholders; a misspelt one counts, so that it is refused and not searched for."""
    return _PLACEHOLDER.search(str(data)) is not None


def resolve(pattern: Path, size: int = 1) -> Window:
    """Finds the newest complete span and those at most `size` - 1 before it, by their numbers.

    A span is complete if each of its splits has shards, and all of those that names such as `data-00001-of-00003` speak
    of. One that is not, probably still being written, is left out and named.

    Raises:
      UserError: the pattern is wrong, or there is no complete span.
    """
    placeholders = _check(str(pattern))
    if size < 1:
        raise UserError(f"--window must be at least 1, received {size}")
    parts = pattern.parts
    first = next(i for i, part in enumerate(parts) if _PLACEHOLDER.search(part))
    base = Path(*parts[:first])
    notes: list[str] = []
    folders_by_span: dict[int, dict[int, Path]] = {}
    for folder, values in _matches(base, parts[first:], {}):
        number = _number(values)
        if number is None:
            notes.append(f"{folder} is left out: there is no such date")
            continue
        other = folders_by_span.setdefault(number, {}).setdefault(values.get("VERSION", 0), folder)
        if other != folder:
            raise UserError(
                f"{other} and {folder} are both number {number} of {pattern}: rename one of them, or say how many "
                "digits the number has, such as {SPAN:3}"
            )
    spans: list[Span] = []
    for number in sorted(folders_by_span, reverse=True):
        if spans and number <= spans[0].number - size:
            break
        for _, folder in sorted(folders_by_span[number].items(), reverse=True):
            if not (lack := _lack(folder)):
                spans.append(Span(number, folder.relative_to(base).as_posix(), folder))
                break
            when = "" if spans else "; is it still being written?"
            notes.append(f"{folder} is left out: it is incomplete, {lack}{when}")
    if not spans:
        raise UserError(_nothing(pattern, base, folders_by_span, notes))
    if missing := _missing(spans, size, oldest=min(folders_by_span), dated="YYYY" in placeholders):
        notes.append(f"the window of {size} has {len(spans)} spans: there is no complete {', '.join(missing)}")
    return Window(base, tuple(reversed(spans)), tuple(notes))


def _check(pattern: str) -> list[str]:
    """Returns the placeholders of a pattern, or raises UserError saying what is wrong with it."""
    given = _PLACEHOLDER.findall(pattern)
    names = [name for name, _ in given]
    for name, width in given:
        if name not in _KNOWN:
            hint = suggest(name.upper(), _KNOWN, spell="{{{}}}".format)
            raise UserError(f"--data {pattern}: unknown placeholder {{{name}}}; {hint}")
        if names.count(name) > 1:
            raise UserError(f"--data {pattern}: {{{name}}} stands there {names.count(name)} times; once is enough")
        written = f"{{{name}:{width}}}"
        if written in pattern and (name in _DATE or not int(width or 0)):
            raise UserError(
                f"--data {pattern}: {written} must be {{{name}}}, or {{SPAN:3}} for a number of three digits"
            )
    dates = [name for name in _DATE if name in names]
    if dates and len(dates) < len(_DATE):
        absent = ", ".join(f"{{{name}}}" for name in _DATE if name not in names)
        raise UserError(f"--data {pattern}: a date needs {{YYYY}}, {{MM}} and {{DD}}; {absent} is missing")
    if dates and "SPAN" in names:
        raise UserError(f"--data {pattern}: give {{SPAN}} or a date, not both")
    if "VERSION" in names and not dates and "SPAN" not in names:
        raise UserError(f"--data {pattern}: {{VERSION}} is the version of a span: give {{SPAN}} or a date too")
    return names


def _matches(
    folder: Path, parts: tuple[str, ...], values: Mapping[str, int]
) -> Iterator[tuple[Path, Mapping[str, int]]]:
    """Yields every folder that a pattern's parts lead to, with the numbers that stand for the placeholders."""
    if not parts:
        yield folder, values
        return
    pattern = _regex(parts[0])
    try:
        below = sorted(path for path in folder.iterdir() if path.is_dir())
    except OSError:
        return  # who finds no span says what is there
    for path in below:
        if match := pattern.fullmatch(path.name):
            yield from _matches(path, parts[1:], {**values, **{n: int(text) for n, text in match.groupdict().items()}})


def _regex(part: str) -> re.Pattern[str]:
    def digits(match: re.Match[str]) -> str:
        width = _DATE.get(match[1]) or int(match[2] or 0)
        return f"(?P<{match[1]}>[0-9]{{{width}}})" if width else f"(?P<{match[1]}>[0-9]+)"

    pieces, end = [], 0
    for match in _PLACEHOLDER.finditer(part):
        pieces += [re.escape(part[end : match.start()]), digits(match)]
        end = match.end()
    return re.compile("".join(pieces) + re.escape(part[end:]))


def _number(values: Mapping[str, int]) -> int | None:
    if "SPAN" in values:
        return values["SPAN"]
    try:
        return (datetime.date(values["YYYY"], values["MM"], values["DD"]) - _EPOCH).days
    except ValueError:
        return None


def _lack(folder: Path) -> str:
    """Returns what a data folder has not got yet; empty where it is complete."""
    for split in SPLITS:
        shards = sorted(path.name for path in (folder / split).glob(f"*{SHARD_SUFFIX}"))
        if not shards:
            return f"{split} has no *{SHARD_SUFFIX} files"
        numbered = [match.groups() for name in shards if (match := _NUMBERED.search(name))]
        promised = {total for _, total in numbered}
        if len(promised) == 1 and len(numbered) < int(numbered[0][1]):
            return f"{split} has {len(numbered)} of {int(numbered[0][1])} shards"
    return ""


def _missing(spans: list[Span], size: int, *, oldest: int, dated: bool) -> list[str]:
    """Returns the gaps of a window, in words; before the oldest span there are none."""
    newest, present = spans[0].number, {span.number for span in spans}
    gaps = [number for number in range(max(newest - size + 1, oldest), newest) if number not in present]
    return [str(_EPOCH + datetime.timedelta(days=number)) if dated else f"span {number}" for number in gaps]


def _nothing(pattern: Path, base: Path, found: Mapping[int, Any], notes: list[str]) -> str:
    if found:
        return f"--data {pattern}: no span is complete yet\n" + "\n".join(f"  {note}" for note in notes)
    try:
        names = sorted(path.name for path in base.iterdir())
    except OSError:
        return f"--data {pattern}: the folder {base} does not exist"
    some = f"it holds {', '.join(names[:10])}{' and more' if len(names) > 10 else ''}" if names else "it is empty"
    return f"--data {pattern}: no folder in {base} is named like that; {some}"


def fingerprint(folders: list[Path]) -> str:
    """Returns a digest over the names, sizes and modification times of all shards; nothing is read.

    Raises:
      UserError: a folder is no data folder.
    """
    digests = [(str(folder), data_folder.fingerprint(folder)) for folder in folders]
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()
