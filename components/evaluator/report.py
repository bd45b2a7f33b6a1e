"""The report: what the Evaluator found, as facts (`report.json`) and as one page drawn from these facts alone.

The page is a single HTML file. It loads nothing from anywhere: styles, scripts and plotly.js are inside, and its
content security policy forbids the browser every request.
"""

from __future__ import annotations

import html
import json
import math
import os
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

SCHEMA_VERSION = 1
"""The version of the layout of report.json that this module writes and draws."""

# The only place for colours: the template turns them into CSS variables, the charts use them directly.
PALETTES = {
    "light": {
        "page": "#f5f6f8",
        "card": "#ffffff",
        "line": "#dfe3e8",
        "text": "#1b2430",
        "muted": "#566273",
        "accent": "#1d5fbf",
        "good": "#17723a",
        "bad": "#b3261e",
        "tint": "#eaf5ee",
    },
    "dark": {
        "page": "#11151b",
        "card": "#191f27",
        "line": "#313a46",
        "text": "#e7ebf0",
        "muted": "#a0adbd",
        "accent": "#77b2ff",
        "good": "#63c98a",
        "bad": "#ff938a",
        "tint": "#1a2c26",
    },
}

_TEMPLATE = Path(__file__).with_name("report.html.jinja")
_MISSING = "–"
_OPTIONAL: dict[str, Any] = {
    **dict.fromkeys(("metrics", "drop", "bytes", "zlib_bytes", "ratio", "latency_ms", "sparsity", "sha256", "failure")),
    **dict.fromkeys(("recipe", "reasons", "steps", "layers"), ()),
    **dict.fromkeys(("blessed", "pareto"), False),
}
_OBJECTIVES = {"zlib_bytes": "fewest zlib bytes", "bytes": "smallest file", "latency_ms": "lowest latency"}


def render(report: dict[str, Any]) -> str:
    """Draws the page.

    Args:
        report: the facts, laid out as report.json, schema version 1. A NaN or infinite number counts as missing.

    Returns:
        One HTML document; the same text for the same facts.

    Raises:
        ValueError: the report has another schema version.
    """
    version = report.get("schema_version")
    if version != SCHEMA_VERSION:
        raise ValueError(f"report.json: expected schema_version {SCHEMA_VERSION}, received {version!r}")
    report = _finite(report)
    metric = report["budget"]["metric"]
    baseline = _row(report["baseline"], metric)
    rows = [_row(candidate, metric) for candidate in report["candidates"]]
    by_name = {row["name"]: row for row in rows}
    selected = by_name[report["selected"]] if report.get("selected") else None
    if selected:
        selected["verdict"] = "selected"
    closest = by_name[report["closest"]] if report.get("closest") and not selected else None
    budget = _Budget.of(report["budget"], baseline["metric"])
    style = _Format(_decimals(baseline["metric"], 4), _decimals(baseline["p50"], 3))
    figures = {}
    for axis in (_size_axis(budget), _latency_axis(budget)):
        if any(axis.point(row) for row in rows):
            figures[axis.key] = {
                scheme: _chart(axis, baseline, rows, selected or closest, budget, style, palette).to_plotly_json()
                for scheme, palette in PALETTES.items()
            }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        created=datetime.fromisoformat(report["created"]).strftime("%Y-%m-%d %H:%M %Z").strip(),
        baseline=baseline,
        rows=rows,
        selected=selected,
        closest=closest,
        budget=budget,
        style=style,
        palettes=PALETTES,
        figures=figures,
        plotly_js=Markup(get_plotlyjs()) if figures else "",
    )


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Writes report.json and report.html into a folder, which is created if need be.

    Each file appears complete or not at all. The facts are written first, so that they outlive a failure to draw them.

    Args:
        report: the facts, laid out as report.json, schema version 1; NaN and infinite numbers are written as null.
        folder: where to; existing files are replaced.

    Raises:
        ValueError: the report has another schema version.
    """
    folder.mkdir(parents=True, exist_ok=True)
    facts = json.dumps(_finite(report), indent=1, ensure_ascii=False, allow_nan=False)
    _write(folder / "report.json", facts + "\n")
    _write(folder / "report.html", render(report))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _finite(value: Any) -> Any:
    """Copies JSON-like data with None for every number that JSON cannot say."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _row(entry: dict[str, Any], metric: str) -> dict[str, Any]:
    """Copies the baseline's or a candidate's facts: optional keys present, the numbers of the table on one level."""
    row = _OPTIONAL | {key: value for key, value in entry.items() if value is not None}
    latency = row["latency_ms"] or {}
    verdict = "failed" if row["failure"] else "fits" if row["blessed"] else "misses"
    return row | {
        "metric": (row["metrics"] or {}).get(metric),
        "p50": latency.get("p50"),
        "p90": latency.get("p90"),
        "verdict": verdict,
    }


@dataclass(frozen=True)
class _Budget:
    """The budget in the terms of the page; a limit that is None was not asked for.

    Attributes:
        sign: 1 where more of the metric is better, -1 where less is.
        metric_limit: the worst value of the metric that the budget allows.
    """

    metric: str
    sign: int
    max_drop: float | None
    metric_limit: float | None
    max_bytes: int | None
    max_zlib_bytes: int | None
    max_latency_ms: float | None
    objective: str

    @classmethod
    def of(cls, budget: dict[str, Any], baseline: float | None) -> _Budget:
        sign = -1 if budget["direction"] == "min" else 1
        max_drop = budget.get("max_drop")
        return cls(
            metric=budget["metric"],
            sign=sign,
            max_drop=max_drop,
            metric_limit=None if max_drop is None or baseline is None else baseline - sign * max_drop,
            max_bytes=budget.get("max_bytes"),
            max_zlib_bytes=budget.get("max_zlib_bytes"),
            max_latency_ms=budget.get("max_latency_ms"),
            objective=_OBJECTIVES.get(budget["objective"], budget["objective"]),
        )


def _decimals(reference: float | None, digits: int) -> int:
    """How many decimals show `digits` significant digits of numbers about as large as the reference."""
    if not reference:
        return digits
    return min(max(digits - math.ceil(math.log10(abs(reference))), 0), 9)


@dataclass(frozen=True)
class _Format:
    """Numbers as text. A column has as many decimals as the baseline's value needs, so that its digits line up."""

    metric_decimals: int
    ms_decimals: int

    def metric(self, value: float | None) -> str:
        return self._fixed(value, self.metric_decimals)

    def change(self, value: float | None) -> str:
        """A difference of two values of the metric, with its sign."""
        text = self.metric(value)
        return f"+{text}" if value is not None and value > 0 and text.strip("0.") else text

    def ms(self, value: float | None) -> str:
        return self._fixed(value, self.ms_decimals)

    def latency(self, p50: float | None, p90: float | None) -> str:
        return _MISSING if p50 is None and p90 is None else f"{self.ms(p50)} / {self.ms(p90)}"

    def count(self, value: int | None) -> str:
        return _MISSING if value is None else f"{value:,}"

    def percent(self, value: float | None) -> str:
        return _MISSING if value is None else f"{100 * value:.1f} %"

    def times(self, value: float | None) -> str:
        return _MISSING if value is None else f"{value:.1f}×"

    def number(self, value: float | None) -> str:
        """A number of unknown scale, such as a metric that the budget does not name."""
        return _MISSING if value is None else f"{value:.4g}".replace("-", "−")

    def ratio(self, old: float | None, new: float | None, less: str, more: str) -> str | None:
        """Compares two positive numbers, as in "2.0× faster"; None if one is missing."""
        if not old or not new:
            return None
        return f"{old / new:.1f}× {less}" if new <= old else f"{new / old:.1f}× {more}"

    def _fixed(self, value: float | None, decimals: int) -> str:
        if value is None:
            return _MISSING
        if abs(value) >= 1e9:  # a diverged model; all digits would only widen the column
            return self.number(value)
        text = f"{value:.{decimals}f}"
        return text.replace("-", "−" if text.strip("-0.") else "")


class _Point(NamedTuple):
    x: float
    y: float
    row: dict[str, Any]


@dataclass(frozen=True)
class _Axis:
    """The horizontal, logarithmic axis of a chart: a cost, of which less is better."""

    key: str
    title: str
    column: str
    limit: float | None
    label: Callable[[float], str]

    def point(self, row: dict[str, Any]) -> _Point | None:
        """Where a row is drawn, or None where it failed or was not measured."""
        x, y = row[self.column], row["metric"]
        return _Point(x, y, row) if x and x > 0 and y is not None and not row["failure"] else None


def _size_axis(budget: _Budget) -> _Axis:
    def label(value: float) -> str:
        for unit, name in ((1e6, "MB"), (1e3, "kB")):
            if value >= unit:
                return f"{value / unit:g} {name}"
        return f"{value:g} B"

    return _Axis("size-chart", "zlib bytes", "zlib_bytes", budget.max_zlib_bytes, label)


def _latency_axis(budget: _Budget) -> _Axis:
    return _Axis("latency-chart", "latency p50 in ms", "p50", budget.max_latency_ms, lambda value: f"{value:g}")


def _front(points: Iterable[_Point], sign: int) -> list[_Point]:
    """The points, from left to right, that no other point beats on both axes."""
    front: list[_Point] = []
    for point in sorted(points, key=lambda point: (point.x, -sign * point.y)):
        if not front or sign * point.y > sign * front[-1].y:
            front.append(point)
    return front


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive bounds, few enough for the width of a phone."""
    decades = math.log10(high / low)
    steps = (1, 1.5, 2, 3, 5, 7) if decades < 1.1 else (1, 2, 5) if decades < 2.2 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for step in steps if low <= (tick := float(f"{step}e{power}")) <= high]


def _hover(row: dict[str, Any], budget: _Budget, style: _Format, verdict: str) -> str:
    """All numbers of a point. Plotly reads tags in its texts, so everything from the report is escaped."""
    lines = textwrap.wrap(row["name"], 44)
    facts = [
        f"{budget.metric} {style.metric(row['metric'])}",
        f"zlib bytes {style.count(row['zlib_bytes'])}, file {style.count(row['bytes'])}",
        f"latency p50 {style.ms(row['p50'])} ms, p90 {style.ms(row['p90'])} ms",
    ]
    if row["drop"] is not None:
        facts[0] += f", {'drop' if budget.sign > 0 else 'rise'} {style.metric(row['drop'])}"
    if row["ratio"] is not None:
        facts.append(f"ratio to the baseline {style.times(row['ratio'])}")
    if row["sparsity"] is not None:
        facts.append(f"{style.percent(row['sparsity'])} of the weights are zero")
    facts.append(verdict + (", on the Pareto front" if row["pareto"] else ""))
    facts += row["reasons"]
    wrapped = [line for fact in facts for line in textwrap.wrap(fact, 44)]
    bold, plain = (html.escape("\n".join(part), quote=False).replace("\n", "<br>") for part in (lines, wrapped))
    return f"<b>{bold}</b><br>{plain}"


def _chart(
    axis: _Axis,
    baseline: dict[str, Any],
    rows: list[dict[str, Any]],
    named: dict[str, Any] | None,
    budget: _Budget,
    style: _Format,
    palette: dict[str, str],
) -> go.Figure:
    """Draws cost against quality.

    Args:
        axis: the cost.
        baseline: the baseline's row.
        rows: the candidates' rows, at least one of which has a point on the axis.
        named: the selected or closest candidate, said so beside its symbol.
        budget: what is shaded.
        style: how numbers are written.
        palette: one of PALETTES.
    """
    points = [point for row in rows if (point := axis.point(row))]
    reference = axis.point(baseline | {"name": "baseline"})
    drawn = [*points, reference] if reference else points
    xs, ys = [point.x for point in drawn], [point.y for point in drawn]
    if axis.limit:
        xs.append(axis.limit)
    if budget.metric_limit is not None:
        ys.append(budget.metric_limit)
    low, high = min(xs) / 2, max(xs) * 1.7
    pad = 0.16 * (max(ys) - min(ys) or 0.1 * abs(ys[0]) or 1)
    # Only points that beat the chosen one could lie in this corner beside it, so as a rule it is free.
    corner = "top left" if budget.sign > 0 else "bottom left"

    def label(point: _Point) -> str:
        if point is reference:
            return "baseline"
        if point.row is named:
            return "selected" if point.row["verdict"] == "selected" else "closest"
        return ""

    def scatter(name: str, chosen: list[_Point], symbol: str, size: int, color: str) -> go.Scatter:
        return go.Scatter(
            name=name,
            x=[point.x for point in chosen],
            y=[point.y for point in chosen],
            mode="markers+text",
            text=[label(point) for point in chosen],
            textposition=corner,
            textfont={"color": palette["text"], "size": 12},
            marker={"symbol": symbol, "size": size, "color": color, "line": {"width": 1.5, "color": palette["card"]}},
            hovertext=[_hover(point.row, budget, style, name) for point in chosen],
            hoverinfo="text",
            cliponaxis=False,
        )

    front = _front(points, budget.sign)
    of_verdict = {
        verdict: [point for point in points if point.row["verdict"] == verdict]
        for verdict in ("misses", "fits", "selected")
    }
    traces = [
        go.Scatter(
            name="Pareto front",
            x=[point.x for point in front],
            y=[point.y for point in front],
            mode="lines",
            line={"shape": "hv", "width": 2, "color": palette["accent"]},
            opacity=0.7,
            hoverinfo="skip",
        ),
        scatter("baseline", [reference] if reference else [], "diamond", 13, palette["text"]),
        scatter("misses budget", of_verdict["misses"], "x", 10, palette["bad"]),
        scatter("meets budget", of_verdict["fits"], "circle", 12, palette["accent"]),
        scatter("selected", of_verdict["selected"], "star", 19, palette["good"]),
    ]
    axes = {
        "gridcolor": palette["line"],
        "linecolor": palette["line"],
        "zeroline": False,
        "automargin": True,
        "title": {"font": {"size": 13}, "standoff": 12},
        "tickfont": {"size": 12},
        "tickangle": 0,
    }
    ticks = _ticks(low, high)
    figure = go.Figure(
        [trace for trace in traces if trace.x],
        {
            "template": "none",
            "height": 420,
            "margin": {"l": 8, "r": 16, "t": 12, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": palette["muted"]},
            "hovermode": "closest",
            "hoverlabel": {
                "bgcolor": palette["card"],
                "bordercolor": palette["muted"],
                "font": {"color": palette["text"], "size": 13},
                "align": "left",
            },
            "legend": {"orientation": "h", "y": -0.22, "yanchor": "top", "entrywidth": 92, "font": {"size": 12}},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": palette["muted"], "activecolor": palette["accent"]},
            "xaxis": {
                **axes,
                "type": "log",
                "title_text": f"{axis.title} (log scale)",
                "range": [math.log10(low), math.log10(high)],
                "tickvals": ticks,
                "ticktext": [axis.label(tick) for tick in ticks],
            },
            "yaxis": {
                **axes,
                "title_text": html.escape(_short(budget.metric), quote=False),
                "range": [min(ys) - pad, max(ys) + pad],
            },
        },
    )
    if axis.limit or budget.metric_limit is not None:
        # Edges without a limit lie far outside, so that the region still fills the plot after zooming out.
        best = max(ys) + 50 * pad if budget.sign > 0 else min(ys) - 50 * pad
        worst = min(ys) - 50 * pad if budget.sign > 0 else max(ys) + 50 * pad
        figure.add_shape(
            type="rect",
            name="within budget",
            showlegend=True,
            layer="below",
            x0=low / 1e3,
            x1=axis.limit or high * 1e3,
            y0=best,
            y1=worst if budget.metric_limit is None else budget.metric_limit,
            fillcolor=palette["tint"],
            line={"color": palette["good"], "width": 1, "dash": "dot"},
        )
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:25]}…"
