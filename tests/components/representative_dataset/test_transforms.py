from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import json_format

from edgeline.data import calibration_set, reading
from edgeline.errors import UserError
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.representative_dataset import findings, selection, transforms
from edgeline.representative_dataset.config import Sample
from edgeline.representative_dataset.findings import EvalFilter, Summary
from edgeline.representative_dataset.transforms import FetchShards, FilterShards, Plan, SummarizeShards
from edgeline.tflite.litert import TFLiteModel
from edgeline.tflite_exporter import conversion


def examples(count: int = 50) -> list[dict[str, object]]:
    return [{"x": np.float32([i, 0.5, -i, 1]), "y": i % 3} for i in range(count)]


def plan(module: Path | str, inputs: Sequence[str] = ("x",), classes: int | None = 3, **asked: Any) -> Plan:
    return Plan(str(module), tuple(inputs), Sample(**asked), classes, "fingerprint", "folder")


def in_bundles(do_fn: Any, bundles: Sequence[list[str]], known: Any) -> list[Any]:
    """What a DoFn makes of some bundles of shards, one after the other, without Beam."""
    do_fn.setup()
    results = []
    for files in bundles:
        do_fn.start_bundle()
        for file in files:
            do_fn.process(file, known)
        results += [windowed.value for windowed in do_fn.finish_bundle()]
    return results


def filtered(files: list[str]) -> EvalFilter:
    """The filter of some shards."""
    [known] = in_bundles(FilterShards("m.py"), [files], None)
    return known


NONE = EvalFilter(np.zeros([0], np.int64), 0)


def summarize(asked: Plan, files: list[str], known: EvalFilter = NONE, bundles: int = 1) -> Summary:
    """What the first pass finds in so many bundles, merged."""
    merge = transforms.MergeSummaries(asked.config.samples)
    total = merge.create_accumulator()
    for summary in in_bundles(SummarizeShards(asked), [files[n::bundles] for n in range(bundles)], known):
        total = merge.add_input(total, summary)
    return merge.extract_output(total)


def indices(summary: Summary) -> list[int]:
    return [int(item.inputs["x"][0]) for item in summary.drawn]


def variant(tiny_module: Path, code: str) -> Path:
    tiny_module.write_text(tiny_module.read_text() + "\n\n" + code)
    return tiny_module


# sampling -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["uniform", pytest.param("stratified", marks=pytest.mark.slow)])
def test_the_samples_depend_on_content_and_seed_alone(
    tiny_module: Path, tmp_path: Path, write_split: Any, monkeypatch: pytest.MonkeyPatch, strategy: str
) -> None:
    asked = plan(tiny_module, samples=10, strategy=strategy)
    found = []
    for shards, bundles in ((1, 1), (3, 2), (7, 7)):
        files = write_split(tmp_path / str(shards), "train", examples(), shards)
        found.append(summarize(asked, files, bundles=bundles))
    files = write_split(tmp_path / "reversed", "train", examples()[::-1], 3)
    found.append(summarize(asked, files[::-1]))
    monkeypatch.setattr(transforms, "_BATCH", 4)  # more batches than one, in which a limit is known
    found.append(summarize(asked, files))
    found.append(summarize(asked, files, bundles=3))
    for summary in found:
        assert indices(summary) == indices(found[0])
        assert [item.digest for item in summary.drawn] == [item.digest for item in found[0].drawn]
        np.testing.assert_array_equal(findings.stack(summary.drawn)["x"], findings.stack(found[0].drawn)["x"])
    assert len(set(indices(found[0]))) == 10


def test_another_seed_draws_others_and_more_samples_contain_fewer(
    tiny_module: Path, tmp_path: Path, write_split: Any
) -> None:
    files = write_split(tmp_path, "train", examples(), 3)
    ten = indices(summarize(plan(tiny_module, samples=10), files))
    assert sorted(indices(summarize(plan(tiny_module, samples=10, seed=1), files))) != sorted(ten)
    assert sorted(indices(summarize(plan(tiny_module, samples=10, seed=2**31 - 1), files))) != sorted(ten)
    assert indices(summarize(plan(tiny_module, samples=20), files))[:10] == ten


def test_more_samples_than_examples_are_all_there_are(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    summary = summarize(plan(tiny_module, samples=1000), write_split(tmp_path, "train", examples(), 3))
    assert sorted(indices(summary)) == list(range(50))
    assert summary.examples == 50


def test_equal_examples_are_drawn_once_and_counted(
    tiny_module: Path, tmp_path: Path, write_split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms, "_BATCH", 4)
    twins = [{"x": np.float32([7, 7, 7, 7]), "y": 1}] * 6 + examples(20)
    for shards in (1, 2, 3):
        files = write_split(tmp_path / str(shards), "train", twins, shards)
        summary = summarize(plan(tiny_module, samples=50), files, bundles=shards)
        assert len(indices(summary)) == 21
        assert summary.examples == 26
        assert {item.copies for item in summary.drawn} == {1, 6}


def test_strata_by_a_feature(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    code = "_spec = feature_spec\ndef feature_spec():\n"
    code += "    return _spec() | {'camera': tf.io.FixedLenFeature([], tf.string)}\n"
    made = [e | {"camera": "rear" if i < 2 else "front" if i < 12 else "süd"} for i, e in enumerate(examples())]
    files = write_split(tmp_path, "train", made, 3)
    summary = summarize(
        plan(variant(tiny_module, code), samples=11, strategy="stratified", by="camera"), files, bundles=2
    )
    assert summary.strata == {"rear": 2, "front": 10, "süd": 38}
    # two, and what is left of eleven in two parts
    counts = Counter(item.stratum for item in summary.drawn)
    assert counts["rear"] == 2
    assert {counts["front"], counts["süd"]} == {4, 5}
    assert all((item.stratum == "rear") == (item.inputs["x"][0] < 2) for item in summary.drawn)


def test_too_many_strata(tiny_module: Path, tmp_path: Path, write_split: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "MOST_STRATA", 2)
    files = write_split(tmp_path, "train", examples())
    with pytest.raises(UserError, match="'label' has more than 2 values; stratify the calibration samples by a coarse"):
        summarize(plan(tiny_module, strategy="stratified"), files)


# what the pass finds --------------------------------------------------------------------------------------------------


def test_the_label_histogram_is_of_the_whole_split(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    # the remainders of 0 to 49 by 3
    summary = summarize(plan(tiny_module, samples=5), write_split(tmp_path, "train", examples(), 3))
    assert summary.labels == {0: 17, 1: 17, 2: 16}
    assert summary.not_finite == {}
    assert all(item.label == item.inputs["x"][0] % 3 for item in summary.drawn)


@pytest.mark.parametrize(
    ("label", "histogram"),
    [
        ("features['y'][:, None]", {0: 17, 1: 17, 2: 16}),  # one number each, in a column
        ("tf.one_hot(features['y'], 3, dtype=tf.int64)", {}),  # not class indices
        ("tf.cast(features['y'], tf.float32)", {}),
        ("{'a': features['y'], 'b': features['y']}", {}),
        ("None", {}),
    ],
)
def test_only_class_indices_are_counted(
    tiny_module: Path, tmp_path: Path, write_split: Any, label: str, histogram: dict[int, int]
) -> None:
    module = variant(tiny_module, f"def preprocess(features):\n    return features['x'], {label}\n")
    summary = summarize(plan(module, samples=5), write_split(tmp_path, "train", examples(), 3))
    assert summary.labels == histogram
    assert all((item.label is None) == (histogram == {}) for item in summary.drawn)


def test_nan_and_inf_are_counted_by_input_and_example_and_not_drawn(
    tiny_module: Path, tmp_path: Path, write_split: Any
) -> None:
    bad = examples(10)
    bad[3]["x"] = np.float32([np.nan, np.nan, 1, 1])
    bad[7]["x"] = np.float32([1, 1, np.inf, 1])
    code = "def preprocess(features):\n    x = features['x']\n    return {'x': x, 'z': x[:, :3]}, features['y']\n"
    files = write_split(tmp_path, "train", bad, 2)
    for strategy in ("uniform", "diverse"):
        summary = summarize(plan(variant(tiny_module, code), ["x", "z"], samples=30, strategy=strategy), files)
        assert summary.not_finite == {"x": 2, "z": 2}
        assert (summary.rejected, summary.examples) == (2, 10)
        drawn = summary.drawn if summary.pool is None else summary.pool.keys
        assert len(drawn) == 8


def test_what_is_in_the_eval_split_is_counted_and_not_drawn(
    tiny_module: Path, tmp_path: Path, write_split: Any
) -> None:
    known = filtered(write_split(tmp_path / "eval", "eval", examples(50)[::7] + examples(50)[:1], 3))
    assert (known.examples, len(known.fingerprints)) == (9, 8)
    files = write_split(tmp_path, "train", examples(), 3)
    summary = summarize(plan(tiny_module, samples=100), files, known)
    assert sorted(indices(summary)) == [i for i in range(50) if i % 7]
    assert (summary.in_eval, summary.rejected, summary.examples) == (8, 0, 50)
    diverse = summarize(plan(tiny_module, samples=100, strategy="diverse"), files, known)
    assert diverse.pool is not None
    assert len(diverse.pool.keys) == 42


def test_filters_of_bundles_are_joined(tmp_path: Path, write_split: Any) -> None:
    files = write_split(tmp_path, "eval", examples() * 2, 3)
    merge = transforms.MergeFilters()
    merged = merge.create_accumulator()
    for file in files[::-1]:
        merged = merge.add_input(merged, filtered([file]))
    whole = filtered(files)
    assert (merged.examples, whole.examples) == (100, 100)
    np.testing.assert_array_equal(merge.extract_output(merged).fingerprints, whole.fingerprints)
    assert len(whole.fingerprints) == 50


def test_an_empty_shard_is_no_harm(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    files = write_split(tmp_path, "train", examples(2), 5)
    assert summarize(plan(tiny_module), files, bundles=5).examples == 2
    assert summarize(plan(tiny_module), write_split(tmp_path / "none", "train", [], 2)) == Summary()
    empty = summarize(plan(tiny_module, strategy="diverse"), files[3:])
    with pytest.raises(UserError, match="the training split is empty: 0 examples"):
        transforms.checked(empty, plan(tiny_module))


def test_a_truncated_shard_is_named(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    files = write_split(tmp_path, "train", examples(), 2)
    content = Path(files[1]).read_bytes()
    Path(files[1]).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"corrupt or truncated TFRecord: {files[1]}"):
        summarize(plan(tiny_module, samples=3), files)
    with pytest.raises(UserError, match=f"corrupt or truncated TFRecord: {files[1]}"):
        in_bundles(FilterShards(str(tiny_module)), [files], None)


def test_inputs_that_are_not_the_models(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    module = variant(tiny_module, "def preprocess(features):\n    return {'z': features['x']}, features['y']\n")
    with pytest.raises(UserError, match=r"preprocess returns inputs \['z'\], but the model's inputs are \['x'\]"):
        summarize(plan(module, samples=3), write_split(tmp_path, "train", examples()))


def test_large_examples_come_in_small_batches(tiny_module: Path) -> None:
    assert transforms._Reader(plan(tiny_module)).batch_size == 512
    # a megabyte each: 8 in the 8 MiB of a batch
    code = "def preprocess(features):\n    return tf.tile(features['x'][:, :1], [1, 2**18]), features['y']\n"
    assert transforms._Reader(plan(variant(tiny_module, code))).batch_size == 8


# diverse --------------------------------------------------------------------------------------------------------------


def test_the_pool_depends_on_content_and_seed_alone_and_the_chosen_are_fetched(
    tiny_module: Path, tmp_path: Path, write_split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "POOL", 12)
    monkeypatch.setattr(transforms, "_BATCH", 4)
    asked = plan(tiny_module, samples=3, strategy="diverse")
    # the pool's 12 examples are the uniform sample of 12
    files = write_split(tmp_path, "train", examples() + examples(3), 1)
    pool = {item.key: int(item.inputs["x"][0]) for item in summarize(plan(tiny_module, samples=12), files).drawn}
    for shards in (1, 3, 7):
        files = write_split(tmp_path / str(shards), "train", examples() + examples(3), shards)
        summary = summarize(asked, files, bundles=shards)
        assert summary.drawn == []
        assert summary.pool is not None
        assert set(summary.pool.keys.tolist()) == pool.keys()
        for key, label, low, high in zip(
            *(getattr(summary.pool, name).tolist() for name in ("keys", "labels", "lows", "highs")), strict=True
        ):
            assert (label, low, high) == (pool[key] % 3, [-pool[key]], [max(pool[key], 1)])
        choice = transforms.choose(summary, asked)
        # the largest i has the smallest low and the largest high
        assert max(pool, key=pool.__getitem__) in choice.keys
        merge = transforms.MergeSummaries(3)
        fetched = merge.merge_accumulators(in_bundles(FetchShards(asked), [files[::2], files[1::2]], choice))
        assert sorted(item.key for item in fetched.drawn) == choice.keys.tolist()
        assert [int(item.inputs["x"][0]) for item in fetched.drawn] == [pool[item.key] for item in fetched.drawn]
        assert [item.label for item in fetched.drawn] == [pool[item.key] % 3 for item in fetched.drawn]
        assert [item.copies for item in fetched.drawn] == [2 if pool[item.key] < 3 else 1 for item in fetched.drawn]


def test_no_example_within_all_ranges(tiny_module: Path) -> None:
    values = np.float64([[0, 1], [1, 0], [2, 3], [3, 2]])
    summary = Summary(4, pool=selection.Pool(np.arange(4), np.zeros([4], np.int64), values, values))
    with pytest.raises(
        UserError, match=r"no training example is within the ranges of all inputs .* percentile of 25; l"
    ):
        transforms.choose(summary, plan(tiny_module, strategy="diverse", winsor_percent=25))


# through Beam ---------------------------------------------------------------------------------------------------------


def through_beam(asked: Plan, train: list[str], evaluation: list[str], *options: str) -> tuple[Any, Any]:
    with beam.Pipeline(options=beam.options.pipeline_options.PipelineOptions(["--runner=FnApiRunner", *options])) as p:
        files = {"train": train, "eval": evaluation}
        {split: p | split >> beam.Create(paths) for split, paths in files.items()} | transforms.DrawSamples(asked)
    return calibration_set.read(asked.folder)


@pytest.mark.parametrize(
    "strategy", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("uniform", "stratified")), "diverse"]
)
def test_the_pipeline_writes_samples_and_manifest(
    tiny_module: Path, tmp_path: Path, write_split: Any, strategy: str
) -> None:
    made = examples()
    made[17]["x"] = np.float32([np.nan, 0, 0, 0])
    evaluation = write_split(tmp_path, "eval", made[::7], 2)
    read = []
    for shards, options in ((1, []), (7, ["--direct_num_workers=2", "--direct_running_mode=multi_threading"])):
        files = write_split(tmp_path / str(shards), "train", made, shards)
        asked = plan(tiny_module, samples=10, strategy=strategy, max_bad_fraction=0.02)
        asked = dataclasses.replace(asked, folder=str(tmp_path / f"out{shards}"))
        read.append(through_beam(asked, files, evaluation, *options))
    (samples, manifest), (others, other_manifest) = read
    assert manifest == other_manifest
    np.testing.assert_array_equal(samples["x"], others["x"])
    assert samples["x"].shape == (10, 4)
    assert samples["x"].dtype == np.float32

    digests = {
        split: {hashlib.sha256(content).hexdigest() for content in reading.read_serialized(shards).as_numpy_iterator()}
        for split, shards in (("train", files), ("eval", evaluation))
    }
    assert len(set(manifest["digests"])) == 10
    assert set(manifest["digests"]) <= digests["train"] - digests["eval"]
    drawn = samples["x"][:, 0].astype(int).tolist()
    assert not [i for i in drawn if i % 7 == 0 or i == 17]
    assert manifest["left_out"].pop("outliers", 0) == 0
    assert manifest["left_out"] == {"not_finite": 1, "in_eval": 8, "duplicates": 0}
    assert manifest["eval_split"] == {
        "examples": 8, "distinct": 8, "false_positive_rate": 8 / 2**62, "samples_in_it": 0
    }  # fmt: skip
    assert (manifest["schema_version"], manifest["strategy"], manifest["examples"]) == (2, strategy, 50)
    assert (manifest["source"], manifest["samples"]) == ("fingerprint", 10)
    assert manifest["label_histogram"] == {"0": 17, "1": 17, "2": 16}
    assert manifest["sample_label_histogram"] == {str(label): drawn_of for label, drawn_of in _by_label(drawn)}
    assert manifest["inputs"] == {"x": {"shape": [4], "dtype": "float32"}}
    assert manifest["ranges"] == {"x": [-max(drawn), max(drawn)]}
    # every second one and the others: each half's range is as wide as its largest value
    halves = sorted([max(drawn[::2]), max(drawn[1::2])])
    assert manifest["stability"]["inputs"] == {"x": halves[0] / halves[1]}
    if strategy == "stratified":
        assert sorted(part["samples"] for part in manifest["strata"].values()) == [3, 3, 4]
    if strategy == "diverse":
        assert manifest["pool"] == 41
        assert max(drawn) == 48  # the largest that may be drawn: 49 is in the eval split
    assert json.loads((tmp_path / "out1" / "manifest.json").read_text())["seed"] == 0
    # the first ones as they were before preprocess
    raw = [
        json_format.Parse(line, tf.train.Example())
        for line in (tmp_path / "out1" / "raw.jsonl").read_text().splitlines()
    ]
    assert [hashlib.sha256(item.SerializeToString(deterministic=True)).hexdigest() for item in raw] == (
        manifest["digests"][:8]
    )


def _by_label(drawn: list[int]) -> list[tuple[int, int]]:
    return sorted(Counter(i % 3 for i in drawn).items())


def test_the_pipeline_stops_on_labels_outside_the_classes(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    files = write_split(tmp_path, "train", examples(), 2)
    asked = dataclasses.replace(plan(tiny_module, classes=2), folder=str(tmp_path / "out"))
    with pytest.raises(Exception, match=r"16 training examples have labels outside \[0, 2\)"):
        through_beam(asked, files, write_split(tmp_path, "eval", []))
    assert not (tmp_path / "out").exists()


def test_the_pipeline_stops_on_an_empty_split(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    with pytest.raises(Exception, match="the training split is empty: 0 examples"):
        through_beam(plan(tiny_module), write_split(tmp_path, "train", [], 2), write_split(tmp_path, "eval", []))


# several inputs -------------------------------------------------------------------------------------------------------


def test_several_inputs_are_kept_by_name(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    module = variant(
        tiny_module,
        "def preprocess(features):\n"
        "    return {'b': tf.cast(features['x'][:, :1], tf.int32), 'a': features['x'][:, 1:]}, features['y']\n",
    )
    summary = summarize(plan(module, ["a", "b"], samples=4), write_split(tmp_path, "train", examples()))
    samples = findings.stack(summary.drawn)
    assert {name: (values.shape, values.dtype.name) for name, values in samples.items()} == {
        "a": ((4, 3), "float32"),
        "b": ((4, 1), "int32"),
    }
    np.testing.assert_array_equal(samples["a"][:, 1], -samples["b"][:, 0])
    diverse = summarize(plan(module, ["a", "b"], samples=4, strategy="diverse"), write_split(tmp_path, "t", examples()))
    assert diverse.pool is not None
    # of a the values 0.5, -i, 1; of b only i
    np.testing.assert_array_equal(diverse.pool.lows[:, 0], np.minimum(0.5, -diverse.pool.lows[:, 1]))
    np.testing.assert_array_equal(diverse.pool.highs, np.stack([np.ones(50), diverse.pool.lows[:, 1]], axis=1))


TWO_INPUTS = """
def build_model():
    # not in the alphabet's order, nor in the order of preprocess
    second, first = keras.Input([2], name="wide"), keras.Input([2], name="narrow")
    joined = keras.layers.Concatenate()([keras.layers.Dense(4, name="a")(second), keras.layers.Dense(4)(first)])
    return keras.Model([second, first], keras.layers.Dense(3, name="logits")(joined))
"""


def test_the_order_of_inputs_never_matters(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    # both have the same shape and dtype: were one taken for the other, nothing but the scales would tell
    files = write_split(tmp_path, "train", examples(), 2)
    given = {"narrow": "features['x'][:, 1::2] * [[1, 0]]", "wide": "features['x'][:, ::2]"}
    manifests = []
    for number, order in enumerate((("narrow", "wide"), ("wide", "narrow"))):
        returned = ", ".join(f"{name!r}: {given[name]}" for name in order)
        path = tmp_path / f"two_inputs_{number}.py"
        hook = f"def preprocess(features):\n    return {{{returned}}}, features['y']\n"
        path.write_text(tiny_module.read_text() + TWO_INPUTS + hook)
        module = hooks.load(str(path))
        model = module.build_model()
        assert list(model.input_names) == ["wide", "narrow"]
        drawn = findings.stack(summarize(plan(path, model.input_names, samples=50), files).drawn)
        calibration_set.write(str(tmp_path / "set"), dict(sorted(drawn.items(), reverse=bool(number))), {})
        samples, manifest = calibration_set.read(str(tmp_path / "set"))
        manifests.append(manifest)
        assert list(samples) == list(order)
        passport = Passport(io=keras_file.describe_io(model, module), scheme={"scheme": "int8", "io_type": "int8"})
        calibration_set.check_fits(manifest, passport.io["inputs"])
        scales = {port.name: port.scale for port in TFLiteModel(conversion.convert(model, passport, samples)).inputs}
        assert scales == {"wide": pytest.approx(98 / 255), "narrow": pytest.approx(0.5 / 255)}
    assert manifests[0] == manifests[1]
    assert manifests[0]["ranges"] == {"wide": [-49.0, 49.0], "narrow": [0.0, 0.5]}
