from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgeline.conversion import checks, converter
from edgeline.conversion.failures import ExportError
from edgeline.keras_models import promise_checks
from edgeline.keras_models.promise_kinds import kind_of
from edgeline.model_io import keras_file
from edgeline.passport import Promise
from edgeline.quantizer import quantization
from edgeline.quantizer.config import Quantize
from edgeline.quantizer.keeping import Keep
from edgeline.tflite import inspection
from edgeline.training import loop

_L = tf_keras.layers


def net() -> tf_keras.Model:
    """Convolutions of size 1 and depthwise ones, a dense layer and an LSTM: most are none of tfmot's own schemes."""
    tf_keras.backend.clear_session()
    tf_keras.utils.set_random_seed(0)
    return tf_keras.Sequential(
        [
            tf_keras.Input([8, 8, 1], name="image"),
            _L.Conv2D(8, 3, use_bias=False, name="stem"),
            _L.BatchNormalization(name="norm"),
            _L.ReLU(name="relu"),
            _L.DepthwiseConv2D(3, name="depthwise"),
            _L.Conv2D(16, 1, activation="relu", name="point"),
            _L.Reshape([16, 16], name="sequence"),
            _L.Conv1D(8, 3, activation="relu", name="line"),
            _L.Flatten(name="flatten"),
            _L.Dense(3, name="logits"),
        ]
    )


def compressed(*, zeros: bool, clusters: int) -> tuple[tf_keras.Model, tuple[Promise, ...]]:
    """Returns the net with half of all kernels zero and so many shared values, and what was promised of them."""
    model, promises = net(), []
    for name in ("stem", "depthwise", "point", "line", "logits"):
        kernel = model.get_layer(name).weights[0]
        values = kernel.numpy()
        if zeros:
            values[np.abs(values) <= np.median(np.abs(values))] = 0
            promises.append(Promise("sparsity", name, tuple(kernel.shape), float(np.mean(values == 0))))
        if clusters:
            levels = np.linspace(values.min(), values.max(), clusters - zeros)
            shared = levels[np.abs(values[..., None] - levels).argmin(-1)].astype(np.float32)
            values = np.where(values == 0, 0, shared) if zeros else shared
        if clusters and name != "depthwise":
            promises.append(Promise("clusters", name, tuple(kernel.shape), clusters))
        kernel.assign(values)
    return model, tuple(promises)


def train(
    model: tf_keras.Model, promises: tuple[Promise, ...], small: Any, folder: Path, **asked: Any
) -> tuple[tf_keras.Model, dict[str, Any]]:
    config = Quantize("qat8", epochs=1, batch_size=16, **asked)
    loop.start(config.seed)
    splits = loop.open_splits(small.examples, small.module, config)
    outcome, plan = quantization.train_aware(model, small.module, splits, config, promises, str(folder))
    return outcome.model, plan


@pytest.mark.parametrize(
    ("zeros", "clusters", "scheme"),
    [
        pytest.param(True, 0, "keep_zeros", marks=pytest.mark.slow, id="zeros"),
        pytest.param(False, 6, "keep_clusters", marks=pytest.mark.slow, id="clusters"),
        pytest.param(True, 6, "keep_clusters_and_zeros", id="both"),
    ],
)
def test_zeros_and_shared_values_survive_the_training_and_the_conversion(
    small: Any, tmp_path: Path, zeros: bool, clusters: int, scheme: str
) -> None:
    model, promises = compressed(zeros=zeros, clusters=clusters)
    before = {layer.name: layer.weights[0].numpy() for layer in model.layers if layer.weights}
    wrapped, plan = train(model, promises, small, tmp_path)
    assert plan["scheme"] == scheme
    promise_checks.check_promises(wrapped, promises, "Quantizer")
    for promise in promises:
        layer = wrapped.get_layer(f"quant_{promise.layer}")
        [kernel] = [w.numpy() for w in layer.weights if w.name.startswith(promise.layer) and w.shape == promise.shape]
        was = before[promise.layer]
        if kind_of(promise).of_zeros:
            assert (kernel[was == 0] == 0).all(), promise
        assert np.abs(kernel - was).max() > 1e-4, "it was trained"
    io = {
        "inputs": [{"name": "image", "shape": [None, 8, 8, 1], "dtype": "float32"}],
        "outputs": [{"name": "logits"}],
    }
    content = converter.convert(wrapped, io, {"scheme": "qat8", "io_type": "int8"}, {})
    checks.check_promises(content, promises)


@pytest.mark.slow
def test_what_came_back_from_the_file_keeps_them_too(small: Any, tmp_path: Path) -> None:
    model, promises = compressed(zeros=True, clusters=6)
    keras_file.save(model, str(tmp_path))
    wrapped, plan = train(model, promises, small, tmp_path)
    keras_file.save_qat(wrapped, str(tmp_path))
    again = keras_file.load_qat(str(tmp_path), small.module, plan)
    promise_checks.check_promises(again, promises, "Quantizer")
    np.testing.assert_array_equal(again(small.images()), wrapped(small.images()))


@pytest.mark.slow
def test_layers_left_float_keep_them_too(small: Any, tmp_path: Path) -> None:
    model, promises = compressed(zeros=True, clusters=6)
    wrapped, plan = train(model, promises, small, tmp_path, keep_float=["point", "logits"])
    assert plan["left_float"] == {"point": "keep_float", "logits": "keep_float"}
    promise_checks.check_promises(wrapped, promises, "Quantizer")
    # without a scale by channel they share their values in the whole kernel, as before
    assert len(np.unique(wrapped.get_layer("point").kernel)) <= 6


Change = Callable[[Any], Any]


def moved(*changes: Change, kind: str, constraint: Any = None) -> list[float]:
    """Returns a kernel that was [0, 1, 1, 2] after these changes, each followed by the constraint."""
    layer = _L.Dense(1, use_bias=False, kernel_constraint=constraint, name="dense")
    model = tf_keras.Sequential([tf_keras.Input([4]), layer])
    layer.kernel.assign([[0.0], [1.0], [1.0], [2.0]])
    keep = Keep(model, [Promise(kind, "dense", (4, 1), 1), Promise(kind, "gone", (4, 1), 1)])
    for change in changes:
        layer.kernel.assign(change(layer.kernel))
        layer.kernel.assign(layer.kernel.constraint(layer.kernel))
    keep.restore()
    assert layer.kernel.constraint is None
    return layer.kernel.numpy().ravel().tolist()


def test_zeros_are_zero_again_and_equal_weights_get_their_mean() -> None:
    def add(kernel: Any) -> Any:
        return kernel + np.float32([[4], [1], [2], [3]])

    assert moved(add, kind="sparsity") == [0, 2, 3, 5]
    assert moved(add, kind="clusters") == [4, 2.5, 2.5, 5]
    assert moved(add, add, kind="clusters") == [8, 4, 4, 8]


def test_the_constraint_of_the_layer_itself_comes_first() -> None:
    limit = tf_keras.constraints.NonNeg()
    assert moved(lambda k: k - np.float32([[0], [3], [0], [0]]), kind="clusters", constraint=limit) == [0, 0.5, 0.5, 2]


def test_an_optimizer_that_ignores_constraints() -> None:
    layer = _L.Dense(2, use_bias=False, name="dense")
    model = tf_keras.Sequential([tf_keras.Input([2]), layer])
    layer.kernel.assign([[0.0, 1.0], [1.0, 0.0]])
    keep = Keep(model, [Promise("sparsity", "dense", (2, 2), 0.5)])
    layer.kernel.assign(tf.ones([2, 2]))
    keep.restore()
    np.testing.assert_array_equal(layer.kernel, [[0, 1], [1, 0]])


@pytest.mark.slow
def test_integer_ports_with_layers_left_float(small: Any, tmp_path: Path) -> None:
    """What stays float is refused where all is to be integers, by name; unless it was asked for."""
    model = net()
    model = tf_keras.Sequential([*model.layers[:-1], _L.Activation("elu", name="elu"), _L.Dense(3, name="logits")])
    model.build([None, 8, 8, 1])
    wrapped, plan = train(model, (), small, tmp_path)
    assert plan["left_float"] == {"elu": "Activation elu"}
    io = {
        "inputs": [{"name": "image", "shape": [None, 8, 8, 1], "dtype": "float32"}],
        "outputs": [{"name": "logits"}],
    }
    facts = inspection.facts(converter.convert(wrapped, io, {"scheme": "qat8", "io_type": "uint8"}, {}))
    with pytest.raises(
        ExportError, match=r"qat8 computes on integers alone, but these operators stayed float: ELU \(lay"
    ):
        checks.check_integers(facts, {"scheme": "qat8", "io_type": "uint8"})
    checks.check_integers(facts, {"scheme": "qat8", "io_type": "float32"})
    assert [port["dtype"] for port in (*facts["inputs"], *facts["outputs"])] == ["uint8", "uint8"]
