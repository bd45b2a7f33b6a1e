"""Reading report.json: of every version, damaged ones, and what the JSON Schema says of it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import lxml.html
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeline.errors import UserError
from edgeline.report import rendering, schema
from edgeline.report.dataclass_json import to_json
from edgeline.report.report_file import parse, read, write
from edgeline.report.schema import DeployedReport

HERE = Path(__file__).parent
#: What runs of the digits wrote whose report.json was laid out as the version that the file's name has.
OLD = {1: HERE / "report_v1.json", 2: HERE / "report_v2.json"}


# older versions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", OLD)
def test_a_report_of_an_older_version_is_read_and_drawn(version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "get_plotlyjs", lambda: "")
    content = json.loads(OLD[version].read_text())
    assert content["schema_version"] == version
    report = read(OLD[version])
    assert report.schema_version == 3
    assert report.selected == content["selected"] is not None
    again = to_json(report)
    # all that it says is still said, under the same keys
    content["schema_version"] = 3
    texts = [candidate.pop("recipe") for candidate in content["candidates"]]
    always_null = [f".{name}.deployed_drop_interval" for name in ("baseline", "deployed") if version > 1]
    assert missing(content, again) == always_null
    jsonschema.validate(again, schema.json_schema())
    page = rendering.render(report)
    assert report.selected in page
    # the page of an older report shows its recipes as they were asked for
    steps = lxml.html.fromstring(page).xpath("//details[@id='candidate-2']//ol/li")
    assert [" ".join(step.text_content().split()) for step in steps] == [step.rstrip() for step in texts[1]]


@pytest.mark.parametrize("version", OLD)
def test_the_recipes_of_older_versions_are_data(version: int) -> None:
    candidate = read(OLD[version]).candidates[1]
    steps = {1: ["Pruner", "Quantizer"], 2: ["Pruner", "Clusterer", "Quantizer"]}[version]
    assert [step.step for step in candidate.recipe] == steps
    prune, quantize = candidate.recipe[0].config, candidate.recipe[-1].config
    assert (prune["sparsity"], prune["epochs"], prune["schedule"]) == (0.8, 1, "polynomial_decay")
    assert (quantize["scheme"], quantize["io_type"]) == ("int8", "float32")
    if version == 2:
        assert (prune["include"], prune["layer_sparsity"], prune["m_by_n"]) == ([], {}, "")


def test_version_1_does_not_know_what_came_later() -> None:
    report = read(OLD[1])
    assert report.deployed is report.run is report.like is report.module_digest is None
    assert report.training == ()
    assert report.budget.max_slice_drops == {}
    assert report.budget.max_drop == 0.05
    assert report.budget.limits["max_bytes"] is None
    assert report.dataset.bad_records is None
    assert report.candidates[0].device is None
    assert report.candidates[0].slices == ()


def test_version_2_has_all_but_what_is_data_now() -> None:
    report = read(OLD[2])
    assert isinstance(report.deployed, DeployedReport)
    assert report.deployed.name == "prune80_int8"
    assert report.candidates[1].drop_interval is not None
    assert report.candidates[1].device is not None
    assert report.candidates[1].device.one_thread is not None
    assert len(report.baseline.slices) == 10
    assert report.training[0].step == "Trainer"
    assert report.training[0].epochs == 3
    assert report.run is not None
    assert {node.state for node in report.run.nodes} == {"done", "cached"}


def test_features_that_were_written_without_a_list(make_report: Callable[..., dict[str, Any]]) -> None:
    content = make_report(1) | {"schema_version": 2}
    content["candidates"][0]["recipe"] = []
    content["dataset"]["slice_features"] = ["camera", ["camera", "light"]]
    assert parse(content, "a").dataset.slice_features == (("camera",), ("camera", "light"))


# the present version --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [True, False])
def test_what_is_written_is_what_was_read(make_report: Callable[..., Any], tmp_path: Path, nodes: bool) -> None:
    content = make_report(nodes=nodes)
    before = copy.deepcopy(content)
    report = parse(content, "a")
    assert content == before
    rendering.write_report(report, tmp_path)
    assert read(tmp_path / "report.json") == report
    assert (tmp_path / "report.html").read_text() == rendering.render(report)
    # what the tests take for a report has no key that a report does not have, at whatever depth
    assert missing(content, json.loads((tmp_path / "report.json").read_text())) == []


def missing(part: Any, whole: Any, place: str = "") -> list[str]:
    """The places of a part that the whole does not have, or has otherwise."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return [
            lost
            for key, value in part.items()
            for lost in (missing(value, whole[key], f"{place}.{key}") if key in whole else [f"{place}.{key}"])
        ]
    if isinstance(part, list) and isinstance(whole, list) and len(part) == len(whole):
        return [
            lost for i, (a, b) in enumerate(zip(part, whole, strict=True)) for lost in missing(a, b, f"{place}[{i}]")
        ]
    return [] if part == whole else [place]


def test_unknown_keys_are_passed_over(make_report: Callable[..., Any]) -> None:
    content = make_report(1)
    report = parse(content, "a")
    content["later"] = {"a": 1}
    content["candidates"][0]["later"] = [1]
    assert parse(content, "a") == report


def test_numbers_that_json_cannot_say_become_null(make_report: Callable[..., Any], tmp_path: Path) -> None:
    content = make_report(1)
    content["candidates"][0] |= {"drop": float("nan"), "drop_interval": [float("-inf"), 0.5]}
    content["baseline"]["metrics"]["loss"] = float("inf")
    write(parse(content, "a"), tmp_path / "report.json")
    written = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    assert written["candidates"][0]["drop"] is None
    assert written["candidates"][0]["drop_interval"] == [None, 0.5]
    assert written["baseline"]["metrics"]["loss"] is None


# what is no report ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 0, None, "1", True])
def test_other_schema_versions_are_refused(make_report: Callable[..., Any], version: Any) -> None:
    with pytest.raises(UserError, match=f"has schema_version {version!r}; this version of edgeline reads 1, 2 and 3"):
        parse(make_report(1) | {"schema_version": version}, "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<html>", "expected a report.json of an Evaluator, found no JSON: Expecting value"),
        ("[" * 100_000, "expected a report.json of an Evaluator, found no JSON: maximum recursion"),
        ("[1]", "expected a report.json of an Evaluator, found list at its top"),
        (
            '{"schema_version": 4}',
            "has schema_version 4; this version of edgeline reads 1, 2 and 3. Use the edgeline that",
        ),
        ("{}", "has schema_version None"),
        *(
            (
                f'{{"schema_version": {version}, "created": "", "dataset": {{"split": "eval"}}, "candidates": [{{}}], '
                '"budget": null}',
                "is no complete report.json, it lacks pipeline, module, baseline, versions, machine, dataset.examples, "
                r"budget.metric, budget.direction, budget.objective, candidates\[0\].name; run the pipeline again",
            )
            for version in (1, 2, 3)
        ),
    ],
)
def test_read_refuses_what_is_no_report(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(content)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: {message}"):
        read(path)


def test_read_refuses_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="found no JSON"):
        read(tmp_path / "report.json")


def places(content: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """All places of a JSON value but the top, the first three of each list."""
    parts = (
        content.items() if isinstance(content, dict) else enumerate(content[:3]) if isinstance(content, list) else ()
    )
    for key, part in parts:
        yield (*place, key)
        yield from places(part, (*place, key))


def put(content: Any, place: tuple[str | int, ...], value: Any) -> None:
    *above, last = place
    for key in above:
        content = content[key]
    content[last] = value


def spelled(place: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)[1:]


@pytest.mark.parametrize("version", [2, 3])
def test_a_value_of_another_kind_is_named_with_its_place(make_report: Callable[..., Any], version: int) -> None:
    content = make_report(1, 3)
    checked = 0
    for place in list(places(content)):
        # what a step was asked, and what it says of a layer beside the rest, may be anything
        if place == ("schema_version",) or {"config", "bits"} & {*place}:
            continue
        damaged = copy.deepcopy(content) | {"schema_version": version}
        put(damaged, place, [[[[7]]]])
        if place[-1] in ("recipe", "slice_features") or "recipe" in place:
            continue  # versions differ here
        with pytest.raises(UserError) as caught:
            parse(damaged, "runs/a/report.json")
        text = str(caught.value)
        assert text.startswith("runs/a/report.json: is "), text
        assert spelled(place) in text, text
        checked += 1
    assert checked > 300


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            ("candidates", 0, "bytes"),
            "24640",
            'candidates[0].bytes: expected a whole number, found "24640"',
        ),
        (("candidates", 0, "bytes"), -1, "candidates[0].bytes: expected at least 0, found -1"),
        (("candidates", 0, "bytes"), 2**63, "candidates[0].bytes: expected a whole number, found 9223372036854775808"),
        (("candidates", 0, "blessed"), 1, "candidates[0].blessed: expected true or false, found 1"),
        (("budget", "direction"), "up", 'budget.direction: expected "max" or "min", found "up"'),
        (("budget", "max_bytes"), [], "budget.max_bytes: expected a number, found []"),
        (("candidates", 0, "drop_interval"), [0.1], "candidates[0].drop_interval: expected a list of 2, found [0.1]"),
        (("candidates", 0, "slices", 1, "features", "camera"), None, "expected text or a whole number or a number or"),
        (("baseline", "device", "one_thread"), 3, "baseline.device.one_thread: expected an object, found 3"),
        (("created",), "yesterday", "created: expected a time as in ISO 8601, found 'yesterday'"),
        (
            ("baseline", "classification", "confusion"),
            [[1, 2], [3]],
            "baseline.classification.confusion: expected 3 rows and columns",
        ),
        (
            ("candidates", 0, "outputs"),
            [{"output": "y", "classification": {"classes": 2, "confusion": [[1, 2]]}}],
            "candidates[0].outputs[0].classification.confusion: expected 2 rows and columns",
        ),
        (
            ("baseline", "outputs"),
            [{"output": "y", "regression": {"numbers": 1, "labels": [[1.0], [2.0]], "predicted": [[1.0]]}}],
            "baseline.outputs[0].regression.predicted: expected 2 examples",
        ),
        (
            ("run", "nodes"),
            [{"id": "a", "state": "done", "upstream": ["b"]}, {"id": "b", "state": "done", "upstream": ["a"]}],
            "run.nodes: expected no step to wait for itself, found a → b → a",
        ),
    ],
)
def test_what_is_wrong_is_said(make_report: Callable[..., Any], place: Any, value: Any, message: str) -> None:
    content = make_report(1, 3)
    put(content, place, value)
    with pytest.raises(UserError) as caught:
        parse(content, "a")
    assert str(caught.value).startswith("a: is damaged: ")
    assert message in str(caught.value)
    assert str(caught.value).endswith("; run the pipeline again")


def test_of_many_faults_the_first_are_said(make_report: Callable[..., Any]) -> None:
    content = make_report(13)
    for candidate in content["candidates"]:
        candidate["bytes"] = "many"
    with pytest.raises(UserError, match=r"candidates\[2\].bytes: .* \(and 10 more\); run the pipeline again$"):
        parse(content, "a")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_report_is_refused_or_drawn(
    make_report: Callable[..., Any],
    make_outputs: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    data: st.DataObject,
) -> None:
    monkeypatch.setattr(rendering, "get_plotlyjs", lambda: "")
    content = make_report(1, 3)
    for model, better in ((content["baseline"], 1.0), (content["candidates"][0], 0.9)):
        model["outputs"] = make_outputs(better)
        numbers = model["outputs"][1]["regression"]
        numbers["labels"], numbers["predicted"] = numbers["labels"][:2], numbers["predicted"][:2]
        model["chance"] = {"accuracy": {"guess": "mean", "value": 0.5, "margin": 0.1, "beaten": False}}
    for place in data.draw(st.lists(st.sampled_from(list(places(content))), min_size=1, max_size=3)):
        value = data.draw(
            st.sampled_from([None, True, 0, -1, 7, 1.5, 1e308, -1e308, 10**30, "", "a=b c", [], [[]], {}])
        )
        try:
            put(content, place, value)
        except (TypeError, IndexError, KeyError):  # an earlier place lay above this one
            continue
    try:
        report = parse(content, "a")
    except UserError:
        return
    assert rendering.render(report).startswith("<!doctype html>")


# the JSON Schema ------------------------------------------------------------------------------------------------------


def test_a_report_is_what_the_json_schema_says(make_report: Callable[..., Any]) -> None:
    described = schema.json_schema()
    jsonschema.Draft202012Validator.check_schema(described)
    assert described["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    validator = jsonschema.Draft202012Validator(described)
    content = to_json(parse(make_report(), "a"))
    validator.validate(content)
    for place, value in [
        (("schema_version",), 2),
        (("candidates", 0, "bytes"), "many"),
        (("candidates", 9, "recipe", 0), "Pruner sparsity=0.8"),
        (("candidates", 0, "drop_interval"), [0.1]),
        (("budget", "max_cold_start_ms"), "20"),
        (("budget", "direction"), "up"),
        (("training", 0, "step"), None),
    ]:
        damaged = copy.deepcopy(content)
        put(damaged, place, value)
        [error] = validator.iter_errors(damaged)
        assert tuple(error.absolute_path) == place
    del content["baseline"]["bytes"]
    [error] = validator.iter_errors(content)
    assert error.message == "'bytes' is a required property"


def test_the_json_schema_describes_every_key() -> None:
    described = schema.json_schema()
    assert {"CandidateReport", "BudgetReport", "DeviceCost", "LayerSensitivity"} <= described["$defs"].keys()
    for part in (described, *described["$defs"].values()):
        assert part["description"]
        for key, own in part["properties"].items():
            assert own["description"], f"{part['title']}.{key}"
            assert "None" not in own["description"]
    budget = described["$defs"]["BudgetReport"]["properties"]
    assert budget["max_bytes"]["description"] == "Largest file size of a candidate, in bytes, above 0; null: any."
