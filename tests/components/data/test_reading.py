from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from edgeline.data import reading
from edgeline.errors import UserError
from edgeline.model_module import hooks as model_hooks
from edgeline.model_module.hooks import ModelModule
from edgeline.model_module.module_source import OPTIONAL_HOOKS, REQUIRED_HOOKS

#: 50 examples: no multiple of any batch size below
COUNT = 50


def rows(count: int = COUNT) -> list[dict[str, object]]:
    """Examples whose four numbers begin with their index."""
    return [{"x": np.float32([i, 0, 0, 1]), "y": i % 3} for i in range(count)]


@pytest.fixture
def files(tmp_path: Path, write_split: Callable[..., list[str]]) -> list[str]:
    return write_split(tmp_path / "examples", "train", rows(), 3)


@pytest.fixture
def module(tiny_module: Path) -> ModelModule:
    return model_hooks.load(str(tiny_module))


@pytest.fixture(params=["kept in memory", "streamed"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "streamed":
        monkeypatch.setattr(reading, "IN_MEMORY_BYTES", 100)
    return request.param


def variant(tiny_module: Path, **hooks: str) -> ModelModule:
    """The tiny module with other hooks, by their bodies."""
    signatures = REQUIRED_HOOKS | OPTIONAL_HOOKS
    code = [f"def {signatures[hook].split(' ->')[0]}:\n    {body}\n" for hook, body in hooks.items()]
    tiny_module.write_text("\n\n".join([tiny_module.read_text(), *code]))
    return model_hooks.load(str(tiny_module))


def epochs_of(files: list[str], module: ModelModule, *, epochs: int, seed: int, batch_size: int = 16) -> Any:
    """The indices of the examples in the order of each epoch, and the sizes of the batches."""
    opened = reading.training_data(files, module, batch_size=batch_size, epochs=epochs, seed=seed)
    batches = [batch[0].numpy()[:, 0].astype(int).tolist() for batch in opened.dataset]
    steps = opened.steps_per_epoch
    assert len(batches) == steps * epochs
    orders = [list(itertools.chain(*batches[e * steps : (e + 1) * steps])) for e in range(epochs)]
    return orders, [len(batch) for batch in batches]


# parser ---------------------------------------------------------------------------------------------------------------


def serialized(files: list[str]) -> tf.Tensor:
    return next(iter(reading.read_serialized(files).batch(1000)))


def test_the_parser_goes_through_the_hooks(files: list[str], tiny_module: Path) -> None:
    module = variant(tiny_module, preprocess="return features['x'] * 2, features['y'] + 1")
    parser = reading.ExampleParser(module)
    inputs, label, weight = parser(serialized(files[:1]))
    # the first of three shards holds the examples 0, 3, 6...
    np.testing.assert_array_equal(inputs[:3], [[0, 0, 0, 2], [6, 0, 0, 2], [12, 0, 0, 2]])
    np.testing.assert_array_equal(label[:3], [1, 1, 1])
    assert weight is None
    for eager, compiled in zip((inputs, label), parser.compiled(serialized(files[:1])), strict=False):
        np.testing.assert_array_equal(eager, compiled)


def test_the_parser_takes_an_empty_batch(module: ModelModule) -> None:
    inputs, label, _ = reading.ExampleParser(module).compiled(tf.constant([], tf.string))
    assert (inputs.shape, label.shape) == ((0, 4), (0,))


def test_records_come_in_the_order_of_the_files_however_they_are_read(files: list[str]) -> None:
    one_by_one = list(reading.read_serialized(files).as_numpy_iterator())
    assert len(one_by_one) == COUNT
    together = list(reading.read_serialized(files, 3).as_numpy_iterator())
    assert sorted(together) == sorted(one_by_one)
    assert together == list(reading.read_serialized(files, 3).as_numpy_iterator())


def test_parsed_batches_cover_the_split(files: list[str], module: ModelModule) -> None:
    batches = list(reading.parsed_batches(files, reading.ExampleParser(module), 20))
    assert [len(batch[0]) for batch in batches] == [20, 20, 10]
    assert all(batch[2] is None for batch in batches)
    assert sorted(int(x[0]) for batch in batches for x in batch[0]) == list(range(COUNT))


@pytest.mark.parametrize(
    ("shape", "examples"),
    [
        ([None, 4], 256),
        ([None, 2**18], 8),  # a MiB each
        ([None, 3 * 2**18], 2),  # 2.7 in 8 MiB
        ([None, 2**22], 1),  # 16 MiB
        ([None, None, 2**10], 16),  # a hundred for what varies: 20 of 409,600 bytes
        (None, 256),
    ],
)
def test_large_examples_come_in_small_batches(shape: list[int | None] | None, examples: int) -> None:
    inputs = tf.TensorSpec(shape, tf.float32)
    assert reading.fitting_batch(inputs, 256) == examples
    assert reading.fitting_batch({"a": inputs, "b": [inputs]}, 7) == min(7, max(examples // 2, 1))


# files ----------------------------------------------------------------------------------------------------------------


def test_split_files_are_sorted(tmp_path: Path, files: list[str]) -> None:
    assert reading.split_files(str(tmp_path / "examples"), "train") == sorted(files)


def test_a_missing_split_names_those_that_are_there(tmp_path: Path, files: list[str]) -> None:
    with pytest.raises(
        UserError, match=r"no files in split 'eval' \(.*Split-eval\); splits there: train. Edgeline need"
    ):
        reading.split_files(str(tmp_path / "examples"), "eval")
    with pytest.raises(UserError, match="splits there: none"):
        reading.split_files(str(tmp_path / "nothing"), "train")
    (tmp_path / "examples" / "Split-eval").mkdir()
    with pytest.raises(UserError, match="no files in split 'eval'"):
        reading.split_files(str(tmp_path / "examples"), "eval")


# training data --------------------------------------------------------------------------------------------------------


def test_a_split_that_fits_is_kept_in_memory_and_a_larger_one_is_not(
    files: list[str], module: ModelModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = COUNT * (4 * 4 + 8)  # four float32 and an int64 each
    monkeypatch.setattr(reading, "IN_MEMORY_BYTES", size)
    inputs, label = reading._load(files, module)
    assert (inputs.shape, label.shape) == ((COUNT, 4), (COUNT,))
    monkeypatch.setattr(reading, "IN_MEMORY_BYTES", size - 1)
    assert reading._load(files, module) == COUNT


def test_every_epoch_is_a_permutation_of_its_own(files: list[str], module: ModelModule, both_ways: str) -> None:
    orders, sizes = epochs_of(files, module, epochs=3, seed=7)
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert sizes == [16, 16, 16, 2] * 3  # no batch spans two epochs


def test_one_shard_is_shuffled_in_every_epoch_too(tmp_path: Path, module: ModelModule, both_ways: str, write_split: Any
) -> None:  # fmt: skip
    files = write_split(tmp_path, "train", rows())
    orders, _ = epochs_of(files, module, epochs=3, seed=0)
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    assert list(range(COUNT)) not in orders


def test_the_order_depends_on_seed_and_epoch_alone(files: list[str], module: ModelModule, both_ways: str) -> None:
    tf_keras.utils.set_random_seed(1)
    first, _ = epochs_of(files, module, epochs=3, seed=7)
    tf_keras.utils.set_random_seed(2)
    tf.random.uniform([5])  # something else that draws
    second, _ = epochs_of(files, module, epochs=2, seed=7)
    assert second == first[:2]  # so a training that is resumed or cut short sees the same
    others = [epochs_of(files, module, epochs=1, seed=seed)[0][0] for seed in (0, 8, 2**31 - 1)]
    assert len({tuple(order) for order in [*first, *others]}) == 6


def test_the_windows_of_a_streamed_split_are_shuffled_each_in_its_own_way(
    tmp_path: Path, module: ModelModule, write_split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "IN_MEMORY_BYTES", 0)
    files = write_split(tmp_path, "train", rows(64))
    [order], sizes = epochs_of(files, module, epochs=1, seed=0, batch_size=2)
    assert sizes == [2] * 32
    # windows of 16 batches of 2
    first, second = order[:32], order[32:]
    assert sorted(first) == list(range(32))
    assert first != sorted(first)
    assert [index - 32 for index in second] != first


def test_labels_stay_with_their_inputs(files: list[str], module: ModelModule, both_ways: str) -> None:
    opened = reading.training_data(files, module, batch_size=16, epochs=2, seed=0)
    assert (opened.steps_per_epoch, opened.examples) == (4, COUNT)
    for inputs, label in opened.dataset:
        np.testing.assert_array_equal(inputs[:, 0] % 3, label)


def test_example_weights_are_passed_on(files: list[str], tiny_module: Path, both_ways: str) -> None:
    module = variant(tiny_module, example_weight="return features['x'][:, 0] / 10")
    for opened in (
        reading.training_data(files, module, batch_size=16, epochs=1, seed=0),
        reading.evaluation_data(files, module, batch_size=16),
    ):
        total = 0
        for inputs, _, weight in opened.dataset:
            np.testing.assert_array_equal(weight, inputs[:, 0] / 10)
            total += len(weight)
        assert total == COUNT


def test_augmentation_draws_anew_in_every_step_and_repeats_for_the_same_seed(
    files: list[str], tiny_module: Path, both_ways: str
) -> None:
    # puts the draw where it can be seen
    body = "return tf.concat([inputs[:, :2], inputs[:, :2] * 0 + tf.cast(seed, tf.float32)], 1), label"
    module = variant(tiny_module, augment=body)

    def draws(seed: int) -> list[tuple[float, ...]]:
        opened = reading.training_data(files, module, batch_size=16, epochs=2, seed=seed)
        found = []
        for inputs, _ in opened.dataset:
            assert (inputs.numpy()[:, 2:] == inputs.numpy()[0, 2:]).all()
            found.append(tuple(inputs.numpy()[0, 2:]))
        return found

    # by (epoch * 1,000,003 + seed, step)
    assert draws(5) == [(5.0, float(i)) for i in range(4)] + [(1_000_008.0, float(i)) for i in range(4)]
    assert not set(draws(5)) & set(draws(6))
    # evaluation is not augmented
    evaluated = [x[2] for inputs, _ in reading.evaluation_data(files, module, batch_size=16).dataset for x in inputs]
    assert set(map(float, evaluated)) == {0.0}


def test_dict_inputs(files: list[str], tiny_module: Path, both_ways: str) -> None:
    module = variant(
        tiny_module, preprocess="return {'b': features['x'][:, 1:], 'a': features['x'][:, :1]}, features['y']"
    )
    opened = reading.training_data(files, module, batch_size=16, epochs=1, seed=0)
    seen = []
    for inputs, label in opened.dataset:
        assert {name: tensor.shape[1:] for name, tensor in inputs.items()} == {"a": (1,), "b": (3,)}
        np.testing.assert_array_equal(inputs["a"][:, 0] % 3, label)
        seen += inputs["a"].numpy()[:, 0].astype(int).tolist()
    assert sorted(seen) == list(range(COUNT))


def test_evaluation_data_is_the_split_in_order_each_time(
    tmp_path: Path, module: ModelModule, both_ways: str, write_split: Any
) -> None:
    opened = reading.evaluation_data(write_split(tmp_path, "validation", rows()), module, batch_size=20)
    assert (opened.steps_per_epoch, opened.examples) == (3, COUNT)
    for _ in range(2):
        batches = [inputs.numpy()[:, 0].astype(int).tolist() for inputs, _ in opened.dataset]
        assert batches == [list(range(20)), list(range(20, 40)), list(range(40, 50))]


def test_fit_and_evaluate_take_both_kinds(files: list[str], module: ModelModule, both_ways: str) -> None:
    model = module.build_model()
    module.compile_model(model)
    opened = reading.training_data(files, module, batch_size=16, epochs=2, seed=0)
    history = model.fit(
        opened.dataset,
        epochs=2,
        steps_per_epoch=opened.steps_per_epoch,
        validation_data=reading.evaluation_data(files, module, batch_size=512).dataset,
        verbose=0,
    )
    assert len(history.history["val_loss"]) == 2


# what can be wrong with the data --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({"y": 1}, r"Feature: x \(data type: float\) is required but could not be found"),
        ({"x": np.float32([1, 2, 3]), "y": 1}, r"Key: x, Index: 5\.  Number of float values != expected.*\[4\]"),
        (
            {"x": [1, 2, 3, 4], "y": 1},
            r"Key: x, Index: 5\.  Data types don't match\. Data type: int64 but expected type: float",
        ),
        ({"x": ["a"], "y": 1}, r"Data types don't match"),
    ],
)
def test_examples_that_do_not_fit_the_module(
    tmp_path: Path, module: ModelModule, both_ways: str, write_split: Any, example: dict[str, object], message: str
) -> None:
    files = write_split(tmp_path, "train", [*rows(5), example, *rows(5)])
    expected = (
        rf"the examples in {files[0]} do not fit the model module {module.source.reference}: .*{message}.* "
        r"Its feature_spec\(\) asks for \{x: float32 \[4\], y: int64 \[\]\}$"
    )
    with pytest.raises(UserError, match=expected) as caught:
        reading.training_data(files, module, batch_size=16, epochs=1, seed=0)
    assert not any(noise in str(caught.value) for noise in ("function_node", "[Op:", "Iterator::"))
    with pytest.raises(UserError, match=expected):
        reading.evaluation_data(files, module, batch_size=16)


def test_a_feature_of_variable_length_is_described(tmp_path: Path, tiny_module: Path, write_split: Any) -> None:
    spec = "return {'x': tf.io.VarLenFeature(tf.float32), 'y': tf.io.FixedLenFeature([2], tf.int64)}"
    module = variant(tiny_module, feature_spec=spec)
    with pytest.raises(UserError, match=r"asks for \{x: float32 VarLenFeature, y: int64 \[2\]\}"):
        reading.training_data(write_split(tmp_path, "train", rows()), module, batch_size=1, epochs=1, seed=0)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_shard(files: list[str], module: ModelModule, keep: float) -> None:
    content = Path(files[1]).read_bytes()
    Path(files[1]).write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(UserError, match=f"corrupt or truncated TFRecord: {files[1]}: truncated record"):
        reading.training_data(files, module, batch_size=16, epochs=1, seed=0)
    with pytest.raises(UserError, match=f"corrupt or truncated TFRecord: {files[1]}: "):
        reading.training_data(files[1:2], module, batch_size=16, epochs=1, seed=0)


def test_a_file_that_is_no_tfrecord(tmp_path: Path, module: ModelModule) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("a note that someone left here\n" * 10)
    with pytest.raises(UserError, match=f"corrupt or truncated TFRecord: {path}"):
        reading.training_data([str(path)], module, batch_size=16, epochs=1, seed=0)


def test_a_split_without_records(tmp_path: Path, module: ModelModule, both_ways: str, write_split: Any) -> None:
    files = write_split(tmp_path, "train", [], 2)
    with pytest.raises(UserError, match=r"the examples in .*Split-train are empty: 0 records in 2 shards"):
        reading.training_data(files, module, batch_size=16, epochs=1, seed=0)


# inputs and the model -------------------------------------------------------------------------------------------------


def test_named_inputs() -> None:
    a, b = np.zeros([2, 1]), np.ones([2, 3])
    assert reading.named_inputs(tf.constant(a), ["x"])["x"].shape == (2, 1)
    for inputs in ([a, b], (a, b), {"b": b, "a": a}):
        named = reading.named_inputs(inputs, ["a", "b"])
        assert list(named) == ["a", "b"]
        assert named["a"] is a
        assert named["b"] is b
    with pytest.raises(UserError, match="preprocess returns 1 inputs, but the model has 2: a, b"):
        reading.named_inputs(a, ["a", "b"])
    with pytest.raises(
        UserError, match=r"preprocess returns inputs \['a', 'c'\], but the model's inputs are \['a', 'b'\]"
    ):
        reading.named_inputs({"a": a, "c": b}, ["a", "b"])


def two_inputs(a: int, b: int) -> str:
    return (
        f"a, b = keras.Input([{a}], name='a'), keras.Input([{b}], name='b')\n"
        "    return keras.Model([a, b], keras.layers.Dense(3)(keras.layers.Concatenate()([a, b])))"
    )


FITTING = [
    {},
    {"build_model": "return keras.Sequential([keras.Input([None]), keras.layers.Lambda(lambda x: x)])"},
    {
        "preprocess": "return [features['x'][:, :1], features['x'][:, 1:]], features['y']",
        "build_model": two_inputs(1, 3),
    },
    {
        "preprocess": "return {'b': features['x'][:, 1:], 'a': features['x'][:, :1]}, features['y']",
        "build_model": two_inputs(1, 3),
    },
]


@pytest.mark.parametrize("hooks", FITTING)
def test_inputs_that_fit_the_model(tiny_module: Path, hooks: dict[str, str]) -> None:
    module = variant(tiny_module, **hooks)
    reading.check_fits_model(reading.ExampleParser(module), module.build_model(), "m.py")


@pytest.mark.parametrize(
    ("hooks", "message"),
    [
        (
            {"preprocess": "return features['x'][:, :3], features['y']"},
            r"preprocess of m.py returns input 'x' of shape \(None, 3\) float32, but build_model takes \(None, 4\) fl",
        ),
        (
            {"preprocess": "return tf.cast(features['x'], tf.float64), features['y']"},
            r"returns input 'x' of shape \(None, 4\) float64, but build_model takes \(None, 4\) float32",
        ),
        (
            {"preprocess": "return features['x'][:, None], features['y']"},
            r"returns input 'x' of shape \(None, 1, 4\) float32, but",
        ),
        ({"build_model": two_inputs(1, 3)}, "preprocess of m.py returns 1 inputs, but build_model has 2: a, b"),
        (
            {"preprocess": "return {'image': features['x']}, features['y']"},
            r"preprocess of m.py returns inputs \['image'\], but build_model's inputs are \['x'\]",
        ),
        (
            {
                "preprocess": "return {'a': features['x'][:, 1:], 'b': features['x'][:, :1]}, features['y']",
                "build_model": two_inputs(1, 3),
            },
            r"returns input 'a' of shape \(None, 3\) float32, but build_model takes \(None, 1\) float32",
        ),
    ],
)
def test_inputs_that_do_not_fit_the_model(tiny_module: Path, hooks: dict[str, str], message: str) -> None:
    module = variant(tiny_module, **hooks)
    with pytest.raises(UserError, match=message):
        reading.check_fits_model(reading.ExampleParser(module), module.build_model(), "m.py")


# fingerprint ----------------------------------------------------------------------------------------------------------


def test_the_fingerprint_is_over_contents_and_names(tmp_path: Path, write_split: Any) -> None:
    root = tmp_path / "examples"
    files = write_split(root, "train", rows(), 2)
    before = reading.fingerprint(str(root))
    assert len(bytes.fromhex(before)) == 32

    moved = tmp_path / "elsewhere"
    shutil.copytree(root, moved)
    assert reading.fingerprint(str(moved)) == before

    shutil.move(files[0], files[0] + ".renamed")
    renamed = reading.fingerprint(str(root))
    assert renamed != before
    shutil.move(files[0] + ".renamed", files[0])
    assert reading.fingerprint(str(root)) == before

    # one bit of one label
    changed = rows()
    changed[0]["y"] = 1
    write_split(root, "train", changed, 2)
    assert reading.fingerprint(str(root)) != before


def test_shards_swapped_between_splits_are_another_fingerprint(tmp_path: Path, write_split: Any) -> None:
    write_split(tmp_path / "one", "train", rows(20))
    write_split(tmp_path / "one", "eval", rows(10))
    write_split(tmp_path / "two", "train", rows(10))
    write_split(tmp_path / "two", "eval", rows(20))
    assert reading.fingerprint(str(tmp_path / "one")) != reading.fingerprint(str(tmp_path / "two"))


def test_the_fingerprint_takes_tiny_files(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    first = reading.fingerprint(str(tmp_path))
    (tmp_path / "empty").write_bytes(b"abc")
    assert reading.fingerprint(str(tmp_path)) != first
