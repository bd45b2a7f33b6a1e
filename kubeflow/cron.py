"""Cron expressions and durations, as Kubeflow's schedules want them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeline.errors import UserError

if TYPE_CHECKING:
    pass

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
