"""Where the steps of a run are drawn: in columns, each step to the right of all that it waits for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise
from statistics import fmean
from typing import Any

from edgeline.report.schema import NodeReport

_WIDTH, _HEIGHT = 192, 44
_COLUMN_GAP, _ROW_GAP = 36, 12
#: What an arrow takes that passes a column.
_LANE = 4
_MARGIN = 4
_SWEEPS = 8


@dataclass(frozen=True)
class Box:
    """A step: its node of the report's `run`, and its upper left corner in pixels."""

    node: NodeReport
    x: float
    y: float


@dataclass(frozen=True)
class Graph:
    """The drawing; lengths in pixels.

    Attributes:
        width: of all.
        height: of all.
        boxes: the steps.
        box_width: of each step.
        box_height: of each step.
        arrows: SVG paths.
    """

    width: float
    height: float
    boxes: list[Box]
    arrows: list[str]
    box_width: float = _WIDTH
    box_height: float = _HEIGHT


def layout(nodes: Sequence[NodeReport]) -> Graph:
    """Places the steps of a run.

    Args:
        nodes: of the run. Ids of upstream nodes that are none of these are left out, and so are arrows that follow from
            others.

    Raises:
        graphlib.CycleError: a step waits for itself.
    """
    by_id = {node.id: node for node in nodes}
    upstream = {key: [up for up in node.upstream if up in by_id] for key, node in by_id.items()}
    order = list(TopologicalSorter(upstream).static_order())
    upstream = _reduced(upstream, order)
    column: dict[str, int] = {}
    for key in order:
        column[key] = max((column[up] + 1 for up in upstream[key]), default=0)

    # An arrow is a chain of places, one per column, so that it goes around the steps between its ends.
    columns: list[list[Any]] = [[] for _ in range(max(column.values(), default=-1) + 1)]
    for key in by_id:
        columns[column[key]].append(key)
    chains = []
    neighbours: dict[Any, list[Any]] = defaultdict(list)
    for key in by_id:
        for up in upstream[key]:
            lanes = [(up, key, c) for c in range(column[up] + 1, column[key])]
            for lane in lanes:
                columns[lane[2]].append(lane)
            chain = [up, *lanes, key]
            chains.append(chain)
            for a, b in pairwise(chain):
                neighbours[a].append(b)
                neighbours[b].append(a)
    _untangle(columns, neighbours)

    heights = [sum(_size(item, by_id) for item in items) + _ROW_GAP * (len(items) - 1) for items in columns]
    total = max(heights, default=0)
    middle: dict[Any, tuple[float, float]] = {}
    for c, (items, height) in enumerate(zip(columns, heights, strict=True)):
        y = _MARGIN + (total - height) / 2
        for item in items:
            size = _size(item, by_id)
            middle[item] = (_MARGIN + c * (_WIDTH + _COLUMN_GAP), y + size / 2)
            y += size + _ROW_GAP
    boxes = [Box(node, middle[key][0], middle[key][1] - _HEIGHT / 2) for key, node in by_id.items()]
    width = len(columns) * (_WIDTH + _COLUMN_GAP) - _COLUMN_GAP + 2 * _MARGIN
    return Graph(max(width, 0), total + 2 * _MARGIN, boxes, [_path([middle[item] for item in c]) for c in chains])


def _reduced(upstream: dict[str, list[str]], order: Iterable[str]) -> dict[str, list[str]]:
    """Drops each arrow whose end is also reached through another step."""
    above: dict[str, set[str]] = {}
    for key in order:
        above[key] = set(upstream[key]).union(*(above[up] for up in upstream[key]))
    return {
        key: [up for up in dict.fromkeys(ups) if not any(up in above[other] for other in ups)]
        for key, ups in upstream.items()
    }


def _untangle(columns: list[list[Any]], neighbours: dict[Any, list[Any]]) -> None:
    """Orders each column by where its neighbours are, there and back, which removes most crossings."""
    for sweep in range(_SWEEPS):
        place = {item: (i + 0.5) / len(items) for items in columns for i, item in enumerate(items)}
        side = -1 if sweep % 2 == 0 else 1
        for c in range(len(columns))[::-side]:
            beside = set(columns[c + side]) if 0 <= c + side < len(columns) else set()
            # What has no neighbour on this side stays near its place.
            wishes = {
                item: fmean([place[n] for n in neighbours[item] if n in beside] or [place[item]]) for item in columns[c]
            }
            columns[c].sort(key=wishes.__getitem__)
            place |= {item: (i + 0.5) / len(columns[c]) for i, item in enumerate(columns[c])}


def _size(item: Any, by_id: dict[str, NodeReport]) -> int:
    return _HEIGHT if isinstance(item, str) and item in by_id else _LANE


def _path(places: list[tuple[float, float]]) -> str:
    """A curve from the right edge of the first place, through those between, to the left edge of the last."""
    x, y = places[0]
    path = f"M{x + _WIDTH:g} {y:g}"
    for (_, before), (x, y) in pairwise(places):
        bend = x - _COLUMN_GAP / 2
        path += f"H{x - _COLUMN_GAP:g}C{bend:g} {before:g} {bend:g} {y:g} {x:g} {y:g}"
    return path
