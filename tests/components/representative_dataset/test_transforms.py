from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest

from edgeline import calibration_set, data, model_module
from edgeline.errors import UserError
from edgeline.representative_dataset import transforms
from edgeline.representative_dataset.transforms import MergeSummaries, Summary


def examples(count: int = 50) -> list[dict[str, object]]:
    return [{"x": np.float32([i, 0.5, -i, 1]), "y": i % 3} for i in range(count)]


def summarize(module: Path | str, files: list[str], samples: int, seed: int = 0) -> Summary:
    """What the pass finds, shard by shard and merged, without Beam."""
    do_fn = transforms.SummarizeShard(str(module), ["x"], samples, seed)
    do_fn.setup()
    merge = MergeSummaries(samples)
    total = merge.create_accumulator()
    for file in files:
        for summary in do_fn.process(file):
            total = merge.add_input(total, summary)
    return merge.extract_output(total)


def indices(summary: Summary) -> list[int]:
    return [int(inputs["x"][0]) for _, _, inputs in summary.drawn]


# sampling -------------------------------------------------------------------------------------------------------------


def test_the_samples_depend_on_content_and_seed_alone(
    tiny_module: Path, tmp_path: Path, write_split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for shards in (1, 3, 7):
        files = write_split(tmp_path / str(shards), "train", examples(), shards)
        found.append(summarize(tiny_module, files, 10))
    files = write_split(tmp_path / "reversed", "train", examples()[::-1], 3)
    found.append(summarize(tiny_module, files[::-1], 10))
    monkeypatch.setattr(transforms, "_BATCH", 4)  # more batches than one, in which a limit is known
    found.append(summarize(tiny_module, files, 10))
    for summary in found:
        assert indices(summary) == indices(found[0])
        assert [digest for _, digest, _ in summary.drawn] == [digest for _, digest, _ in found[0].drawn]
        np.testing.assert_array_equal(transforms.stack(summary)["x"], transforms.stack(found[0])["x"])
    assert len(set(indices(found[0]))) == 10


def test_another_seed_draws_others_and_more_samples_contain_fewer(
    tiny_module: Path, tmp_path: Path, write_split: Any
) -> None:
    files = write_split(tmp_path, "train", examples(), 3)
    ten = indices(summarize(tiny_module, files, 10, seed=0))
    assert indices(summarize(tiny_module, files, 10, seed=1)) != ten
    assert sorted(indices(summarize(tiny_module, files, 10, seed=2**31 - 1))) != sorted(ten)
    assert indices(summarize(tiny_module, files, 20, seed=0))[:10] == ten


def test_every_example_is_as_likely() -> None:
    # 300 seeds draw 5 of 20 each: 75 times on average, with a standard deviation of 7.5
    drawn: Counter[int] = Counter()
    contents = [str(i).encode() for i in range(20)]
    for seed in range(300):
        drawn.update(sorted(range(20), key=lambda i: transforms.sampling_key(contents[i], seed))[:5])
    assert len(drawn) == 20
    assert all(45 <= count <= 105 for count in drawn.values())
    assert len(transforms.sampling_key(b"", 2**31 - 1)) == 8


def test_more_samples_than_examples_are_all_there_are(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    summary = summarize(tiny_module, write_split(tmp_path, "train", examples(), 3), 1000)
    assert sorted(indices(summary)) == list(range(50))
    assert summary.examples == 50


def test_equal_examples_are_drawn_as_often_as_they_occur(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    twins = [{"x": np.float32([7, 7, 7, 7]), "y": 1}] * 6
    for shards in (1, 2, 3):
        summary = summarize(tiny_module, write_split(tmp_path / str(shards), "train", twins, shards), 4)
        assert indices(summary) == [7] * 4
        assert summary.examples == 6


# what the pass finds --------------------------------------------------------------------------------------------------


def test_the_label_histogram_is_of_the_whole_split(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    # the remainders of 0 to 49 by 3
    summary = summarize(tiny_module, write_split(tmp_path, "train", examples(), 3), 5)
    assert summary.labels == {0: 17, 1: 17, 2: 16}
    assert summary.not_finite == {}


def variant(tiny_module: Path, code: str) -> Path:
    tiny_module.write_text(tiny_module.read_text() + "\n\n" + code)
    return tiny_module


@pytest.mark.parametrize(
    ("label", "histogram"),
    [
        ("features['y'][:, None]", {0: 17, 1: 17, 2: 16}),  # one number each, in a column
        ("tf.one_hot(features['y'], 3, dtype=tf.int64)", {}),  # not class indices
        ("tf.cast(features['y'], tf.float32)", {}),
        ("{'a': features['y'], 'b': features['y']}", {}),
    ],
)
def test_only_class_indices_are_counted(
    tiny_module: Path, tmp_path: Path, write_split: Any, label: str, histogram: dict[int, int]
) -> None:
    module = variant(tiny_module, f"def preprocess(features):\n    return features['x'], {label}\n")
    assert summarize(module, write_split(tmp_path, "train", examples(), 3), 5).labels == histogram


def test_nan_and_inf_are_counted_by_input_and_example(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    bad = examples(10)
    bad[3]["x"] = np.float32([np.nan, np.nan, 1, 1])
    bad[7]["x"] = np.float32([1, 1, np.inf, 1])
    summary = summarize(tiny_module, write_split(tmp_path, "train", bad, 2), 3)
    assert summary.not_finite == {"x": 2}
    message = (
        r"examples with NaN or infinite values after preprocess of m.py: 2 in input 'x' \(of 10 training examples\);"
    )
    with pytest.raises(UserError, match=message):
        transforms.check(summary, None, "m.py")


@pytest.mark.parametrize(
    ("labels", "classes", "outside"),
    [
        ({0: 5, 1: 5, 2: 5}, 3, None),
        ({0: 5, 1: 5, 2: 5}, 2, r"5 training examples have labels outside \[0, 2\), .* of m.py: 2; correct"),
        ({-1: 2, 0: 5, 7: 1}, 3, r"3 training examples have labels outside \[0, 3\), .*: -1, 7; correct"),
        ({0: 5, 99: 1}, None, None),
        ({}, 3, None),
        (dict.fromkeys(range(100), 1), 50, r"50 training .* 50, 51, 52, 53, 54, 55, 56, 57, 58, 59; correct"),
    ],
)
def test_labels_outside_the_classes(labels: dict[int, int], classes: int | None, outside: str | None) -> None:
    summary = Summary(examples=15, labels=Counter(labels))
    if outside is None:
        transforms.check(summary, classes, "m.py")
    else:
        with pytest.raises(UserError, match=outside):
            transforms.check(summary, classes, "m.py")


def test_an_empty_split(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    summary = summarize(tiny_module, write_split(tmp_path, "train", [], 2), 3)
    assert summary == Summary()
    with pytest.raises(UserError, match="the training split is empty: 0 examples"):
        transforms.check(summary, 3, "m.py")


def test_an_empty_shard_is_no_harm(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    files = write_split(tmp_path, "train", examples(2), 5)
    assert summarize(tiny_module, files, 10).examples == 2


def test_a_truncated_shard_is_named(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    files = write_split(tmp_path, "train", examples(), 2)
    content = Path(files[1]).read_bytes()
    Path(files[1]).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=f"corrupt or truncated TFRecord: {files[1]}"):
        summarize(tiny_module, files, 3)


def test_inputs_that_are_not_the_models(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    module = variant(tiny_module, "def preprocess(features):\n    return {'z': features['x']}, features['y']\n")
    with pytest.raises(UserError, match=r"preprocess returns inputs \['z'\], but the model's inputs are \['x'\]"):
        summarize(module, write_split(tmp_path, "train", examples()), 3)


# merging --------------------------------------------------------------------------------------------------------------


def test_summaries_add_up_in_any_grouping() -> None:
    parts = [
        Summary(3, Counter({0: 2, 1: 1}), Counter({"a": 1}), [(b"1", "d1", {}), (b"4", "d4", {})]),
        Summary(2, Counter({1: 2}), Counter(), [(b"2", "d2", {})]),
        Summary(1, Counter({5: 1}), Counter({"a": 1, "b": 1}), [(b"0", "d0", {}), (b"3", "d3", {})]),
    ]
    merge = MergeSummaries(3)
    expected = Summary(
        6,
        Counter({0: 2, 1: 3, 5: 1}),
        Counter({"a": 2, "b": 1}),
        [(b"0", "d0", {}), (b"1", "d1", {}), (b"2", "d2", {})],
    )
    assert merge.merge_accumulators(parts) == expected
    assert merge.merge_accumulators([parts[2], merge.merge_accumulators(parts[:2])]) == expected
    step_by_step = merge.create_accumulator()
    for part in reversed(parts):
        step_by_step = merge.add_input(step_by_step, part)
    assert merge.extract_output(step_by_step) == expected
    assert merge.merge_accumulators([]) == Summary()
    assert parts[0].examples == 3  # what went in is as it was


def test_examples_of_different_shapes_cannot_be_stacked() -> None:
    drawn = [(b"0", "d0", {"x": np.zeros([2])}), (b"1", "d1", {"x": np.zeros([3])})]
    with pytest.raises(UserError, match="different shapes"):
        transforms.stack(Summary(2, drawn=drawn))


# how many classes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "classes"),
    [
        ("keras.losses.SparseCategoricalCrossentropy(from_logits=True)", 3),
        ("'sparse_categorical_crossentropy'", 3),
        ("keras.losses.sparse_categorical_crossentropy", 3),
        ("'mse'", None),
        ("keras.losses.CategoricalCrossentropy()", None),
    ],
)
def test_the_number_of_classes_is_the_width_of_a_sparse_classifier(
    tiny_module: Path, loss: str, classes: int | None
) -> None:
    code = f"def compile_model(model):\n    model.compile('adam', {loss})\n"
    module = model_module.load(str(variant(tiny_module, code)))
    assert transforms.class_count(module, module.build_model()) == classes


def test_class_names_say_the_number_of_classes(tiny_module: Path) -> None:
    code = "def class_names():\n    return ['no', 'yes']\n"
    code += "def compile_model(model):\n    model.compile('adam', 'mse')\n"
    module = model_module.load(str(variant(tiny_module, code)))
    assert transforms.class_count(module, module.build_model()) == 2


def test_several_outputs_have_no_one_number_of_classes(tiny_module: Path) -> None:
    code = (
        "def build_model():\n    x = keras.Input([4])\n"
        "    return keras.Model(x, [keras.layers.Dense(2)(x), keras.layers.Dense(3)(x)])\n"
    )
    module = model_module.load(str(variant(tiny_module, code)))
    assert transforms.class_count(module, module.build_model()) is None


# through Beam ---------------------------------------------------------------------------------------------------------


def through_beam(module: Path, files: list[str], folder: Path, classes: int | None = 3) -> None:
    write = transforms.CheckAndWrite(str(folder), "fingerprint", classes, 0, "m.py")
    with beam.Pipeline("FnApiRunner") as pipeline:
        shards = pipeline | beam.Create(files)
        shards | transforms.Summarize(str(module), ["x"], 10, 0) | beam.ParDo(write)


def test_the_pipeline_writes_samples_and_manifest(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    read = []
    for shards in (1, 7):
        files = write_split(tmp_path / str(shards), "train", examples(), shards)
        through_beam(tiny_module, files, tmp_path / f"out{shards}")
        read.append(calibration_set.read(str(tmp_path / f"out{shards}")))
    (samples, manifest), (others, other_manifest) = read
    assert manifest == other_manifest
    np.testing.assert_array_equal(samples["x"], others["x"])
    assert samples["x"].shape == (10, 4)
    assert samples["x"].dtype == np.float32
    direct = summarize(tiny_module, files, 10)
    np.testing.assert_array_equal(samples["x"][:, 0], indices(direct))

    known = {hashlib.sha256(content).hexdigest() for content in data.read_serialized(files).as_numpy_iterator()}
    assert len(manifest.pop("digests")) == 10
    assert {digest for _, digest, _ in direct.drawn} <= known
    first = [float(value) for value in samples["x"].ravel()]
    assert manifest == {
        "schema_version": 1,
        "strategy": "uniform",
        "seed": 0,
        "samples": 10,
        "examples": 50,
        "source": "fingerprint",
        "digest": hashlib.sha256("".join(digest for _, digest, _ in direct.drawn).encode()).hexdigest(),
        "label_histogram": {"0": 17, "1": 17, "2": 16},
        "inputs": {"x": {"shape": [4], "dtype": "float32"}},
        "ranges": {"x": [min(first), max(first)]},
    }
    assert json.loads((tmp_path / "out1" / "manifest.json").read_text())["seed"] == 0


def test_the_pipeline_stops_on_labels_outside_the_classes(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    files = write_split(tmp_path, "train", examples(), 2)
    with pytest.raises(Exception, match=r"16 training examples have labels outside \[0, 2\)"):
        through_beam(tiny_module, files, tmp_path / "out", classes=2)
    assert not (tmp_path / "out").exists()


def test_the_pipeline_stops_on_an_empty_split(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    with pytest.raises(Exception, match="the training split is empty: 0 examples"):
        through_beam(tiny_module, write_split(tmp_path, "train", [], 2), tmp_path / "out")


def test_several_inputs_are_kept_by_name(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    module = variant(
        tiny_module,
        "def preprocess(features):\n"
        "    return {'b': tf.cast(features['x'][:, :1], tf.int32), 'a': features['x'][:, 1:]}, features['y']\n",
    )
    do_fn = transforms.SummarizeShard(str(module), ["a", "b"], 4, 0)
    do_fn.setup()
    [summary] = do_fn.process(write_split(tmp_path, "train", examples())[0])
    samples = transforms.stack(summary)
    assert {name: (values.shape, values.dtype.name) for name, values in samples.items()} == {
        "a": ((4, 3), "float32"),
        "b": ((4, 1), "int32"),
    }
    np.testing.assert_array_equal(samples["a"][:, 1], -samples["b"][:, 0])
    manifest = transforms.manifest(summary, samples, seed=0, source="s")
    assert manifest["inputs"]["b"] == {"shape": [1], "dtype": "int32"}
    assert manifest["ranges"]["a"][1] == 1.0
