"""The report's page as a browser shows it, on a phone and on a desk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeline.report.rendering import render
from edgeline.report.report_file import parse

CHROMIUM = Path("/usr/bin/chromium")
PHONE, DESK = 360, 1280

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not there: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # here, since the fast tests need not wait for it
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    with playwright.sync_playwright() as started:
        # Chromium's sandbox needs rights that a container, and root, does not have.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """Where pictures of the page are kept: the folder EDGELINE_SCREENSHOTS, if it is set."""
    folder = Path(os.environ.get("EDGELINE_SCREENSHOTS") or tmp_path / "screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Opens a report in a window of some width; at the end nothing may have been complained of or asked for."""
    path = tmp_path / "report.html"
    troubles: list[str] = []
    contexts = []

    def visit(report: dict[str, Any], width: int, scheme: str = "light") -> Any:
        path.write_text(render(parse(report, "the report")), encoding="utf-8")
        phone = width < 500
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, is_mobile=phone, has_touch=phone
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.on("console", lambda message: troubles.append(f"console: {message.type} {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on("requestfailed", lambda request: troubles.append(f"failed: {request.url[:80]}"))
        page.on(
            "request",
            lambda request: (
                None if request.url.startswith((path.as_uri(), "data:", "blob:")) else troubles.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert not troubles


def width(page: Any) -> int:
    return page.evaluate("document.documentElement.scrollWidth")


def drawn(page: Any) -> list[str]:
    return page.eval_on_selector_all(".chart:has(.main-svg)", "charts => charts.map(chart => chart.id)")


def names(page: Any) -> list[str]:
    return page.locator("#candidates .rows th").all_inner_texts()


def center(page: Any, trace: str, point: int = 0) -> tuple[float, float]:
    """Where a point of the size chart is on the screen."""
    page.locator("#size-chart").scroll_into_view_if_needed()
    place = page.evaluate(
        """([name, i]) => {
            const chart = document.getElementById("size-chart");
            const trace = chart.data.findIndex(trace => trace.name === name);
            const box = chart.querySelectorAll(".scatterlayer .trace")[trace].querySelectorAll(".points path")[i]
                .getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }""",
        [trace, point],
    )
    return place[0], place[1]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("wide", [PHONE, DESK])
def test_nothing_is_wider_than_the_window(open_page, make_report, screenshots, wide, scheme):
    page = open_page(make_report(), wide, scheme)
    assert width(page) == wide
    page.screenshot(path=screenshots / f"{wide}-{scheme}.png", full_page=True)
    for details in ("candidate-13", "training-1"):
        page.locator(f"#{details} summary").click()
        page.locator(f"#{details} .chart .main-svg").first.wait_for()
        page.locator(f"#{details}").screenshot(path=screenshots / f"{wide}-{scheme}-{details}.png")
    assert width(page) == wide


def test_a_column_is_sorted_by_click_and_by_key(open_page, make_report):
    page = open_page(make_report(), DESK)
    before = names(page)
    header = page.get_by_role("columnheader", name="Zlib bytes")
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    up = names(page)
    assert up[:3] == ["prune80_cluster16_int8", "prune80_int8", "prune80_dynamic_range"]
    assert sorted(up) == sorted(before)
    page.keyboard.press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert names(page) == up[::-1]
    other = page.get_by_role("columnheader", name="Candidate")
    other.get_by_role("button").focus()
    page.keyboard.press("Space")
    assert header.get_attribute("aria-sort") is None
    assert names(page)[:2] == ["cluster16_dynamic_range", "cluster16_float32"]


def test_a_point_says_all_its_numbers_under_the_pointer(open_page, make_report):
    page = open_page(make_report(), DESK)
    page.mouse.move(*center(page, "selected"))
    label = page.locator("#size-chart .hoverlayer")
    label.locator("text").first.wait_for()
    said = label.text_content().replace("\xa0", " ")
    assert "prune80_cluster16_int8" in said
    assert "zlib bytes 6,540, file 24,824" in said
    assert "95% interval of the drop −0.0068 to −0.0006" in said


def test_charts_are_drawn_when_they_are_opened(open_page, make_report):
    page = open_page(make_report(), DESK)
    assert drawn(page) == ["size-chart", "latency-chart"]
    page.locator("#candidate-2 summary").click()
    page.locator("#confusion-2 .main-svg").first.wait_for()
    assert drawn(page) == ["size-chart", "latency-chart", "calibration-2", "confusion-2"]
    page.locator("#candidates a", has_text="float32").first.click()
    assert page.locator("#candidate-1").get_attribute("open") is not None
    box = page.locator("#candidate-1 .flips img").first
    assert box.evaluate("image => image.naturalWidth") == 28


def test_a_cell_of_the_confusion_matrix_says_what_changed(open_page, make_report):
    page = open_page(make_report(), DESK)
    page.locator("#candidate-13 summary").click()
    heat = page.locator("#confusion-13")
    heat.locator(".main-svg").first.wait_for()
    heat.scroll_into_view_if_needed()
    box = heat.locator(".nsewdrag").bounding_box()
    # the upper left cell of ten by ten
    page.mouse.move(box["x"] + box["width"] / 20, box["y"] + box["height"] / 20)
    label = heat.locator(".hoverlayer")
    label.locator("text").first.wait_for()
    assert "label T-shirt/top" in label.text_content().replace("\xa0", " ")


def test_colours_follow_the_scheme(open_page, make_report):
    page = open_page(make_report(), DESK)
    page.locator("#training-1 summary").click()
    page.locator("#training-1 .main-svg").first.wait_for()

    def fill() -> str:
        return page.evaluate("document.getElementById('size-chart')._fullLayout.font.color")

    assert fill() == "#566273"
    page.emulate_media(color_scheme="dark")
    page.wait_for_function("document.getElementById('size-chart')._fullLayout.font.color === '#a0adbd'")
    page.wait_for_function("document.getElementById('training-1-0')._fullLayout.font.color === '#a0adbd'")


def test_markup_in_the_facts_does_nothing(open_page, make_report):
    report = make_report(2)
    attack = "<script>window.hit = 1</script><img src=x onerror='window.hit = 1'>\"'"
    report["candidates"][0] |= {"name": attack, "blessed": True, "reasons": [attack]}
    report["selected"] = attack
    report["dataset"]["label_names"] = [attack] * 10
    report["run"]["nodes"][0]["id"] = attack
    report["candidates"][0]["flipped"][0]["image"] += '#" onload="window.hit = 1'
    page = open_page(report, DESK)
    for details in page.locator("summary").all():
        details.click()
    page.locator("#confusion-1 .main-svg").first.wait_for()
    page.mouse.move(*center(page, "selected"))
    page.locator("#size-chart .hoverlayer text").first.wait_for()
    assert page.evaluate("window.hit") is None
    assert attack in page.locator("h1").inner_text()


def test_forty_candidates_fit_a_phone(open_page, make_report, screenshots):
    page = open_page(make_report(40), PHONE)
    assert width(page) == PHONE
    page.locator("#candidates").screenshot(path=screenshots / "40-candidates.png")


@pytest.mark.parametrize("wide", [PHONE, DESK])
def test_a_report_without_the_newer_parts(open_page, make_report, screenshots, wide):
    report = make_report(3, nodes=False)
    for each in (report["baseline"], *report["candidates"]):
        for key in ("device", "classification", "comparison", "slices", "flipped", "ladder", "drop_interval"):
            each.pop(key, None)
    report |= {"schema_version": 1, "deployed": None, "training": []}
    report["candidates"][0]["failure"] = {"step": "Quantizer", "error": "no " * 300}
    page = open_page(report, wide)
    page.locator("#candidate-1 summary").click()
    assert width(page) == wide
    page.screenshot(path=screenshots / f"{wide}-version-1.png", full_page=True)
