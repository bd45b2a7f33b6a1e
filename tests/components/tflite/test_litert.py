from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema

from edgeline.tflite import litert
from edgeline.tflite.litert import Port, TFLiteModel


def port(dtype: type, scale: float = 0.0, zero_point: int = 0) -> Port:
    return Port("x", 0, (-1, 1), np.dtype(dtype), scale, zero_point)


# numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "scale", "zero_point", "values", "stored"),
    [
        # the usual image input: 0 to 1 in 256 steps; a pixel a little above 1 must not wrap round to -126
        (np.int8, 1 / 255, -128, [0.0, 1.0, 1.01, 2.0, -0.01, 0.2], [-128, 127, 127, 127, -128, -77]),
        (np.uint8, 1 / 255, 0, [0.0, 1.0, 1.01, -0.01, 0.2], [0, 255, 255, 0, 51]),
        # halves go to the even neighbour: 0.5 to 0, 1.5 and 2.5 to 2
        (np.int8, 0.5, 3, [0.25, 0.75, 1.25, -0.25, -0.75], [3, 5, 5, 3, 1]),
        (np.int8, 0.5, 3, [100.0, -100.0, 1e9, -1e9], [127, -128, 127, -128]),
        (np.int16, 2.0, 0, [3.0, 5.0, 1e9], [2, 2, 32767]),
    ],
)
def test_quantize_divides_rounds_and_clips(
    dtype: type, scale: float, zero_point: int, values: list[float], stored: list[int]
) -> None:
    result = port(dtype, scale, zero_point).quantize(np.float32(values))
    assert result.dtype == dtype
    assert result.tolist() == stored


def test_dequantize_is_the_way_back() -> None:
    result = port(np.int8, 0.5, 3).dequantize(np.int8([3, 5, -128, 127]))
    assert result.dtype == np.float32
    assert result.tolist() == [0.0, 1.0, -65.5, 62.0]  # (-128 - 3) / 2, (127 - 3) / 2
    assert port(np.uint8, 0.25, 200).dequantize(np.uint8([0, 255])).tolist() == [-50.0, 13.75]


def test_ports_without_a_scale_pass_values_on() -> None:
    values = np.float32([0.25, -1.5])
    assert port(np.float32).quantize(values) is values
    assert port(np.float32).dequantize(values) is values
    assert port(np.int32).quantize(np.int64([3, 4])).dtype == np.int32
    assert port(np.int32).dequantize(np.int32([3, 4])).dtype == np.int32


# small models ---------------------------------------------------------------------------------------------------------


def convert(function: Any, specs: list[tf.TensorSpec], optimize: Any = None) -> bytes:
    concrete = tf.function(function).get_concrete_function(*specs)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    if optimize:
        optimize(converter)
    return converter.convert()


#: 4 x 8 weights, 12 of them zero, that tell every input and output apart
KERNEL = np.float32(
    [[0, 0, 0, 1, 2, 3, 4, 5], [0, 0, 0, 6, 7, 8, 9, 10], [0, 0, 0, 1, -1, 2, -2, 3], [0, 0, 0] + [9] * 5]
)


def matmul(batch: int | None, optimize: Any = None) -> bytes:
    return convert(
        lambda x: {"y": tf.matmul(x, KERNEL) + tf.range(8, dtype=tf.float32)},
        [tf.TensorSpec([batch, 4], tf.float32, name="x")],
        optimize,
    )


@pytest.fixture(scope="module")
def any_batch() -> bytes:
    return matmul(None)


def samples(count: int) -> np.ndarray:
    return np.arange(count * 4, dtype=np.float32).reshape(count, 4)


def test_ports_have_the_names_of_the_signature(any_batch: bytes) -> None:
    model = TFLiteModel(any_batch)
    assert [(p.name, p.shape, p.dtype, p.scale) for p in model.inputs] == [("x", (-1, 4), np.float32, 0.0)]
    assert [(p.name, p.shape, p.dtype, p.scale) for p in model.outputs] == [("y", (-1, 8), np.float32, 0.0)]
    assert model.any_batch


@pytest.mark.parametrize("count", [1, 5, 8])
@pytest.mark.parametrize("batch", [None, 1, 4, 100])
def test_any_number_of_samples_runs_in_any_batch_size(any_batch: bytes, count: int, batch: int | None) -> None:
    received = TFLiteModel(any_batch).run({"x": samples(count)}, batch)["y"]
    # the rows that pad the last batch are dropped
    np.testing.assert_allclose(received, samples(count) @ KERNEL + np.arange(8), rtol=1e-6)


def test_batches_of_changing_size_and_without_xnnpack(any_batch: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.tflite").write_bytes(any_batch)
    model = TFLiteModel(tmp_path / "m.tflite", threads=2, xnnpack=False)
    for count in (3, 1, 7, 3):
        received = model.run({"x": samples(count)})["y"]
        np.testing.assert_allclose(received, samples(count) @ KERNEL + np.arange(8), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_a_model_of_fixed_batch_size_runs_in_that_size(count: int) -> None:
    model = TFLiteModel(matmul(3))
    assert not model.any_batch
    assert model.inputs[0].shape == (3, 4)
    received = model.run({"x": samples(count)}, 100)["y"]
    np.testing.assert_allclose(received, samples(count) @ KERNEL + np.arange(8), rtol=1e-6)


def test_padding_repeats_a_real_row() -> None:
    # zeros could be far outside of what a model has seen: here, log(0)
    content = convert(lambda x: {"y": tf.math.log(x)}, [tf.TensorSpec([4, 1], tf.float32, name="x")])
    received = TFLiteModel(content).run({"x": np.float32([[1]] * 6)})["y"]
    assert received.tolist() == [[0.0]] * 6
    padded = litert._padded(np.float32([[1, 2], [3, 4]]), 4)
    assert padded.tolist() == [[1, 2], [3, 4], [3, 4], [3, 4]]


def test_sizes_that_the_model_leaves_open() -> None:
    content = convert(
        lambda image: {"y": tf.reduce_sum(image, [1, 2])},
        [tf.TensorSpec([None, None, None, 2], tf.float32, name="image")],
    )
    model = TFLiteModel(content)
    assert model.inputs[0].shape == (-1, -1, -1, 2)
    for height, width, batch in ((3, 5, 2), (3, 5, 4), (7, 2, 4)):
        received = model.run({"image": np.ones([3, height, width, 2], np.float32)}, batch)["y"]
        assert received.tolist() == [[height * width] * 2] * 3
    model.resize(2)
    model.set_inputs({"image": np.ones([2, 1, 1, 2], np.float32)})
    # another rank is LiteRT's to refuse
    with pytest.raises(ValueError, match=r"Dimension mismatch|Got value of shape|rank"):
        model.run({"image": np.ones([3, 2], np.float32)})


def test_the_reference_kernels(any_batch: bytes) -> None:
    received = TFLiteModel(any_batch, reference=True).run({"x": samples(5)})["y"]
    np.testing.assert_allclose(received, samples(5) @ KERNEL + np.arange(8), rtol=1e-6)


def test_inputs_and_outputs_go_by_name() -> None:
    content = convert(
        lambda second, first: {"quotient": first / second, "difference": first - second},
        [tf.TensorSpec([None, 2], tf.float32, name="second"), tf.TensorSpec([None, 2], tf.float32, name="first")],
    )
    first, second = np.float32([[8, 6]] * 3), np.float32([[2, 4]] * 3)
    for inputs in ({"first": first, "second": second}, {"second": second, "first": first}):
        outputs = TFLiteModel(content).run(inputs, 2)
        assert outputs["quotient"].tolist() == [[4.0, 1.5]] * 3
        assert outputs["difference"].tolist() == [[6.0, 2.0]] * 3
    with pytest.raises(KeyError, match="second"):
        TFLiteModel(content).run({"first": first})


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not a valid Flatbuffer|Model provided"):
        TFLiteModel(b"this is no model at all")
    with pytest.raises(ValueError, match="Could not open"):
        TFLiteModel(tmp_path / "nowhere.tflite")


# weights --------------------------------------------------------------------------------------------------------------


def int8(converter: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ({"x": samples(1) * i} for i in range(4))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]


def float16(converter: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


@pytest.mark.parametrize(("optimize", "dtype"), [(None, np.float32), (float16, np.float16), (int8, np.int8)])
def test_kernels_are_found_with_type_and_zeros(optimize: Any, dtype: type) -> None:
    content = matmul(None, optimize)
    [kernel] = litert.kernels(content)
    assert kernel.stored.dtype == dtype
    # TFLite keeps a matrix as [outputs, inputs]
    assert kernel.stored.shape == (8, 4)
    np.testing.assert_array_equal(kernel.zeros, KERNEL.T == 0)
    assert litert.sparsity(content) == 12 / 32
    if dtype != np.int8:
        np.testing.assert_array_equal(kernel.stored, KERNEL.T)
    # the bias is a weight, but no kernel: its zero is not counted
    assert any(weight.stored.shape == (8,) for weight in litert.weights(content))


def test_zeros_are_what_the_zero_point_says() -> None:
    assert litert.Weight("w", np.uint8([[3, 0], [128, 3]]), 3).zeros.tolist() == [[True, False], [False, True]]


def test_small_kernels_are_not_counted() -> None:
    content = matmul(None)
    assert len(litert.kernels(content, at_least=32)) == 1
    assert litert.kernels(content, at_least=33) == []
    without = convert(lambda x: {"y": x + 1.0}, [tf.TensorSpec([None, 4], tf.float32, name="x")])
    assert litert.sparsity(without) == 0.0


def test_a_kernel_used_twice_counts_once() -> None:
    square = np.eye(8, dtype=np.float32)  # 56 of 64 are zero
    other = np.ones([8, 8], np.float32)
    content = convert(
        lambda x: {"y": tf.matmul(tf.nn.relu(tf.matmul(tf.nn.relu(tf.matmul(x, square)), other)), square)},
        [tf.TensorSpec([None, 8], tf.float32, name="x")],
    )
    assert len(litert.kernels(content)) == 2
    assert litert.sparsity(content) == 56 / 128


# signatures -----------------------------------------------------------------------------------------------------------


def level(size: int = 0, segments: list[int] | None = None, indices: list[int] | None = None) -> Any:
    """A level of the tree that a sparse tensor is: dense of this size, or sparse."""
    made = schema.DimensionMetadataT()
    made.denseSize = size
    if segments is not None:
        made.format = schema.DimensionType.SPARSE_CSR
        made.arraySegments, made.arrayIndices = schema.Uint8VectorT(), schema.Uint8VectorT()
        made.arraySegments.values, made.arrayIndices.values = segments, indices
    return made


def sparse(order: list[int], levels: list[Any], block_map: list[int] | None = None) -> Any:
    made = schema.SparsityParametersT()
    made.traversalOrder, made.blockMap, made.dimMetadata = order, block_map, levels
    return made


@pytest.mark.parametrize(
    ("how", "values", "expected"),
    [
        # rows that are dense, columns that are not; the second row is empty
        (sparse([0, 1], [level(3), level(0, [0, 2, 2, 3], [0, 2, 1])]), [1, 2, 3], [[1, 0, 2], [0, 0, 0], [0, 3, 0]]),
        # column by column
        (sparse([1, 0], [level(2), level(0, [0, 1, 3], [1, 0, 2])]), [7, 8, 9], [[0, 8], [7, 0], [0, 9]]),
        # two levels that are sparse
        (sparse([0, 1], [level(0, [0, 1], [2]), level(0, [0, 2], [0, 1])]), [4, 5], [[0, 0], [0, 0], [4, 5]]),
        # blocks of 2x2, of which those on the diagonal are stored
        (
            sparse([0, 1, 2, 3], [level(2), level(0, [0, 1, 2], [0, 1]), level(2), level(2)], [0, 1]),
            [1, 2, 3, 4, 5, 0, 0, 6],
            [[1, 2, 0, 0], [3, 4, 0, 0], [0, 0, 5, 0], [0, 0, 0, 6]],
        ),
        # blocks of 1x2 in the rows alone
        (
            sparse([0, 1, 2], [level(2), level(0, [0, 1, 2], [1, 0]), level(2)], [1]),
            [1, 2, 3, 4],
            [[0, 0, 1, 2], [3, 4, 0, 0]],
        ),
        (sparse([0, 1], [level(1), level(0, [0, 0], [])]), [], [[0, 0]]),
    ],
)
def test_sparse_tensors_by_hand(how: Any, values: list[float], expected: list[list[float]]) -> None:
    found = litert.densify(how, np.shape(expected), np.float32(values))
    np.testing.assert_array_equal(found, np.float32(expected))
    assert found.dtype == np.float32


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (sparse([0], [level(2)]), "a sparse tensor of 2 dimensions has 1 of 0 blocks"),
        (sparse([0, 2], [level(2), level(2)]), "a sparse tensor of 2 dimensions"),
        (sparse([0, 1], [level(2), level(2)]), "has 4 places for 3 values"),
        (sparse([0, 1], [level(2), level(0, [0, 3], [0, 1, 2])]), "has 2 segments for 2 nodes"),
        (sparse([0, 1], [level(2), level(0, [0, 1, 3], [0, 1, 2])]), "invalid entry in coordinates array"),
    ],
)
def test_sparse_tensors_that_are_damaged(how: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        litert.densify(how, (2, 2), np.float32([1, 2, 3]))


def signed(folder: Path, *names: str) -> bytes:
    """A model with a signature for each name, in their order: the first adds 1 to `x1`, the second 2 to `x2`, ..."""

    def add(number: int) -> Any:
        spec = tf.TensorSpec([None, 4], tf.float32, name=f"x{number}")
        return tf.function(lambda x: {f"y{number}": x + number}, input_signature=[spec]).get_concrete_function()

    holder = tf.Module()
    holder.functions = [add(number) for number in range(1, len(names) + 1)]
    tf.saved_model.save(holder, str(folder), signatures=dict(zip(names, holder.functions, strict=True)))
    return tf.lite.TFLiteConverter.from_saved_model(str(folder), signature_keys=list(names)).convert()


@pytest.mark.parametrize(("names", "number"), [(("serving_default", "other"), 1), (("other", "serving_default"), 2)])
def test_of_several_signatures_the_default_is_the_model(tmp_path: Path, names: tuple[str, str], number: int) -> None:
    for reference in (False, True):
        model = TFLiteModel(signed(tmp_path / str(reference), *names), reference=reference)
        assert [(p.name, p.shape) for p in (*model.inputs, *model.outputs)] == [
            (f"x{number}", (-1, 4)),
            (f"y{number}", (-1, 4)),
        ]
        for count, batch in ((5, 2), (1, None), (3, 3)):
            received = model.run({f"x{number}": samples(count)}, batch)[f"y{number}"]
            np.testing.assert_allclose(received, samples(count) + number)


def test_several_signatures_without_a_default(tmp_path: Path) -> None:
    assert [p.name for p in TFLiteModel(signed(tmp_path / "one", "only")).inputs] == ["x1"]
    with pytest.raises(ValueError, match=r"it has 2 signatures \(first, second\), none of them serving_default"):
        TFLiteModel(signed(tmp_path / "two", "first", "second"))
