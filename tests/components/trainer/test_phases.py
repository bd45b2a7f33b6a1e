"""Training in phases: what is frozen stays as it was, and a training that was killed goes on in its phase."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tf_keras

from edgeline.data import reading
from edgeline.errors import UserError
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.trainer import phases
from edgeline.trainer.component import Trainer
from edgeline.trainer.config import Train
from edgeline.training import checkpoints, loop

MODULE = """

def build_model():
    base = keras.Sequential(
        [keras.Input([8, 8, 1]), keras.layers.Conv2D(4, 3, name="early"), keras.layers.BatchNormalization(name="norm"),
         keras.layers.ReLU(), keras.layers.Conv2D(4, 3, name="late")], name="base")
    image = keras.Input([8, 8, 1], name="image")
    x = keras.layers.Dropout(0.2)(keras.layers.Flatten()(base(image, training=False)))
    return keras.Model(image, keras.layers.Dense(3, name="logits")(x))


def top(model):
    model.get_layer("base").trainable = False


def fine_tuning(model):
    base = model.get_layer("base")
    base.trainable = True
    for layer in base.layers[:2]:
        layer.trainable = False


def phases():
    return [("top", 2, top), ("fine_tuning", None, fine_tuning)]


COMPILED = []


def compile_model(model, phase=None):
    COMPILED.append((phase, len(model.trainable_weights)))
    model.compile(
        optimizer=keras.optimizers.Adam(1e-2 if phase == "top" else 1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
"""


@pytest.fixture
def module(small: Any, tmp_path: Path) -> Path:
    path = tmp_path / "in_phases.py"
    path.write_text(Path(small.path).read_text() + MODULE)
    return path


def change(module: Path, old: str, new: str) -> hooks.ModelModule:
    code = module.read_text()
    assert old in code
    module.write_text(code.replace(old, new))
    return hooks.load(str(module))


class Run:
    """A training on the small examples: the model before and after, its history and its phases."""

    def __init__(self, code: hooks.ModelModule, examples: str, logs: Path, **asked: Any):
        config = Train(batch_size=16, **asked)
        loop.start(config.seed)
        self.model = code.build_model()
        self.before = weights(self.model)
        splits = loop.open_splits(examples, code, phases.lengths(code.phases(), config))
        self.history, self.phases = phases.fit(self.model, code, splits, config, str(logs))


def weights(model: tf_keras.Model) -> dict[str, np.ndarray]:
    return {weight.name: weight.numpy() for weight in model.weights}


def changed(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> set[str]:
    return {name.split(":")[0] for name, value in after.items() if not np.array_equal(value, before[name])}


Train_ = Callable[..., Run]


@pytest.fixture
def train(module: Path, small: Any, tmp_path: Path) -> Train_:
    return lambda **asked: Run(hooks.load(str(module)), small.examples, tmp_path / "logs", **asked)


def test_each_phase_trains_its_layers_at_its_rate(train: Train_, module: Path, tmp_path: Path) -> None:
    done = train(epochs=3)
    assert done.phases == [{"name": "top", "epochs": 2}, {"name": "fine_tuning", "epochs": 3}]
    assert all(len(values) == 5 for values in done.history.values())
    assert done.history.keys() == {"loss", "accuracy", "val_loss", "val_accuracy"}
    # the norm keeps its statistics too: the model calls its base with training=False
    assert changed(done.before, weights(done.model)) == {"late/kernel", "late/bias", "logits/kernel", "logits/bias"}
    # rehearsed, then for real
    compiled = hooks.load(str(module))._code.COMPILED
    assert compiled == 2 * [("top", 2), ("fine_tuning", 4)]
    assert float(done.model.optimizer.learning_rate) == pytest.approx(1e-3)
    # later steps train what the last phase trained
    keras_file.save(done.model, str(tmp_path / "model"))
    loaded = keras_file.load(str(tmp_path / "model"), hooks.load(str(module)))
    assert len(loaded.trainable_weights) == 4
    assert [layer.trainable for layer in loaded.get_layer("base").layers] == [False, False, True, True]


def test_the_component_says_so_in_passport_and_history(module: Path, small: Any, tmp_path: Path) -> None:
    class Artifact:
        def __init__(self, uri: Path):
            self.uri = str(uri)

        def set_string_custom_property(self, name: str, value: str) -> None:
            pass

    code = hooks.load(str(module))
    function = Trainer.EXECUTOR_SPEC.executor_class._FUNCTION
    function(
        examples=Artifact(Path(small.examples)), model=Artifact(tmp_path / "model"),
        model_run=Artifact(tmp_path / "run"), module=str(module), module_digest=code.source.digest, toolchain="t",
        **Train(epochs=1, batch_size=16).encoded(),
    )  # fmt: skip
    [step] = Passport.read(tmp_path / "model").steps
    expected = [{"name": "top", "epochs": 2}, {"name": "fine_tuning", "epochs": 1}]
    assert step["phases"] == expected
    assert "warm_start" not in step
    assert len(step["history"]["val_loss"]) == 3
    written = json.loads((tmp_path / "run" / "history.json").read_text())
    assert written == {"step": "Trainer", "history": step["history"], "phases": expected}
    assert step["metrics"]["loss"] == pytest.approx(step["history"]["val_loss"][-1], abs=1e-6)


def test_the_first_phase_leaves_the_base_alone(train: Train_, module: Path) -> None:
    change(module, '[("top", 2, top), ("fine_tuning", None, fine_tuning)]', '[("top", None, top)]')
    done = train(epochs=1)
    assert changed(done.before, weights(done.model)) == {"logits/kernel", "logits/bias"}


def test_every_epoch_draws_anew(train: Train_, module: Path, small: Any) -> None:
    code = hooks.load(str(module))
    config = phases.lengths(code.phases(), Train(epochs=3, batch_size=16))
    assert config.epochs == 5
    batches = reading.training_data(
        reading.split_files(small.examples, "train"), code, batch_size=16, epochs=config.epochs, seed=0
    )
    # what the second phase begins with is no epoch of the first
    firsts = [next(iter(batches.after(epoch)))[0].numpy() for epoch in range(config.epochs)]
    assert len({first.tobytes() for first in firsts}) == 5


def test_patience_is_counted_in_each_phase(train: Train_, module: Path) -> None:
    change(module, 'Adam(1e-2 if phase == "top" else 1e-3)', 'SGD(30.0 if phase == "top" else 1e-4)')
    change(module, '("top", 2, top)', '("top", 9, top)')
    done = train(epochs=2, early_stopping_patience=1)
    [top, fine_tuning] = done.phases
    assert top["epochs"] < 9
    assert fine_tuning == {"name": "fine_tuning", "epochs": 2}
    assert len(done.history["loss"]) == top["epochs"] + 2


def test_a_metric_that_only_one_phase_has(train: Train_, module: Path) -> None:
    change(module, 'metrics=["accuracy"]', 'metrics=["accuracy"] if phase == "top" else []')
    done = train(epochs=1)
    assert [value is None for value in done.history["accuracy"]] == [False, False, True]
    assert len(done.history["loss"]) == 3


# killed ---------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What no step catches."""


@pytest.fixture
def epochs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[int, int]]:
    """The epochs that were begun, each with the number of weights that it trains; set `kill` to end in one."""
    monkeypatch.setenv(checkpoints.FOLDER_VARIABLE, str(tmp_path / "checkpoints"))
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(test_killed, "kill", -1, raising=False)

    class Watch(tf_keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            begun.append((epoch, len(self.model.trainable_weights)))

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if begun[-1][0] == test_killed.kill and batch == 2:  # type: ignore[attr-defined]
                raise Killed

    fit = tf_keras.Model.fit

    def watched(self: tf_keras.Model, *given: Any, callbacks: list[Any], **more: Any) -> Any:
        return fit(self, *given, callbacks=[Watch(), *callbacks], **more)

    monkeypatch.setattr(tf_keras.Model, "fit", watched)
    return begun


@pytest.mark.parametrize(
    ("kill", "again"),
    [
        pytest.param(1, [(1, 2), (2, 4)], marks=pytest.mark.slow, id="in the first phase"),
        pytest.param(2, [(2, 4)], marks=pytest.mark.slow, id="at the start of the second"),
        pytest.param(3, [(3, 4)], id="in the second"),
    ],
)
def test_killed(
    kill: int, again: list[Any], train: Train_, epochs: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_killed, "kill", kill)
    with pytest.raises(Killed):
        train(epochs=2)
    monkeypatch.setattr(test_killed, "kill", -1)
    epochs.clear()
    resumed = train(epochs=2)
    # what is done is not repeated
    assert epochs == [*again, *([(3, 4)] if kill < 3 else [])]
    monkeypatch.delenv(checkpoints.FOLDER_VARIABLE)
    epochs.clear()
    unbroken = train(epochs=2)
    assert [epoch for epoch, _ in epochs] == [0, 1, 2, 3]
    assert resumed.history == unbroken.history
    assert resumed.phases == unbroken.phases
    assert changed(weights(unbroken.model), weights(resumed.model)) == set()


# mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("[('top', 0, top)]", r"phases\(\) of .* must return a list of tuples: .* received \('top', 0, "),
        ("[('top', True, top)]", r"received \('top', True, "),
        ("[('', 1, top)]", r"received \('', 1, "),
        ("[('top', 1)]", r"received \('top', 1\)"),
        ("[('top', 1, 'top')]", r"received \('top', 1, 'top'\)"),
        ("{'top': 1}", "received None"),
        ("[('top', 1, top), ('top', 1, top)]", "must return phases of different names, received top, top"),
        ("[]", "must return phases of different names, received none"),
    ],
)
def test_bad_phases(module: Path, returned: str, message: str) -> None:
    code = change(module, '[("top", 2, top), ("fine_tuning", None, fine_tuning)]', returned)
    with pytest.raises(UserError, match=message):
        code.phases()


def test_mistakes_of_the_last_phase_show_before_the_first_is_trained(
    train: Train_, module: Path, epochs: list[tuple[int, int]]
) -> None:
    change(module, "base.trainable = True\n", "model.trainable = False\n    return\n")
    with pytest.raises(UserError, match=r"phase fine_tuning of .* leaves nothing to train"):
        train()
    change(module, "model.trainable = False\n", 'model.get_layer("bass")\n')
    with pytest.raises(ValueError, match="bass"):
        train()
    assert epochs == []


def test_a_module_without_phases_trains_in_one_go(small: Any, tmp_path: Path) -> None:
    run = Run(small.module, small.examples, tmp_path, epochs=2)
    assert run.phases == []
    assert len(run.history["loss"]) == 2
    assert phases.lengths([], Train(epochs=2)).epochs == 2
