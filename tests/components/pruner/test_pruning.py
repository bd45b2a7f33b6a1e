from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras

from edgeline.conversion import checks, converter
from edgeline.errors import UserError
from edgeline.keras_models import promise_checks
from edgeline.keras_models.promise_checks import BrokenPromiseError
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport, Promise
from edgeline.pruner import pruning, xnnpack
from edgeline.pruner.config import Prune
from edgeline.tflite_exporter import conversion
from edgeline.training import loop

CONFIGS = [
    Prune(0.8),
    Prune(0.8, "constant"),
    Prune(0.8, ramp=1),
    Prune(0.8, ramp=1e-6),
    Prune(0.8, initial_sparsity=0.8),
    Prune(0.8, "constant", ramp=0.01),
]


def simulate(config: Prune, steps: int) -> list[tuple[int, float]]:
    """What tfmot's own schedule does in a training: (step, sparsity) of every mask update; steps count from 1."""
    schedule = pruning.schedule(config, steps)
    updates = []
    for step in range(1, steps + 1):
        due, sparsity = schedule(step)
        if bool(due):
            updates.append((step, float(sparsity)))
    return updates


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 51, 99, 100])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.token)
def test_the_last_mask_update_has_the_final_sparsity(config: Prune, steps: int) -> None:
    updates = simulate(config, steps)
    assert updates
    assert updates[-1][1] == pytest.approx(0.8)
    reached = next(step for step, sparsity in updates if sparsity == pytest.approx(0.8))
    assert reached <= max(int(config.ramp * steps), 1)
    sparsities = [sparsity for _, sparsity in updates]
    assert sparsities == sorted(sparsities)
    assert len(updates) <= 50


@pytest.mark.parametrize("config", CONFIGS[:2], ids=lambda config: config.token)
def test_a_long_fine_tuning(config: Prune) -> None:
    # the schedule's own rule, in numbers: an eager call of it 10,000 times takes seconds
    schedule = pruning.schedule(config, 10_000)
    due = [
        s for s in range(1, 10_001) if s >= schedule.begin_step and (s - schedule.begin_step) % schedule.frequency == 0
    ]
    due = [step for step in due if schedule.end_step == -1 or step <= schedule.end_step]
    assert 25 <= len(due) <= 50
    assert due[-1] == 7500 if config.schedule == "polynomial_decay" else due[0] == 1
    for step in (due[0], due[-1]):
        assert bool(schedule(step)[0])
    assert not bool(schedule(due[-1] - 1)[0])
    assert float(schedule(due[-1])[1]) == pytest.approx(0.8)


def test_the_ramp_begins_at_the_initial_sparsity() -> None:
    updates = simulate(Prune(0.8, initial_sparsity=0.5, ramp=1), 10)
    assert [step for step, _ in updates] == list(range(1, 11))
    # 0.8 - 0.3 * (1 - step / 10) ** 3
    assert updates[0][1] == pytest.approx(0.8 - 0.3 * 0.729)
    assert updates[4][1] == pytest.approx(0.8 - 0.3 * 0.125)


def zeros(model: Any) -> dict[str, int]:
    return {
        layer.name: int((layer.kernel.numpy() == 0).sum())
        for layer in model.layers
        if getattr(layer, "kernel", None) is not None
    }


def test_every_chosen_kernel_is_pruned_and_small_layers_are_left_alone(pruned: Any) -> None:
    # tfmot keeps round(0.2 * size) weights: 29 of 144, 410 of 2048, 10 of 48
    assert zeros(pruned.outcome.model) == {"conv1": 0, "conv2": 115, "hidden": 1638, "logits": 38}
    assert pruned.outcome.promises == (
        Promise("sparsity", "conv2", (3, 3, 2, 8), 0.8, "kernel"),
        Promise("sparsity", "hidden", (128, 16), 0.8, "kernel"),
        Promise("sparsity", "logits", (16, 3), 0.8, "kernel"),
    )
    assert {fact["name"]: fact["note"] for fact in pruned.outcome.layers} == {
        "conv1": "holds 0.78% of the weights, under 1.00%",
        "norm": "tfmot has nothing to prune in BatchNormalization",
        "conv2": "pruned to 0.8",
        "hidden": "pruned to 0.8",
        "logits": "pruned to 0.8",
    }


def test_the_result_is_the_plain_model_and_still_works(small: Any, pruned: Any) -> None:
    assert [layer.name for layer in pruned.outcome.model.layers] == [layer.name for layer in small.load().layers]
    assert pruned.outcome.model.count_params() == 2293
    assert pruned.outcome.metrics["accuracy"] > 0.5
    assert len(pruned.outcome.history["val_loss"]) == 2
    # masks do not outlive the stripping: what is saved and loaded is as sparse
    assert zeros(pruned.load())["hidden"] == 1638


def prune(small: Any, config: Prune, log_dir: Path, promises: tuple[Promise, ...] = ()) -> loop.Outcome:
    loop.start(config.seed)
    splits = loop.open_splits(small.examples, small.module, config)
    return pruning.prune(small.load(), small.module, splits, config, promises, str(log_dir))


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["polynomial_decay", "constant"])
def test_a_single_step_prunes_too(small: Any, tmp_path: Path, schedule: str) -> None:
    outcome = prune(small, Prune(0.5, schedule, epochs=1, batch_size=64, min_layer_share=0.5), tmp_path)
    assert zeros(outcome.model) == {"conv1": 0, "conv2": 0, "hidden": 1024, "logits": 0}


def test_nothing_to_prune(small: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Pruner: no layer can be pruned: conv1: holds 0.78%.*; norm: tfmot.*; hidden"
    ):
        prune(small, Prune(0.5, min_layer_share=0.95, epochs=1), tmp_path)


@pytest.mark.slow
def test_an_earlier_promise_is_checked_too(small: Any, tmp_path: Path) -> None:
    promise = Promise("clusters", "hidden", (128, 16), 4)
    with pytest.raises(Exception, match=r"Pruner broke what was promised for 1 layers: hidden \(clusters 4, found"):
        prune(small, Prune(0.5, "constant", epochs=1, batch_size=64), tmp_path, (promise,))


def test_logs_are_written(pruned: Any) -> None:
    [metrics] = Path(pruned.folder, "metrics").glob("events.out.tfevents*")
    content = metrics.read_bytes()
    for layer in ("conv2", "hidden", "logits"):
        assert f"{layer}/mask:0/sparsity".encode() in content
    assert np.isfinite(pruned.outcome.history["loss"]).all()


# schedules that are asked for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "steps", "updates", "reached"),
    [
        # begin, then every frequency-th up to the end
        ({"begin_step": 2, "end_step": 8, "frequency": 3}, 10, [2, 5, 8], 0.8),
        ({"begin_step": 4, "frequency": 2}, 10, [4, 6], 0.8),  # the ramp ends at 7, the last of these at 6
        ({"end_step": 9, "frequency": 4}, 10, [1, 5, 9], 0.8),  # moved, so that the last is at the end
        ({"begin_step": 9, "frequency": 1}, 10, [9, 10], 0.8),  # behind the ramp's end: one step later
        # 0.8 - 0.8 * (1 - 10 / 20) ** 3
        ({"begin_step": 0, "end_step": 20, "frequency": 5}, 10, [5, 10], 0.7),
        ({"begin_step": 0, "end_step": 20, "frequency": 5, "power": 1.0}, 10, [5, 10], 0.4),
        ({"begin_step": 0, "end_step": 10, "frequency": 4}, 10, [4, 8], 0.8 - 0.8 * 0.2**3),
        ({"schedule": "constant", "begin_step": 3, "end_step": 7, "frequency": 2}, 10, [3, 5, 7], 0.8),
        ({"schedule": "constant", "begin_step": 10, "frequency": 100}, 10, [10], 0.8),
        # nothing
        ({"begin_step": 0, "end_step": 1000, "frequency": 100}, 10, [], 0.0),
        ({"begin_step": 11, "end_step": 20}, 10, [], 0.0),
        ({"schedule": "constant", "begin_step": 11}, 10, [], 0.0),
        ({"begin_step": 5, "end_step": 50, "frequency": 10}, 10, [5], 0.0),  # an update, but at sparsity 0
    ],
)
def test_asked_schedules_by_hand(asked: dict[str, Any], steps: int, updates: list[int], reached: float) -> None:
    config = Prune(0.8, **asked)
    made = simulate(config, steps)
    assert [step for step, _ in made] == updates
    found = pruning.reached(pruning.schedule(config, steps), steps)
    assert found == pytest.approx(reached)
    assert found == pytest.approx(made[-1][1] if made else 0.0)


def test_a_schedule_that_prunes_nothing_is_refused(small: Any, tmp_path: Path) -> None:
    # 4 batches of 16 in an epoch
    expected = (
        r"^Prune: nothing would be pruned: the schedule begins at step 0, ends at step 200 and updates the masks every "
        r"100 steps, .* in the 8 steps that count .the training has 8."
    )
    with pytest.raises(UserError, match=expected):
        prune(small, Prune(0.5, begin_step=0, end_step=200, frequency=100, batch_size=16), tmp_path)


def test_a_schedule_that_outlasts_the_training(small: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    # 4 steps of 8: 0.8 - 0.8 * (1 - 4 / 8) ** 3 = 0.7 of 2048 weights
    config = Prune(0.8, begin_step=0, end_step=8, frequency=1, epochs=1, batch_size=16, min_layer_share=0.5)
    outcome = prune(small, config, tmp_path)
    assert zeros(outcome.model)["hidden"] == 1434
    [promise] = outcome.promises
    assert promise.value == pytest.approx(0.7)
    assert "asks for sparsity 0.8, but its last update in the training's 4 steps has 0.7000" in caplog.text
    notes = {fact["name"]: fact["note"] for fact in outcome.layers}
    assert notes["hidden"] == "pruned to 0.7 of 0.8: the training ended before the schedule"


# structures -----------------------------------------------------------------------------------------------------------

ONCE = {"epochs": 1, "batch_size": 64, "schedule": "constant"}


def in_file(model: Any, module: Any, promises: tuple[Promise, ...]) -> None:
    """Converts the model and checks its promises in the flatbuffer."""
    io = converter.for_one_example(keras_file.describe_io(model, module))  # recurrent layers need that
    passport = Passport(io, scheme={"scheme": "float32"})
    checks.check_promises(conversion.convert(model, passport, {}), promises)


def test_two_of_four_along_the_inputs_in_keras_and_in_the_file(small: Any, tmp_path: Path) -> None:
    outcome = prune(small, Prune(0.5, m_by_n=(2, 4), epochs=1, batch_size=64, layer_sparsity={}), tmp_path)
    # 2 input channels of conv2 are below a group's two survivors; the others have 128 and 16 inputs
    assert zeros(outcome.model) == {"conv1": 0, "conv2": 0, "hidden": 1024, "logits": 24}
    hidden = outcome.model.get_layer("hidden").kernel.numpy()
    assert ((hidden.reshape(32, 4, 16) == 0).sum(axis=1) == 2).all()
    assert [(p.kind, p.pattern, p.value) for p in outcome.promises] == [("m_by_n", "2x4", 0.5)] * 2
    notes = {fact["name"]: fact["note"] for fact in outcome.layers}
    assert notes["conv2"] == "has 2 inputs only; of every 4, the 2x4 pattern leaves 2"
    assert notes["hidden"] == "pruned by pattern 2x4"
    in_file(outcome.model, small.module, outcome.promises)
    # along the outputs it does not hold
    hidden_t = np.ascontiguousarray(hidden.reshape(16, 128).T)
    outcome.model.get_layer("hidden").kernel.assign(hidden_t)
    with pytest.raises(BrokenPromiseError, match=r"hidden/kernel \(m_by_n 2x4 0.5, found 0.5000 zeros"):
        promise_checks.check_promises(outcome.model, outcome.promises, "Pruner")
    with pytest.raises(BrokenPromiseError, match=r"conversion broke .* hidden \(m_by_n 2x4 0.5, found 0.5000 zeros"):
        in_file(outcome.model, small.module, outcome.promises)


@pytest.mark.parametrize("pooling", ["avg", pytest.param("max", marks=pytest.mark.slow)])
def test_blocks_in_keras_and_in_the_file(small: Any, tmp_path: Path, pooling: str) -> None:
    outcome = prune(small, Prune(0.75, block_size=(4, 2), block_pooling=pooling, **ONCE), tmp_path)
    notes = {fact["name"]: fact["note"] for fact in outcome.layers}
    assert notes["conv2"] == "has a kernel of shape (3, 3, 2, 8); blocks need a matrix"
    assert notes["hidden"] == "pruned to 0.75 in blocks of 4x2"
    blocks = outcome.model.get_layer("hidden").kernel.numpy().reshape(32, 4, 8, 2) == 0
    assert (blocks.all((1, 3)) == blocks.any((1, 3))).all()
    assert blocks.all((1, 3)).sum() == 192  # of 256
    # 3 outputs are one and a half blocks wide: 6 of 8 blocks
    assert Promise("blocks", "logits", (16, 3), 0.75, "kernel", "4x2") in outcome.promises
    in_file(outcome.model, small.module, outcome.promises)


def test_a_named_layer_that_cannot_have_the_structure(small: Any, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"^Prune: layers that are named cannot be had: conv2 has a kernel of shape \(3, 3, 2, 8\); blocks need",
    ):
        prune(small, Prune(0.5, block_size=(1, 4), include=["conv2", "Dense"]), tmp_path)
    with pytest.raises(UserError, match=r"conv1 has 1 inputs only; of every 4, the 2x4 pattern leaves 2"):
        prune(small, Prune(0.5, m_by_n=(2, 4), include=["conv1"]), tmp_path)


# kinds of layers and models -------------------------------------------------------------------------------------------

WORDS_MODULE = """
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {"words": tf.io.FixedLenFeature([6], tf.int64), "label": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    return tf.cast(features["words"], tf.float32), features["label"]


def build_model():
    return keras.Sequential(
        [
            keras.Input([6], name="words"),
            keras.layers.Embedding(20, 8, mask_zero=MASKED, name="embed"),
            keras.layers.LAYER(8, name="memory"),
            keras.layers.Dense(1, activation="sigmoid", name="head"),
        ]
    )


def compile_model(model):
    model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
"""


def write_words(root: Path, write_split: Any) -> str:
    random = np.random.default_rng(0)
    for split, count in (("train", 64), ("validation", 8)):
        words = random.integers(1, 20, [count, 6])
        words[:, 4:] = 0
        write_split(root, split, [{"words": row, "label": int(row[0] > 9)} for row in words])
    return str(root)


@pytest.mark.parametrize(
    ("kind", "masked"),
    [
        # each conversion of a loop takes 10 s
        pytest.param("LSTM", False, marks=pytest.mark.slow),
        pytest.param("LSTM", True, marks=pytest.mark.slow),
        pytest.param("GRU", False, marks=pytest.mark.slow),
        pytest.param("GRU", True, marks=pytest.mark.slow),
    ],
)
def test_embeddings_and_recurrent_kernels(tmp_path: Path, write_split: Any, kind: str, masked: bool) -> None:
    path = tmp_path / "words.py"
    path.write_text(WORDS_MODULE.replace("LAYER", kind).replace("MASKED", str(masked)))
    module = hooks.load(str(path))
    examples = write_words(tmp_path / "examples", write_split)
    config = Prune(0.7, initial_sparsity=0.3, epochs=2, batch_size=16)
    loop.start(0)
    splits = loop.open_splits(examples, module, config)
    outcome = pruning.prune(module.build_model(), module, splits, config, (), str(tmp_path / "logs"))
    gates = {"LSTM": 4, "GRU": 3}[kind]
    # two of one shape, and each of them is promised
    assert [(p.layer, p.weight, p.shape) for p in outcome.promises] == [
        ("embed", "embeddings", (20, 8)),
        ("memory", "kernel", (8, 8 * gates)),
        ("memory", "recurrent_kernel", (8, 8 * gates)),
        ("head", "kernel", (8, 1)),
    ]
    found = {w.name: float((w.numpy() == 0).mean()) for w in outcome.model.weights if "bias" not in w.name}
    assert list(found.values()) == pytest.approx([0.7, 0.7, 0.7, 0.75], abs=0.005)  # 6 of 8
    in_file(outcome.model, module, outcome.promises)
    recurrent = outcome.model.get_layer("memory").weights[1]
    recurrent.assign(recurrent + 1)
    with pytest.raises(BrokenPromiseError, match=r"conversion broke .* 1 layers: memory \(sparsity 0.7 in 2 weights"):
        in_file(outcome.model, module, outcome.promises)


def test_the_mask_of_padded_sequences_reaches_the_layers_behind(tmp_path: Path) -> None:
    path = tmp_path / "words.py"
    path.write_text(WORDS_MODULE.replace("LAYER", "LSTM").replace("MASKED", "True"))
    module = hooks.load(str(path))
    loop.start(0)
    model = module.build_model()
    words = np.float32([[3, 4, 0, 0, 0, 0]])
    expected = model(words).numpy()
    wrapped = tf_keras.models.clone_model(
        model, clone_function=lambda layer: layer if layer.name == "head" else pruning.PruneLowMagnitude(layer)
    )
    np.testing.assert_array_equal(wrapped(words), expected)
    assert not np.allclose(model(np.float32([[3, 4, 1, 1, 1, 1]])), expected)


def test_several_ports_a_layer_of_ones_own_and_a_model_within(ports: Any, tmp_path: Path) -> None:
    module, examples = ports
    config = Prune(
        0.5, "constant", epochs=1, batch_size=16, layer_sparsity={"gate": 0.75}, protect="last", exclude=["body"]
    )
    loop.start(0)
    splits = loop.open_splits(examples, module, config)
    outcome = pruning.prune(module.build_model(), module, splits, config, (), str(tmp_path / "logs"))
    assert {(p.layer, p.weight, p.value) for p in outcome.promises} == {
        ("gate", "mix", 0.75),
        ("within", "kernel", 0.5),
    }
    gate = outcome.model.get_layer("gate")
    assert (gate.mix.numpy() == 0).sum() == 48
    assert (gate.free.numpy() == 0).sum() == 0
    notes = {fact["name"]: fact["note"] for fact in outcome.layers}
    assert notes["body"] == "is excluded"
    assert notes["a"] == notes["b"] == "is protected as last layer"
    in_file(outcome.model, module, outcome.promises)


def test_a_wrapped_model_is_saved_and_loaded_in_the_middle_of_its_training(tmp_path: Path) -> None:
    loop.start(0)
    model = tf_keras.Sequential([tf_keras.Input([4]), tf_keras.layers.Dense(8, name="hidden")])
    plan = pruning.schedule(Prune(0.5, ramp=1), 8)
    wrapped = tf_keras.models.clone_model(
        model, clone_function=lambda layer: pruning.PruneLowMagnitude(layer, pruning_schedule=plan)
    )
    wrapped.compile("adam", "mse")
    x, y = np.ones([64, 4], np.float32), np.ones([64, 8], np.float32)
    steps = [tfmot.sparsity.keras.UpdatePruningStep()]
    wrapped.fit(x, y, batch_size=16, verbose=0, callbacks=steps)  # 4 of 8 steps
    path = str(tmp_path / "wrapped.keras")
    wrapped.save(path)
    with tfmot.sparsity.keras.prune_scope():
        loaded = tf_keras.models.load_model(path)
    for before, after in zip(wrapped.variables, loaded.variables, strict=True):
        np.testing.assert_array_equal(before, after)
    [layer] = loaded.layers
    assert int(layer.pruning_step) == int(wrapped.layers[0].pruning_step) == 4
    assert int(loaded.optimizer.iterations) == 4
    # 0.5 - 0.5 * (1 - 4 / 8) ** 3 of 32 weights
    assert int((layer.pruning_vars[0][1].numpy() == 0).sum()) == 14
    for one in (wrapped, loaded):
        one.fit(x, y, batch_size=16, verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
    assert int((loaded.layers[0].layer.kernel.numpy() == 0).sum()) == 16
    np.testing.assert_array_equal(loaded.layers[0].layer.kernel, wrapped.layers[0].layer.kernel)


@pytest.mark.slow
def test_a_pattern_is_loaded_in_the_middle_of_its_training(tmp_path: Path) -> None:
    loop.start(0)
    model = tf_keras.Sequential([tf_keras.Input([8]), tf_keras.layers.Dense(4, name="hidden")])
    config = Prune(0.5, m_by_n=(2, 4))
    wrapped = tf_keras.models.clone_model(
        model,
        clone_function=lambda layer: pruning.PruneLowMagnitude(
            layer, pruning_schedule=pruning.schedule(config, 8), sparsity_m_by_n=config.m_by_n
        ),
    )
    wrapped.compile("adam", "mse")
    random = np.random.default_rng(0)
    x, y = random.normal(size=[64, 8]).astype(np.float32), random.normal(size=[64, 4]).astype(np.float32)
    wrapped.fit(x, y, batch_size=16, verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])  # 4 of 8 steps
    path = str(tmp_path / "wrapped.keras")
    wrapped.save(path)
    with tfmot.sparsity.keras.prune_scope():
        loaded = tf_keras.models.load_model(path)
    loaded.fit(x, y, batch_size=16, verbose=0, callbacks=[tfmot.sparsity.keras.UpdatePruningStep()])
    before, after = (model.layers[0].layer.kernel.numpy() for model in (wrapped, loaded))
    assert ((before.reshape(2, 4, 4) == 0).sum(axis=1) == 2).all()
    np.testing.assert_array_equal(after == 0, before == 0)
    assert not np.array_equal(after, before)


# XNNPACK --------------------------------------------------------------------------------------------------------------


def mobile(**changes: Any) -> tf_keras.Model:
    """A small network that XNNPACK's sparse kernels can run, but for these changes."""
    said = {"padding": "valid", "activation": "relu", "kernel": 1, "keepdims": True, "depthwise": 1, **changes}
    return tf_keras.Sequential(
        [
            tf_keras.Input([16, 16, 3], name="image"),
            tf_keras.layers.ZeroPadding2D(1, name="pad"),
            tf_keras.layers.Conv2D(4, 3, strides=2, padding=said["padding"], name="stem"),
            tf_keras.layers.DepthwiseConv2D(3, padding="same", strides=said["depthwise"], name="depth"),
            tf_keras.layers.Conv2D(8, said["kernel"], padding="same", name="point"),
            tf_keras.layers.Activation(said["activation"], name="act"),
            tf_keras.layers.GlobalAveragePooling2D(keepdims=said["keepdims"], name="pool"),
            tf_keras.layers.Flatten(name="flat"),
            tf_keras.layers.Dense(2, name="head"),
        ]
    )


def test_xnnpack_qualifies_by_tfmots_own_word() -> None:
    model = mobile()
    assert xnnpack.violations(model) == []
    tfmot.sparsity.keras.PruneForLatencyOnXNNPack().ensure_model_supports_pruning(model)


def test_xnnpack_names_every_layer_that_breaks_a_rule() -> None:
    model = mobile(padding="same", activation="tanh", kernel=3, depthwise=2)
    with pytest.raises(UserError) as error:
        xnnpack.check(model)
    text = str(error.value)
    assert text.startswith(
        "Prune.policy xnnpack: the model breaks 4 rules of XNNPACK's sparse inference: stem (Conv2D): "
    )
    assert "it is 3x3 with strides (2, 2), padding same, of 3 channels, behind ZeroPadding2D;" in text
    assert "depth (DepthwiseConv2D): a DepthwiseConv2D must be 3x3 or 5x5" in text
    assert "point (Conv2D): a Conv2D must be 1x1 with strides 1" in text
    assert "act (Activation): activation tanh has no sparse kernel" in text
    with pytest.raises(ValueError, match="Could not find"):
        tfmot.sparsity.keras.PruneForLatencyOnXNNPack().ensure_model_supports_pruning(model)


def test_xnnpack_needs_a_pooled_end(small: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"logits \(Dense\)|image.*: no GlobalAveragePooling2D on a path"):
        prune(small, Prune(0.7, policy="xnnpack"), tmp_path)


def test_xnnpack_prunes_1x1_convolutions_alone() -> None:
    model = mobile()
    config = Prune(0.7, policy="xnnpack")
    reasons = {
        name: pruning._unfit(model.get_layer(name), pruning._kernels(model.get_layer(name)), config)
        for name in ("stem", "point", "head")
    }
    wrong = "is no 1x1 Conv2D, which XNNPACK's sparse kernels are for"
    assert reasons == {"stem": wrong, "point": None, "head": wrong}


MOBILE_MODULE = """

def preprocess(features):
    images = tf.reshape(features["image"], [-1, 8, 8, 1])
    return tf.repeat(tf.repeat(tf.repeat(images, 2, 1), 2, 2), 3, 3), features["label"]


def build_model():
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input([16, 16, 3], name="image"),
            layers.ZeroPadding2D(1),
            layers.Conv2D(4, 3, strides=2, activation="relu", name="stem"),
            layers.DepthwiseConv2D(3, padding="same", activation="relu", name="depth"),
            layers.Conv2D(8, 1, activation="relu", name="point"),
            layers.GlobalAveragePooling2D(keepdims=True),
            layers.Flatten(),
            layers.Dense(3, name="head"),
        ]
    )
"""


@pytest.mark.slow
def test_xnnpack_from_training_to_file(small: Any, tmp_path: Path) -> None:
    path = tmp_path / "mobile.py"
    path.write_text(Path(small.path).read_text() + MOBILE_MODULE)
    module = hooks.load(str(path))
    config = Prune(0.75, policy="xnnpack", **ONCE)
    loop.start(0)
    splits = loop.open_splits(small.examples, module, config)
    outcome = pruning.prune(module.build_model(), module, splits, config, (), str(tmp_path / "logs"))
    assert zeros(outcome.model) == {"stem": 0, "point": 24, "head": 0}
    assert [(p.layer, p.value) for p in outcome.promises] == [("point", 0.75)]
    notes = {fact["name"]: fact["note"] for fact in outcome.layers}
    assert notes["stem"] == notes["head"] == "is no 1x1 Conv2D, which XNNPACK's sparse kernels are for"
    in_file(outcome.model, module, outcome.promises)
