from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf

from edgeline.budget import Budget
from edgeline.data import reading
from edgeline.errors import UserError
from edgeline.evaluator.measuring import slices, transforms
from edgeline.evaluator.measuring.measurements import Evaluated, Plan, Results
from edgeline.evaluator.measuring.metrics import CompiledMetrics, State
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule
from edgeline.passport import Passport
from edgeline.report.dataclass_json import to_json
from edgeline.tflite.litert import TFLiteModel
from edgeline.tflite_exporter import conversion


@pytest.fixture(scope="module")
def models(small: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The small model as float32, one with other output names, and one whose outputs are no numbers."""
    folder = tmp_path_factory.mktemp("models")
    passport = Passport.read(small.folder)
    renamed = {**passport.io, "outputs": [{**passport.io["outputs"][0], "name": "other"}]}
    scheme = {"scheme": "float32", "io_type": "float32"}
    for name, io in (("float32", passport.io), ("renamed", renamed)):
        content = conversion.convert(small.load(), Passport(io, scheme=scheme), {})
        (folder / name).write_bytes(content)
    signature = keras_file.input_signature(passport.io)["image"]

    @tf.function(input_signature=[signature])
    def broken(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": tf.math.log(-tf.reduce_mean(image, [1, 2])) * tf.ones([1, 3])}

    converter = tf.lite.TFLiteConverter.from_concrete_functions([broken.get_concrete_function()], tf.Module())
    (folder / "broken").write_bytes(converter.convert())
    return {name: str(folder / name) for name in ("float32", "renamed", "broken")}


def evaluate(plan: Plan, files: list[str], path: Path) -> Results:
    with beam.Pipeline("FnApiRunner") as pipeline:
        results = pipeline | beam.Create(files) | transforms.Evaluate(plan)
        results | beam.Map(transforms.write_results, str(path))
    return transforms.read_results(str(path))


def by_bundle(plan: Plan, bundles: list[list[str]]) -> list[Results]:
    """What the bundles of one worker give, without Beam."""
    worker = transforms.EvaluateShards(plan)
    worker.setup()
    found = []
    for files in bundles:
        worker.start_bundle()
        for file in files:
            worker.process(file)
        found += [windowed.value for windowed in worker.finish_bundle()]
    worker.teardown()
    return found


def plan_of(small: Any, models: dict[str, str], **changes: Any) -> Plan:
    settings = {"baseline": "float32"} | changes
    return Plan(small.path, ("image",), ("logits",), models, **settings)


def sound(results: Results, name: str) -> Evaluated:
    found = results.models[name]
    assert isinstance(found, Evaluated), found
    return found


def test_one_pass_evaluates_all_models_and_gives_up_the_broken(
    small: Any, models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transforms, "BATCH_SIZE", 7)  # 32 examples: with a smaller last batch
    files = reading.split_files(small.examples, "eval") + reading.split_files(small.examples, "train")
    results = evaluate(plan_of(small, models), files, tmp_path / "results")
    assert results.models["broken"] == "outputs logits hold NaN or infinite values"
    assert results.models["renamed"] == "KeyError: 'logits'"
    state = sound(results, "float32").overall
    assert state.examples == 32 + 64

    metrics = CompiledMetrics(small.module)
    batches = reading.parsed_batches(
        reading.split_files(small.examples, "eval"), reading.ExampleParser(small.module), 32
    )
    inputs, label, _ = next(iter(batches))
    metrics.prepare(label, [small.load()(inputs).numpy()])
    found = metrics.result(state)
    model = small.load()
    small.module.compile_model(model)
    total: dict[str, float] = dict.fromkeys(found, 0.0)
    for split, count in (("eval", 32), ("train", 64)):
        opened = reading.evaluation_data(reading.split_files(small.examples, split), small.module, batch_size=64)
        values = model.evaluate(opened.dataset, verbose=0, return_dict=True)
        total = {name: total[name] + values[name] * count / 96 for name in total}
    assert found == pytest.approx(total, abs=1e-5)


def test_results_merge_and_an_error_anywhere_is_one_of_the_whole() -> None:
    def state(value: float) -> Evaluated:
        return Evaluated(State(1, np.array([value]), np.array([1.0])))

    one = Results({"a": state(0.5), "b": state(1.0)}, {"shard": 1})
    two = Results({"a": state(2.5), "b": "it broke"}, {"shard": 2, "other": 1})
    three = Results({"a": Evaluated(), "b": state(1.0)})
    merge = transforms.MergeResults()
    for order in ([one, two, three], [three, two, one], [two, one, three]):
        merged = merge.create_accumulator()
        for results in order:
            merged = merge.add_input(merged, results)
        merged = merge.extract_output(merge.merge_accumulators([merged, Results()]))
        total = sound(merged, "a").overall
        assert total.examples == 2
        assert total.sums is not None
        assert total.sums.tolist() == [3.0]
        assert merged.models["b"] == "it broke"
        assert merged.bad_records == {"shard": 3, "other": 1}
    assert sound(one, "a").overall.examples == 1  # what went in is as it was


# slices and comparisons -----------------------------------------------------------------------------------------------

SLICED = """

def feature_spec():
    return {
        "image": tf.io.FixedLenFeature([64], tf.float32),
        "label": tf.io.FixedLenFeature([], tf.int64),
        "camera": tf.io.FixedLenFeature([], tf.string),
        "hour": tf.io.FixedLenFeature([1], tf.int64),
        "weight": tf.io.FixedLenFeature([], tf.float32),
    }


def slice_features():
    return ["camera", ("camera", "hour")]


def example_weight(features):
    return features["weight"]


class TopProbability(keras.metrics.AUC):
    def update_state(self, y_true, y_pred, sample_weight=None):
        return super().update_state(y_true == 0, tf.nn.softmax(y_pred)[:, 0], sample_weight)


def compile_model(model):
    model.compile(
        "adam",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", TopProbability(name="auc")],
    )
"""


@dataclasses.dataclass
class Sliced:
    """Examples with features to slice by, a model and a worse one, and what both really do."""

    module: ModelModule
    root: Path
    models: dict[str, str]
    examples: list[dict[str, Any]]
    logits: dict[str, np.ndarray]

    def plan(self, **changes: Any) -> Plan:
        settings = {"baseline": "good"} | changes
        reference = self.module.source.reference
        return Plan(reference, ("image",), ("logits",), self.models, **settings)


@pytest.fixture(scope="module")
def sliced(small: Any, write_split: Any, tmp_path_factory: pytest.TempPathFactory) -> Sliced:
    root = tmp_path_factory.mktemp("sliced")
    module_path = root / "sliced_model.py"
    module_path.write_text(Path(small.path).read_text() + SLICED)
    random = np.random.default_rng(3)
    examples = []
    for index in range(300):
        image = random.uniform(0, 0.7, [8, 8]).astype(np.float32)
        image[3 * (index % 3) : 3 * (index % 3) + 2] += 0.2
        features = {"camera": ["front", "rear"][index % 2], "hour": index % 5, "weight": 0.5 + index % 4}
        label = index % 3 if index % 5 else index // 5 % 3  # some are wrong, so that the good model errs too
        examples.append({"image": image, "label": label, **features})
    write_split(root, "eval", examples, 1)
    write_split(root / "many", "eval", [examples[i] for i in random.permutation(300)], 7)
    passport = Passport(Passport.read(small.folder).io, scheme={"scheme": "float32", "io_type": "float32"})
    models, logits = {}, {}
    images = np.stack([example["image"] for example in examples])[..., None]
    for name in ("good", "worse"):
        model = small.load()
        if name == "worse":
            noise = [random.normal(0, 0.06, w.shape) for w in model.get_weights()]
            model.set_weights([w + n * (w.ndim > 1) for w, n in zip(model.get_weights(), noise, strict=True)])
        models[name] = str(root / name)
        Path(models[name]).write_bytes(conversion.convert(model, passport, {}))
        logits[name] = TFLiteModel(models[name]).run({"image": images})["logits"]
    return Sliced(hooks.load(str(module_path)), root, models, examples, logits)


@pytest.fixture(scope="module")
def judged(sliced: Sliced, tmp_path_factory: pytest.TempPathFactory) -> Results:
    return evaluate(
        sliced.plan(), reading.split_files(str(sliced.root), "eval"), tmp_path_factory.mktemp("x") / "results"
    )


def test_comparison_with_the_baseline(sliced: Sliced, judged: Results) -> None:
    labels = np.array([example["label"] for example in sliced.examples])
    good, worse = (sliced.logits[name].argmax(1) for name in ("good", "worse"))
    found = sound(judged, "worse")
    assert found.comparison is not None
    facts = to_json(found.comparison.report())
    assert facts["examples"] == 300
    assert facts["agreement"] == (good == worse).mean()
    broken, mended = (
        int(((good == labels) & (worse != labels)).sum()),
        int(((good != labels) & (worse == labels)).sum()),
    )
    assert facts["flips"] == {"right_to_wrong": broken, "wrong_to_right": mended}
    assert broken > mended > 0  # else this would show nothing
    difference = np.abs(sliced.logits["worse"].astype(float) - sliced.logits["good"])
    assert facts["outputs"]["logits"]["max_abs_error"] == pytest.approx(difference.max(), rel=1e-6)
    assert facts["outputs"]["logits"]["mean_abs_error"] == pytest.approx(difference.mean(), rel=1e-6)
    signal = (sliced.logits["good"].astype(float) ** 2).sum() / (difference**2).sum()
    assert facts["outputs"]["logits"]["sqnr_db"] == pytest.approx(10 * np.log10(signal), rel=1e-6)
    paired = found.paired["good", "accuracy"]
    assert (paired.examples, paired.lower, paired.higher, paired.between) == (300, broken, mended, 0)
    assert sound(judged, "good").comparison is None


def test_flips_are_examples_that_flipped(sliced: Sliced, judged: Results) -> None:
    good, worse = (sliced.logits[name].argmax(1) for name in ("good", "worse"))
    flips, comparison = sound(judged, "worse").flips, sound(judged, "worse").comparison
    assert comparison is not None
    expected = ["right_to_wrong"] * min(comparison.broken, 6) + ["wrong_to_right"] * min(comparison.mended, 6)
    assert [flip.kind for flip in flips] == expected
    assert len(flips) < comparison.broken + comparison.mended
    for flip in flips:
        assert flip.image is not None
        images = [example["image"] for example in sliced.examples]
        scaled = [np.rint((i - i.min()) * (255 / (i.max() - i.min()))).astype(np.uint8) for i in images]
        [index] = [i for i, image in enumerate(scaled) if np.array_equal(image, flip.image)]
        example = sliced.examples[index]
        assert (flip.label, flip.baseline, flip.candidate) == (example["label"], good[index], worse[index])
        assert flip.features == {k: example[k] for k in ("camera", "hour", "label")}
        assert (flip.baseline == flip.label) == (flip.kind == "right_to_wrong")


def test_slices(sliced: Sliced, judged: Results) -> None:
    metrics = CompiledMetrics(sliced.module)
    metrics.prepare(tf.constant([0, 1], tf.int64), [sliced.logits["good"][:2]])
    found = sound(judged, "worse")
    assert len(found.slices) == 2 + 10 + 3
    model = sliced.module.build_model()
    sliced.module.compile_model(model)
    for key in [(("camera", "rear"),), (("camera", "front"), ("hour", 3)), (("label", 2),)]:
        rows = [i for i, e in enumerate(sliced.examples) if all(e[name] == value for name, value in key)]
        state = found.slices[key]
        assert state.examples == len(rows) > 20
        labels = tf.constant([sliced.examples[i]["label"] for i in rows], tf.int64)
        weights = tf.constant([sliced.examples[i]["weight"] for i in rows], tf.float32)
        logits = tf.constant(sliced.logits["worse"][rows])
        model.compiled_metrics.reset_state()
        model.compiled_metrics.update_state(labels, logits, weights)
        expected = {metric.name: float(metric.result()) for metric in model.compiled_metrics.metrics}
        expected["loss"] = float(model.compiled_loss(labels, logits, weights))
        result = metrics.result(state)
        if key == (("label", 2),):  # Keras says 0.0, of examples that are all of one class
            assert metrics.undefined(state) == {"auc": "no example has a positive label"}
            assert np.isnan(result.pop("auc"))
            assert expected.pop("auc") == 0.0
        assert result == pytest.approx(expected, abs=1e-6, rel=1e-6)


@pytest.mark.parametrize(
    "metric", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("accuracy", "auc")), ["auc", "accuracy"]]
)
def test_shards_bundles_and_batches_do_not_matter(sliced: Sliced, monkeypatch: pytest.MonkeyPatch, metric: str) -> None:
    [one] = by_bundle(sliced.plan(budget=Budget(metric=metric)), [reading.split_files(str(sliced.root), "eval")])
    files = reading.split_files(str(sliced.root / "many"), "eval")
    monkeypatch.setattr(transforms, "BATCH_SIZE", 9)
    monkeypatch.setattr(transforms, "BATCHES_PER_STATE", 2)
    parts = by_bundle(sliced.plan(budget=Budget(metric=metric)), [files[:1], files[1:3], files[3:]])
    many = functools.reduce(Results.__add__, parts)
    for name in sliced.models:
        a, b = sound(one, name), sound(many, name)
        assert a.slices.keys() == b.slices.keys()
        for first, second in [(a.overall, b.overall), *((a.slices[key], b.slices[key]) for key in a.slices)]:
            assert first.examples == second.examples
            assert first.sums is not None
            assert second.sums is not None
            assert first.sums[1] == second.sums[1]  # hits
            np.testing.assert_allclose(first.sums, second.sums, rtol=1e-9)
            for x, y in zip(first.others, second.others, strict=True):
                np.testing.assert_array_equal(x, y)
        assert a.classes is not None
        assert b.classes is not None
        assert a.classes.confusion is not None
        assert (a.classes.confusion == b.classes.confusion).all()
        assert a.classes.log_loss == pytest.approx(b.classes.log_loss, rel=1e-9)
        assert [flip.digest for flip in a.flips] == [flip.digest for flip in b.flips]
        assert set(a.groups) == set(b.groups) == (set(range(20)) if "auc" in metric else set())
        for group in a.groups:
            np.testing.assert_array_equal(a.groups[group].others[0], b.groups[group].others[0])
    ours, theirs = sound(one, "worse").paired, sound(many, "worse").paired
    assert set(ours) == ({("good", "accuracy")} if metric != "auc" else set())
    for other, pair in ours.items():
        assert pair.interval() == pytest.approx(theirs[other].interval(), rel=1e-9)


def test_another_model_can_be_in_the_field(sliced: Sliced, tmp_path: Path) -> None:
    models = {**sliced.models, "@deployed": sliced.models["worse"]}
    plan = dataclasses.replace(sliced.plan(), models=models, deployed="@deployed")
    found = sound(evaluate(plan, reading.split_files(str(sliced.root), "eval"), tmp_path / "results"), "good")
    assert set(found.paired) == {("@deployed", "accuracy")}
    [paired] = found.paired.values()
    assert paired.higher > paired.lower


# bad input ------------------------------------------------------------------------------------------------------------


def damage(sliced: Sliced, tmp_path: Path) -> list[str]:
    """Three shards: one sound, one with two records that are no examples, one that breaks off."""
    [source] = reading.split_files(str(sliced.root), "eval")
    records = list(tf.data.TFRecordDataset(source, "GZIP").as_numpy_iterator())
    parts = [records[:100], [*records[100:150], b"no example", b"\x0a\x01", *records[150:200]], records[200:]]
    files = []
    for number, part in enumerate(parts):
        files.append(str(tmp_path / f"data-{number}.tfrecord.gz"))
        with tf.io.TFRecordWriter(files[-1], "GZIP") as writer:
            for record in part:
                writer.write(record)
    content = Path(files[2]).read_bytes()
    Path(files[2]).write_bytes(content[: len(content) // 2])
    return files


def test_bad_records_are_counted_and_left_out(sliced: Sliced, tmp_path: Path) -> None:
    files = damage(sliced, tmp_path)
    results = evaluate(sliced.plan(max_bad_records=3), files, tmp_path / "results")
    assert results.bad_records == {files[1]: 2, files[2]: 1}
    assert 220 < sound(results, "good").overall.examples < 300


def test_too_many_bad_records(sliced: Sliced, tmp_path: Path) -> None:
    files = damage(sliced, tmp_path)
    with pytest.raises(UserError, match=r"more than 1 bad records \(--max-bad-records\): .*data-1.tfrecord.gz"):
        evaluate(sliced.plan(max_bad_records=1), files, tmp_path / "results")
    with pytest.raises(UserError, match=r"corrupt or truncated TFRecord: .*data-2.tfrecord.gz"):
        evaluate(sliced.plan(), files[::2], tmp_path / "results")


def test_a_label_that_is_no_class(sliced: Sliced, write_split: Any, tmp_path: Path) -> None:
    files = write_split(tmp_path, "eval", [{**sliced.examples[0], "label": 7}])
    with pytest.raises(UserError, match=r"the eval split does not fit the model: label 7 of logits is not in \[0, 3\)"):
        evaluate(sliced.plan(), files, tmp_path / "results")


def test_no_label(sliced: Sliced, tmp_path: Path) -> None:
    path = tmp_path / "unlabelled.py"
    text = sliced.module.source.path.read_text()
    path.write_text(text + "\n\ndef preprocess(features):\n    return features['image'], None\n")
    plan = dataclasses.replace(sliced.plan(), module=str(path))
    with pytest.raises(UserError, match="returns no label for the eval split"):
        evaluate(plan, reading.split_files(str(sliced.root), "eval"), tmp_path / "results")


def test_a_feature_with_too_many_values(sliced: Sliced, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "MOST_SLICES", 9)
    monkeypatch.setattr(transforms, "BATCH_SIZE", 2)
    monkeypatch.setattr(transforms, "BATCHES_PER_STATE", 1)
    with pytest.raises(UserError, match="slice feature camera,hour has more than 9 values"):
        evaluate(sliced.plan(), reading.split_files(str(sliced.root), "eval"), tmp_path / "results")
