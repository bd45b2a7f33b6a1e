"""`edgeline history`: the table, the page, and the nights of a real pipeline."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from edgeline.pipelines.cli import main
from edgeline.pipelines.records import events, history
from edgeline.pipelines.root import Root


def write(root: Path, run: str, **found: dict[str, Any]) -> None:
    for event, facts in found.items():
        events.append(Root(root), event, run, **facts)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four nights: pushed, nothing fits (its name must be escaped), refused, no new data; and a rollback."""
    root = tmp_path / "shop"
    root.mkdir()
    chosen = {"metric": "accuracy", "value": 0.96, "drop": 0.0125, "bytes": 30_000, "zlib_bytes": 11_000}
    started = {"command": "run", "host": "h", "pid": 1}
    write(
        root, "n1", started=started, evaluated={"examples": 173, "candidates": 2, "blessed": 1},
        selected={"name": "int8"} | chosen, pushed={"version": "1790000000", "name": "int8"},
        finished={"exit_code": 0, "seconds": 61.25, "error": None},
    )  # fmt: skip
    write(
        root, "n2", started=started, none_selected={"closest": "<b>qat8</b>"} | chosen | {"value": 0.5},
        not_pushed={"why": "no candidate met the budget"}, finished={"exit_code": 1, "seconds": 3.0, "error": None},
    )  # fmt: skip
    events.append(
        Root(root), "rollback", **{"from": "1790000000", "to": "1780000000", "by": "ann", "why": "<i>grey</i>"}
    )
    write(root, "n3", started=started, finished={"exit_code": 2, "seconds": 0.1, "error": "a/b.gz is damaged:\n  more"})
    write(root, "n4", started=started, no_new_data={"why": "as before"}, finished={"exit_code": 0, "seconds": 0.1})
    return root


def test_the_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["history", str(root)]) == 0
    out = capsys.readouterr().out
    rows = [line.split()[2:] for line in out.splitlines() if line.strip().startswith("20")]
    assert rows == [
        ["pushed", "int8", "0", "0.9600", "+0.0125", "11,000", "1m", "01s", "1790000000"],
        ["nothing", "fits", "<b>qat8</b>", "1", "0.5000", "+0.0125", "11,000", "3.0", "s",
         "no", "candidate", "met", "the", "budget"],
        ["refused", "2", "0.1", "s", "a/b.gz", "is", "damaged"],
        ["no", "new", "data", "0", "0.1", "s", "as", "before"],
    ]  # fmt: skip
    assert "accuracy" in out
    assert "1790000000 → 1780000000, by ann: <i>grey</i>" in out


def test_for_machines(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["history", str(root), "--output", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [run["verdict"] for run in found["runs"]] == ["pushed", "nothing fits", "refused", "no new data"]
    assert found["runs"][0]["pushed"] == "1790000000"
    assert [event["by"] for event in found["rollbacks"]] == ["ann"]
    assert not (root / "report").exists()


class Page(HTMLParser):
    """Collects text, and what a page would load."""

    def __init__(self, text: str):
        super().__init__()
        self.loads: list[str] = []
        self.figures: dict[str, Any] = {}
        self._id = ""
        self.rows = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self._id = found.get("id") or "" if tag == "script" else ""
        self.rows += tag == "tr"
        self.loads += [value for name in ("src", "href") if (value := found.get(name)) and not value.startswith("#")]

    def handle_data(self, data: str) -> None:
        if self._id == "figures":
            self.figures = json.loads(data)
            self._id = ""


def test_the_page(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["history", str(root), "--html"]) == 0
    path = root / "report" / "history.html"
    assert f"page      {path}\n" in capsys.readouterr().out
    text = path.read_text()
    page = Page(text)
    assert page.loads == []
    assert page.rows == 1 + 4
    assert "<b>qat8</b>" not in text
    assert "<i>grey</i>" not in text
    assert page.figures.keys() == {"metric-chart", "size-chart"}
    line, pushed, missed = page.figures["metric-chart"]["data"]
    assert (line["y"], pushed["name"], pushed["y"], missed["name"], missed["y"]) == (
        [0.96, 0.5], "pushed", [0.96], "nothing fits", [0.5],
    )  # fmt: skip
    assert "&lt;b&gt;" in missed["hovertext"][0]  # Plotly reads tags in its texts
    assert len(page.figures["size-chart"]["layout"]["shapes"]) == 1  # the rollback
    log = events.read(Root(root))
    assert history.render("shop", events.nights(log), history.rollbacks(log)) == text
    assert [entry.name for entry in path.parent.iterdir()] == ["history.html"]


def test_a_page_elsewhere_and_without_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "n1", started={}, finished={"exit_code": 2, "seconds": 0.1, "error": "no"})
    assert main.main(["history", str(tmp_path), "--html", str(tmp_path / "h.html")]) == 0
    page = Page((tmp_path / "h.html").read_text())
    assert (page.figures, page.rows) == ({}, 2)
    assert main.main(["history", str(tmp_path), "--html", str(tmp_path / "no" / "where" / "h.html")]) == 2
    assert "cannot be written: No such file or directory; choose another file with --html" in capsys.readouterr().err


def test_what_is_no_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["history", str(tmp_path)]) == 2
    assert "to which every run of a pipeline appends" in capsys.readouterr().err


@pytest.mark.slow
def test_nights_of_a_pipeline(digits_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Pushed, served from the cache, refused for a damaged shard, deleted and made anew; the pushed model verifies."""
    import shutil

    data, root = tmp_path / "data", tmp_path / "digits"
    shutil.copytree(digits_data, data)

    def edgeline(*arguments: object) -> tuple[int, Any]:
        capfd.readouterr()
        code = main.main([str(part) for part in arguments])
        out = capfd.readouterr().out
        return code, json.loads(out) if out.startswith("{") else out

    run = [
        "run", "--module", "edgeline.pipelines.examples.digits.model", "--data", data, "--root", root,
        "--recipe", "float16", "--epochs", 1, "--max-accuracy-drop", 0.5, "--output", "json",
    ]  # fmt: skip
    code, first = edgeline(*run)
    assert code == 0
    version = Path(first["pushed"]).parent
    assert edgeline(*run)[0] == 0
    shard = data / "train" / "damaged.tfrecord.gz"
    shard.write_bytes(b"no gzip")
    assert edgeline(*run)[0] == 2
    shard.unlink()

    code, found = edgeline("history", root, "--output", "json")
    assert [(n["verdict"], n["exit_code"]) for n in found["runs"]] == [("pushed", 0), ("not pushed", 0), ("refused", 2)]
    assert found["runs"][0]["pushed"] == version.name
    assert found["runs"][0]["value"] == first["candidates"][0]["metrics"]["accuracy"]
    assert "damaged.tfrecord.gz" in found["runs"][2]["why"]
    for night in found["runs"]:
        assert (root / "logs" / f"{night['run']}.log").is_file()
    steps = [event for event in events.read(Root(root)) if event["event"] == "step"]
    assert {event["state"] for event in steps if event["run"] == found["runs"][1]["run"]} == {"running", "cached"}
    assert 'edgeline_last_run_exit_code{pipeline="digits"} 2\n' in (root / "metrics.prom").read_text()

    assert edgeline("verify", version)[0] == 0
    code, freed = edgeline("gc", root, "--keep", 1, "--output", "json")
    assert (code, freed["folders"]) == (0, 0)  # the second run was served all that the first made
    code, again = edgeline(*run)
    assert (code, again["steps"]) == (0, {"cached": first["steps"]["done"]})
