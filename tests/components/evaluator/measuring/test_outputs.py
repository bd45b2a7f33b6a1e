"""What is measured of each output beside its metrics, worked out again in NumPy and scikit-learn."""

from __future__ import annotations

import functools
import operator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from sklearn import metrics as sklearn_metrics

from edgeline.evaluator.measuring import outputs as measured_outputs
from edgeline.evaluator.measuring.classification import Classification, Tags
from edgeline.evaluator.measuring.measurements import Evaluated, Plan
from edgeline.evaluator.measuring.metrics import CompiledMetrics
from edgeline.evaluator.measuring.outputs import Output
from edgeline.evaluator.measuring.regression import SAMPLES, Regression
from edgeline.evaluator.measuring.segmentation import MASKS, Segmentation
from edgeline.evaluator.measuring.transforms import EvaluateShards
from edgeline.model_module import hooks
from edgeline.tflite.litert import TFLiteModel

RANDOM = np.random.default_rng(5)


def parts(count: int, cuts: int = 6) -> list[np.ndarray]:
    return np.array_split(RANDOM.permutation(count), cuts)


def total(states: list[Any]) -> Any:
    RANDOM.shuffle(states)
    return functools.reduce(operator.add, states)


# each kind ------------------------------------------------------------------------------------------------------------


def test_numbers() -> None:
    labels = RANDOM.normal([1e4, -3, 7], [2, 0.5, 0], [1000, 3])  # the last is the same in all labels
    predicted = labels + RANDOM.normal(0, 0.7, [1000, 3])
    predicted[:40] = labels[:40]  # some without any error
    digests = RANDOM.permutation(5000)[:1000]
    state = total([Regression.of(labels[rows], predicted[rows], digests[rows]) for rows in parts(1000)])
    report = state.report()
    errors = np.abs(predicted - labels)
    assert report.numbers == 3
    assert report.r2 == pytest.approx(sklearn_metrics.r2_score(labels[:, :2], predicted[:, :2]), rel=1e-9)
    assert report.mean_abs_error == pytest.approx(errors.mean())
    assert report.rmse == pytest.approx(np.sqrt(np.square(errors).mean()))
    for name, value in report.error_quantiles.items():
        assert value == pytest.approx(np.quantile(errors, float(name), method="inverted_cdf"), rel=0.0051)
    assert report.error_quantiles["1"] == errors.max()
    kept = np.argsort(digests)[:SAMPLES]
    assert report.labels == tuple(map(tuple, labels[kept].tolist()))
    assert report.predicted == tuple(map(tuple, predicted[kept].tolist()))


def test_numbers_that_say_nothing() -> None:
    one = Regression.of(np.array([[2.0]]), np.array([[2.0]]), np.array([1]))
    assert one.report().r2 is None
    assert set(one.report().error_quantiles.values()) == {0.0}


def test_tags() -> None:
    labels = (RANDOM.random([400, 5]) < [0.5, 0.1, 0.9, 0.3, 0.0]).astype(np.float32)
    scores = np.clip(0.6 * labels + 0.5 * RANDOM.random([400, 5]), 0, 1)
    scores[:, 3] = 0.1  # never given
    for from_logits, given in ((False, scores), (True, scores - 0.5)):
        found = total([Tags.of(labels[rows], given[rows], from_logits) for rows in parts(400)]).report()
        precision, recall, f1, _ = sklearn_metrics.precision_recall_fscore_support(
            labels.astype(int), (scores > 0.5).astype(int), zero_division=np.nan
        )
        for own, expected in (("precision", precision), ("recall", recall), ("f1", f1)):
            values = [np.nan if getattr(tag, own) is None else getattr(tag, own) for tag in found]
            assert values == pytest.approx(list(expected), nan_ok=True)
        assert [tag.examples for tag in found] == labels.sum(0).astype(int).tolist()
        assert [tag.predicted for tag in found] == (scores > 0.5).sum(0).tolist()


def test_pixels() -> None:
    labels = RANDOM.integers(0, 4, [60, 6, 5])  # class 3 does not count, class 4 is nowhere
    scores = RANDOM.random([60, 6, 5, 5]) + 0.4 * np.eye(5)[labels]
    scores[..., 3:] = 0
    mask = RANDOM.random([60, 6, 5]) < 0.8
    output = Output(0, "pixels", "pixels", classes=5, ignored=3)
    nothing = np.zeros(60, np.int64)
    states = [output.measure(labels[r][..., None], scores[r], nothing[r], mask[r]) for r in parts(60)]
    found = total(states).report()
    counts = mask & (labels != 3)
    expected = sklearn_metrics.jaccard_score(labels[counts], scores.argmax(-1)[counts], labels=[0, 1, 2], average=None)
    assert [each.iou for each in found[:3]] == pytest.approx(list(expected))
    assert [each.iou for each in found[3:]] == [None, None]
    assert [each.pixels for each in found] == [*np.bincount(labels[counts], minlength=3).tolist(), 0, 0]


def test_masks_are_of_what_differs_most_from_the_baseline() -> None:
    labels, digests = RANDOM.integers(0, 2, [30, 8, 8]), RANDOM.permutation(300)[:30]
    baseline, scores = RANDOM.random([2, 30, 8, 8, 1])
    output = Output(0, "pixels", "pixels", labels="binary", classes=2)
    states = []
    for rows in parts(30):
        part = output.measure(labels[rows], scores[rows], digests[rows], None)
        states.append(
            output.with_masks(part, labels[rows], scores[rows], baseline[rows], digests[rows], lambda row: None)
        )
    own, other = scores[..., 0] > 0.5, baseline[..., 0] > 0.5
    differing = (own != other).mean((1, 2))
    most = np.lexsort((digests, -differing))[:MASKS]
    found = total(states).masks
    assert [mask.digest for mask in found] == digests[most].tolist()
    for mask, row in zip(found, most, strict=True):
        assert mask.differing == pytest.approx(differing[row])
        for drawn, pixels in ((mask.label, labels), (mask.baseline, other), (mask.predicted, own)):
            assert (drawn == pixels[row]).all()
    report = output.report(total(states), lambda image: f"{image.shape}").segmentation
    assert report is not None
    assert report.masks[0].label == "(8, 8, 3)"
    assert report.mean_iou == pytest.approx(sklearn_metrics.jaccard_score(labels.ravel(), own.ravel(), average="macro"))


# a whole model --------------------------------------------------------------------------------------------------------

MODULE = """
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {
        "image": tf.io.FixedLenFeature([64], tf.float32),
        "kind": tf.io.FixedLenFeature([], tf.int64),
        "place": tf.io.FixedLenFeature([2], tf.float32),
        "tags": tf.io.FixedLenFeature([4], tf.int64),
        "mask": tf.io.FixedLenFeature([64], tf.int64),
    }


def preprocess(features):
    image = tf.reshape(features["image"], [-1, 8, 8, 1])
    mask = tf.reshape(features["mask"], [-1, 8, 8])
    labels = {"kind": features["kind"], "place": features["place"], "tags": features["tags"], "mask": mask}
    return image, labels


def build_model():
    start = keras.initializers.RandomNormal(stddev=0.4, seed=3)
    image = keras.Input([8, 8, 1], name="image")
    flat = keras.layers.Flatten()(image)
    outputs = {
        "kind": keras.layers.Dense(3, kernel_initializer=start, name="kind")(flat),
        "place": keras.layers.Dense(2, kernel_initializer=start, name="place")(flat),
        "tags": keras.layers.Dense(4, kernel_initializer=start, activation="sigmoid", name="tags")(flat),
        "mask": keras.layers.Conv2D(3, 3, padding="same", kernel_initializer=start, name="mask")(image),
    }
    return keras.Model(image, outputs)


def compile_model(model):
    sparse = keras.losses.SparseCategoricalCrossentropy
    losses = {
        "kind": sparse(from_logits=True),
        "place": "mse",
        "tags": "binary_crossentropy",
        "mask": sparse(from_logits=True, ignore_class=2),
    }
    model.compile("adam", losses, metrics={"kind": "accuracy", "place": "mae"})
"""


def test_a_model_with_an_output_of_each_kind(write_split: Any, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(MODULE)
    module = hooks.load(str(path))
    names, models = ("kind", "mask", "place", "tags"), {}
    for name, moved in (("baseline", 0.0), ("candidate", 0.1)):
        model = module.build_model()
        model.set_weights([weight + moved * RANDOM.normal(size=weight.shape) for weight in model.get_weights()])
        spec = tf.TensorSpec([None, 8, 8, 1], tf.float32, name="image")
        function = tf.function(lambda image, model=model: model(image), input_signature=[spec])
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], model)
        models[name] = str(tmp_path / name)
        Path(models[name]).write_bytes(converter.convert())
    images = RANDOM.random([50, 8, 8, 1]).astype(np.float32)
    labels = {
        "kind": RANDOM.integers(0, 3, 50),
        "place": RANDOM.normal(size=[50, 2]).astype(np.float32),
        "tags": RANDOM.integers(0, 2, [50, 4]),
        "mask": RANDOM.integers(0, 3, [50, 8, 8]),
    }
    examples = [{"image": image, **{n: labels[n][i] for n in labels}} for i, image in enumerate(images)]
    files = write_split(tmp_path / "data", "eval", examples, 5)
    runner = TFLiteModel(models["candidate"])
    ports = [port.name for port in runner.outputs]
    by_shape = {(3,): "kind", (2,): "place", (4,): "tags", (8, 8, 3): "mask"}
    ran = {by_shape[values.shape[1:]]: values for values in runner.run({"image": images}).values()}
    order = {by_shape[runner.run({"image": images[:1]})[port].shape[1:]]: port for port in ports}
    plan = Plan(module.source.reference, ("image",), tuple(order[name] for name in names), models, "baseline")

    worker, found = EvaluateShards(plan), []
    worker.setup()
    for bundle in (files[:2], files[2:3], files[3:]):
        worker.start_bundle()
        for file in bundle:
            worker.process(file)
        found += [windowed.value.models["candidate"] for windowed in worker.finish_bundle()]
    worker.teardown()
    evaluated: Evaluated = total(found)
    metrics = CompiledMetrics(module)
    metrics.prepare({n: tf.constant(values[:2]) for n, values in labels.items()}, [ran[n][:2] for n in names])
    outputs = measured_outputs.find(metrics, list(names))
    assert {name: output.kind for name, output in outputs.items()} == {
        "kind": "classes", "mask": "pixels", "place": "numbers", "tags": "tags",
    }  # fmt: skip
    part = {name: evaluated.parts[order[name]] for name in names}
    assert isinstance(part["kind"], Classification)
    assert part["kind"].confusion is not None
    expected = sklearn_metrics.confusion_matrix(labels["kind"], ran["kind"].argmax(1), labels=range(3))
    assert (part["kind"].confusion == expected).all()
    assert isinstance(part["place"], Regression)
    assert part["place"].report().r2 == pytest.approx(sklearn_metrics.r2_score(labels["place"], ran["place"]))
    assert isinstance(part["tags"], Tags)
    assert (part["tags"].hits == ((ran["tags"] > 0.5) & (labels["tags"] == 1)).sum(0)).all()
    assert isinstance(part["mask"], Segmentation)
    counts = labels["mask"] != 2
    expected = sklearn_metrics.confusion_matrix(labels["mask"][counts], ran["mask"].argmax(-1)[counts], labels=range(3))
    assert (part["mask"].confusion == expected).all()
    assert len(part["mask"].masks) == MASKS
    assert part["mask"].masks[0].image is not None
    assert 255 in part["mask"].masks[0].label
    # what merges in any order is the same in any order
    again: Evaluated = total(found)
    for name in ("mask", "tags"):
        assert outputs[name].report(again.parts[order[name]], repr) == outputs[name].report(part[name], repr)
    # the accuracy and the mean error are compared with a guess
    assert evaluated.chance.keys() == {"kind_accuracy", "place_mae"}
