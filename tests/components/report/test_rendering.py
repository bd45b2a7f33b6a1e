from __future__ import annotations

import copy
import json
import math
import re
from typing import Any

import lxml.html
import plotly.graph_objects as go
import pytest

from edgeline.report import rendering
from edgeline.report.charts import PALETTES
from edgeline.report.report_file import parse

HOSTILE = "<script>alert('x')</script>&<b>_%{x}"


def candidate(name: str, accuracy: float, zlib_bytes: int, p50: float, reasons: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "name": name,
        "recipe": ["prune sparsity=0.8", "quantize scheme=int8"],
        "metrics": {"loss": 0.5, "accuracy": accuracy},
        "drop": 0.975 - accuracy,
        "bytes": 24640,
        "zlib_bytes": zlib_bytes,
        "ratio": 80000 / zlib_bytes,
        "latency_ms": {"p50": p50, "p90": 2 * p50},
        "sparsity": 0.785,
        "blessed": not reasons,
        "reasons": list(reasons),
        "pareto": True,
        "sha256": "c0ffee" * 10,
        "steps": [
            {"step": "Trainer", "metrics": {"accuracy": 0.98, "loss": 0.3}, "split": "validation"},
            {"step": "Pruner", "metrics": {"accuracy": 0.9725, "loss": 0.4}, "split": "validation"},
        ],
        "layers": [
            {"name": "dense", "parameters": 30976, "sparsity": 0.8, "unique_values": 17, "note": "pruned to 0.80"},
            {"name": "head", "parameters": 10},
        ],
    }


@pytest.fixture
def report() -> dict[str, Any]:
    """A report of schema version 1."""
    failed = {
        "name": "int16",
        "recipe": [],
        "blessed": False,
        "reasons": [],
        "pareto": False,
        "failure": {"step": "TFLiteExporter", "error": "the converter refused <op>"},
    }
    return {
        "schema_version": 1,
        "created": "2026-11-22T02:00:00+00:00",
        "pipeline": "digits",
        "module": "digits.model",
        "dataset": {"split": "eval", "examples": 1800, "label_names": [f"class {i}" for i in range(30)]},
        "budget": {"metric": "accuracy", "direction": "max", "max_drop": 0.01, "objective": "zlib_bytes"},
        "baseline": {
            "metrics": {"loss": 0.31, "accuracy": 0.975},
            "bytes": 84452,
            "zlib_bytes": 80000,
            "latency_ms": {"p50": 0.02, "p90": 0.03},
            "sha256": "ba5e" * 16,
        },
        "candidates": [
            candidate("float16", 0.975, 40000, 0.025),
            candidate("prune80_int8", 0.967, 10000, 0.01),
            candidate("prune95_int8", 0.9, 5000, 0.0125, ("accuracy drop 0.075 exceeds 0.01",)),
            failed,
        ],
        "selected": "prune80_int8",
        "closest": None,
        "versions": {"edgeline": "0.1.0", "tensorflow": "2.21.0"},
        "machine": {"cpu": "a processor", "cores": 2, "system": "Linux"},
    }


def render(report: dict[str, Any]) -> str:
    return rendering.render(parse(report, "the report"))


def page(report: dict[str, Any]) -> lxml.html.HtmlElement:
    # plotly.js is dropped: it is large, and no test looks into it.
    return lxml.html.fromstring(
        re.sub(r"<script>/\*\*\n\* plotly\.js.*?</script>", "", render(report), flags=re.DOTALL)
    )


def text(element: lxml.html.HtmlElement) -> str:
    return " ".join(element.text_content().split())


def verdict(html: lxml.html.HtmlElement) -> str:
    return text(html.xpath("//main/section[1]")[0])


def table(html: lxml.html.HtmlElement) -> dict[str, list[str]]:
    """The cells of each row of the table of candidates, by the row's header."""
    rows = html.xpath("//table[@id='candidates']/tbody/tr")
    return {text(row.xpath("./th")[0]): [text(cell) for cell in row.xpath("./td")] for row in rows}


def painted(value: Any, palette: dict[str, str], color: bool = False) -> Any:
    """What the page's script does before it draws."""
    if isinstance(value, dict):
        return {key: painted(item, palette, "color" in key) for key, item in value.items()}
    if isinstance(value, list):
        return [painted(item, palette, color) for item in value]
    return palette[value[1:]] if color and isinstance(value, str) and value.startswith("@") else value


def charts(html: lxml.html.HtmlElement, scheme: str = "light") -> dict[str, go.Figure]:
    """All charts; Plotly checks their properties."""
    figures, palettes = (html.xpath(f"//script[@id='{name}']") for name in ("figures", "palettes"))
    if not figures:
        return {}
    palette = json.loads(palettes[0].text)[scheme]
    return {key: go.Figure(painted(figure, palette)) for key, figure in json.loads(figures[0].text).items()}


def traces(figure: go.Figure) -> dict[str, list[tuple[float, float]]]:
    return {trace.name: list(zip(trace.x, trace.y, strict=True)) for trace in figure.data}


def fail_all(report: dict[str, Any]) -> None:
    report["candidates"] = [report["candidates"][3] | {"name": name} for name in ("a", "b")]
    report["selected"] = None


def test_verdict_names_the_selected_candidate_and_what_it_gains(report):
    html = page(report)
    assert text(html.xpath("//h1")[0]) == "prune80_int8"
    words = verdict(html)
    assert "Selected" in words
    assert "8.0× smaller 80,000 → 10,000 zlib bytes" in words
    assert "Change of accuracy −0.0080 0.9750 → 0.9670 allowed drop 0.0100" in words
    assert "Latency, p50 10 µs baseline 20 µs; 2.0× faster" in words
    assert "2 of 4 candidates meet the budget; among these, the one with the fewest zlib bytes is selected." in words


def test_verdict_without_a_fit_says_what_came_closest_and_what_it_missed(report):
    report["selected"], report["closest"] = None, "prune95_int8"
    report["candidates"] = report["candidates"][2:]
    html = page(report)
    assert text(html.xpath("//h1")[0]) == "Nothing met the budget"
    words = verdict(html)
    assert "Closest: prune95_int8. What it missed: accuracy drop 0.075 exceeds 0.01" in words
    assert "16.0× smaller" in words
    assert "0 of 2 candidates meet the budget." in words


def test_table_has_every_number_of_every_candidate(report):
    html = page(report)
    headers = [text(header) for header in html.xpath("//table[@id='candidates']/thead//th")]
    assert headers == [
        *("Candidate", "accuracy", "Drop", "Zlib bytes", "Ratio"),
        *("Bytes", "p50 / p90 µs", "Sparsity", "Verdict"),
    ]
    rows = table(html)
    assert list(rows) == ["baseline (float32)", "float16", "prune80_int8", "prune95_int8", "int16"]
    assert rows["baseline (float32)"][:-1] == ["0.9750", "–", "80,000", "–", "84,452", "20.0 / 30.0", "–"]
    assert rows["prune80_int8"] == [
        *("0.9670", "0.0080", "10,000", "8.0×", "24,640", "10.0 / 20.0", "78.5 %"),
        "★ Selected Pareto front",
    ]
    assert rows["float16"][-1] == "✓ Meets budget Pareto front"
    assert rows["prune95_int8"][-1] == "✕ Misses budget Pareto front accuracy drop 0.075 exceeds 0.01"
    assert rows["int16"] == [*["–"] * 7, "⚠ Failed TFLiteExporter: the converter refused <op>"]
    assert [text(row.xpath("./th")[0]) for row in html.xpath("//tr[@class='selected']")] == ["prune80_int8"]


def test_table_can_be_sorted_by_the_exact_numbers(report):
    html = page(report)
    assert len(html.xpath("//table[@id='candidates']/thead//th/button")) == 9
    ratios = html.xpath("//tbody[@class='rows']/tr/td[4]/@data-value")
    assert ratios == ["2.0", "8.0", "16.0", ""]
    assert 'setAttribute("aria-sort"' in render(report)


def test_details_show_how_a_candidate_was_made(report):
    html = page(report)
    links = html.xpath("//table[@id='candidates']//th/a/@href")
    assert links == [f"#{details}" for details in html.xpath("//details/@id")]
    details = html.xpath("//details[2]")[0]
    assert [text(step) for step in details.xpath(".//ol/li")] == ["prune sparsity=0.8", "quantize scheme=int8"]
    steps, layers = (
        [text(row) for row in details.xpath(f".//tbody[@class='{name}']/tr")] for name in ("steps", "layers")
    )
    assert steps == [
        "Trainer validation 0.9800 – 0.3",
        "Pruner validation 0.9725 −0.0075 0.4",
        ".tflite file eval 0.9670 – 0.5",  # another split, so no change is shown
    ]
    assert layers == ["dense 30,976 80.0 % 17 pruned to 0.80", "head 10 – –"]
    assert "c0ffee" * 10 in text(details)
    assert text(html.xpath("//details[4]//pre")[0]) == "the converter refused <op>"


def test_bottom_says_what_was_measured_on_what(report):
    report["budget"] |= {"max_bytes": 30000, "max_zlib_bytes": 20000, "max_latency_ms": 0.5}
    words = facts(page(report))
    assert "accuracy, more is better Drop at most 0.0100" in words
    assert "File size at most 30,000 bytes Size after zlib at most 20,000 bytes Median latency at most 0.5 ms" in words
    assert "Examples 1,800 Classes 30: class 0, class 1," in words
    assert "class 19, …" in words
    assert "Module digits.model" in words
    assert "cores 2" in words
    assert "tensorflow 2.21.0" in words


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_charts_draw_the_measured_candidates_and_the_front(report, scheme):
    figures = charts(page(report), scheme)
    assert figures.keys() == {"size-chart", "latency-chart"}
    assert traces(figures["size-chart"]) == {
        "Pareto front": [(5000, 0.9), (10000, 0.967), (40000, 0.975)],
        "baseline": [(80000, 0.975)],
        "misses budget": [(5000, 0.9)],
        "meets budget": [(40000, 0.975)],
        "selected": [(10000, 0.967)],
    }
    # prune95_int8 (0.0125 ms, 0.9) is slower and worse than prune80_int8 (0.01 ms, 0.967).
    assert traces(figures["latency-chart"])["Pareto front"] == [(0.01, 0.967), (0.025, 0.975)]
    symbols = {trace.name: trace.marker.symbol for trace in figures["size-chart"].data if trace.mode != "lines"}
    assert len(set(symbols.values())) == len(symbols) == 4
    hover = figures["size-chart"].data[-1].hovertext[0]
    assert hover.startswith("<b>prune80_int8</b><br>accuracy 0.9670, drop 0.0080<br>zlib bytes 10,000, file 24,640<br>")
    assert figures["size-chart"].layout.xaxis.type == "log"
    assert list(figures["size-chart"].layout.xaxis.ticktext) == ["5 kB", "10 kB", "20 kB", "50 kB", "100 kB"]


def test_charts_shade_what_the_budget_allows(report):
    report["budget"]["max_zlib_bytes"] = 20000
    figures = charts(page(report))
    (region,) = figures["size-chart"].layout.shapes
    assert region.x1 == 20000
    assert region.y1 == pytest.approx(0.965)
    assert region.y0 > 1
    (region,) = figures["latency-chart"].layout.shapes
    assert region.x1 > 10  # no limit of latency was asked for
    report["budget"] |= {"max_drop": None, "max_zlib_bytes": None}
    assert [figure.layout.shapes for figure in charts(page(report)).values()] == [(), ()]


def test_a_metric_of_which_less_is_better(report):
    report["budget"] = {"metric": "mae", "direction": "min", "max_drop": 2.0, "objective": "latency_ms"}
    report["baseline"]["metrics"] = {"mae": 80.0}
    for entry, mae in zip(report["candidates"], (80.5, 81.0, 95.0), strict=False):
        entry |= {"metrics": {"mae": mae}, "drop": mae - 80, "reasons": []}
    html = page(report)
    assert "Change of mae +1.00 80.00 → 81.00 allowed rise 2.00" in verdict(html)
    assert "lowest latency" in verdict(html)
    assert table(html)["prune95_int8"][:2] == ["95.00", "15.00"]
    assert "accuracy" not in " ".join(
        text(heading) for heading in html.xpath("//h2 | //table[@id='candidates'] | //figcaption")
    )
    size = charts(html)["size-chart"]
    assert traces(size)["Pareto front"] == [(5000, 95), (10000, 81), (40000, 80.5)]
    (region,) = size.layout.shapes
    assert region.y1 == 82
    assert region.y0 < 0


def judge_mae(report):
    """Lets the budget judge a second metric, and compiles a third that it does not judge."""
    report["budget"]["more_metrics"] = [{"metric": "boxes_mae", "direction": "min", "max_drop": 2.0}]
    report["budget"]["max_slice_drops"] = {"boxes_mae:camera": 1.5}
    report["baseline"]["metrics"] |= {"boxes_mae": 80.0, "kind_auc": 0.9125}
    for entry, mae in zip(report["candidates"], (80.5, 81.0, 95.0), strict=False):
        entry["metrics"] |= {"boxes_mae": mae, "kind_auc": 0.875}
        entry["more_drops"] = {"boxes_mae": {"drop": mae - 80, "drop_interval": [mae - 81.5, mae - 78.5]}}
        part = {"features": {"camera": "front"}, "examples": 50}
        more_drops = {"boxes_mae": mae - 78.5}
        entry["slices"] = [part | {"metrics": {"boxes_mae": mae + 1.5}, "drop": 0.0, "more_drops": more_drops}]
    report["baseline"]["slices"] = [part | {"metrics": {"boxes_mae": 80.0}}]


def test_all_metrics_of_the_budget_are_shown(report):
    judge_mae(report)
    html = page(report)
    assert "Change of accuracy" in verdict(html)
    assert "Change of boxes_mae +1.00 80.00 → 81.00 allowed rise 2 95% interval −0.50 to +2.50" in verdict(html)
    titles = [text(cell) for cell in html.xpath("//table[@id='candidates']//thead//th")]
    at = titles.index("boxes_mae")
    assert titles[at - 2 : at + 2] == ["accuracy", "Drop", "boxes_mae", "Rise"]
    assert "kind_auc" in titles
    assert "loss" not in titles
    row = table(html)["prune80_int8"]
    assert row[2:4] == ["81.00", "1.00−0.50 to 2.50"]
    assert "0.8750" in row
    facts = text(html.xpath("//section[@aria-labelledby='facts-title']")[0])
    assert "Metricboxes_mae, less is better Riseat most 2" in facts
    assert "accuracy, more is better; it ranks the candidates" in facts
    warnings = text(html.xpath("//section[@aria-labelledby='warnings-title']")[0])
    assert "1 of 1 slices loses more than the 2.00 allowed overall by boxes_mae; most: camera=front, 2.50" in warnings
    assert "the rise of boxes_mae may be up to 2.50 (95% interval), more than the 2.00 allowed" in warnings
    details = text(html.xpath("//*[@id='candidate-2']")[0])
    assert "Slices, worst first by boxes_mae" in details
    assert "camera=front 2.50 1.50 80.00 82.50 50 ✕ too much" in details


def test_a_metric_that_nobody_named_is_said(report):
    report["budget"]["metric_is_default"] = True
    assert "accuracy, more is better; no metric was named" in text(page(report))


def test_no_candidates(report):
    report["candidates"], report["selected"] = [], None
    html = page(report)
    assert "Nothing selected There were no candidates" in verdict(html)
    assert not charts(html)
    assert len(render(report)) < 50_000  # nothing to draw, so plotly.js is left out


def test_all_failed(report):
    fail_all(report)
    html = page(report)
    assert "All 2 candidates failed; the table says why." in verdict(html)
    assert not charts(html)
    assert list(table(html)) == ["baseline (float32)", "a", "b"]


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_numbers_that_are_missing(report, missing):
    report["candidates"][1]["metrics"]["accuracy"] = missing
    report["candidates"][1]["drop"] = missing
    report["candidates"][2]["latency_ms"] = None
    report["baseline"]["latency_ms"]["p50"] = missing
    html = page(report)
    assert table(html)["prune80_int8"][:2] == ["–", "–"]
    assert "Change of accuracy not measured 0.9750 → –" in verdict(html)
    assert "selected" not in traces(charts(html)["size-chart"])
    assert traces(charts(html)["latency-chart"]).keys() == {"Pareto front", "meets budget"}
    assert not re.search(r"\b(nan|inf|None)\b", text(html.xpath("//body/div")[0]))


def test_nothing_measured_at_the_baseline(report):
    report["baseline"] |= {"metrics": {}, "latency_ms": None}
    html = page(report)
    assert "Change of accuracy not measured – → 0.9670" in verdict(html)
    assert not charts(html)["size-chart"].layout.shapes


def test_optional_keys_may_be_null_or_absent(report):
    bare = {"name": "bare", "recipe": [], "blessed": False, "reasons": [], "pareto": False}
    report["candidates"].append(bare)
    report["dataset"]["label_names"] = None
    absent = page(report)
    bare |= dict.fromkeys(("metrics", "drop", "bytes", "zlib_bytes", "ratio", "latency_ms", "sparsity", "sha256"))
    bare |= dict.fromkeys(("failure", "steps", "layers"))
    report["budget"] |= dict.fromkeys(("max_bytes", "max_zlib_bytes", "max_latency_ms"))
    del report["dataset"]["label_names"], report["closest"]
    assert lxml.html.tostring(page(report)) == lxml.html.tostring(absent)
    assert table(absent)["bare"] == [*["–"] * 7, "✕ Misses budget"]


@pytest.mark.parametrize(("zlib_bytes", "words"), [(160000, "2.0× larger"), (None, "not measured")])
def test_a_selected_candidate_that_is_not_smaller(report, zlib_bytes, words):
    report["candidates"][1]["zlib_bytes"] = zlib_bytes
    assert f"Size {words}" in verdict(page(report))


def spoil(value: Any, keys: bool = False) -> Any:
    """Puts markup before every text, and before the names that a report's writer does not choose."""
    if isinstance(value, dict):
        free = ("features", "outputs", "versions", "machine", "metrics", "history")
        return {HOSTILE + key if keys else key: spoil(item, key in free) for key, item in value.items()}
    if isinstance(value, list):
        return [spoil(item) for item in value]
    return HOSTILE + value if isinstance(value, str) else value


def test_text_of_a_full_report_is_never_markup(make_report):
    report = make_report(3)
    report["candidates"][2]["failure"] = {"step": "Quantizer", "error": "no"}
    report["candidates"][0]["layers"][0]["shape"] = ["<b>"]
    spoilt = spoil(report) | {"created": report["created"]}
    spoilt["budget"] |= {"direction": "max", "max_slice_drops": {HOSTILE: 0.1}, "drop_bound": "point"}
    html, clean = page(spoilt), page(report)
    assert html.xpath("//img") == []  # none of the pictures is one any more
    for tag in ("script", "b", "br", "path", "tr"):
        assert len(html.xpath(f"//{tag}")) == len(clean.xpath(f"//{tag}"))
    assert any(HOSTILE + "camera" in text(name) for name in html.xpath("//tbody[@class='slices']/tr/th"))
    figures = charts(html)
    assert {"size-chart", "latency-chart", "confusion-1", "calibration-1", "training-1-0"} <= figures.keys()
    assert figures["confusion-1"].data[0].x[0].startswith("&lt;script&gt;")
    assert "<script" not in html.xpath("//script[@id='figures']")[0].text.lower()


def test_text_of_the_report_is_never_markup(report):
    spoilt = spoil(report) | {key: report[key] for key in ("created", "budget")}
    spoilt["budget"]["metric"] = HOSTILE
    html = page(spoilt)
    assert HOSTILE + "prune80_int8" in text(html.xpath("//h1")[0])
    clean = page(report)
    for tag in ("script", "b"):
        assert len(html.xpath(f"//{tag}")) == len(clean.xpath(f"//{tag}"))
    for figure in charts(html).values():
        texts = [part for trace in figure.data for part in trace.hovertext or ()] + [figure.layout.yaxis.title.text]
        assert not any("<script" in part or "&<b>" in part for part in texts)
        assert all(re.sub(r"</?b>|<br>", "", part).count("<") == 0 for part in texts)


def test_very_long_names_can_wrap(report):
    name = "prune80_" * 60
    report["candidates"][1]["name"] = report["selected"] = name
    html = page(report)
    assert text(html.xpath("//h1")[0]) == name
    assert len(html.xpath("//tr[@class='selected']//wbr")) == 60
    lines = charts(html)["size-chart"].data[-1].hovertext[0].split("<br>")
    assert max(map(len, lines)) <= 51  # 44 characters and the tags of bold text


def test_page_loads_nothing(report):
    html = page(report)
    assert not html.xpath("//link | //iframe | //object | //embed | //script[@src]")
    assert all(source.startswith("data:image/png;base64,") for source in html.xpath("//@src"))
    assert all(link.startswith("#") for link in html.xpath("//@href"))
    assert not re.search(r"url\(|@import", html.xpath("//style")[0].text)
    policy = html.xpath("//meta[@http-equiv='Content-Security-Policy']/@content")[0]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert render(report).count("* plotly.js v") == 1


def test_page_suits_phones_and_screen_readers(report):
    html = page(report)
    assert html.xpath("//meta[@name='viewport']/@content") == ["width=device-width, initial-scale=1"]
    assert html.get("lang") == "en"
    assert all(box.getparent().get("tabindex") == "0" for box in html.xpath("//table"))
    assert all(header.get("scope") for header in html.xpath("//th"))
    assert len(html.xpath("//h1")) == 1
    ids = html.xpath("//@id")
    assert len(ids) == len(set(ids))
    assert set(html.xpath("//@aria-labelledby")) <= set(ids)


@pytest.mark.parametrize("scheme", PALETTES)
@pytest.mark.parametrize("back", ["page", "card", "tint"])
@pytest.mark.parametrize("front", ["text", "muted", "accent", "good", "bad", "warn"])
def test_colours_have_the_contrast_of_wcag_aa(scheme, back, front):
    def luminance(color: str) -> float:
        channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted(luminance(PALETTES[scheme][name]) for name in (back, front))
    assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_same_facts_same_page(report):
    before = copy.deepcopy(report)
    first = render(report)
    assert report == before
    assert render(json.loads(json.dumps(report))) == first


def test_write_report(report, tmp_path):
    report["candidates"][0]["metrics"]["loss"] = math.nan
    report["pipeline"] = "Ziffern, grün"
    folder = tmp_path / "new" / "folder"
    for _ in range(2):
        rendering.write_report(parse(report, "the report"), folder)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    written = (folder / "report.json").read_text(encoding="utf-8")
    assert written.startswith('{\n "schema_version": 3,\n "created"')
    facts = json.loads(written)
    assert list(report) == [key for key in facts if key in report]
    assert facts["candidates"][0]["metrics"] == {"loss": None, "accuracy": 0.975}
    assert (folder / "report.html").read_text(encoding="utf-8") == render(facts)


def section(html: lxml.html.HtmlElement, candidate: int, title: str) -> lxml.html.HtmlElement:
    """What follows a heading in a candidate's details: the table, list or chart that it is about."""
    (heading,) = html.xpath(f"//details[@id='candidate-{candidate}']//h3[normalize-space()='{title}']")
    return heading.getnext()


def rows(element: lxml.html.HtmlElement) -> list[list[str]]:
    return [[text(cell) for cell in row] for row in element.xpath(".//tbody/tr")]


def test_verdict_compares_with_the_baseline_and_the_deployed_model(make_report):
    words = verdict(page(make_report()))
    assert "11.9× smaller 77,531 → 6,540 zlib bytes" in words
    # drop -0.0037, its interval -0.0068 to -0.0006
    assert "Change of accuracy +0.0037 0.8825 → 0.8862 allowed drop 0.0100 95% interval +0.0006 to +0.0068" in words
    deployed = "1.3× smaller: 8,497 → 6,540 zlib bytes, 24,824 → 24,824 bytes"
    assert f"Against the deployed model +0.0061 accuracy 0.8801 → 0.8862 {deployed} 95% interval" in words
    assert "9 of 13 candidates meet the budget" in words


def test_a_rise_is_a_loss_where_less_is_better(make_report):
    report = make_report()
    report["budget"] |= {"metric": "loss", "direction": "min", "max_drop": 0.02}
    report["candidates"][12] |= {"drop": 0.01, "drop_interval": [-0.002, 0.022], "deployed_drop": -0.003}
    report["candidates"][12]["metrics"]["loss"] = 0.3431
    html = page(report)
    assert "Change of loss +0.0100 0.3331 → 0.3431 allowed rise 0.0200 95% interval −0.0020 to +0.0220" in verdict(html)
    assert "Against the deployed model −0.0030 loss" in verdict(html)
    bars = charts(html)["size-chart"].data[-1].error_y
    assert bars.array == pytest.approx([0.012])
    assert bars.arrayminus == pytest.approx([0.012])
    assert [name for name in charts(html) if name.startswith("training-1")] == ["training-1-0"]


def test_warnings_say_what_to_know_before_trusting_the_verdict(make_report):
    report = make_report()
    report["candidates"][0] |= {"failure": {"step": "Quantizer", "error": "no"}, "metrics": None}
    report["candidates"][12] |= {"drop": 0.008, "drop_interval": [0.002, 0.014]}
    report["candidates"][12]["latency_ms"]["p50"] = 0.02
    for each in report["candidates"][12]["slices"]:
        each["drop"] = 0.02 if each["features"] in ({"label": 6}, {"camera": "rear", "light": "night"}) else 0.0
    report["deployed"]["failure"] = "its inputs are others"
    assert [text(item) for item in page(report).xpath("//section[@aria-labelledby='warnings-title']//li")] == [
        "3 records of the eval split could not be read and took no part.",
        "The machine was busy: the latency of 1 model varied by more than 10% while it was measured (int8_io: 14.0 %).",
        "1 of 13 candidates failed; the table says why.",
        "The deployed model could not be compared with: its inputs are others",
        "On other data the drop of accuracy may be up to 0.0140 (95% interval), more than the 0.0100 allowed; more "
        "examples would narrow it.",
        # the slice of 12 examples is too small to say anything
        "1 of 15 slices loses more than the 0.0100 allowed overall; most: label=6 (Shirt), 0.0200 in 100 examples.",
    ]


def test_what_the_split_cannot_tell(make_report):
    report = make_report()
    scores = report["baseline"]["classification"]["per_class"]
    for number in (0, 2):
        scores[number] |= {"examples": 0, "recall": None}
    report["baseline"]["undefined"] = {"auc": "no example has a positive label"}
    names = report["dataset"]["label_names"]
    report["dataset"]["training_examples"] = {str(number): 5 for number in range(len(scores)) if number != 1}
    said = [text(item) for item in page(report).xpath("//section[@aria-labelledby='warnings-title']//li")]
    assert said[1:4] == [
        f"The eval split has no example of 2 of {len(scores)} classes ({names[0]}, {names[2]}): nothing here says what "
        "becomes of them.",
        f"The train split has no example of 1 of {len(scores)} classes ({names[1]}): no training of this run has seen "
        "them.",
        "The metric auc has no value on this split: no example has a positive label.",
    ]


CHANCE = {"guess": "commonest class", "answer": 3, "value": 0.2, "margin": 0.0784, "beaten": False}


def test_a_model_at_chance_level_is_said_first(make_report):
    report = make_report()
    shown = next(c for c in report["candidates"] if c["name"] == report["selected"])
    shown["metrics"]["accuracy"] = 0.25
    name = report["dataset"]["label_names"][3]
    for guess, is_said in ((CHANCE, True), ({**CHANCE, "beaten": True}, False)):
        shown["chance"] = {"accuracy": guess}
        [first, *_] = [text(item) for item in page(report).xpath("//section[@aria-labelledby='warnings-title']//li")]
        expected = (
            f"{report['selected']} is at chance level: accuracy 0.2500, where always to answer {name}, the commonest "
            f"class, has 0.2000 (0.0784 more may be luck). Train longer before compressing, or judge another metric "
            f"with --metric."
        )
        assert (first == expected) == is_said
    mean = {"guess": "mean", "answer": None, "value": 0.3, "margin": None, "beaten": False}
    shown["chance"] = {"accuracy": mean}
    [first, *_] = [text(item) for item in page(report).xpath("//section[@aria-labelledby='warnings-title']//li")]
    assert "always to answer the mean of the labels has 0.3000 (one example says nothing)" in first


def test_each_output_is_shown_by_what_it_predicts(make_report, make_outputs):
    report = make_report()
    report["baseline"]["outputs"] = make_outputs(1.0)
    report["candidates"][12]["outputs"] = make_outputs(0.9)
    html = page(report)
    assert rows(section(html, 13, "Numbers of distance")) == [
        ["R²", "0.94", "0.846"], ["Mean error", "6.3", "7"], ["Root mean square error", "8", "8.889"],
        ["Median error", "5.4", "6"], ["90% of errors are below", "13.2", "14.67"], ["99% below", "21", "23.33"],
        ["Largest error", "30", "33.33"],
    ]  # fmt: skip
    assert rows(section(html, 13, "Pixels of pixels")) == [
        ["Mean of all classes", "0.6500", "0.5850", "−0.0650", ""], ["0", "0.9000", "0.8100", "−0.0900", "8,000"],
        ["1", "0.4000", "0.3600", "−0.0400", "90"], ["2", "–", "–", "", "0"],
    ]  # fmt: skip
    assert rows(section(html, 13, "Tags of tags"))[:2] == [
        ["3", "0.9000", "0.8100", "−0.0900", "81.0 %", "90.0 %", "120", "44"],
        ["2", "0.7500", "0.6750", "−0.0750", "81.0 %", "75.0 %", "80", "44"],
    ]
    assert rows(section(html, 13, "Classes of kind"))[0][0] == "Top-1 accuracy"
    masks = html.xpath("//details[@id='candidate-13']//div[@class='masks']/figure")
    assert [[text(span) for span in mask.xpath(".//span")] for mask in masks] == [
        ["input", "truth", "baseline", "here"]
    ] * 4
    assert text(masks[0].xpath("./figcaption")[0]) == "25.0 % of the pixels are decided otherwise"
    drawn = charts(html)
    assert {"predicted-13-2", "confusion-13-1", "calibration-13-1"} <= set(drawn)
    perfect, points = drawn["predicted-13-2"].data
    assert len(points.x) == len(points.y) == 200
    assert min(perfect.x) < min(*points.x, *points.y)


def facts(html):
    return " ".join(" ".join(html.xpath("//div[@class='facts']//text()")).split())


def test_what_the_metric_was_compared_with_is_said(make_report):
    report = make_report()
    words = facts(page(report))
    assert "Chance level accuracy is not compared: only an accuracy of one label per example, mse and mae are" in words
    report["baseline"]["chance"] = {"accuracy": CHANCE}
    words = facts(page(report))
    assert "Chance level accuracy beside always answering the commonest class" in words


@pytest.mark.parametrize(
    ("misses", "title"),
    [
        ([["budget"], ["target"]], "Nothing met the budget"),
        ([["chance", "budget"], ["target"]], "Nothing is better than chance"),
        ([["contract"], ["target"]], "Nothing keeps the contract"),
        ([["target", "budget"], ["target"]], "Nothing runs on cpu"),
        ([[], []], "Nothing met the budget"),  # an older report does not say
    ],
)
def test_why_nothing_was_selected_has_its_own_words(make_report, misses, title):
    report = make_report(candidates=2)
    report["selected"], report["closest"] = None, None if "target" in misses[0] else report["candidates"][0]["name"]
    for candidate, kinds in zip(report["candidates"], misses, strict=True):
        candidate |= {"blessed": False, "reasons": ["no"], "misses": kinds}
    assert text(page(report).xpath("//h1")[0]) == title
    report["closest"] = None
    for candidate in report["candidates"]:
        candidate["metrics"] |= {"accuracy": None}
    if "target" not in misses[0]:
        assert text(page(report).xpath("//h1")[0]) == "Nothing could be judged"
    for candidate in report["candidates"]:
        candidate |= {"failure": {"step": "Quantizer", "error": "no"}, "misses": []}
    assert text(page(report).xpath("//h1")[0]) == "Every candidate failed"


def test_no_warnings_without_cause(make_report):
    report = make_report()
    report["dataset"]["bad_records"] = 0
    report["candidates"] = report["candidates"][12:]
    report["candidates"][0]["slices"] = []
    report["candidates"][0]["latency_ms"]["p50"] = 0.02
    report["candidates"][0]["drop"] = 0.0
    assert not page(report).xpath("//section[@aria-labelledby='warnings-title']")


def test_table_shows_intervals_agreement_and_the_deployed_model(make_report):
    html = page(make_report())
    headers = html.xpath("//table[@id='candidates']/thead//th")
    assert [text(header) for header in headers if "wide" not in header.get("class", "")] == [
        *("Candidate", "accuracy", "Drop", "Zlib bytes", "Ratio", "Bytes", "p50 / p90 µs", "Agreement", "Sparsity"),
        "Verdict",
    ]
    wide = ["p99 µs", "Cold start", "Memory", "Drop from deployed"]
    assert [text(header) for header in headers if "wide" in header.get("class", "")] == wide
    found = table(html)
    assert found["deployed (prune80_int8)"][:3] == ["0.8801", "–", "8,497"]
    assert found["int8"][:3] == ["0.8818", "0.0007−0.0024 to 0.0038", "18,681"]
    assert found["int8"][6:12] == ["97.3 %", "3.0 %", "108.3", "2.97 ms", "3.50 MB", "−0.0017−0.0057 to 0.0023"]


def test_ladder_says_what_each_step_saved(make_report):
    ladder = section(page(make_report()), 13, "What bought which bytes")
    assert rows(ladder) == [
        ["Trainer", "77,531", "", ""],
        ["Pruner", "23,510", "3.3× smaller", ""],
        ["Clusterer", "13,820", "1.7× smaller", ""],
        ["TFLiteExporter", "6,540", "2.1× smaller", ""],
    ]
    # 23,510 of 77,531
    assert ladder.xpath(".//td[@class='bar']/span/@style")[:2] == ["width: 100.0%", "width: 30.3%"]


def test_layers_show_whatever_is_known_of_them(make_report):
    report = make_report()
    report["candidates"][0]["layers"] = [{"name": "a", "granularity": [1, 2], "per_channel": True, "error": 0.25}]
    layers = section(page(report), 1, "Layers")
    assert [text(header) for header in layers.xpath(".//th[@scope='col']")] == [
        *("Layer", "Parameters", "Zeros", "Unique values", "Granularity", "Per channel", "Error"),
        "What was done, or why not",
    ]
    assert rows(layers) == [["a", "–", "–", "–", "1, 2", "True", "0.25", ""]]
    assert rows(section(page(report), 13, "Layers"))[1] == [
        *("logits Dense", "20,290", "80.0 %", "16", "8", "clustered to 16 values")
    ]


def test_costs_are_beside_the_limits_of_the_budget(make_report):
    report = make_report()
    costs = section(page(report), 6, "Cost on this machine")
    assert rows(costs) == [
        ["One thread", "523.0at most 200.0", "679.9", "993.7at most 250.0", "15.0", "3.0 %", "1,200"],
        ["All threads (2)", "418.4", "543.9", "795.0", "12.0", "3.0 %", "1,200"],
        ["Without XNNPACK", "1569.0", "2039.7", "2981.1", "45.0", "3.0 %", "1,200"],
    ]
    assert [text(cell) for cell in costs.xpath(".//td[contains(@class, 'over')]/text()[1]/..")] == [
        *("523.0at most 200.0", "993.7at most 250.0")
    ]
    more = [text(fact) for fact in costs.getnext().xpath("./div")]
    assert more == [
        "Cold start7.63 ms, at most 20 ms (baseline 2.55 ms)",
        "Peak memory3.50 MB, at most 30.00 MB (baseline 3.50 MB)",
    ]


def test_slices_are_judged_by_the_strictest_limit(make_report):
    report = make_report()
    drops = {"front": 0.06, "rear": 0.01}
    found = [
        {"features": {"camera": camera}, "examples": 500, "metrics": {"accuracy": 0.8}, "drop": drop}
        for camera, drop in drops.items()
    ]
    # of `label` 0.05, of `label=6` 0.02
    for label, examples, drop in ((6, 100, 0.03), (7, 100, 0.05), (8, 29, 0.4), (9, 100, None)):
        features = {"label": label}
        found.append({"features": features, "examples": examples, "metrics": {"accuracy": 0.8}, "drop": drop})
    report["candidates"][12]["slices"] = found
    slices = rows(section(page(report), 13, "Slices, worst first"))
    assert [[row[0], row[1], row[2], row[5], row[6]] for row in slices] == [
        ["label=8 (Bag)", "0.4000", "0.0500", "29", "too few examples"],
        ["camera=front", "0.0600", "", "500", ""],
        ["label=7 (Sneaker)", "0.0500", "0.0500", "100", "✓ within"],
        ["label=6 (Shirt)", "0.0300", "0.0200", "100", "✕ too much"],
        ["camera=rear", "0.0100", "", "500", ""],
        ["label=9 (Ankle boot)", "–", "0.0500", "100", "✕ too much"],
    ]


def test_confusions_recall_and_calibration_are_compared_with_the_baseline(make_report):
    report = make_report(1, 3)
    report["dataset"]["label_names"] = ["cat", "dog", "cat"]
    before, after = [[8, 2, 0], [0, 9, 1], [0, 0, 10]], [[9, 1, 0], [0, 6, 4], [0, 0, 10]]
    for each, matrix in ((report["baseline"], before), (report["candidates"][0], after)):
        each["classification"] |= {
            "confusion": matrix,
            "per_class": [{"precision": 1.0, "recall": row[i] / 10, "examples": 10} for i, row in enumerate(matrix)],
        }
    html = page(report)
    (heat,) = charts(html)["confusion-1"].data
    assert heat.x == ("cat (0)", "dog", "cat (2)")  # else Plotly would draw both cats in one place
    assert heat.z == ([1, 1, 0], [0, -3, -3], [0, 0, 0])  # off the diagonal more is worse
    assert heat.text == (["+1", "−1", ""], ["", "−3", "+3"], ["", "", ""])
    assert heat.customdata[1][2] == [1, 4, "+3"]
    assert rows(section(html, 1, "Recall of each class")) == [
        ["dog", "−30.0 %", "90.0 %", "60.0 %", "10", ""],
        ["cat", "+10.0 %", "80.0 %", "90.0 %", "10", ""],
    ]
    assert list(traces(charts(html)["calibration-1"])) == ["perfect", "baseline", "this candidate"]
    scores = dict((row[0], row[1:]) for row in rows(section(html, 1, "As a classifier")))
    assert scores["Top-2 accuracy"] == ["0.9600", "0.9600"]
    assert scores["Expected calibration error"] == ["0.0182", "0.0182"]


@pytest.mark.parametrize(("classes", "drawn", "pairs"), [(50, True, 0), (51, False, 20), (201, False, 0)])
def test_a_confusion_matrix_is_drawn_listed_or_left_out_by_its_size(make_report, classes, drawn, pairs):
    html = page(make_report(1, classes))
    assert ("confusion-1" in charts(html)) == drawn
    assert len(html.xpath("//tbody[@class='pairs']/tr")) == pairs
    assert 0 < len(html.xpath("//tbody[@class='recalls']/tr")) <= 20


def test_only_one_of_both_has_a_confusion_matrix(make_report):
    report = make_report(2)
    report["baseline"]["classification"]["confusion"] = None
    html = page(report)
    assert "calibration-1" in charts(html)
    assert "confusion-1" not in charts(html)
    report["baseline"]["classification"] = None
    html = page(report)
    assert list(traces(charts(html)["calibration-1"])) == ["perfect", "this candidate"]
    assert rows(section(html, 1, "As a classifier"))[0][1] == "–"
    report["candidates"][0]["classification"] |= {"bins": [], "per_class": [], "top_k": {}}
    assert "calibration-1" not in charts(page(report))


def test_flipped_examples_are_shown_with_their_labels(make_report):
    report = make_report(1)
    flip = {"kind": "right_to_wrong", "label": 3, "baseline": 3, "candidate": 12, "features": {"camera": "front"}}
    report["candidates"][0]["flipped"] = [
        flip | {"image": report["candidates"][0]["flipped"][0]["image"]},
        flip | {"image": None, "kind": "wrong_to_right"},
        flip | {"image": "https://example.com/image.png"},
    ]
    flips = page(report).xpath("//div[@class='flips']/figure")
    assert [text(each) for each in flips] == [
        "✕ now wrong label Dress Dress → 12 camera=front",
        "✓ now right label Dress Dress → 12 camera=front",
        "✕ now wrong label Dress Dress → 12 camera=front",
    ]
    assert [len(each.xpath("./img")) for each in flips] == [1, 0, 0]


def test_training_shows_loss_and_the_metric_of_the_budget(make_report):
    report = make_report()
    report["training"][1]["history"] = {"val_loss": [0.5, math.nan], "lr": [0.1, 0.1]}
    report["training"].append({"step": "Other", "of": [], "history": {}})
    html = page(report)
    assert [text(each) for each in html.xpath("//section[@aria-labelledby='training-title']//summary")][::4] == [
        "Trainer for baseline, float32, float16 and 11 more",
        "Other",
    ]
    figures = {name: figure for name, figure in charts(html).items() if name.startswith("training")}
    assert list(figures)[:3] == ["training-1-0", "training-1-1", "training-2-0"]
    assert figures["training-1-1"].layout.yaxis.title.text == "accuracy"
    assert list(traces(figures["training-1-1"])) == ["training", "validation"]
    assert traces(figures["training-2-0"]) == {"validation": [(1, 0.5), (2, None)]}
    assert "It left no history." in text(html.xpath("//details[@id='training-5']")[0])


def test_training_in_phases_is_one_curve_with_a_mark(make_report):
    report = make_report()
    report["training"][0] |= {
        "phases": [{"name": "top", "epochs": 3}, {"name": "fine <b>", "epochs": 4}, {"name": "last", "epochs": 1}],
        "warm_start": {"taken": False, "note": "starts from scratch because layer a is only here"},
    }
    html = page(report)
    figures = charts(html)
    for name in ("training-1-0", "training-1-1"):
        assert len(traces(figures[name])["training"]) == 8
        shapes = [(shape.x0, shape.x1, shape.label.text) for shape in figures[name].layout.shapes]
        assert shapes == [(3.5, 3.5, "fine &lt;b&gt;"), (7.5, 7.5, "last")]
    assert not figures["training-2-0"].layout.shapes
    words = text(html.xpath("//details[@id='training-1']")[0])
    assert "Phases: top, 3 epochs; fine <b>, 4 epochs; last, 1 epoch." in words
    assert "Warm start: starts from scratch because layer a is only here." in words
    assert "Phases" not in text(html.xpath("//details[@id='training-2']")[0])


def test_run_is_drawn_as_a_graph(make_report):
    html = page(make_report())
    boxes = html.xpath("//*[local-name()='svg']/*[local-name()='g']")
    assert len(boxes) == 22
    assert [box.get("class") for box in boxes].count("failed") == 1
    titles = [text(box.xpath("./*[local-name()='title']")[0]) for box in boxes]
    assert "Trainer: cached, 0.1 s" in titles
    assert "Pusher: skipped" in titles
    assert "22 steps in 2 min 51 s: 19 done, 1 cached, 1 failed, 1 skipped." in text(html)


def test_budget_and_lineage_are_complete(make_report):
    report = make_report()
    report["budget"]["drop_bound"] = "upper"
    words = facts(page(report))
    for part in (
        "Drop at most 0.0100, the upper end of its 95% interval",
        "accuracy at least 0.8000 Drop from the deployed model at most 0.0050",
        "Drop in label=6 at most 0.0200 Drop in camera,light at most 0.0300 Slices judged from 30 examples",
        "99th percentile of latency at most 0.25 ms Cold start at most 20 ms Peak memory at most 30.00 MB",
        "Unreadable records 3",
        "Slices by camera; camera and light; label",
        f"Fingerprint {report['dataset']['fingerprint']}",
        f"Selected SHA-256 {report['candidates'][12]['sha256']}",
        f"Deployed SHA-256 {report['deployed']['sha256']}",
        "Version 1732240000 Pushed 2026-10-02",
        "Baseline and Keras outputs differ by at most 3.1e−06 Keras loss 0.3331",
    ):
        assert part in words


def parts(report: dict[str, Any]) -> list[tuple[Any, str]]:
    """All places of a report that may be null or absent."""
    entry = report["candidates"][0]
    return [
        *((report, key) for key in ("deployed", "training", "run", "closest")),
        *((report["dataset"], key) for key in ("fingerprint", "label_names", "bad_records", "slice_features")),
        *((report["budget"], key) for key in report["budget"] if key not in ("metric", "direction", "objective")),
        *((report["baseline"], key) for key in report["baseline"]),
        *((report["deployed"], key) for key in report["deployed"]),
        *((entry, key) for key in entry if key != "name"),
        *((entry["device"], key) for key in entry["device"]),
        *((entry["device"]["one_thread"], key) for key in entry["device"]["one_thread"]),
        *((entry["comparison"], key) for key in entry["comparison"]),
        *((entry["comparison"]["outputs"]["logits"], key) for key in entry["comparison"]["outputs"]["logits"]),
        *((entry["classification"], key) for key in entry["classification"] if key != "classes"),
        *((entry["slices"][0], "drop"), (entry["metrics"], "accuracy"), (report["baseline"]["metrics"], "accuracy")),
        *((entry["layers"][0], key) for key in entry["layers"][0] if key != "name"),
        *((entry["sensitivity"][0], key) for key in ("sqnr_db", "drop")),
        *((entry["flipped"][0], key) for key in ("image", "features")),
        *((report["training"][0], key) for key in ("of", "history")),
        *((report["run"], key) for key in report["run"]),
        *((report["run"]["nodes"][0], key) for key in ("seconds", "upstream")),
    ]


def test_every_part_may_be_null_or_absent(make_report, monkeypatch):
    monkeypatch.setattr("edgeline.report.rendering.get_plotlyjs", lambda: "")
    report = make_report(1)
    report["closest"] = report["candidates"][0]["name"]
    for place, key in parts(report):
        value = place.pop(key)
        words = text(lxml.html.fromstring(render(report)).xpath("//main")[0])
        assert not re.search(r"\b(nan|inf|None|Undefined)\b", words), key
        place[key] = None
        words = text(lxml.html.fromstring(render(report)).xpath("//main")[0])
        assert not re.search(r"\b(nan|inf|None|Undefined)\b", words), key
        place[key] = value


def test_a_regression_has_no_classes(make_report):
    report = make_report(3)
    report["budget"] |= {"metric": "mae", "direction": "min"}
    report["dataset"]["label_names"] = None
    for each in (report["baseline"], report["deployed"], *report["candidates"]):
        each |= {"metrics": {"loss": 9.0, "mae": 2.5}, "classification": None, "flipped": [], "slices": []}
    for each in report["candidates"]:
        each["comparison"] |= {"agreement": None, "flips": None}
    html = page(report)
    assert "Agreement" not in text(html.xpath("//main")[0])
    assert not [name for name in charts(html) if name.startswith(("confusion", "calibration"))]
    assert rows(section(html, 1, "Beside the baseline").getnext()) == [["logits", "0.8123", "0.0412", "31.4"]]


@pytest.mark.parametrize(("candidates", "classes"), [(40, 10), (2, 1000), (1, 2), (0, 10)])
def test_many_and_few(make_report, candidates, classes):
    html = page(make_report(candidates, classes))
    assert len(html.xpath("//tbody[@class='rows']/tr")) == candidates
    ids = html.xpath("//@id")
    assert len(ids) == len(set(ids))
    places = set(html.xpath("//div[starts-with(@class, 'chart')]/@id"))
    assert places == charts(html).keys()


def test_full_page_suits_screen_readers(make_report):
    html = page(make_report())
    assert all(box.getparent().get("tabindex") == "0" for box in html.xpath("//table"))
    assert all(header.get("scope") for header in html.xpath("//th"))
    assert set(html.xpath("//@aria-labelledby")) <= set(html.xpath("//@id"))
    links = html.xpath("//table[@id='candidates']//th/a/@href")
    assert links == [f"#candidate-{i}" for i in range(1, 14)]


def test_page_of_a_full_report_loads_nothing_and_is_the_same_every_time(make_report):
    html = page(make_report())
    assert not html.xpath("//link | //iframe | //object | //embed | //script[@src]")
    assert all(source.startswith("data:image/png;base64,") for source in html.xpath("//@src"))
    assert render(make_report()).count("* plotly.js v") == 1
    assert render(make_report()) == render(json.loads(json.dumps(make_report())))
