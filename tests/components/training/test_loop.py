from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from tensorflow.python.framework import config as tf_config

from edgeline import progress
from edgeline.data import reading
from edgeline.errors import UserError
from edgeline.keras_models import quantization_aware
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.model_module.hooks import ModelModule
from edgeline.passport import Passport, Promise
from edgeline.pruner.config import Prune
from edgeline.trainer.config import Train
from edgeline.training import delivery, loop


@pytest.fixture
def tiny_examples(tmp_path: Path, write_split: Any) -> str:
    """64 and 32 examples whose label is the place of the largest of three numbers."""
    random = np.random.default_rng(0)
    for split, count in (("train", 64), ("validation", 32)):
        values = random.normal(size=[count, 4]).astype(np.float32)
        write_split(tmp_path, split, [{"x": x, "y": int(x[:3].argmax())} for x in values])
    return str(tmp_path)


def variant(tiny_module: Path, old: str = "", new: str = "") -> ModelModule:
    code = tiny_module.read_text()
    assert old in code
    tiny_module.write_text(code.replace(old, new))
    return hooks.load(str(tiny_module))


def train(module: ModelModule, examples: str, config: Train, log_dir: Path) -> tuple[tf_keras.Model, Any]:
    loop.start(config.seed)
    model = module.build_model()
    splits = loop.open_splits(examples, module, config)
    patience = config.early_stopping_patience
    history = loop.fit(
        model, module, splits, config,
        step="Trainer", technique=loop.__name__, log_dir=str(log_dir / "logs"), patience=patience,
    )  # fmt: skip
    return model, history


def same(one: tf_keras.Model, two: tf_keras.Model) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.get_weights(), two.get_weights(), strict=True))


def test_history_and_metrics(tiny_module: Path, tiny_examples: str, tmp_path: Path) -> None:
    module = variant(tiny_module, '"adam"', "keras.optimizers.Adam(0.01)")
    config = Train(epochs=3, batch_size=10)
    model, history = train(module, tiny_examples, config, tmp_path)
    assert history.keys() == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert all(len(values) == 3 and {type(v) for v in values} == {float} for values in history.values())
    assert history["loss"][0] > history["loss"][2]
    metrics = loop.evaluate(model, module, loop.open_splits(tiny_examples, module, config))
    # evaluation at the end of the last epoch and afterwards is the same
    assert metrics == pytest.approx(
        {"loss": history["val_loss"][-1], "accuracy": history["val_accuracy"][-1]}, abs=1e-6
    )
    assert any((tmp_path / "logs").rglob("events.out.tfevents*"))
    delivery.write_history("Trainer", history, str(tmp_path / "new" / "run"))
    assert json.loads((tmp_path / "new" / "run" / "history.json").read_text()) == {
        "step": "Trainer",
        "history": history,
    }


def test_the_same_seed_gives_the_same_weights(tiny_module: Path, tiny_examples: str, tmp_path: Path) -> None:
    module = variant(tiny_module, "keras.layers.Dense(3)", "keras.layers.Dropout(0.5), keras.layers.Dense(3)")
    config = Train(epochs=1, batch_size=16, seed=3)
    first, _ = train(module, tiny_examples, config, tmp_path)
    # something else that draws, and takes a name
    tf_keras.layers.Dense(3)(np.ones([2, 2]))
    second, _ = train(module, tiny_examples, config, tmp_path)
    assert same(first, second)
    assert keras_file.digest(first) == keras_file.digest(second)  # the layers' names too


@pytest.mark.slow
def test_another_seed_gives_other_weights(tiny_module: Path, tiny_examples: str, tmp_path: Path) -> None:
    module = variant(tiny_module, "keras.layers.Dense(3)", "keras.layers.Dropout(0.5), keras.layers.Dense(3)")
    first, other = (
        train(module, tiny_examples, Train(epochs=1, batch_size=16, seed=seed), tmp_path)[0] for seed in (3, 4)
    )
    assert not same(first, other)


def test_the_training_step_is_traced_once(tiny_module: Path, tiny_examples: str, tmp_path: Path) -> None:
    """TensorFlow traces it again where it creates variables: the optimizer's, or the metrics'."""
    module = variant(tiny_module)
    config = Train(epochs=1, batch_size=8)
    model = module.build_model()
    traced: list[bool] = []
    call = model.layers[-1].call
    model.layers[-1].call = lambda inputs: traced.append(tf.executing_eagerly()) or call(inputs)
    splits = loop.open_splits(tiny_examples, module, config)
    loop.fit(model, module, splits, config, step="Trainer", technique=loop.__name__, log_dir=str(tmp_path))
    # the training step and the validation's
    assert traced == [False, False]
    traced.clear()
    loop.evaluate(model, module, splits)
    assert traced == [False]


def test_early_stopping_restores_the_best_weights(tiny_module: Path, tiny_examples: str, tmp_path: Path) -> None:
    # steps so large that every epoch after the first is worse
    module = variant(tiny_module, '"adam"', "keras.optimizers.SGD(30.0)")
    best, short = train(module, tiny_examples, Train(epochs=1, batch_size=16), tmp_path)
    stopped, history = train(module, tiny_examples, Train(epochs=9, batch_size=16, early_stopping_patience=2), tmp_path)
    losses = history["val_loss"]
    assert losses[0] == short["val_loss"][0] == min(losses)
    assert len(losses) == 3  # the best one, and two in patience
    assert same(stopped, best)


@pytest.mark.slow
def test_patience_that_does_not_run_out(tiny_module: Path, tiny_examples: str, tmp_path: Path) -> None:
    module = variant(tiny_module, '"adam"', "keras.optimizers.SGD(30.0)")
    best, _ = train(module, tiny_examples, Train(epochs=1, batch_size=16), tmp_path)
    # without patience: all epochs, and the last weights
    last, history = train(module, tiny_examples, Train(epochs=2, batch_size=16), tmp_path)
    assert len(history["val_loss"]) == 2
    assert not same(last, best)
    # patience that does not run out before the last epoch restores them as well
    patient, history = train(module, tiny_examples, Train(epochs=2, batch_size=16, early_stopping_patience=5), tmp_path)
    assert len(history["val_loss"]) == 2
    assert same(patient, best)


def test_a_loss_that_is_no_number_stops_the_training(tiny_module: Path, tiny_examples: str, tmp_path: Path) -> None:
    module = variant(tiny_module, '"adam"', "keras.optimizers.SGD(1e38)")
    with pytest.raises(
        UserError, match=r"^Trainer: (val_)?loss became (nan|inf) in epoch 1 of 3; lower the learning rate"
    ):
        train(module, tiny_examples, Train(epochs=3, batch_size=16), tmp_path)


@pytest.mark.parametrize("technique", ["plain", "pruned", "quantized"])
def test_outputs_keep_their_names_for_losses_where_their_layers_are_wrapped(technique: str, tiny_module: Path) -> None:
    inputs = tf_keras.Input([4])
    outputs = [tf_keras.layers.Dense(size, name=name)(inputs) for name, size in (("kind", 3), ("size", 1))]
    model = tf_keras.Model(inputs, outputs)
    if technique == "pruned":
        model = tfmot.sparsity.keras.prune_low_magnitude(model)
    elif technique == "quantized":
        model = quantization_aware.wrap(quantization_aware.prepared(model), ["kind", "size"])
    by_name = """
def compile_model(model):
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss={"kind": cross_entropy, "size": "mse"}, metrics={"size": "mae"})
"""
    tiny_module.write_text(tiny_module.read_text() + by_name)
    loop._compile(model, hooks.load(str(tiny_module)))
    callbacks = [tfmot.sparsity.keras.UpdatePruningStep()] if technique == "pruned" else []
    labels = {"kind": np.zeros(2), "size": np.zeros(2)}
    history = model.fit(np.zeros([2, 4]), labels, verbose=0, callbacks=callbacks).history
    assert history.keys() == {"loss", "kind_loss", "size_loss", "size_mae"}


def test_the_switch_for_determinism_holds_until_the_next_step() -> None:
    loop.start(0)
    assert tf_config.is_op_determinism_enabled()
    loop.start(0, deterministic=False)
    assert not tf_config.is_op_determinism_enabled()
    loop.start(0)
    assert tf_config.is_op_determinism_enabled()


def test_progress_is_reported(
    tiny_module: Path, tiny_examples: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, progress.LOGGER_NAME):
        train(variant(tiny_module), tiny_examples, Train(epochs=2, batch_size=16), tmp_path)
    records = [record for record in caplog.records if record.name == progress.LOGGER_NAME]
    done = [record.progress for record in records]
    assert done[0] == (0, 8)  # 2 epochs of 4 steps
    assert done[-1] == (8, 8)
    assert done == sorted(done)
    assert (4, 8) in done
    assert records[-1].getMessage().startswith("epoch 2/2 loss ")
    assert "val_accuracy" in records[-1].getMessage()


def test_a_missing_split(tiny_module: Path, tmp_path: Path, write_split: Any) -> None:
    write_split(tmp_path, "train", [{"x": np.zeros(4, np.float32), "y": 0}])
    with pytest.raises(UserError, match="no files in split 'validation'"):
        loop.open_splits(str(tmp_path), variant(tiny_module), Train())


def test_deliver_writes_model_passport_and_history(small: Any) -> None:
    passport = Passport.read(small.folder)
    [step] = passport.steps
    assert step["step"] == "Trainer"
    assert step["config"] == Train(epochs=8, batch_size=16).parameters()
    assert step["metrics"].keys() == {"loss", "accuracy"}
    assert step["metrics"]["accuracy"] > 0.8  # what other tests build on
    assert step["model"] == keras_file.digest(small.load())
    assert step["toolchain"] == "tools"
    assert passport.promises == ()
    assert passport.io["labels"] == ["top", "middle", "bottom"]


def test_compress_goes_from_folder_to_folder(small: Any, tmp_path: Path) -> None:
    promise = Promise("sparsity", "hidden", (128, 16), 0.5)
    config = Prune(0.5, epochs=1, batch_size=32, seed=5)

    def technique(
        model: tf_keras.Model, module: ModelModule, splits: loop.Splits, asked: Prune, promises: Any, log_dir: str
    ) -> loop.Outcome:
        assert keras_file.digest(model) == Passport.read(small.folder).steps[-1]["model"]
        assert (asked, promises) == (config, ())
        assert (splits.train.steps_per_epoch, splits.validation.examples) == (2, 32)
        model.get_layer("hidden").kernel.assign(np.zeros([128, 16], np.float32))
        return loop.Outcome(model, {"loss": [1.0]}, {"loss": 0.5}, [{"name": "hidden"}], (promise,))

    delivery.compress(
        technique, config, step="Pruner", module=small.path, module_digest=small.module.source.digest, toolchain="t",
        examples_uri=small.examples, model_uri=small.folder, compressed_uri=str(tmp_path / "out"),
        run_uri=str(tmp_path / "run"),
    )  # fmt: skip
    passport = Passport.read(tmp_path / "out")
    assert passport.promises == (promise,)
    assert [step["step"] for step in passport.steps] == ["Trainer", "Pruner"]
    entry = passport.steps[-1]
    assert entry["config"] == config.parameters()
    assert entry["metrics"] == {"loss": 0.5}
    assert entry["layers"] == [{"name": "hidden"}]
    assert entry["inputs"] == {
        "examples": reading.fingerprint(small.examples),
        "module": small.module.source.digest,
        "model": passport.steps[0]["model"],
    }
    written = keras_file.load(str(tmp_path / "out"), small.module)
    assert keras_file.digest(written) == entry["model"] != passport.steps[0]["model"]
    assert not written.get_layer("hidden").kernel.numpy().any()
    assert json.loads((tmp_path / "run" / "history.json").read_text())["history"] == {"loss": [1.0]}


def test_gpus_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    grown = []

    def grow(gpu: str, enable: bool) -> None:
        if gpu == "busy":
            raise RuntimeError("Physical devices cannot be modified after being initialized")
        grown.append((gpu, enable))

    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["busy", "free"] if kind == "GPU" else [])
    monkeypatch.setattr(tf.config.experimental, "set_memory_growth", grow)
    loop.start(0)
    assert grown == [("free", True)]


_TRAINING = """
import hashlib, os, sys
os.sched_setaffinity(0, {int(core) for core in sys.argv[1].split(",")})
import numpy as np
from edgeline.training import loop
loop.start(0, threads=8)
import tf_keras
assert loop.threads_in_use() == 8
draw, layers = np.random.default_rng(0), tf_keras.layers
images, labels = draw.normal(size=(256, 28, 28, 1)).astype("float32"), draw.integers(0, 10, 256)
model = tf_keras.Sequential([
    layers.Conv2D(16, 3, activation="relu", input_shape=(28, 28, 1)), layers.DepthwiseConv2D(3),
    layers.BatchNormalization(), layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10),
])
model.compile("adam", tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(images, labels, batch_size=64, epochs=2, verbose=0)
print(hashlib.sha256(b"".join(weight.tobytes() for weight in model.get_weights())).hexdigest())
"""


@pytest.mark.slow
def test_one_core_and_two_give_the_same_bytes() -> None:
    """With TensorFlow's own number of threads, they do not."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("this process may use one core only")
    digests = [
        subprocess.run([sys.executable, "-c", _TRAINING, chosen], check=True, capture_output=True, text=True).stdout
        for chosen in (f"{cores[0]}", f"{cores[0]},{cores[1]}")
    ]
    assert digests[0] == digests[1] != ""


def test_threads_that_come_too_late_are_told(caplog: pytest.LogCaptureFixture) -> None:
    tf.constant(1.0)  # TensorFlow is at work
    in_use = loop.threads_in_use()
    loop.use_threads(in_use)
    loop.start(0)
    assert caplog.text == ""
    loop.use_threads(in_use + 1)
    assert f"TensorFlow is at work in this process with {in_use} threads per operation" in caplog.text
    assert loop.threads_in_use() == in_use
