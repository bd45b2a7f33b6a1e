from __future__ import annotations

import copy
import json
import math
import re
from typing import Any

import lxml.html
import plotly.graph_objects as go
import pytest

from edgeline.evaluator.report import PALETTES, render, write_report

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


def charts(html: lxml.html.HtmlElement, scheme: str = "light") -> dict[str, go.Figure]:
    figures = html.xpath("//script[@id='figures']")
    return {key: go.Figure(schemes[scheme]) for key, schemes in json.loads(figures[0].text).items()} if figures else {}


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
    assert "Change of accuracy −0.0080 0.9750 → 0.9670; allowed drop 0.0100" in words
    assert "Latency, p50 0.0100 ms baseline 0.0200 ms; 2.0× faster" in words
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
        *("Candidate", "accuracy", "Drop", "Bytes", "Zlib bytes"),
        *("Ratio", "p50 / p90 ms", "Sparsity", "Verdict"),
    ]
    rows = table(html)
    assert list(rows) == ["baseline (float32)", "float16", "prune80_int8", "prune95_int8", "int16"]
    assert rows["baseline (float32)"][:-1] == ["0.9750", "–", "84,452", "80,000", "–", "0.0200 / 0.0300", "–"]
    assert rows["prune80_int8"] == [
        *("0.9670", "0.0080", "24,640", "10,000", "8.0×", "0.0100 / 0.0200", "78.5 %"),
        "★ Selected Pareto front",
    ]
    assert rows["float16"][-1] == "✓ Meets budget Pareto front"
    assert rows["prune95_int8"][-1] == "✕ Misses budget Pareto front accuracy drop 0.075 exceeds 0.01"
    assert rows["int16"] == [*["–"] * 7, "⚠ Failed TFLiteExporter: the converter refused <op>"]
    assert [text(row.xpath("./th")[0]) for row in html.xpath("//tr[@class='selected']")] == ["prune80_int8"]


def test_table_can_be_sorted_by_the_exact_numbers(report):
    html = page(report)
    assert len(html.xpath("//table[@id='candidates']/thead//th/button")) == 9
    ratios = html.xpath("//tbody[@class='rows']/tr/td[5]/@data-value")
    assert ratios == ["2.0", "8.0", "16.0", ""]
    assert 'setAttribute("aria-sort"' in render(report)


def test_details_show_how_a_candidate_was_made(report):
    html = page(report)
    links = html.xpath("//table[@id='candidates']//th/a/@href")
    assert links == [f"#{details}" for details in html.xpath("//details/@id")]
    details = html.xpath("//details[2]")[0]
    assert [text(step) for step in details.xpath(".//ol/li")] == ["prune sparsity=0.8", "quantize scheme=int8"]
    steps, layers = ([text(row) for row in body.xpath("./tr")] for body in details.xpath(".//tbody"))
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
    words = " ".join(" ".join(page(report).xpath("//div[@class='facts']//text()")).split())
    assert "accuracy, more is better Drop at most 0.0100" in words
    assert "File at most 30,000 bytes Zlib at most 20,000 bytes Latency at most 0.5000 ms" in words
    assert "Examples 1,800 Classes 30: class 0, class 1," in words
    assert "class 19, … Module digits.model" in words
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
    assert "Change of mae +1.00 80.00 → 81.00; allowed rise 2.00" in verdict(html)
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


def test_no_candidates(report):
    report["candidates"], report["selected"] = [], None
    html = page(report)
    assert "Nothing met the budget There were no candidates." in verdict(html)
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


def test_text_of_the_report_is_never_markup(report):
    def spoil(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: spoil(item) for key, item in value.items()}
        if isinstance(value, list):
            return [spoil(item) for item in value]
        return HOSTILE + value if isinstance(value, str) else value

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
    assert not html.xpath("//link | //iframe | //img | //object | //embed | //script[@src] | //*[@src]")
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
@pytest.mark.parametrize("front", ["text", "muted", "accent", "good", "bad"])
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


@pytest.mark.parametrize("version", [2, None, "1"])
def test_other_schema_versions_are_refused(report, version):
    report["schema_version"] = version
    with pytest.raises(ValueError, match=f"expected schema_version 1, received {version!r}"):
        render(report)


def test_write_report(report, tmp_path):
    report["candidates"][0]["metrics"]["loss"] = math.nan
    report["pipeline"] = "Ziffern, grün"
    folder = tmp_path / "new" / "folder"
    write_report(report, folder)
    write_report(report, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    written = (folder / "report.json").read_text(encoding="utf-8")
    assert written.startswith('{\n "schema_version": 1,\n "created"')
    facts = json.loads(written)
    assert list(facts) == list(report)
    assert facts["candidates"][0]["metrics"] == {"loss": None, "accuracy": 0.975}
    assert (folder / "report.html").read_text(encoding="utf-8") == render(facts)
