"""The page of a pipeline's history: night by night, which model, how good, how large, and what became of it."""

from __future__ import annotations

import dataclasses
import datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from edgeline.pipelines.console import format_seconds
from edgeline.pipelines.records.events import Night
from edgeline.report import TEMPLATES, charts

#: The mark of the page's table, by verdict; others have none.
MARKS = {"pushed": "selected", "nothing fits": "misses", "refused": "failed", "failed": "failed", "killed": "failed"}


@dataclasses.dataclass(frozen=True)
class Rollback:
    """A rollback, as the log tells it: when (UTC), from and to which version, by whom and why."""

    time: datetime.datetime
    before: str | None
    version: str
    by: str
    why: str


def rollbacks(log: list[dict[str, Any]]) -> list[Rollback]:
    """Returns the rollbacks of a log, oldest first."""
    return [
        Rollback(datetime.datetime.fromisoformat(e["time"]), e["from"], e["to"], e["by"], e["why"])
        for e in log
        if e["event"] == "rollback"
    ]


def render(pipeline: str, nights: list[Night], back: list[Rollback]) -> str:
    """Draws the page.

    Args:
        pipeline: its name.
        nights: the runs, oldest first.
        back: the rollbacks, oldest first.

    Returns:
        One HTML document that loads nothing from anywhere; the same text for the same facts.
    """
    figures = {
        "metric-chart": _chart(nights, back, "value", next((n.metric for n in nights if n.metric), "metric")),
        "size-chart": _chart(nights, back, "zlib_bytes", "zlib bytes"),
    }
    drawn = {name: figure for name, figure in figures.items() if figure}
    environment = Environment(
        loader=FileSystemLoader([Path(__file__).parent, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("history.html.jinja").render(
        pipeline=pipeline,
        nights=nights[::-1],
        rollbacks=back[::-1],
        more_metrics=list(dict.fromkeys(name for night in nights for name in night.more_metrics or ())),
        verdicts={v: sum(n.verdict == v for n in nights) for v in dict.fromkeys(n.verdict for n in nights)},
        marks=MARKS,
        seconds=format_seconds,
        palettes=charts.PALETTES,
        figures=drawn,
        plotly_js=Markup(get_plotlyjs()) if drawn else "",
    )


def _chart(nights: list[Night], back: list[Rollback], key: str, title: str) -> charts.Figure | None:
    """Draws a number of the selected candidates over time; None where no night has it."""
    points = [
        (night.started.isoformat(), value, night.verdict, f"{night.selected}, {night.verdict}")
        for night in nights
        if (value := getattr(night, key)) is not None
    ]
    return charts.timeline(points, [each.time.isoformat() for each in back], title) if points else None
