"""`edgeline report` and `edgeline compare`: what the user gives, gets and reads."""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeline.errors import UserError
from edgeline.pipelines.cli import report
from edgeline.pipelines.records import compare
from edgeline.report import rendering as reports
from edgeline.report import report_file, schema

Facts = dict[str, Any]

DIGEST = "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed"


def candidate(name: str, accuracy: float, zlib_bytes: int, **facts: Any) -> Facts:
    return {
        "name": name,
        "recipe": [
            {"step": "Pruner", "config": {"epochs": 2, "sparsity": 0.8, "schedule": "polynomial decay"}},
            {"step": "Quantizer", "config": {"scheme": "int8", "io_type": "float32"}},
        ],
        "metrics": {"accuracy": accuracy, "loss": 0.5},
        "drop": 0.97 - accuracy,
        "bytes": 24640,
        "zlib_bytes": zlib_bytes,
        "latency_ms": {"p50": 0.05, "p90": 0.06},
        "blessed": True,
        "reasons": [],
        "failure": None,
        "sha256": DIGEST,
        "slices": [cut("3", 40, 0.9), cut("7", 50, 0.8), cut("9", 5, 0.6)],
        **facts,
    }


def cut(label: str, examples: int, accuracy: float) -> Facts:
    return {
        "features": {"label": label, "camera": "front"},
        "examples": examples,
        "metrics": {"accuracy": accuracy, "loss": 0.5},
    }


@pytest.fixture
def facts() -> Facts:
    return {
        "schema_version": 3,
        "created": "2026-11-22T02:00:00+00:00",
        "pipeline": "digits",
        "module": "digits.model",
        "module_digest": DIGEST,
        "dataset": {"split": "eval", "fingerprint": DIGEST, "examples": 1800, "label_names": ["no", "yes"]},
        "budget": {
            **{"metric": "accuracy", "direction": "max", "max_drop": 0.01, "objective": "zlib_bytes"},
            "min_slice_examples": 20,
        },
        "baseline": {
            "metrics": {"accuracy": 0.97, "loss": 0.3},
            "bytes": 84452,
            "zlib_bytes": 80000,
            "latency_ms": {"p50": 0.02, "p90": 0.03},
            "sha256": DIGEST,
            "slices": [cut("3", 40, 0.95)],
        },
        "deployed": None,
        "candidates": [candidate("float16", 0.97, 40000), candidate("prune80_int8", 0.965, 10000)],
        "training": [
            {"step": "Trainer", "of": ["float16"], "history": {"loss": [0.9, 0.5]}, "config": {"seed": 0, "epochs": 9}}
        ],
        "selected": "prune80_int8",
        "closest": None,
        "versions": {"edgeline": "0.1.0", "tensorflow": "2.21.0"},
        "machine": {"cpu": "a processor", "cores": 2, "system": "Linux"},
    }


def write(path: Path, facts: Facts) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts))
    return path


def edgeline(*argv: object) -> int:
    parser = argparse.ArgumentParser()
    common = argparse.ArgumentParser(add_help=False)
    report.add_commands(parser.add_subparsers(required=True), common)
    arguments = parser.parse_args([str(argument) for argument in argv])
    return arguments.command(arguments)


# ---- edgeline report


def test_the_page_is_drawn_from_the_facts_alone(
    tmp_path: Path, facts: Facts, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "runs [1]" / "report" / "report.json", facts)  # rich would take it for markup
    before = source.read_bytes()
    assert edgeline("report", "--root", tmp_path / "runs [1]") == 0
    page = source.with_name("report.html")
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text(encoding="utf-8") == reports.render(report_file.parse(facts, "the report"))
    assert edgeline("report", source.parent, "-o", tmp_path / "mine.html") == 0
    assert (tmp_path / "mine.html").read_bytes() == page.read_bytes()
    assert source.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.html", "runs [1]"]


def test_the_default_is_the_root_of_the_digits(
    tmp_path: Path, facts: Facts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^runs/digits does not exist; give a report\.json or the root of a pipeline$"):
        edgeline("report")
    write(tmp_path / "runs" / "digits" / "report" / "report.json", facts)
    assert edgeline("report") == 0
    assert capsys.readouterr().out == f"{tmp_path}/runs/digits/report/report.html\n"


def test_a_report_of_the_first_version_is_drawn(tmp_path: Path, facts: Facts) -> None:
    for name in ("deployed", "training", "module_digest"):
        del facts[name]
    for entry in (facts["baseline"], *facts["candidates"]):
        del entry["slices"]
    source = write(tmp_path / "report.json", facts | {"schema_version": 1})
    assert edgeline("report", source) == 0
    assert "prune80_int8" in source.with_name("report.html").read_text(encoding="utf-8")


def test_what_cannot_be_written(tmp_path: Path, facts: Facts) -> None:
    source = write(tmp_path / "report.json", facts)
    with pytest.raises(UserError, match=r"report\.json is the report\.json itself"):
        edgeline("report", source, "-o", source)
    with pytest.raises(UserError, match=r"none/a\.html cannot be written: No such file or directory; choose another"):
        edgeline("report", source, "-o", tmp_path / "none" / "a.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="folder cannot be written: Is a directory"):
        edgeline("report", source, "-o", tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "report.json"]


@pytest.mark.parametrize("has_browser", [True, False])
def test_opening(tmp_path: Path, facts: Facts, has_browser: bool) -> None:
    """In a process of its own: Python's webbrowser looks for browsers once."""
    source = write(tmp_path / "report.json", facts)
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if k not in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")}
    if has_browser:
        environment["BROWSER"] = f"{browser} %s"
    code = (
        "import sys; from edgeline.pipelines.cli.main import main; code = main(sys.argv[1:]);"
        "assert not {'tensorflow', 'tfx'} & sys.modules.keys(); sys.exit(code)"  # they would take 15 s
    )
    command = [sys.executable, "-c", code, "report", str(source), "--open"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    page = tmp_path / "report.html"
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{page}\n"
    if has_browser:
        assert (tmp_path / "opened").read_text() == f"file://{page}\n"
        assert done.stderr == ""
    else:
        assert done.stderr == f"edgeline: there is no browser to open here; open {page} in one\n"


# ---- what is no report, for both commands


def test_a_missing_file_names_the_nearest(tmp_path: Path, facts: Facts) -> None:
    write(tmp_path / "runs" / "digits" / "report" / "report.json", facts)
    near = tmp_path / "runs" / "digits"
    with pytest.raises(UserError, match=f"runs/digts/report/report.json does not exist; did you mean {near}"):
        edgeline("report", tmp_path / "runs" / "digts" / "report" / "report.json")
    with pytest.raises(UserError, match=f"did you mean {near}"):
        edgeline("compare", near, tmp_path / "runs" / "digitss")
    with pytest.raises(UserError, match=f"no report.json in {tmp_path}/runs, and none in .*; give {near}/report/rep"):
        edgeline("compare", tmp_path / "runs", near)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty/report; the run makes it when it evaluates candidates"):
        edgeline("report", tmp_path / "empty")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# Edgeline", "found no JSON"),
        (b"\xff\xfe\x00", "found no JSON"),
        (b"[1]", "found list at its top"),
        (b"{}", "schema_version None"),
        (b'{"schema_version": 4}', "schema_version 4; this version of edgeline reads 1, 2 and 3"),
        (b'{"schema_version": 2}', "lacks created, pipeline"),
    ],
)
def test_what_is_no_report(content: bytes, message: str, tmp_path: Path, facts: Facts) -> None:
    good = write(tmp_path / "good.json", facts)
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    for argv in (("report", path), ("compare", path, good), ("compare", good, path)):
        with pytest.raises(UserError, match=message) as caught:
            edgeline(*argv)
        assert str(path) in str(caught.value)
    assert not (tmp_path / "report.html").exists()


# ---- edgeline compare


def test_equal_reports(tmp_path: Path, facts: Facts, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "root"
    write(root / "report" / "report.json", facts)
    artifact = write(root / "artifacts" / "Evaluator" / "evaluation" / "7" / "report.json", facts).parent
    assert edgeline("compare", root, artifact) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        f"A  digits, 2026-11-22T02:00:00+00:00  {root}/report/report.json",
        f"B  digits, 2026-11-22T02:00:00+00:00  {artifact}/report.json",
        "unchanged  data, module, training, budget, recipes, deployed, versions, machine",
    ]
    rows = [line.split() for line in lines]
    assert ["baseline", "0.9700", "–", "80,000", "20", "µs"] in rows
    assert ["prune80_int8", "0.9650", "+0.0050", "10,000", "50", "µs", "selected"] in rows
    assert lines[-1] == "selected  prune80_int8"


def edit(facts: Facts) -> Facts:
    """Makes another run's report, which differs in everything."""
    other = copy.deepcopy(facts)
    other["dataset"] |= {"fingerprint": "0" * 64, "examples": 1900}
    other["module_digest"] = "1" * 64
    other["training"][0]["history"]["loss"].append(0.4)
    other["training"][0]["config"]["seed"] = 1
    other["budget"] |= {"max_drop": 0.02, "max_bytes": 30000}
    pruned = other["candidates"][1]
    pruned["recipe"][0]["config"] |= {"sparsity": 0.9, "schedule": "constant rate"}
    pruned |= {"metrics": {"accuracy": 0.94, "loss": 0.6}, "drop": 0.03, "zlib_bytes": 9000, "blessed": False}
    pruned["slices"] = [cut("3", 41, 0.85), cut("7", 50, 0.92), cut("9", 5, 0.0)]
    other["candidates"] = [candidate("int8", 0.96, 20000), pruned]
    other["selected"] = "int8"
    other["deployed"] = {"name": "float16", "version": "1790000000", "sha256": DIGEST, "metrics": None}
    other["versions"]["tensorflow"] = "2.22.0"
    other["machine"]["cores"] = 4
    return other


def test_all_that_changed(tmp_path: Path, facts: Facts, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a.json", facts), write(tmp_path / "b.json", edit(facts))
    assert edgeline("compare", a, b) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    for row in (
        ["data", "fingerprint", "7692c3ad3540…", "000000000000…"],
        ["examples", "1800", "1900"],
        ["module", "content", "7692c3ad3540…", "111111111111…"],
        ["training", "epochs", "done", "2", "3"],
        ["seed", "0", "1"],
        ["budget", "max_drop", "0.01", "0.02"],
        ["max_bytes", "–", "30000"],
        ["recipes", "prune80_int8:", "Pruner", "sparsity", "0.8", "0.9"],
        ["prune80_int8:", "Pruner", "schedule", "polynomial", "decay", "constant", "rate"],
        ["deployed", "name", "–", "float16"],
        ["versions", "tensorflow", "2.21.0", "2.22.0"],
        ["machine", "cores", "2", "4"],
        ["only", "in", "A", "float16"],
        ["only", "in", "B", "int8"],
        [
            *("prune80_int8", "0.9650", "→", "0.9400", "+0.0050", "→", "+0.0300", "10,000", "→", "9,000"),
            *("50", "µs", "selected", "→", "rejected"),
        ],
        ["selected", "prune80_int8", "→", "int8"],
        ["prune80_int8", "camera=front,label=3", "40", "→", "41", "0.9000", "→", "0.8500", "-0.0500"],
        ["prune80_int8", "camera=front,label=7", "50", "0.8000", "→", "0.9200", "+0.1200"],
    ):
        assert row in rows, row
    assert "unchanged" not in out
    assert "not compared" not in out
    assert "label=9" not in out  # 5 examples are too few to be judged
    assert out.splitlines()[-1] == "slices that changed by more than 0.01, the worst first"


def test_json_has_the_same_facts(tmp_path: Path, facts: Facts, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write(tmp_path / "a.json", facts), write(tmp_path / "b.json", edit(facts))
    assert edgeline("compare", a, b, "--output", "json") == 0
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    found = json.loads(out)
    assert found["a"] == {"report": str(a), "pipeline": "digits", "created": "2026-11-22T02:00:00+00:00"}
    assert list(found["parts"]) == [
        *("data", "module", "training", "budget", "recipes", "deployed", "versions", "machine")
    ]
    assert found["parts"]["module"] == {
        "changed": [{"what": "content", "a": DIGEST, "b": "1" * 64}], "unknown": [],
    }  # fmt: skip
    assert found["selected"] == {"what": "selected", "a": "prune80_int8", "b": "int8"}
    assert (found["only_a"], found["only_b"], found["more_slices"]) == (["float16"], ["int8"], 0)
    assert [pair["name"] for pair in found["models"]] == ["baseline", "prune80_int8"]
    assert found["models"][1]["b"] == {
        "metric": 0.94, "drop": 0.03, "more_metrics": {}, "zlib_bytes": 9000, "p50_ms": 0.05, "verdict": "rejected",
        "selected": False,
    }  # fmt: skip
    worst = found["slices"][0]
    assert worst.pop("loss") == pytest.approx(0.05)
    assert worst == {
        "model": "prune80_int8", "slice": "camera=front,label=3", "metric": "accuracy", "examples": [40, 41],
        "a": 0.9, "b": 0.85,
    }  # fmt: skip


def test_reports_of_several_metrics_are_compared_by_all(
    tmp_path: Path, facts: Facts, capsys: pytest.CaptureFixture[str]
) -> None:
    other = edit(facts)
    other["budget"]["more_metrics"] = [{"metric": "loss", "direction": "min", "max_drop": 0.5}]
    other["candidates"][1]["more_drops"] = {"loss": {"drop": 0.125}}
    other["candidates"][1]["slices"][0]["metrics"]["loss"] = 3.0
    facts["candidates"][1]["slices"][0]["metrics"]["loss"] = 1.0
    a, b = write(tmp_path / "a.json", facts), write(tmp_path / "b.json", other)
    assert edgeline("compare", a, b, "--output", "json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["metric"], found["more_metrics"]) == ("accuracy", ["loss"])
    # the first report's budget does not judge the loss, so that nothing was lost by it
    before, after = (found["models"][1][key] for key in "ab")
    assert before["more_metrics"] == {"loss": {"value": facts["candidates"][1]["metrics"]["loss"], "drop": None}}
    assert after["more_metrics"] == {"loss": {"value": 0.6, "drop": 0.125}}
    assert {"what": "more_metrics", "a": [], "b": ["loss:min:0.5"]} in found["parts"]["budget"]["changed"]
    # 2.0 of 0.5 allowed are more than 0.05 of 0.02
    assert [(each["metric"], each["slice"]) for each in found["slices"]][:2] == [
        ("loss", "camera=front,label=3"),
        ("accuracy", "camera=front,label=3"),
    ]
    assert edgeline("compare", a, b) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["result", "accuracy", "drop", "loss", "drop", "zlib", "bytes", "p50", "verdict"] in rows
    assert ["prune80_int8", "camera=front,label=3", "loss", "40", "→", "41", "1.0000", "→", "3.0000", "+2.0000"] in rows


def test_reports_that_do_not_know_everything(tmp_path: Path, facts: Facts, capsys: pytest.CaptureFixture[str]) -> None:
    """The first version of the report, and a candidate whose pruning failed."""
    old, new = copy.deepcopy(facts), copy.deepcopy(facts)
    for name in ("deployed", "training", "module_digest"):
        del old[name]
    del old["dataset"]["fingerprint"], old["budget"]["min_slice_examples"], new["budget"]["min_slice_examples"]
    for entry in (old["baseline"], *old["candidates"]):
        del entry["slices"]
    failure = {"step": "an earlier step", "error": "it failed"}
    new["candidates"][0] = {"name": "float16", "recipe": [], "metrics": None, "failure": failure}
    a, b = write(tmp_path / "a.json", old | {"schema_version": 1}), write(tmp_path / "b.json", new)
    assert edgeline("compare", a, b) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "unchanged  budget, deployed, versions, machine" in lines
    assert (
        "not compared, as a report does not know it  data (fingerprint), module (content), "
        "training (epochs done, parameters), recipes (float16)"
    ) in lines
    rows = [line.split() for line in lines]
    assert [
        *("float16", "0.9700", "→", "–", "+0.0000", "→", "–", "40,000", "→", "–", "50", "µs", "→", "–"),
        *("fits", "→", "failed"),
    ] in rows


def compared(facts: Facts, change: Callable[[Facts], None]) -> compare.Comparison:
    other = copy.deepcopy(facts)
    change(other)
    return compare.compare(report_file.parse(facts, "a"), report_file.parse(other, "b"))


def test_steps_that_were_added(facts: Facts) -> None:
    added = {"step": "Clusterer", "config": {"clusters": 16}}
    found = compared(facts, lambda other: other["candidates"][1]["recipe"].insert(1, added))
    [change] = found.parts["recipes"].changed
    assert change == compare.Change("prune80_int8", "Pruner → Quantizer", "Pruner → Clusterer → Quantizer")


def test_configs_of_an_older_version_are_the_same_configs(facts: Facts) -> None:
    now = {
        "begin_step": None, "frequency": None, "block_size": [1, 4], "m_by_n": None, "include": ["a"], "policy": None,
        "layer_sparsity": {"a": 0.5}, "deterministic": True, "sparsity": 0.8,
    }  # fmt: skip
    old = {
        "begin_step": -1, "frequency": 0, "block_size": "1x4", "m_by_n": "", "include": '["a"]', "policy": "none",
        "layer_sparsity": '{"a": 0.5}', "deterministic": 1, "sparsity": 0.8,
    }  # fmt: skip

    def configs(facts: Facts, config: dict[str, Any]) -> None:
        facts["training"][0]["config"] = config
        facts["candidates"][1]["recipe"][0]["config"] = config

    configs(facts, now)
    same = compared(facts, lambda other: configs(other, old))
    assert same.parts["training"] == same.parts["recipes"] == compare.Part(())
    [change] = compared(facts, lambda other: configs(other, old | {"include": "[]"})).parts["training"].changed
    assert change == compare.Change("include", ["a"], "[]")


def test_recipes_of_an_older_version_are_the_same_recipes(facts: Facts) -> None:
    """They were written as text."""

    def change(other: Facts) -> None:
        other["schema_version"] = 2
        for each in other["candidates"]:
            each["recipe"] = [
                "Pruner epochs=2 sparsity=0.8 schedule=polynomial decay",
                "Quantizer scheme=int8 io_type=float32",
            ]

    assert compared(facts, change).parts["recipes"] == compare.Part(())


def test_the_same_module_under_another_name_is_told_from_another_module(facts: Facts) -> None:
    moved = compared(facts, lambda other: other.update(module="/home/me/model.py"))
    assert moved.parts["module"] == compare.Part((compare.Change("reference", "digits.model", "/home/me/model.py"),))
    edited = compared(facts, lambda other: other.update(module_digest="2" * 64))
    assert edited.parts["module"] == compare.Part((compare.Change("content", DIGEST, "2" * 64),))


def test_drops_in_another_metric_are_not_compared(facts: Facts) -> None:
    """A metric of which less is better: all reports have all compiled metrics, but the drop is in the budget's own."""

    def change(other: Facts) -> None:
        other["budget"] |= {"metric": "loss", "direction": "min"}
        other["candidates"][1]["slices"][0]["metrics"]["loss"] = 0.3
        other["candidates"][1]["slices"][1]["metrics"]["loss"] = 0.52

    found = compared(facts, change)
    pair = found.models[-1]
    assert (found.metric, pair.a.metric, pair.a.drop) == ("loss", 0.5, None)
    assert pair.b.drop == pytest.approx(0.005)
    assert [(each.slice[-1], round(each.loss, 9)) for each in found.slices] == [("7", 0.02), ("3", -0.2)]


def test_the_worst_slices_come_first_and_the_rest_is_counted(
    tmp_path: Path, facts: Facts, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copy.deepcopy(facts)
    # accuracies 0.90 before; after: 0.90, 0.89 (no more than a point), 0.88, ..., 0.78: 11 slices lost more
    facts["candidates"][1]["slices"] = [cut(f"{i:02}", 30, 0.9) for i in range(13)]
    other["candidates"][1]["slices"] = [cut(f"{i:02}", 30, 0.9 - i / 100) for i in range(13)]
    a, b = write(tmp_path / "a.json", facts), write(tmp_path / "b.json", other)
    assert edgeline("compare", a, b) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1][-2:] for line in lines if "camera=" in line] == [f"{i:02}" for i in range(12, 2, -1)]
    assert lines[-1] == "slices that changed by more than 0.01, the worst first; 1 not shown"


def test_the_json_schema_is_printed(tmp_path: Path, facts: Facts, capsys: pytest.CaptureFixture[str]) -> None:
    assert edgeline("report", "--schema") == 0
    described = json.loads(capsys.readouterr().out)
    assert described == schema.json_schema()
    assert described["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    source = write(tmp_path / "report.json", facts)
    with pytest.raises(SystemExit):
        edgeline("report", "--schema", source)
