"""A training that is cut short goes on, and ends with the same bytes as one that was not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tf_keras
from power_cut import Disk, Image, restore

from edgeline.clusterer import clustering
from edgeline.clusterer.config import Cluster
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.pruner import pruning
from edgeline.pruner.config import Prune
from edgeline.quantizer import quantization
from edgeline.quantizer.config import Quantize
from edgeline.trainer.config import Train
from edgeline.training import checkpoints, loop

Result = tuple[list[np.ndarray], dict[str, list[float]]]
Step = Callable[[], Result]


class Killed(BaseException):
    """What no step catches."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(checkpoints.FOLDER_VARIABLE, str(tmp_path / "checkpoints"))
    return tmp_path / "checkpoints"


class Killer(tf_keras.callbacks.Callback):
    def __init__(self, epoch: int, batch: int):
        super().__init__()
        self._at = epoch, batch
        self.epochs: list[int] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append(epoch)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if (self.epochs[-1], batch) == self._at:
            raise Killed


@contextmanager
def watched(epoch: int = -1, batch: int = 0) -> Iterator[Killer]:
    """Cuts trainings short before a batch of an epoch (both from 0); tells which epochs were begun."""
    killer, fit = Killer(epoch, batch), tf_keras.Model.fit

    def fit_watched(self: tf_keras.Model, *given: Any, callbacks: list[Any], **more: Any) -> Any:
        return fit(self, *given, callbacks=[killer, *callbacks], **more)

    with mock.patch.object(tf_keras.Model, "fit", fit_watched):
        yield killer


@pytest.fixture
def steps(small: Any, pruned: Any, tmp_path: Path) -> dict[str, Step]:
    """Each step that trains, on the small model: its weights and its history."""
    logs = str(tmp_path / "logs")

    def result(outcome: loop.Outcome) -> Result:
        return outcome.model.get_weights(), outcome.history

    def opened(config: Any) -> loop.Splits:
        loop.start(config.seed)
        return loop.open_splits(small.examples, small.module, config)

    def prune() -> Result:
        config = Prune(0.8, epochs=3, batch_size=16)
        splits = opened(config)
        return result(
            pruning.prune(keras_file.load(small.folder, small.module), small.module, splits, config, (), logs)
        )

    def cluster() -> Result:
        config = Cluster(8, epochs=3, batch_size=16)
        splits = opened(config)
        model = keras_file.load(pruned.folder, small.module)
        return result(clustering.cluster(model, small.module, splits, config, pruned.outcome.promises, logs))

    def quantize() -> Result:
        config = Quantize("qat8", epochs=3, batch_size=16)
        splits = opened(config)
        model = keras_file.load(pruned.folder, small.module)
        keras_file.save(model, logs)
        promises = pruned.outcome.promises
        return result(quantization.train_aware(model, small.module, splits, config, promises, logs)[0])

    return {"Pruner": prune, "Clusterer": cluster, "Quantizer": quantize}


@pytest.mark.slow  # of the Trainer, tests/components/trainer/test_phases.py shows it every time
@pytest.mark.parametrize("step", ["Pruner", "Clusterer", "Quantizer"])
def test_a_step_that_was_killed_ends_as_if_it_were_not(step: str, steps: dict[str, Step], folder: Path) -> None:
    with pytest.raises(Killed), watched(epoch=1, batch=2):
        steps[step]()
    with watched() as killer:
        weights, history = steps[step]()
    assert killer.epochs == [1, 2]
    for path in folder.iterdir():
        assert path.suffix == ""  # no half-written ones
        (path / "state.json").unlink()  # now it starts afresh
    with watched() as killer:
        expected, all_epochs = steps[step]()
    assert killer.epochs == [0, 1, 2]
    assert history == all_epochs
    assert len(weights) == len(expected)
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(one, other)


WITH_DROPOUT = """

def augment(inputs, label, seed):
    return inputs + tf.random.stateless_uniform(tf.shape(inputs), seed, -0.1, 0.1), label


def build_model():
    return keras.Sequential(
        [keras.Input([8, 8, 1]), keras.layers.Flatten(), keras.layers.GaussianNoise(0.1),
         keras.layers.Dense(16, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(3)]
    )
"""


@pytest.fixture
def trainer(small: Any, tmp_path: Path) -> Callable[..., Result]:
    path = tmp_path / "with_dropout.py"
    path.write_text(Path(small.path).read_text() + WITH_DROPOUT)
    module = hooks.load(str(path))

    def train(**asked: Any) -> Result:
        config = Train(batch_size=16, **asked)
        loop.start(config.seed)
        model = module.build_model()
        splits = loop.open_splits(small.examples, module, config)
        patience = config.early_stopping_patience
        history = loop.fit(
            model, module, splits, config,
            step="Trainer", technique=loop.__name__, log_dir=str(tmp_path / "logs"), patience=patience,
        )  # fmt: skip
        return model.get_weights(), history

    return train


@pytest.mark.slow
def test_random_layers_and_augmentation_go_on_where_they_were(
    trainer: Callable[..., Result], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Killed), watched(epoch=2, batch=1):
        trainer(epochs=4)
    weights, history = trainer(epochs=4)
    monkeypatch.delenv(checkpoints.FOLDER_VARIABLE)
    expected, all_epochs = trainer(epochs=4)
    assert history == all_epochs
    assert len(history["loss"]) == 4
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    # no epoch draws as another one, no seed as another
    different, _ = trainer(epochs=4, seed=1)
    assert not np.array_equal(weights[0], different[0])


@pytest.mark.slow
def test_patience_goes_on_where_it_was(trainer: Callable[..., Result], folder: Path) -> None:
    asked = {"epochs": 60, "early_stopping_patience": 2, "seed": 3}
    expected, all_epochs = trainer(**asked)
    ended = len(all_epochs["loss"])
    assert 3 < ended < 60
    # what has ended, in a step that was killed later, is not trained again
    with watched() as killer:
        weights, history = trainer(**asked)
    assert killer.epochs == []
    assert history == all_epochs
    np.testing.assert_array_equal(weights[0], expected[0])
    for path in folder.iterdir():
        (path / "state.json").unlink()
    # killed in the last epoch: one more without a better loss, and the best weights are of an epoch before the kill
    with pytest.raises(Killed), watched(epoch=ended - 1):
        trainer(**asked)
    with watched() as killer:
        weights, history = trainer(**asked)
    assert killer.epochs == [ended - 1]
    assert history == all_epochs
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_another_training_never_finds_it(trainer: Callable[..., Result], folder: Path) -> None:
    with pytest.raises(Killed), watched(epoch=1):
        trainer(epochs=2)
    for asked in ({"epochs": 3}, {"epochs": 2, "seed": 1}):
        with watched() as killer:
            trainer(**asked)
        assert killer.epochs[0] == 0


@pytest.mark.parametrize("damage", [pytest.param("variables.index", marks=pytest.mark.slow), "state.json"])
def test_a_damaged_checkpoint_is_a_fresh_start(
    trainer: Callable[..., Result], folder: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = trainer(epochs=2)
    [path] = folder.iterdir()
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "epochs": 1}))
    (path / damage).write_bytes(b"damaged")
    with watched() as killer:
        weights, _ = trainer(epochs=2)
    assert killer.epochs == [0, 1]
    assert "cannot be read, the training starts afresh" in caplog.text
    for one, other in zip(weights, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_without_a_folder_nothing_is_kept(
    trainer: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(checkpoints.FOLDER_VARIABLE, raising=False)
    with mock.patch.object(checkpoints.Checkpoints, "_write", side_effect=AssertionError):
        trainer(epochs=1)


def test_killed_between_the_renames(trainer: Callable[..., Result], folder: Path) -> None:
    expected, _ = trainer(epochs=1)
    [path] = folder.iterdir()
    path.rename(path.with_suffix(".new"))
    with watched() as killer:
        weights, _ = trainer(epochs=1)
    assert killer.epochs == []
    np.testing.assert_array_equal(weights[0], expected[0])


@pytest.mark.slow
def test_a_power_cut_leaves_one_whole_epoch(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def begun() -> tuple[tf_keras.Model, checkpoints.Checkpoints]:
        layer = tf_keras.layers.Dense(2, kernel_initializer="ones", input_shape=(3,), name="dense")
        model = tf_keras.Sequential([layer])
        model.stop_training = False
        kept = checkpoints.Checkpoints(model, {})
        kept.set_model(model)
        return model, kept

    def left(image: Image) -> int:
        """Which epoch a training goes on from; its weights are checked."""
        after = tmp_path / f"after{len(list(tmp_path.iterdir()))}"
        restore(image, after)
        with monkeypatch.context() as patch:
            patch.setenv(checkpoints.FOLDER_VARIABLE, str(after))
            model, kept = begun()
            kept.restore(model)
        np.testing.assert_array_equal(model.get_weights()[0], weights[kept.epochs])
        return kept.epochs

    model, kept = begun()
    weights = {0: np.ones((3, 2)), 1: np.full((3, 2), 11.0), 2: np.full((3, 2), 12.0)}
    folder.mkdir()
    disk, images = Disk(folder), list[Image]()
    with disk.watched(lambda: images.extend(image for image in disk.images() if image not in images)):
        for epoch in (1, 2):
            model.set_weights([weights[epoch], np.zeros(2)])
            kept.on_epoch_end(epoch - 1)
            assert {left(image) for image in images} == {epoch - 1, epoch}
            assert {left(image) for image in disk.images()} == {epoch}
            images.clear()
