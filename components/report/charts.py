"""The charts of the report, as Plotly's JSON.

A colour is written as "@" and its name in PALETTES: the page puts in the colour of the scheme that its reader prefers.
Plotly reads tags in its texts, so everything from the report is escaped.
"""

from __future__ import annotations

import html
import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from edgeline.report import formats
from edgeline.report.formats import Format
from edgeline.report.schema import CalibrationBin, PhaseReport, RegressionReport
from edgeline.report.words import VERDICTS, PageBudget, Row

# The only place for colours: the template turns them into CSS variables, the page's script puts them into the charts.
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
        "warn": "#855000",
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
        "warn": "#e9b566",
        "tint": "#1a2c26",
    },
}

Figure = dict[str, Any]
"""`data` and `layout`, as Plotly takes them."""

_SYMBOLS = {
    "misses": ("x", 10, "@bad"),
    "fits": ("circle", 12, "@accent"),
    "selected": ("star", 19, "@good"),
}
#: Of a night in a timeline, by what became of it.
_NIGHTS = {
    "pushed": ("star", 16, "@good"),
    "not pushed": ("circle", 10, "@accent"),
    "nothing fits": ("x", 10, "@bad"),
}
#: Of a logarithmic axis the left end at least, beyond all that can be measured; its inverse is the right end at most.
_LEAST = 1e-300
#: Up to so many classes, the cells of a confusion matrix have room for a number.
_ROOMY = 10


class _Point(NamedTuple):
    x: float
    y: float
    row: Row


@dataclass(frozen=True)
class Axis:
    """The horizontal, logarithmic axis of a chart: a cost, of which less is better.

    Attributes:
        key: the chart's name in the page.
        title: of the axis.
        cost: of a row; None where it is not known.
        limit: the most that the budget allows.
        label: a tick as text.
    """

    key: str
    title: str
    cost: Callable[[Row], float | None]
    limit: float | None
    label: Callable[[float], str]

    def point(self, row: Row) -> _Point | None:
        """Where a row is drawn, or None where it failed or was not measured."""
        x = self.cost(row)
        return _Point(x, row.metric, row) if x and x > 0 and row.metric is not None and not row.failure else None


def size_axis(budget: PageBudget) -> Axis:
    """Returns the axis of what a download transfers."""
    return Axis("size-chart", "zlib bytes", lambda row: row.zlib_bytes, budget.limit("max_zlib_bytes"), formats.size)


def latency_axis(budget: PageBudget) -> Axis:
    """Returns the axis of the median latency."""
    limit = budget.limit("max_latency_ms")
    return Axis("latency-chart", "latency p50", lambda row: row.p50, limit, formats.duration)


def trade_off(
    axis: Axis,
    baseline: Row,
    rows: Sequence[Row],
    named: Row | None,
    budget: PageBudget,
    style: Format,
) -> Figure | None:
    """Draws cost against quality.

    Args:
        axis: the cost.
        baseline: the baseline's row.
        rows: the candidates' rows.
        named: the selected or closest candidate, said so beside its symbol.
        budget: what is shaded.
        style: how numbers are written.

    Returns:
        The chart; None where no candidate has a point.
    """
    points = [point for row in rows if (point := axis.point(row))]
    if not points:
        return None
    reference = axis.point(baseline)
    drawn = [*points, reference] if reference else points
    xs, ys = [point.x for point in drawn], [point.y for point in drawn]
    ys += [y for point in points for y in _whiskers(point, budget)]
    if axis.limit:
        xs.append(axis.limit)
    if budget.metric_limit is not None:
        ys.append(budget.metric_limit)
    low, high = max(min(xs) / 2, _LEAST), min(max(xs) * 1.7, 1 / _LEAST)
    pad = 0.14 * (max(ys) - min(ys) or 0.1 * abs(ys[0]) or 1)
    # Only points that beat the chosen one could lie in this corner beside it, so as a rule it is free.
    corner, below = ("top left", "bottom center") if budget.sign > 0 else ("bottom left", "top center")

    def label(point: _Point) -> str:
        if point is reference:
            return "baseline"
        if point.row is named:
            return "selected" if point.row.verdict == "selected" else "closest"
        return ""

    def scatter(name: str, chosen: list[_Point], symbol: str, size: int, color: str) -> dict[str, Any]:
        whiskers = [_whiskers(point, budget) for point in chosen]
        return {
            "type": "scatter",
            "name": name,
            "x": [point.x for point in chosen],
            "y": [point.y for point in chosen],
            "error_y": {
                "type": "data",
                "symmetric": False,
                "array": [high - point.y for point, (_, high) in zip(chosen, whiskers, strict=True)],
                "arrayminus": [point.y - low for point, (low, _) in zip(chosen, whiskers, strict=True)],
                "visible": any(low != high for low, high in whiskers),
                "color": color,
                "thickness": 1,
                "width": 3,
            },
            "mode": "markers+text",
            "text": [label(point) for point in chosen],
            "textposition": below if symbol.startswith("diamond") else corner,
            "textfont": {"color": "@text", "size": 12},
            "marker": {"symbol": symbol, "size": size, "color": color, "line": {"width": 1.5, "color": "@card"}},
            "hovertext": [_hover(point.row, budget, style, name) for point in chosen],
            "hoverinfo": "text",
            "cliponaxis": False,
        }

    front = _front(points, budget.sign)
    traces = [
        {
            "type": "scatter",
            "name": "Pareto front",
            "x": [point.x for point in front],
            "y": [point.y for point in front],
            "mode": "lines",
            "line": {"shape": "hv", "width": 2, "color": "@accent"},
            "opacity": 0.7,
            "hoverinfo": "skip",
        },
        scatter("baseline", [reference] if reference else [], "diamond-open", 15, "@text"),
        *(
            scatter(VERDICTS[verdict].lower(), [p for p in points if p.row.verdict == verdict], *symbol)
            for verdict, symbol in _SYMBOLS.items()
        ),
    ]
    ticks = _ticks(low, high)
    layout = _layout(
        height=420,
        legend=_legend(entrywidth=82),
        xaxis={
            "type": "log",
            "title": {"text": f"{axis.title} (log scale)"},
            "range": [math.log10(low), math.log10(high)],
            "tickvals": ticks,
            "ticktext": [axis.label(tick) for tick in ticks],
        },
        yaxis={"title": {"text": _text(budget.metric, 26)}, "range": [min(ys) - pad, max(ys) + pad]},
    )
    if axis.limit or budget.metric_limit is not None:
        # Edges without a limit lie far outside, so that the region still fills the plot after zooming out.
        best = max(ys) + 50 * pad if budget.sign > 0 else min(ys) - 50 * pad
        worst = min(ys) - 50 * pad if budget.sign > 0 else max(ys) + 50 * pad
        region = {
            "type": "rect",
            "name": "within budget",
            "showlegend": True,
            "layer": "below",
            "x0": low / 1e3,
            "x1": axis.limit or high * 1e3,
            "y0": best,
            "y1": worst if budget.metric_limit is None else budget.metric_limit,
            "fillcolor": "@tint",
            "line": {"color": "@good", "width": 1, "dash": "dot"},
        }
        layout["shapes"] = [region]
    return {"data": [trace for trace in traces if trace["x"]], "layout": layout}


def confusion_change(
    baseline: Sequence[Sequence[int]], candidate: Sequence[Sequence[int]], names: Sequence[str]
) -> Figure:
    """Draws how a candidate's confusion matrix differs from the baseline's.

    Args:
        baseline: rows are labels, columns predictions.
        candidate: likewise, of the same classes.
        names: of the classes.
    """
    classes = range(len(names))
    change = [[new - old for new, old in zip(*rows, strict=True)] for rows in zip(candidate, baseline, strict=True)]
    # Off the diagonal more is worse.
    gain = [[change[i][j] if i == j else -change[i][j] for j in classes] for i in classes]
    axis = _categories(names)
    most = max((abs(value) for row in gain for value in row), default=0) or 1
    heat: dict[str, Any] = {
        "type": "heatmap",
        "x": axis,
        "y": axis,
        "z": gain,
        "zmin": -most,
        "zmax": most,
        "colorscale": [[0, "@bad"], [0.5, "@card"], [1, "@accent"]],
        "showscale": False,
        "xgap": 1,
        "ygap": 1,
        "customdata": [
            [[old, new, f"{new - old:+d}" if new != old else "0"] for old, new in zip(*rows, strict=True)]
            for rows in zip(baseline, candidate, strict=True)
        ],
        "hovertemplate": "label %{y}<br>predicted %{x}<br><b>%{customdata[2]}</b>: baseline %{customdata[0]}, "
        "here %{customdata[1]}<extra></extra>",
    }
    if len(names) <= _ROOMY:
        heat["text"] = [[f"{value:+d}".replace("-", "−") if value else "" for value in row] for row in change]
        heat["texttemplate"] = "%{text}"
        heat["textfont"] = {"size": 11, "color": "@text"}
    ticks = {"type": "category", "showgrid": False, "tickfont": {"size": 12 if len(names) <= 25 else 9}}
    ticks |= {"tickmode": "array", "tickvals": axis, "fixedrange": True}
    layout = _layout(
        height=max(330, 13 * len(names) + 140),
        xaxis={**ticks, "title": {"text": "predicted"}, "tickangle": -90 if max(map(len, names), default=0) > 2 else 0},
        yaxis={**ticks, "title": {"text": "label"}, "autorange": "reversed"},
    )
    return {"data": [heat], "layout": layout}


def calibration(curves: Mapping[str, Sequence[CalibrationBin]]) -> Figure:
    """Draws reliability: how often predictions of each confidence are right.

    Args:
        curves: by name, first the baseline's; empty where it is not known.
    """
    looks = (("diamond", "dash", "@muted"), ("circle", "solid", "@accent"))
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "name": "perfect",
            "x": [0, 1],
            "y": [0, 1],
            "mode": "lines",
            "line": {"dash": "dot", "width": 1, "color": "@muted"},
            "hoverinfo": "skip",
        }
    ]
    for (name, bins), (symbol, dash, color) in zip(curves.items(), looks, strict=True):
        traces.append(
            {
                "type": "scatter",
                "name": name,
                "x": [part.confidence for part in bins],
                "y": [part.accuracy for part in bins],
                "mode": "lines+markers",
                "line": {"width": 2, "dash": dash, "color": color},
                "marker": {"symbol": symbol, "size": 8, "color": color, "line": {"width": 1, "color": "@card"}},
                "customdata": [part.count for part in bins],
                "hovertemplate": "%{fullData.name}: %{y:.1%} right at a confidence of %{x:.1%}"
                "<br>%{customdata:,} examples<extra></extra>",
            }
        )
    axis = {"range": [-0.03, 1.03], "tickformat": ".0%", "fixedrange": True, "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    layout = _layout(
        height=330,
        legend=_legend(),
        xaxis={**axis, "title": {"text": "confidence"}},
        yaxis={**axis, "title": {"text": "right"}},
    )
    return {"data": [trace for trace in traces if trace["x"]], "layout": layout}


def predictions(numbers: RegressionReport) -> Figure:
    """Draws what is predicted beside what is true, of the examples that were kept.

    Args:
        numbers: with at least one example.
    """
    xs = [value for row in numbers.labels for value in row]
    ys = [value for row in numbers.predicted for value in row]
    low, high = min(*xs, *ys), max(*xs, *ys)
    pad = min(0.04 * (high - low) or 1.0, 1e300)  # the difference of damaged numbers may be infinite
    line = {
        "type": "scatter",
        "name": "perfect",
        "x": [low - pad, high + pad],
        "y": [low - pad, high + pad],
        "mode": "lines",
        "line": {"dash": "dot", "width": 1, "color": "@muted"},
        "hoverinfo": "skip",
    }
    points = {
        "type": "scatter",
        "name": "examples",
        "x": xs,
        "y": ys,
        "mode": "markers",
        "marker": {"size": 6, "color": "@accent", "opacity": 0.6, "line": {"width": 1, "color": "@card"}},
        "hovertemplate": "true %{x:.4g}<br>predicted %{y:.4g}<extra></extra>",
    }
    axis = {"range": [low - pad, high + pad], "fixedrange": True, "nticks": 6}
    layout = _layout(
        height=330,
        showlegend=False,
        xaxis={**axis, "title": {"text": "true"}},
        yaxis={**axis, "title": {"text": "predicted"}},
    )
    return {"data": [line, points], "layout": layout}


def learning(history: Mapping[str, Sequence[float | None]], name: str, phases: Sequence[PhaseReport] = ()) -> Figure:
    """Draws a metric after each epoch.

    Args:
        history: by name, values per epoch; of the validation split by names that begin with `val_`.
        name: the metric's, which history has for training, validation or both.
        phases: in their order; a line is drawn where one ends and the next begins.
    """
    looks = {
        "training": (name, "circle", "dash", "@muted"),
        "validation": (f"val_{name}", "circle", "solid", "@accent"),
    }
    traces = []
    for split, (key, symbol, dash, color) in looks.items():
        if values := history.get(key):
            traces.append(
                {
                    "type": "scatter",
                    "name": split,
                    "x": [*range(1, len(values) + 1)],
                    "y": list(values),
                    "mode": "lines+markers",
                    "line": {"width": 2, "dash": dash, "color": color},
                    "marker": {"symbol": symbol, "size": 7, "color": color},
                    "hovertemplate": "epoch %{x}, %{fullData.name}: %{y:.4g}<extra></extra>",
                }
            )
    epochs = max(len(trace["x"]) for trace in traces)
    layout = _layout(
        height=280,
        legend=_legend(),
        showlegend=True,
        xaxis={
            "title": {"text": "epoch"},
            "range": [1 - 0.04 * epochs, epochs + 0.04 * epochs],
            "tickformat": "d",
            "dtick": max(1, math.ceil(epochs / 8)),
            "tick0": 1,
            "fixedrange": True,
        },
        yaxis={"title": {"text": _text(name, 26)}, "fixedrange": True},
        **({"shapes": _changes(phases)} if phases else {}),
    )
    return {"data": traces, "layout": layout}


def _changes(phases: Sequence[PhaseReport]) -> list[dict[str, Any]]:
    """Returns a vertical line for each phase but the first, between the epochs where it begins."""
    ends = itertools.accumulate(phase.epochs for phase in phases)
    return [
        {
            **{"type": "line", "xref": "x", "yref": "paper", "y0": 0, "y1": 1, "x0": end + 0.5, "x1": end + 0.5},
            "line": {"width": 1, "dash": "dot", "color": "@muted"},
            "label": {"text": _text(phase.name, 20), "textangle": 0, "font": {"size": 11, "color": "@muted"}},
        }
        for end, phase in zip(ends, phases[1:], strict=False)
    ]


def timeline(points: Sequence[tuple[str, float, str, str]], marks: Sequence[str], title: str) -> Figure:
    """Draws a number night by night.

    Args:
        points: time (UTC, ISO 8601), value, verdict (a symbol and an entry of the legend each) and text to hover.
        marks: times of rollbacks, drawn as vertical lines.
        title: what the number is.
    """
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "x": [time for time, *_ in points],
            "y": [value for _, value, *_ in points],
            "mode": "lines",
            "line": {"width": 1, "color": "@muted"},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    ]
    for verdict in dict.fromkeys(verdict for _, _, verdict, _ in points):
        chosen = [point for point in points if point[2] == verdict]
        symbol, size, color = _NIGHTS.get(verdict, ("circle-open", 10, "@muted"))
        traces.append(
            {
                "type": "scatter",
                "name": verdict,
                "x": [time for time, *_ in chosen],
                "y": [value for _, value, *_ in chosen],
                "mode": "markers",
                "marker": {"symbol": symbol, "size": size, "color": color, "line": {"width": 1, "color": "@card"}},
                "hovertext": [_text(text, 60) for *_, text in chosen],
                "hovertemplate": "%{x|%Y-%m-%d %H:%M}<br>%{hovertext}<br><b>%{y:,}</b><extra></extra>",
            }
        )
    line = {"type": "line", "xref": "x", "yref": "paper", "y0": 0, "y1": 1}
    layout = _layout(
        height=330,
        legend=_legend(),
        showlegend=True,
        xaxis={"title": {"text": "UTC"}, "type": "date"},
        yaxis={"title": {"text": _text(title, 26)}},
        shapes=[
            {
                **{**line, "x0": time, "x1": time, "line": {"width": 1, "dash": "dot", "color": "@bad"}},
                "label": {"text": "rollback", "textangle": 0, "font": {"size": 11, "color": "@bad"}},
            }
            for time in marks
        ],
    )
    return {"data": traces, "layout": layout}


def _legend(**more: Any) -> dict[str, Any]:
    """Below the chart, as wide as all of it: on a phone the plot alone has no room for two entries in a row."""
    place = {"xref": "container", "x": 0, "xanchor": "left", "yref": "container", "y": 0, "yanchor": "bottom"}
    return {"orientation": "h", "font": {"size": 12}, **place, **more}


def _layout(xaxis: dict[str, Any], yaxis: dict[str, Any], **more: Any) -> dict[str, Any]:
    def axis(own: dict[str, Any]) -> dict[str, Any]:
        return {
            "gridcolor": "@line",
            "linecolor": "@line",
            "zeroline": False,
            "automargin": True,
            "tickfont": {"size": 12},
            "tickangle": 0,
            **own,
            "title": {"font": {"size": 13}, "standoff": 12, **own["title"]},
        }

    return {
        "margin": {"l": 8, "r": 16, "t": 12, "b": 8},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "@muted"},
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "@card",
            "bordercolor": "@muted",
            "font": {"color": "@text", "size": 13},
            "align": "left",
        },
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "@muted", "activecolor": "@accent"},
        "xaxis": axis(xaxis),
        "yaxis": axis(yaxis),
        **more,
    }


def _front(points: Iterable[_Point], sign: int) -> list[_Point]:
    """The points, from left to right, that no other point beats on both axes."""
    front: list[_Point] = []
    for point in sorted(points, key=lambda point: (point.x, -sign * point.y)):
        if not front or sign * point.y > sign * front[-1].y:
            front.append(point)
    return front


def _whiskers(point: _Point, budget: PageBudget) -> tuple[float, float]:
    """The metric's 95% interval beside the baseline: that of the drop, seen from the point; the point where unknown."""
    interval, drop = point.row.drop_interval, point.row.drop
    if not interval or drop is None or None in interval:
        return point.y, point.y
    ends = [point.y - budget.sign * (end - drop) for end in interval if end is not None]
    # The drop lies in its interval as a rule; where it does not, a whisker has no length rather than a negative one.
    return min(*ends, point.y), max(*ends, point.y)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive bounds, few enough for the width of a phone."""
    decades = math.log10(high / low)
    steps = (1, 1.5, 2, 3, 5, 7) if decades < 1.1 else (1, 2, 5) if decades < 2.2 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for step in steps if low <= (tick := float(f"{step}e{power}")) <= high]


def _hover(row: Row, budget: PageBudget, style: Format, verdict: str) -> str:
    """All numbers of a point."""
    lines = textwrap.wrap(row.name, 44)
    facts = [
        f"{budget.metric} {style.metric(row.metric)}",
        f"zlib bytes {style.count(row.zlib_bytes)}, file {style.count(row.bytes)}",
        f"latency p50 {style.duration(row.p50)}, p90 {style.duration(row.p90)}",
    ]
    if row.drop is not None:
        facts[0] += f", {budget.drop_word} {style.metric(row.drop)}"
    if interval := style.interval(row.drop_interval):
        facts.insert(1, f"95% interval of the {budget.drop_word} {interval}")
    if row.ratio is not None:
        facts.append(f"ratio to the baseline {style.times(row.ratio)}")
    if row.sparsity is not None:
        facts.append(f"{style.percent(row.sparsity)} of the weights are zero")
    if row.agreement is not None:
        facts.append(f"agrees with the baseline on {style.percent(row.agreement)} of the examples")
    facts.append(verdict + (", on the Pareto front" if row.pareto else ""))
    facts += row.reasons
    wrapped = [line for fact in facts for line in textwrap.wrap(fact, 44)]
    bold, plain = (html.escape("\n".join(part), quote=False).replace("\n", "<br>") for part in (lines, wrapped))
    return f"<b>{bold}</b><br>{plain}"


def _text(name: str, most: int) -> str:
    return html.escape(name if len(name) <= most else f"{name[: most - 1]}…", quote=False)


def _categories(names: Sequence[str]) -> list[str]:
    """Names short enough for an axis, and all different, as Plotly would put equal ones in one place."""
    short = [_text(name, 14) for name in names]
    often = Counter(short)
    return [f"{name} ({i})" if often[name] > 1 else name for i, name in enumerate(short)]
