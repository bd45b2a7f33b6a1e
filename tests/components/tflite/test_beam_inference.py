from __future__ import annotations

import pickle
import threading
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
from apache_beam.ml.inference.base import KeyedModelHandler, KeyModelMapping, ModelMetadata, RunInference
from apache_beam.testing.util import assert_that, equal_to

from edgeline.data.data_folder import SHARD_SUFFIX
from edgeline.errors import UserError
from edgeline.tflite.beam_inference import LiteRTModelHandler
from edgeline.tflite.litert import TFLiteModel

KERNEL = np.float32([[1, 2], [3, 4], [5, 6]])


def convert(function: Any, specs: dict[str, list[int | None]], optimize: Any = None) -> bytes:
    signature = [tf.TensorSpec(shape, tf.float32, name=name) for name, shape in specs.items()]
    concrete = tf.function(function).get_concrete_function(*signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    if optimize:
        optimize(converter)
    return converter.convert()


def int8(converter: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ({"x": np.float32([[-1, 0, 1]]) * i} for i in range(-4, 5))
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models of three numbers x to two numbers y."""
    folder = tmp_path_factory.mktemp("models")

    def matmul(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.matmul(x, KERNEL)}

    for name, content in {
        "float": convert(matmul, {"x": [None, 3]}),
        "negative": convert(lambda x: {"y": -tf.matmul(x, KERNEL)}, {"x": [None, 3]}),
        "batch4": convert(matmul, {"x": [4, 3]}),
        "int8": convert(matmul, {"x": [None, 3]}, int8),
        "ratio": convert(
            lambda first, second: {"quotient": first / second, "sum": first + second},
            {"first": [None, 2], "second": [None, 2]},
        ),
        "mean": convert(lambda x: {"y": tf.reduce_mean(x, axis=0)}, {"x": [None, 3]}),
        "any_width": convert(lambda x: {"y": x * 2.0}, {"x": [None, None]}),
        "text": b"this is no model at all",
    }.items():
        (folder / f"{name}.tflite").write_bytes(content)
    return folder


def run(handler: Any, examples: list[Any]) -> list[Any]:
    """Returns what the handler makes of one batch."""
    return list(handler.run_inference(examples, handler.load_model()))


def rows(count: int) -> list[np.ndarray]:
    return list(np.arange(count * 3, dtype=np.float32).reshape(count, 3))


# values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9])
@pytest.mark.parametrize("name", ["float", "batch4"])
def test_each_example_gets_its_own_outputs(models: Path, name: str, count: int) -> None:
    path = models / f"{name}.tflite"
    examples = [{"x": row} for row in rows(count)]
    results = run(LiteRTModelHandler(path, max_batch_size=4), examples)
    assert [result.example for result in results] == examples
    assert {result.model_id for result in results} == {str(path)}
    for row, result in zip(rows(count), results, strict=True):
        assert result.inference.keys() == {"y"}
        np.testing.assert_allclose(result.inference["y"], row @ KERNEL, rtol=1e-6)


@pytest.mark.parametrize("example", [np.float64([1, 2, 3]), [1, 2, 3], {"x": (1, 2, 3)}, np.uint8([1, 2, 3])])
def test_an_example_may_be_bare_and_of_any_number_type(models: Path, example: Any) -> None:
    [result] = run(LiteRTModelHandler(models / "float.tflite", threads=2, xnnpack=False), [example])
    assert result.inference["y"].tolist() == [1 + 6 + 15, 2 + 8 + 18]


def test_quantized_models_take_and_give_real_values(models: Path) -> None:
    port = TFLiteModel(models / "int8.tflite").inputs[0]
    assert port.dtype == np.int8
    # 0.6 of a step is rounded up to one step: cut off, it would be 0
    [result] = run(LiteRTModelHandler(models / "int8.tflite"), [np.float32([0.6 * port.scale, 2, -1])])
    assert result.inference["y"].dtype == np.float32
    np.testing.assert_allclose(result.inference["y"], [port.scale + 6 - 5, 2 * port.scale + 8 - 6], atol=0.2)
    [whole] = run(LiteRTModelHandler(models / "int8.tflite"), [[0, 2, -1]])
    assert result.inference["y"][1] > whole.inference["y"][1]


def test_inputs_and_outputs_go_by_name(models: Path) -> None:
    example = {"second": np.float32([2, 4]), "first": np.float32([8, 6])}
    [result] = run(LiteRTModelHandler(models / "ratio.tflite"), [example])
    assert {name: values.tolist() for name, values in result.inference.items()} == {
        "quotient": [4.0, 1.5],
        "sum": [10.0, 10.0],
    }


def test_few_batch_sizes_are_prepared(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    resize = TFLiteModel.resize
    monkeypatch.setattr(
        TFLiteModel, "resize", lambda model, batch, shapes: (sizes.append(batch), resize(model, batch, shapes))
    )
    handler = LiteRTModelHandler(models / "float.tflite", max_batch_size=6)
    model = handler.load_model()
    for count in (1, 2, 3, 4, 5, 6, 13):
        assert len(list(handler.run_inference(rows(count), model))) == count
    assert sizes == [1, 2, 4, 4, 6, 6, 6]


def test_threads_share_a_loaded_model(models: Path) -> None:
    handler = LiteRTModelHandler(models / "float.tflite")
    model = handler.load_model()
    wrong = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(100):
            examples = list(random.random([random.integers(1, 9), 3], np.float32))
            for example, result in zip(examples, handler.run_inference(examples, model), strict=True):
                if not np.allclose(result.inference["y"], example @ KERNEL, rtol=1e-5):
                    wrong.append(example)

    workers = [threading.Thread(target=work, args=[seed]) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


# mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", r"the model .*nowhere\.tflite cannot be read: .*No such file"),
        ("text", r"text\.tflite is no TFLite model that LiteRT can run: .*Give the path of a \.tflite file"),
        ("any_width", r"input 'x' of .* has shape \[any, any\]; expected all inputs with the batch as first axis"),
        ("mean", r"output 'y' of .* has shape \[3\]; expected the batch as first axis"),
    ],
)
def test_models_that_cannot_be_used(models: Path, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        LiteRTModelHandler(models / f"{name}.tflite").load_model()


def test_a_folder_is_no_model(models: Path) -> None:
    with pytest.raises(UserError, match=r"the model .* cannot be read: .*Is a directory"):
        LiteRTModelHandler(models).load_model()


@pytest.mark.parametrize(
    ("name", "example", "message"),
    [
        ("float", {"image": [1, 2, 3]}, r"an example has an input 'image', .* \{x: float32 \[3\]\} .*; give those"),
        ("ratio", {"frist": [1, 2], "second": [1, 2]}, r"input 'frist', but .*did you mean 'first'\?"),
        ("ratio", {"first": [1, 2]}, r"an example has no input 'second', but the model"),
        ("ratio", [1, 2], r"an example is one list, but .*first: float32 \[2\].* per example; give a dict"),
        ("float", {"x": [1, 2]}, r"input 'x' of an example has shape \[2\], .*x: float32 \[3\].*reshape it"),
        ("float", {"x": [[1, 2, 3]]}, r"input 'x' of an example has shape \[1, 3\].*leave out the batch axis"),
        ("float", {"x": ["a", "b", "c"]}, r"input 'x' of an example holds <U1.*convert it to float32"),
        ("int8", {"x": [1j, 2, 3]}, r"input 'x' of an example holds complex128.*convert it to float32"),
    ],
)
def test_examples_that_do_not_fit_the_model(models: Path, name: str, example: Any, message: str) -> None:
    handler = LiteRTModelHandler(models / f"{name}.tflite")
    with pytest.raises(UserError, match=message):
        run(handler, [example])


def test_fractions_are_not_cut_off(tmp_path: Path) -> None:
    concrete = tf.function(lambda i: {"y": i + 1}).get_concrete_function(tf.TensorSpec([None, 1], tf.int32, name="i"))
    path = tmp_path / "m.tflite"
    path.write_bytes(tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module()).convert())
    [result] = run(LiteRTModelHandler(path), [np.int64([4])])
    assert result.inference["y"].tolist() == [5]
    with pytest.raises(UserError, match=r"input 'i' of an example holds float64.*convert it to int32"):
        run(LiteRTModelHandler(path), [[4.5]])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"min_batch_size": 0}, "received 0 and 256"),
        ({"min_batch_size": 9, "max_batch_size": 8}, "1 <= min_batch_size <= max_batch_size, received 9 and 8"),
        ({"threads": 0}, "threads must be at least 1, received 0"),
    ],
)
def test_settings_out_of_range(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LiteRTModelHandler("m.tflite", **settings)


# in Beam --------------------------------------------------------------------------------------------------------------


def outputs(results: Any) -> Any:
    return results | "Round" >> beam.Map(lambda result: result.inference["y"].round(3).tolist())


def test_run_inference(models: Path) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        results = pipeline | beam.Create(rows(40)) | RunInference(LiteRTModelHandler(models / "float.tflite"))
        assert_that(outputs(results), equal_to((np.stack(rows(40)) @ KERNEL).tolist()))
    metrics = pipeline.result.metrics().query()
    counted = {c.key.metric.name: c.committed for c in metrics["counters"] if c.key.metric.namespace == "BeamML_LiteRT"}
    assert counted["num_inferences"] == 40


def test_one_model_for_all_keys(models: Path) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        handler = KeyedModelHandler(LiteRTModelHandler(models / "float.tflite", min_batch_size=2, max_batch_size=2))
        results = pipeline | beam.Create(list(enumerate(rows(3)))) | RunInference(handler)
        found = results | beam.MapTuple(lambda key, result: (key, result.inference["y"].tolist()))
        assert_that(found, equal_to(list(enumerate((np.stack(rows(3)) @ KERNEL).tolist()))))


def test_a_model_per_key(models: Path) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        paths = {"plus": "float", "minus": "negative"}
        mappings = [KeyModelMapping([k], LiteRTModelHandler(models / f"{v}.tflite")) for k, v in paths.items()]
        examples = [("plus", np.float32([1, 0, 0])), ("minus", np.float32([0, 0, 1]))]
        results = pipeline | beam.Create(examples) | RunInference(KeyedModelHandler(mappings))
        found = results | beam.MapTuple(lambda key, result: (key, result.inference["y"].tolist()))
        assert_that(found, equal_to([("plus", [1, 2]), ("minus", [-5, -6])]))


def test_a_side_input_names_another_model(models: Path) -> None:
    path = str(models / "negative.tflite")
    with beam.Pipeline("FnApiRunner") as pipeline:
        update = pipeline | "Update" >> beam.Create([ModelMetadata(path, "negative")])
        handler = LiteRTModelHandler(models / "float.tflite")
        results = pipeline | beam.Create(rows(2)) | RunInference(handler, model_metadata_pcoll=update)
        found = results | beam.Map(lambda result: (result.model_id, result.inference["y"].tolist()))
        assert_that(found, equal_to([(path, y) for y in (-np.stack(rows(2)) @ KERNEL).tolist()]))


def test_broken_examples_go_their_own_way(models: Path) -> None:
    with beam.Pipeline("FnApiRunner") as pipeline:
        handler = LiteRTModelHandler(models / "float.tflite", max_batch_size=1)
        good, bad = (
            pipeline
            | beam.Create([[1, 0, 0], [1, 0]])
            | RunInference(handler).with_exception_handling(exc_class=UserError)
        )
        assert_that(outputs(good), equal_to([[1, 2]]), "good")
        failed = bad.failed_inferences | beam.MapTuple(lambda batch, error: (list(batch), error[0].__name__))
        assert_that(failed, equal_to([([[1, 0]], "UserError")]), "bad")


def test_a_missing_model_stops_the_pipeline_with_its_name(tmp_path: Path) -> None:
    pipeline = beam.Pipeline("FnApiRunner")
    pipeline | beam.Create(rows(1)) | RunInference(LiteRTModelHandler(tmp_path / "gone.tflite"))
    with pytest.raises(Exception, match=r"the model .*gone\.tflite cannot be read"):
        pipeline.run().wait_until_finish()


def test_it_takes_no_inference_args(models: Path) -> None:
    pipeline = beam.Pipeline("FnApiRunner")
    handler = LiteRTModelHandler(models / "float.tflite")
    with pytest.raises(UserError, match=r"takes no inference_args, received \['training'\]"):
        pipeline | beam.Create(rows(1)) | RunInference(handler, inference_args={"training": False})


def test_what_beam_asks_a_handler(models: Path) -> None:
    handler = pickle.loads(pickle.dumps(LiteRTModelHandler(models / "float.tflite", min_batch_size=3)))
    assert handler.batch_elements_kwargs() == {"min_batch_size": 3, "max_batch_size": 256}
    assert handler.get_num_bytes([{"x": np.float32([1, 2, 3]), "y": np.uint8([1])}, np.float64([1])]) == 12 + 1 + 8
    assert handler.get_metrics_namespace() == "BeamML_LiteRT"
    assert handler.get_resource_hints() == {}
    assert not handler.share_model_across_processes()
    assert run(handler, rows(1))[0].inference["y"].tolist() == [5 * 2 + 3, 2 * 6 + 4]
    handler.update_model_path(None)
    handler.update_model_path(str(models / "negative.tflite"))
    assert run(handler, rows(1))[0].inference["y"].tolist() == [-13, -16]


def test_the_documented_inference_of_a_tfrecord_file(
    digits_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = convert(lambda image: {"logits": tf.reduce_sum(image, [1, 3])}, {"image": [None, 8, 8, 1]})
    (tmp_path / "model.tflite").write_bytes(sums)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "digits").symlink_to(digits_data)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "tfx.md").read_text()
    exec(page.partition("## Batch inference with Beam")[2].split("```python\n")[1].split("```")[0], {})

    written = "".join(path.read_text() for path in tmp_path.glob("predictions*")).split()
    shards = [str(path) for path in digits_data.glob(f"eval/*{SHARD_SUFFIX}")]
    pixels = [
        np.frombuffer(
            tf.train.Example.FromString(record.numpy()).features.feature["image"].bytes_list.value[0], np.uint8
        )
        for record in tf.data.TFRecordDataset(shards, "GZIP")
    ]
    assert len(written) == 173
    columns = [int(image.reshape(8, 8).sum(axis=0, dtype=int).argmax()) for image in pixels]
    assert sorted(written) == sorted(str(column) for column in columns)
