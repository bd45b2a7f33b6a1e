from __future__ import annotations

from graphlib import CycleError
from itertools import pairwise

import pytest

from edgeline.report.run_graph import Graph, layout
from edgeline.report.schema import NodeReport


def nodes(**upstream: str) -> list[NodeReport]:
    """Nodes by id, each with the ids before it as one word of letters."""
    return [NodeReport(id=key, state="done", upstream=tuple(ups)) for key, ups in upstream.items()]


def columns(graph: Graph) -> dict[str, int]:
    lefts = sorted({box.x for box in graph.boxes})
    return {box.node.id: lefts.index(box.x) for box in graph.boxes}


def test_every_step_is_right_of_all_that_it_waits_for():
    graph = layout(nodes(a="", b="a", c="b", d="a", e="cd"))
    assert columns(graph) == {"a": 0, "b": 1, "d": 1, "c": 2, "e": 3}


def test_an_arrow_that_follows_from_others_is_left_out():
    # of a-b, b-c, a-c the last
    assert len(layout(nodes(a="", b="a", c="ab")).arrows) == 2
    assert len(layout(nodes(a="", b="a", c="b", d="abc", e="ad")).arrows) == 4


def test_unknown_ids_are_left_out_and_order_does_not_matter():
    graph = layout(nodes(b="ax", a=""))
    assert columns(graph) == {"a": 0, "b": 1}
    assert len(graph.arrows) == 1


def test_boxes_lie_inside_and_apart():
    graph = layout(nodes(a="", **{key: "a" for key in "bcdefg"}, h="bcdefg", i="", j="ih"))
    for box in graph.boxes:
        assert 0 <= box.x <= graph.width - graph.box_width
        assert 0 <= box.y <= graph.height - graph.box_height
    places = sorted((box.x, box.y) for box in graph.boxes)
    for (x, y), (other_x, other_y) in pairwise(places):
        assert x != other_x or other_y - y >= graph.box_height


def test_chains_do_not_cross():
    # given crosswise, drawn side by side
    graph = layout(nodes(a="", b="", c="b", d="a"))
    y = {box.node.id: box.y for box in graph.boxes}
    assert (y["a"] < y["b"]) == (y["d"] < y["c"])


def test_an_arrow_goes_from_edge_to_edge_and_around_what_lies_between():
    graph = layout(nodes(a="", b="a", c="b"))
    first, second, _ = graph.boxes
    middle = first.y + graph.box_height / 2
    assert graph.arrows[0].startswith(f"M{first.x + graph.box_width:g} {middle:g}")
    assert graph.arrows[0].endswith(f" {second.x:g} {middle:g}")
    long = layout(nodes(a="", b="", c="b", d="ca"))
    box = next(box for box in long.boxes if box.node.id == "c")
    path = next(path for path in long.arrows if path.count("C") == 2)
    lane = float(path.split("C")[1].split()[-1].split("H")[0])
    assert not box.y <= lane <= box.y + long.box_height


def test_nothing_and_circles():
    assert layout([]) == Graph(0, 8, [], [])
    with pytest.raises(CycleError):
        layout(nodes(a="b", b="a"))
