"""Numbers as the report prints them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MISSING = "–"


def _decimals(reference: float | None, digits: int) -> int:
    """How many decimals show `digits` significant digits of numbers about as large as the reference."""
    if not reference:
        return digits
    return min(max(digits - math.ceil(math.log10(abs(reference))), 0), 9)


def size(value: float) -> str:
    """Returns a number of bytes with three significant digits, in powers of 1000.

    >>> size(512), size(24_824), size(2**20), size(-999_900)
    ('512 B', '24.8 kB', '1.05 MB', '-1 MB')
    """
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= 0.9995 * unit:  # what rounds to the unit is one
            return f"{value / unit:.3g} {name}"
    return f"{value:g} B"


#: Below so many milliseconds times are said in microseconds.
_SHORT_MS = 0.1


def duration(ms: float) -> str:
    """Returns a time given in milliseconds, of three significant digits; in microseconds below 0.1 ms.

    >>> duration(0.0153), duration(0.0999), duration(0.25), duration(12.34), duration(1234)
    ('15.3 µs', '99.9 µs', '0.25 ms', '12.3 ms', '1,234 ms')
    """
    value, unit = (1000 * ms, "µs") if 0 < abs(ms) < _SHORT_MS else (ms, "ms")
    return f"{value:,.0f} {unit}" if abs(value) >= 1000 else f"{value:.3g} {unit}"


@dataclass(frozen=True)
class Format:
    """Numbers as text. A column has as many decimals as the baseline's value needs, so that its digits line up.

    Attributes:
      metric_decimals: of values of the budget's metric.
      time_decimals: of times in `time_unit`.
      time_unit: of columns of times: `ms`, or `µs` where the baseline takes less than 0.1 ms.
    """

    metric_decimals: int
    time_decimals: int
    time_unit: str = "ms"

    @classmethod
    def of(cls, metric: float | None, ms: float | None) -> Format:
        """Returns the format for numbers about as large as the baseline's, whose median time is in milliseconds."""
        is_short = ms is not None and 0 < ms < _SHORT_MS
        unit = "µs" if is_short else "ms"
        return cls(_decimals(metric, 4), _decimals(1000 * ms if ms and is_short else ms, 3), unit)

    def metric(self, value: float | None) -> str:
        """A value of the budget's metric."""
        return self.fixed(value, self.metric_decimals)

    def change(self, value: float | None) -> str:
        """A difference of two values of the metric, with its sign."""
        text = self.metric(value)
        return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text

    def interval(self, ends: Sequence[float | None] | None, signed: bool = False) -> str | None:
        """Both ends of an interval of the metric; None without one."""
        if not ends or None in ends:
            return None
        write = self.change if signed else self.metric
        return f"{write(ends[0])} to {write(ends[1])}"

    def time(self, ms: float | None) -> str:
        """A time in `time_unit`, without it."""
        return self.fixed(1000 * ms if ms is not None and self.time_unit == "µs" else ms, self.time_decimals)

    def duration(self, ms: float | None) -> str:
        """A time with its unit, see the function `duration`."""
        return MISSING if ms is None else duration(ms)

    def latency(self, p50: float | None, p90: float | None) -> str:
        """Both latencies of the table, in `time_unit`."""
        return MISSING if p50 is None and p90 is None else f"{self.time(p50)} / {self.time(p90)}"

    def memory(self, value: float | None) -> str:
        """Bytes of memory, always in MB, of 10**6 bytes."""
        return MISSING if value is None else f"{value / 1e6:,.2f} MB".replace("-", "−")

    def count(self, value: float | None) -> str:
        """A whole number."""
        return MISSING if value is None else f"{value:,.0f}".replace("-", "−")

    def signed(self, value: int) -> str:
        """A difference of two whole numbers."""
        return f"{value:+,}".replace("-", "−") if value else "0"

    def percent(self, value: float | None) -> str:
        """A fraction."""
        return MISSING if value is None else f"{100 * value:.1f} %"

    def times(self, value: float | None) -> str:
        """A ratio."""
        return MISSING if value is None else f"{value:.1f}×"

    def number(self, value: float | None) -> str:
        """A number of unknown scale, such as a metric that the budget does not name."""
        return MISSING if value is None else f"{value:.4g}".replace("-", "−")

    def size(self, value: float | None) -> str:
        """Bytes, rounded."""
        return MISSING if value is None else size(value)

    def seconds(self, value: float | None) -> str:
        """A time that a step takes."""
        if value is None:
            return MISSING
        if value < 60:
            return f"{value:.1f} s"
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {seconds:02d} s"

    def ratio(self, old: float | None, new: float | None, less: str, more: str) -> str | None:
        """Compares two positive numbers, as in "2.0× faster"; None if one is missing."""
        if not old or not new:
            return None
        return f"{old / new:.1f}× {less}" if new <= old else f"{new / old:.1f}× {more}"

    def any(self, value: Any) -> str:
        """What a report's newer writer may say of a layer."""
        if value is None or value == "":
            return MISSING
        if isinstance(value, bool) or not isinstance(value, int | float):
            return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        return self.count(value) if isinstance(value, int) else self.number(value)

    def fixed(self, value: float | None, decimals: int) -> str:
        """A number with this many decimals."""
        if value is None:
            return MISSING
        if abs(value) >= 1e9:  # a diverged model; all digits would only widen the column
            return self.number(value)
        text = f"{value:.{decimals}f}"
        return text.replace("-", "−" if text.strip("-0.") else "")
