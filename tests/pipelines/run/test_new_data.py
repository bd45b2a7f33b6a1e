"""`edgeline run` on spans, on nothing new, and with a schema: what the command line says and does."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx.orchestration import metadata
from tfx.orchestration.pipeline import Pipeline

from edgeline.budget import Budget
from edgeline.data import reading, spans
from edgeline.data.data_folder import SPLITS
from edgeline.model_module import module_source
from edgeline.pipelines import compression, recipes
from edgeline.pipelines.cli import main
from edgeline.pipelines.job import Job
from edgeline.pipelines.records import events
from edgeline.pipelines.root import Root
from edgeline.pipelines.run import new_data
from edgeline.pipelines.run.journal import Journal
from edgeline.pipelines.run.local_runner import BEAM_ARGS, LocalRunner
from edgeline.pipelines.run.request import DIGITS_MODULE, Prepared, Request


def write_span(folder: Path, labels: Sequence[int], first: int = 0) -> Path:
    """Writes a data folder of which each split has an example per label, with a running number and a colour."""
    for split in SPLITS:
        (folder / split).mkdir(parents=True)
        with tf.io.TFRecordWriter(str(folder / split / "data.tfrecord.gz"), "GZIP") as writer:
            for number, label in enumerate(labels, first):
                features = {
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                    "number": tf.train.Feature(int64_list=tf.train.Int64List(value=[number])),
                    "colour": tf.train.Feature(bytes_list=tf.train.BytesList(value=[(b"red", b"blue")[number % 2]])),
                    "raw": tf.train.Feature(bytes_list=tf.train.BytesList(value=[bytes([0, number % 2])])),
                    "text": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"x" * 65])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    return folder


# the ingest -----------------------------------------------------------------------------------------------------------


def ingest(root: Path, window: spans.Window | Path) -> tuple[str, Any]:
    connection = metadata.sqlite_metadata_connection_config(str(root / "metadata.db"))
    make = compression.import_examples if isinstance(window, Path) else compression.import_spans
    node = make(window).with_beam_pipeline_args(list(BEAM_ARGS))
    pipeline = Pipeline("p", str(root / "artifacts"), connection, [node], enable_cache=True)
    result = LocalRunner().run(pipeline)
    [artifact] = result.outputs(node.id, "examples")
    return result.nodes[node.id].state, artifact


def numbers(uri: str, split: str) -> list[int]:
    records = reading.read_serialized(reading.split_files(uri, split)).as_numpy_iterator()
    return sorted(tf.train.Example.FromString(r).features.feature["number"].int64_list.value[0] for r in records)


def test_a_window_becomes_one_artifact_that_says_its_spans(tmp_path: Path) -> None:
    for day in (1, 2, 3):
        write_span(tmp_path / f"day-{day}", [0, 1], first=10 * day)
    pattern = tmp_path / "day-{SPAN}"
    state, first = ingest(tmp_path / "root", spans.resolve(pattern, 2))
    assert state == "done"
    for split in SPLITS:
        assert numbers(first.uri, split) == [20, 21, 30, 31]
    assert first.get_int_custom_property("span") == 3
    assert json.loads(first.get_string_custom_property("spans")) == ["day-2", "day-3"]

    assert ingest(tmp_path / "root", spans.resolve(pattern, 2))[0] == "cached"
    write_span(tmp_path / "day-4", [0, 1], first=40)
    state, moved = ingest(tmp_path / "root", spans.resolve(pattern, 2))
    assert (state, numbers(moved.uri, "eval")) == ("done", [30, 31, 40, 41])


def test_an_example_becomes_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    folder = write_span(tmp_path / "day-1", [0, 1])
    for window in (folder, spans.resolve(tmp_path / "day-{SPAN}")):
        _, artifact = ingest(tmp_path / "root", window)
        for record in reading.read_serialized(reading.split_files(artifact.uri, "train")).as_numpy_iterator():
            # of the five features' orders, there is one in which a process may write them
            assert record == tf.train.Example.FromString(record).SerializeToString(deterministic=True)


# nothing new ----------------------------------------------------------------------------------------------------------


def prepared(root: Path, data: Path, digest: str, **changes: Any) -> Prepared:
    request = Request(Root(root), data=data, **changes)
    job = Job(module_source.locate(DIGITS_MODULE), (recipes.int8(),))
    return Prepared(request, job, new_data.window(data, request.window), digest)


def finish(root: Path, facts: dict[str, Any], code: int = 0) -> None:
    root.mkdir(exist_ok=True)
    with Journal(Root(root), "run") as journal:
        journal.write("data", **facts)
        journal.exit_code = code


def test_spans_are_new_until_a_run_has_finished_with_them(tmp_path: Path) -> None:
    pattern, root = tmp_path / "day-{SPAN}", tmp_path / "root"
    write_span(tmp_path / "day-1", [0])
    window = spans.resolve(pattern, 2)
    again = functools.partial(prepared, root, pattern, window=2)
    assert again("request").nothing_new() is None
    finish(root, new_data.facts(pattern, window, "request"), code=3)
    assert again("request").nothing_new() is None
    finish(root, new_data.facts(pattern, window, "request"), code=1)
    why = again("request").nothing_new()
    assert why is not None
    assert why.startswith("no new data since the run of 2")
    nothing = f"({tmp_path}, day-1): nothing trained, nothing pushed"
    assert why.endswith(f"{nothing}; of that run no candidate was selected")
    finish(root, new_data.facts(pattern, window, "request"), code=0)
    assert (again("request").nothing_new() or "").endswith(nothing)
    # another request, a repaired file, one more span, and --no-cache are all something to do
    assert again("other").nothing_new() is None
    assert again("request", use_cache=False).nothing_new() is None
    before = again("request")
    write_span(tmp_path / "day-2", [0])
    assert again("request").nothing_new() is None
    os.utime(tmp_path / "day-1" / "train" / "data.tfrecord.gz", (1, 1))
    assert before.nothing_new() is None


def test_a_data_folder_is_left_to_the_cache_unless_asked(tmp_path: Path) -> None:
    folder, root = write_span(tmp_path / "data", [0]), tmp_path / "root"
    finish(root, new_data.facts(folder, None, "request"))
    assert prepared(root, folder, "request").nothing_new() is None
    why = prepared(root, folder, "request", only_new_data=True).nothing_new()
    assert why is not None
    assert f"({folder})" in why


def test_the_request_is_all_that_decides_the_result(tmp_path: Path) -> None:
    source = module_source.locate(DIGITS_MODULE)
    schema = tmp_path / "schema.pbtxt"
    schema.write_text('feature { name: "x" }')
    job = Job(source, (recipes.int8(),))
    base = new_data.digest(job, schema)
    assert base == new_data.digest(Job(source, (recipes.int8(),)), schema)
    assert base != new_data.digest(Job(source, (recipes.float16(),)), schema)
    assert base != new_data.digest(dataclasses.replace(job, budget=Budget(max_drop=0.5)), schema)
    assert base != new_data.digest(job, None)
    schema.write_text('feature { name: "y" }')
    assert base != new_data.digest(job, schema)


# what a user can get wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--data", "{base}", "--window", "3"], "--window needs spans: --data 'DIR/day-{SPAN}'"),
        (["--data", "{base}/day-{SPAN}", "--window", "0"], "--window must be at least 1, received 0"),
        (["--data", "{base}/day-{SPN}"], "did you mean {SPAN}?"),
        (["--data", "{base}/week-{SPAN}"], "is named like that; it holds day-1"),
        (["--data", "{base}", "--allow-drift"], "--max-drift and --allow-drift need --schema"),
        (["--data", "{base}", "--schema", "{base}/none.pbtxt"], "make one with `edgeline data schema DATA -o"),
        (["--data", "{base}", "--schema", "{base}/text"], "is no schema of TensorFlow Metadata in text form: 1:1"),
        (["--data", "{base}", "--schema", "{base}/empty"], "describes no feature"),
        (["--data", "{base}", "--schema", "{base}/empty", "--max-drift", "2"], "Gate.max_drift must be above 0"),
    ],
)
def test_mistakes_are_refused_before_anything_is_made(
    given: list[str], message: str, tmp_path: Path, tiny_module: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "data"
    (base / "day-1").mkdir(parents=True)
    (base / "text").write_text("what?")
    (base / "empty").write_text("")
    paths = [part.replace("{base}", str(base)) for part in given]
    assert main.main(["run", "--module", str(tiny_module), "--root", str(tmp_path / "root"), *paths]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


# the schema -----------------------------------------------------------------------------------------------------------


def test_a_first_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_span(tmp_path / "data", [0, 2, 1, 0], first=5)
    (folder / "labels.txt").write_text("a\nb\nc\nd\n")
    out = tmp_path / "schema.pbtxt"
    assert main.main(["data", "schema", str(folder), "-o", str(out)]) == 0
    assert "colour, label, number, raw, text" in capsys.readouterr().out
    schema = text_format.Parse(out.read_text(), schema_pb2.Schema())
    by_name = {feature.name: feature for feature in schema.feature}
    assert (by_name["label"].int_domain.min, by_name["label"].int_domain.max) == (
        0,
        3,
    )  # of the classes
    assert (by_name["number"].int_domain.min, by_name["number"].int_domain.max) == (5, 8)
    assert {domain.name: list(domain.value) for domain in schema.string_domain} == {"colour": ["blue", "red"]}
    assert not by_name["raw"].domain  # no text
    assert not by_name["text"].domain  # there is one value only, but it is 65 characters long

    assert main.main(["data", "schema", str(folder), "-o", str(out)]) == 2
    assert "exists already; a schema may have been edited" in capsys.readouterr().err
    assert main.main(["data", "schema", str(folder), "-o", str(tmp_path / "none" / "x")]) == 2
    assert "does not exist" in capsys.readouterr().err


# all of it, on the digits ---------------------------------------------------------------------------------------------


def cut(source: Path, folder: Path, keep: Any) -> None:
    """Writes the records of a data folder for whose label and hash `keep` holds."""
    for split in SPLITS:
        (folder / split).mkdir(parents=True)
        files = sorted(str(path) for path in (source / split).iterdir())
        with tf.io.TFRecordWriter(str(folder / split / "data.tfrecord.gz"), "GZIP") as writer:
            for number, record in enumerate(reading.read_serialized(files).as_numpy_iterator()):
                label = tf.train.Example.FromString(record).features.feature["label"].int64_list.value[0]
                if keep(number, label):
                    writer.write(record)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_nights(digits_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Three nights: a first model, nothing new, and data that have moved."""
    for day in range(3):
        cut(digits_data, tmp_path / f"2026-01-{day + 1:02}", lambda number, label, day=day: number % 3 == day)
    (tmp_path / "2026-01-04" / "train").mkdir(parents=True)
    schema = tmp_path / "schema.pbtxt"
    assert main.main(["data", "schema", str(digits_data), "-o", str(schema)]) == 0
    root = tmp_path / "root"
    command = [
        "run", "--module", DIGITS_MODULE, "--data", str(tmp_path / "{YYYY}-{MM}-{DD}"), "--window", "2",
        "--root", str(root), "--schema", str(schema), "--max-drift", "0.05", "--recipe", "float16", "--epochs", "2",
        "--max-accuracy-drop", "0.5", "--output", "json",
    ]  # fmt: skip

    def night(*more: str) -> tuple[int, dict[str, Any], str]:
        capfd.readouterr()
        code = main.main([*command, *more])
        out, err = capfd.readouterr()
        return code, json.loads(out) if out else {}, err

    code, first, err = night()
    assert (code, first["no_new_data"], first["selected"]) == (0, False, "float16"), err
    assert "2026-01-04 is left out: it is incomplete" in err
    report = json.loads((root / "report" / "report.json").read_text())
    assert report["dataset"]["spans"] == ["2026-01-02", "2026-01-03"]
    assert (root / "last_statistics" / "FeatureStats.pb").is_file()

    start = time.monotonic()
    code, second, _ = night()
    assert (code, second["no_new_data"], time.monotonic() - start < 2) == (0, True, True)
    assert f"({tmp_path}, 2026-01-02 to 2026-01-03)" in second["why"]
    assert events.nights(events.read(Root(root)))[-1].verdict == "no new data"

    # the fourth day has two labels only: they are then half of the window, instead of a fifth
    (tmp_path / "2026-01-04" / "train").rmdir()
    (tmp_path / "2026-01-04").rmdir()
    cut(digits_data, tmp_path / "2026-01-04", lambda number, label: label < 2)
    pushed = sorted((root / "pushed").iterdir())
    code, moved, err = night()
    assert (code, moved["steps"]["failed"]) == (2, 1)
    assert "DataGate: the data have moved, in label:" in err
    assert len(list((root / "artifacts" / "Trainer" / "model").iterdir())) == 1
    assert sorted((root / "pushed").iterdir()) == pushed
    code, allowed, err = night("--allow-drift")
    assert (code in (0, 1), len(allowed["drifted"])) == (True, 1)  # whether it beats the deployed one is not the point
    assert "failed" not in allowed["steps"]
    assert "drift allowed: label: Jensen-Shannon divergence from the last run" in err
