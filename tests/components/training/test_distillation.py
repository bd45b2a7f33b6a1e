"""Learning from a teacher: the distances by hand, and a training that follows the teacher against the labels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras import layers

from edgeline.clusterer import clustering
from edgeline.clusterer.config import Cluster
from edgeline.config import Distilling
from edgeline.pruner import pruning
from edgeline.pruner.config import Prune
from edgeline.quantizer import quantization
from edgeline.quantizer.config import Quantize
from edgeline.training import distillation, loop


def distance(loss: Any, goal: Any, found: Any, temperature: float = 1.0) -> float:
    return float(distillation._distance(tf_keras.losses.get(loss), temperature)(tf.constant(goal), tf.constant(found)))


def test_divergence_by_hand() -> None:
    # at temperature 2, logits of 2 ln 3 and 0 are 3/4 and 1/4; the pupil has 1/2 and 1/2
    by_hand = 4 * (3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2))
    logits = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    assert distance(logits, [[2 * math.log(3), 0.0]], [[1.0, 1.0]], 2.0) == pytest.approx(by_hand, rel=1e-5)
    # 9/10 and 1/10 soften to 3/4 and 1/4
    assert distance("categorical_crossentropy", [[0.9, 0.1]], [[0.5, 0.5]], 2.0) == pytest.approx(by_hand, rel=1e-5)
    assert distance("sparse_categorical_crossentropy", [[1.0, 0.0]], [[1.0, 0.0]]) == 0.0


def test_other_distances_by_hand() -> None:
    by_hand = -(3 / 4 * math.log(1 / 2) + 1 / 4 * math.log(1 / 2))
    assert distance("binary_crossentropy", [[0.75]], [[0.5]]) == pytest.approx(by_hand, rel=1e-5)
    logits = tf_keras.losses.BinaryCrossentropy(from_logits=True)
    assert distance(logits, [[math.log(3)]], [[0.0]]) == pytest.approx(by_hand, rel=1e-5)
    assert distance("mae", [[1.0, 2.0]], [[3.0, 2.0]]) == 2.0
    assert distance(lambda labels, found: tf.abs(labels - found), [[1.0]], [[4.0]]) == 9.0


def build() -> tf_keras.Model:
    data = tf_keras.Input([6], name="data")
    hidden = layers.Dense(16, activation="tanh")(data)
    outputs = [
        layers.Dense(3, name="kind")(hidden),
        layers.Dense(1, activation="sigmoid", name="real")(hidden),
        layers.Dense(2, name="place")(hidden),
    ]
    model = tf_keras.Model(data, outputs)
    model.compile(
        tf_keras.optimizers.Adam(0.02),
        {
            "kind": tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "real": "binary_crossentropy",
            "place": "mse",
        },
        loss_weights={"place": 2.0},
        metrics={"kind": "accuracy"},
    )
    return model


def test_a_pupil_of_several_outputs_follows_the_teacher_not_the_labels() -> None:
    tf_keras.utils.set_random_seed(0)
    inputs = np.random.default_rng(0).normal(size=[256, 6]).astype(np.float32)
    wrong = {"kind": np.zeros(256, np.int64), "real": np.zeros([256, 1]), "place": np.full([256, 2], 9.0)}
    teacher, pupil = build(), build()
    before = teacher.get_weights()

    distillation.teach(pupil, teacher, 1.0, 2.0)
    history = pupil.fit(inputs, wrong, batch_size=32, epochs=40, verbose=0).history

    kind, real, place = teacher.predict(inputs, verbose=0)
    found_kind, found_real, found_place = pupil.predict(inputs, verbose=0)
    assert np.mean(kind.argmax(1) == found_kind.argmax(1)) > 0.9
    np.testing.assert_allclose(found_real, real, atol=0.1)
    assert np.mean((found_place - place) ** 2) < 0.02 * place.var()
    assert all(np.array_equal(a, b) for a, b in zip(before, teacher.get_weights(), strict=True))
    assert history["loss"][-1] > 50  # that of the labels, which the pupil does not follow
    assert "kind_accuracy" in history


def test_the_teacher_is_a_copy_that_shares_nothing() -> None:
    model = build()
    copy = distillation.teacher(model, Prune(0.5, distillation=0.5))
    assert copy is not None
    assert not {id(layer) for layer in copy.layers} & {id(layer) for layer in model.layers}
    model.layers[1].kernel.assign(tf.zeros_like(model.layers[1].kernel))
    assert np.abs(copy.layers[1].kernel.numpy()).max() > 0.1
    assert distillation.teacher(model, Prune(0.5)) is None


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory: pytest.TempPathFactory, small: Any, write_split: Any) -> str:
    """Examples of the small model's kind, each with the label of another band."""
    folder = tmp_path_factory.mktemp("mislabelled")
    images = small.images()
    wrong = [{"image": image, "label": (index + 1) % 3} for index, image in enumerate(images)]
    for split in ("train", "validation"):
        write_split(folder, split, wrong)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Prune, Cluster, Quantize])
def test_every_technique_learns_from_the_model_that_it_begins_with(
    small: Any, mislabelled: str, tmp_path: Path, kind: type[Distilling]
) -> None:
    def answers(model: tf_keras.Model) -> np.ndarray:
        return model.predict(small.images(), verbose=0).argmax(1)

    taught = answers(small.load())

    def agreement(**asked: float) -> float:
        """Trains on wrong labels; returns how many of the teacher's answers are found."""
        config = kind(**{Prune: {"sparsity": 0.2}, Cluster: {"clusters": 12}, Quantize: {"scheme": "qat8"}}[kind],
                      epochs=8, batch_size=8, **asked)  # fmt: skip
        loop.start(0)
        splits = loop.open_splits(mislabelled, small.module, config)
        technique = {Prune: pruning.prune, Cluster: clustering.cluster, Quantize: quantization.train_aware}[kind]
        made = technique(small.load(), small.module, splits, config, (), str(tmp_path))
        outcome = made[0] if kind is Quantize else made
        assert "train_step" not in vars(outcome.model)
        return float(np.mean(answers(outcome.model) == taught))

    assert agreement(distillation=1.0) > 0.9
    assert agreement() < 0.6


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"distillation": 1.5}, r"Prune\.distillation must be in \[0, 1\], received 1\.5"),
        ({"temperature": 0.0}, r"Prune\.temperature must be above 0, received 0\.0"),
    ],
)
def test_what_cannot_be_asked(asked: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prune(0.5, **asked)


def test_a_scheme_that_trains_nothing_has_no_teacher() -> None:
    with pytest.raises(ValueError, match=r"Quantize\.distillation needs scheme qat8, received scheme 'int8'"):
        Quantize("int8", distillation=0.5)
