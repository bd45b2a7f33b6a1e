"""Our components between TFX's own: Transform, Tuner, Trainer, BulkInferrer, Pusher and Resolver, really run."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow_serving.apis import prediction_log_pb2
from tfx import components as stock
from tfx.dsl.components.common.resolver import Resolver
from tfx.dsl.input_resolution.strategies.latest_blessed_model_strategy import LatestBlessedModelStrategy
from tfx.orchestration import metadata
from tfx.orchestration.local.local_dag_runner import LocalDagRunner
from tfx.orchestration.pipeline import Pipeline
from tfx.proto import bulk_inferrer_pb2, trainer_pb2, transform_pb2
from tfx.types import Channel
from tfx.types.standard_artifacts import Model, ModelBlessing

import edgeline
from edgeline import layout
from edgeline.budget import Budget
from edgeline.data import transformation
from edgeline.errors import UserError
from edgeline.model_importer import importing
from edgeline.model_importer.config import Import, digest_of
from edgeline.model_module import hooks, module_source
from edgeline.passport import Passport
from edgeline.pipelines import compression, recipes
from edgeline.pipelines.job import Job
from edgeline.quantizer.config import Quantize
from edgeline.toolchain import toolchain
from edgeline.trainer import hyperparameters
from edgeline.trainer.config import Train

DOCS = Path(__file__).parents[2] / "docs" / "how-to" / "tfx.md"

# what TFX's own components warn of is not ours to fail on
pytestmark = pytest.mark.filterwarnings("ignore")

TRANSFORMING = """
import tensorflow_transform as tft


def preprocessing_fn(inputs):
    return {
        "scaled": tft.scale_to_z_score(inputs["x"]),
        "index": tft.compute_and_apply_vocabulary(inputs["kind"], vocab_filename="kinds", default_value=0),
    }
"""

MODULE = """
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {"scaled": tf.io.FixedLenFeature([4], tf.float32), "index": tf.io.FixedLenFeature([1], tf.int64)}


def preprocess(features):
    return features["scaled"], features["index"]


def build_model(hyperparameters=None):
    units = hyperparameters.Int("units", 5, 7) if hyperparameters else 8
    hidden = keras.layers.Dense(units, activation="relu")
    return keras.Sequential([keras.Input([4], name="x"), hidden, keras.layers.Dense(3, name="scores")])


def compile_model(model, hyperparameters=None):
    rate = hyperparameters.Choice("rate", [0.03, 0.04]) if hyperparameters else 0.01
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics = ["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)]
    model.compile(keras.optimizers.Adam(rate), loss, metrics=metrics)
"""

TUNING = """
from pathlib import Path

import keras_tuner
from tfx.components.tuner.component import TunerFnResult

from edgeline.data import reading
from edgeline.model_module import hooks

MODULE = str(Path(__file__).with_name("model.py"))


class Tuner(keras_tuner.RandomSearch):
    def run_trial(self, trial, examples):
        code = hooks.load(MODULE, hyperparameters=trial.hyperparameters)
        model = code.build_model()
        code.compile_model(model)
        return model.fit(examples, verbose=0).history["loss"][-1]


def tuner_fn(fn_args):
    files = [str(path) for pattern in fn_args.train_files for path in Path(pattern).parent.glob("*")]
    examples = reading.evaluation_data(files, hooks.load(MODULE), batch_size=32).dataset
    objective = keras_tuner.Objective("default_objective", "min")
    tuner = Tuner(objective=objective, max_trials=2, directory=fn_args.working_dir, seed=1)
    return TunerFnResult(tuner=tuner, fit_kwargs={"examples": examples})
"""

TRAINING = """
from pathlib import Path

from edgeline.data import reading
from edgeline.model_module import hooks


def run_fn(fn_args):
    code = hooks.load("edgeline.pipelines.examples.digits.model")
    files = [str(path) for pattern in fn_args.train_files for path in Path(pattern).parent.glob("*")]
    model = code.build_model()
    code.compile_model(model)
    model.fit(reading.evaluation_data(files, code, batch_size=32).dataset, epochs=3, verbose=0)
    model.save(fn_args.serving_model_dir, save_format="tf")
"""

#: Of 4 normal numbers about 50, that of the kind is 40 larger.
KINDS = (b"ant", b"bee", b"cat")


def examples_of(count: int, seed: int) -> tuple[np.ndarray, list[bytes]]:
    draw = np.random.default_rng(seed)
    kinds = draw.integers(3, size=count)
    values = draw.normal(50, 10, (count, 4)).astype(np.float32)
    values[np.arange(count), kinds] += 40
    return values, [KINDS[kind] for kind in kinds]


def serialized(values: np.ndarray, kind: bytes | None) -> bytes:
    feature = {"x": tf.train.Feature(float_list=tf.train.FloatList(value=values))}
    if kind is not None:
        feature["kind"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[kind]))
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def run(root: Path, name: str, components: list[Any]) -> None:
    LocalDagRunner().run(
        Pipeline(
            pipeline_name=name,
            pipeline_root=str(root / "artifacts"),
            components=components,
            enable_cache=True,
            metadata_connection_config=metadata.sqlite_metadata_connection_config(str(root / "metadata.db")),
        )
    )


def the(root: Path, pattern: str) -> Path:
    """The one folder or file of an artifact."""
    [found] = (root / "artifacts").glob(pattern)
    return found


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    # in the environment of the tests there may be no pip, with which TFX installs a module_file
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


# behind Transform and Tuner -------------------------------------------------------------------------------------------

SIZES = {"train": 240, "validation": 60, "eval": 61}


@pytest.fixture(scope="module")
def transformed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a pipeline with Transform, Tuner and BulkInferrer, which has run."""
    root = tmp_path_factory.mktemp("transformed")
    code = root / "code"
    code.mkdir()
    for name, content in (("model", MODULE), ("stock_transforming", TRANSFORMING), ("stock_tuning", TUNING)):
        (code / f"{name}.py").write_text(content)
    for seed, (split, count) in enumerate(SIZES.items()):
        (root / "data" / split).mkdir(parents=True)
        with tf.io.TFRecordWriter(str(root / "data" / split / "a.tfrecord.gz"), "GZIP") as writer:
            for values, kind in zip(*examples_of(count, seed), strict=True):
                writer.write(serialized(values, kind))
    with importable(code):
        run(root, "transformed", behind_transform(root))
    return root


def behind_transform(root: Path) -> list[Any]:
    ingest = compression.import_examples(root / "data")
    examples = ingest.outputs["examples"]
    statistics = stock.StatisticsGen(examples)
    schema = stock.SchemaGen(statistics.outputs["statistics"], infer_feature_shape=True)
    transform = stock.Transform(
        examples=examples,
        schema=schema.outputs["schema"],
        preprocessing_fn="stock_transforming.preprocessing_fn",
        splits_config=transform_pb2.SplitsConfig(analyze=["train"], transform=list(SIZES)),
    )
    tuner = stock.Tuner(
        examples=transform.outputs["transformed_examples"],
        tuner_fn="stock_tuning.tuner_fn",
        train_args=trainer_pb2.TrainArgs(splits=["train"]),
        eval_args=trainer_pb2.EvalArgs(splits=["validation"]),
    )
    asked = Job(
        module_source.locate(str(root / "code" / "model.py")),
        (recipes.int8(),),
        train=Train(epochs=4),
        budget=Budget(max_drop=0.2),
    )
    nodes = compression.create_components(
        "transformed",
        asked,
        examples=transform.outputs["transformed_examples"],
        transform_graph=transform.outputs["transform_graph"],
        hyperparameters=tuner.outputs["best_hyperparameters"],
        push_to=str(root / "pushed"),
    )
    [trainer] = [node for node in nodes if node.id == "Trainer"]
    inferrer = stock.BulkInferrer(
        examples=examples,
        model=trainer.outputs["model"],
        data_spec=bulk_inferrer_pb2.DataSpec(example_splits=["eval"]),
    )
    return [ingest, statistics, schema, transform, tuner, *nodes, inferrer]


def expected_scores(root: Path, values: np.ndarray) -> np.ndarray:
    """What the Keras model makes of raw values, with Transform's scaling done by NumPy."""
    train, _ = examples_of(SIZES["train"], 0)
    model = tf_keras.models.load_model(the(root, f"Trainer/model/*/{layout.KERAS_FILE}"), compile=False)
    return model(((values - train.mean()) / train.std()).astype(np.float32)).numpy()


@pytest.mark.slow
def test_the_trainer_takes_what_the_tuner_found(transformed: Path) -> None:
    found = json.loads(the(transformed, "Tuner/best_hyperparameters/*/*.txt").read_text())["values"]
    assert found["units"] in (5, 6, 7)  # 8 without a Tuner
    [step] = Passport.read(the(transformed, "Trainer/model/*")).steps
    assert step["hyperparameters"] == found
    model = tf_keras.models.load_model(the(transformed, f"Trainer/model/*/{layout.KERAS_FILE}"), compile=False)
    assert model.layers[0].units == found["units"]


@pytest.mark.slow
def test_the_saved_model_takes_raw_examples_without_labels(transformed: Path, tmp_path: Path) -> None:
    # elsewhere: nothing of it may point to Transform's folder
    shutil.copytree(the(transformed, "Trainer/model/*/Format-Serving"), tmp_path / "served")
    served = tf.saved_model.load(str(tmp_path / "served")).signatures["serving_default"]
    values, _ = examples_of(5, 7)
    received = served(examples=tf.constant([serialized(row, None) for row in values]))["scores"]
    np.testing.assert_allclose(received, expected_scores(transformed, values), rtol=1e-4, atol=1e-4)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Feature: x"):
        served(examples=tf.constant([tf.train.Example().SerializeToString()]))


@pytest.mark.slow
def test_a_module_that_asks_for_what_transform_does_not_make(transformed: Path, tmp_path: Path) -> None:
    graph = str(the(transformed, "Transform/transform_graph/*"))
    module = tmp_path / "model.py"
    for old, new, says in (
        ('"scaled": tf', '"x": tf', r"asks for 'x': FixedLenFeature.*preprocessing_fn makes index, scaled$"),
        ("[4], tf", "[2, 2], tf", r"asks for 'scaled': .*\[2, 2\].*makes of it FixedLenFeature\(shape=\[4\]"),
        ("[1], tf.int64", "[1], tf.string", "asks for 'index': .*tf.string.*makes of it .*tf.int64"),
    ):
        module.write_text(MODULE.replace(old, new))
        with pytest.raises(UserError, match=says):
            transformation.opened(graph, hooks.load(str(module)))


@pytest.mark.slow
def test_bulk_inferrer_predicts_as_keras_does(transformed: Path) -> None:
    logs = [
        prediction_log_pb2.PredictionLog.FromString(record)
        for record in tf.data.TFRecordDataset(
            [str(the(transformed, "BulkInferrer/inference_result/*/prediction_logs*"))], "GZIP"
        ).as_numpy_iterator()
    ]
    received = {}
    for log in logs:
        [record] = tf.make_ndarray(log.predict_log.request.inputs["examples"])
        values = tf.train.Example.FromString(record).features.feature["x"].float_list.value
        received[tuple(values)] = tf.make_ndarray(log.predict_log.response.outputs["scores"]).ravel()
    values, _ = examples_of(SIZES["eval"], 2)
    assert len(logs) == len(received) == SIZES["eval"]
    scores = np.stack([received[tuple(row.tolist())] for row in values])
    np.testing.assert_allclose(scores, expected_scores(transformed, values), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_labels_of_one_column_are_counted_as_labels(transformed: Path) -> None:
    # the vocabulary puts the more frequent kinds first, and of equals the last in the alphabet
    _, train = examples_of(SIZES["train"], 0)
    order = sorted(KINDS, key=lambda kind: (train.count(kind), kind), reverse=True)
    manifest = json.loads(the(transformed, "RepresentativeDatasetGen/calibration/*/manifest.json").read_text())
    assert manifest["label_histogram"] == {str(i): train.count(kind) for i, kind in enumerate(order)}

    values, kinds = examples_of(SIZES["eval"], 2)
    predicted = expected_scores(transformed, values).argmax(axis=1)
    confusion = np.zeros((3, 3), int)
    for kind, chosen in zip(kinds, predicted, strict=True):
        confusion[order.index(kind), chosen] += 1
    baseline = json.loads(the(transformed, "Evaluator/evaluation/*/report.json").read_text())["baseline"]
    assert baseline["classification"]["confusion"] == confusion.tolist()
    assert baseline["metrics"]["accuracy"] == pytest.approx(np.trace(confusion) / SIZES["eval"])
    assert np.trace(confusion) > 0.9 * SIZES["eval"]


@pytest.mark.slow
def test_the_resolver_finds_the_blessed_model(transformed: Path) -> None:
    latest = Resolver(
        strategy_class=LatestBlessedModelStrategy,
        model=Channel(type=Model),
        model_blessing=Channel(type=ModelBlessing),
    ).with_id("LatestBlessed")
    with importable(transformed / "code"):
        run(transformed, "transformed", [*behind_transform(transformed), latest])
    assert len(list((transformed / "artifacts" / "Trainer" / "model").iterdir())) == 1  # the second run was cached
    [(model, blessing)] = resolved(transformed)
    assert model == the(transformed, "TFLiteExporter.int8/tflite/*")
    assert blessing == the(transformed, "Evaluator/blessing/*")


def resolved(root: Path) -> list[tuple[Path, Path]]:
    """What the Resolver put out, from ML Metadata."""
    from ml_metadata import MetadataStore
    from ml_metadata.proto import metadata_store_pb2 as pb

    config = pb.ConnectionConfig()
    config.sqlite.filename_uri = str(root / "metadata.db")
    store = MetadataStore(config)
    found = []
    for execution in store.get_executions():
        nodes = [c.name for c in store.get_contexts_by_execution(execution.id) if c.type == "node"]
        if any(name.endswith("LatestBlessed") for name in nodes):
            events = store.get_events_by_execution_ids([execution.id])
            by_port = {event.path.steps[0].key: event.artifact_id for event in events if event.type != pb.Event.INPUT}
            [model], [blessing] = (store.get_artifacts_by_id([by_port[p]]) for p in ("model", "model_blessing"))
            found.append((Path(model.uri), Path(blessing.uri)))
    return found


# a part of Edgeline, behind TFX's own Trainer -------------------------------------------------------------------------


def code_blocks() -> list[str]:
    parts = DOCS.read_text().split("```python\n")[1:]
    return [part.split("```")[0] for part in parts]


@pytest.fixture(scope="module")
def in_parts(digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the pipeline in the documentation, which has run."""
    root = tmp_path_factory.mktemp("parts")
    (root / "stock_training.py").write_text(TRAINING)
    examples = compression.import_examples(digits_data)
    trainer = stock.Trainer(
        run_fn="stock_training.run_fn",
        examples=examples.outputs["examples"],
        train_args=trainer_pb2.TrainArgs(splits=["train"]),
        eval_args=trainer_pb2.EvalArgs(splits=["validation"]),
    )
    names: dict[str, Any] = {"examples": examples, "trainer": trainer, "PUSH_TO": str(root / "pushed")}
    exec(code_blocks()[0], names)
    with importable(root):
        run(root, "mine", [examples, trainer, *names["nodes"]])
    return root


@pytest.mark.slow
def test_the_documented_pipeline_runs(in_parts: Path) -> None:
    report = json.loads(the(in_parts, "Evaluator/evaluation/*/report.json").read_text())
    assert {candidate["name"] for candidate in report["candidates"]} == {"int8", "dynamic_range"}
    assert report["baseline"]["metrics"]["accuracy"] > 0.8
    selected = next(c for c in report["candidates"] if c["name"] == report["selected"])
    [pushed] = (in_parts / "pushed").glob("*/model.tflite")
    assert pushed.stat().st_size == selected["bytes"]


@pytest.mark.slow
def test_the_model_of_tfx_s_trainer_has_its_layers(in_parts: Path) -> None:
    imported = the(in_parts, "ModelImporter/model/*")
    stock = the(in_parts, "Trainer/model/*/Format-Serving")
    [step] = Passport.read(imported).steps
    assert (step["step"], step["inputs"]["source"]) == ("ModelImporter", digest_of(stock))
    ours = tf_keras.models.load_model(imported / layout.KERAS_FILE, compile=False)
    theirs = tf_keras.models.load_model(stock, compile=False)
    for mine, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, other)


# what needs no run ----------------------------------------------------------------------------------------------------


def test_the_code_on_the_page_is_python() -> None:
    assert len(code_blocks()) == 4
    for block in code_blocks():
        compile(block, str(DOCS), "exec")
        exec("\n".join(line for line in block.splitlines() if line.startswith(("from ", "import "))), {})


def test_step_parameters_are_what_a_component_takes(tiny_module: Path) -> None:
    asked = edgeline.step_parameters(str(tiny_module), Quantize("float16"))
    assert asked.keys() == edgeline.Quantizer.SPEC_CLASS.PARAMETERS.keys()
    assert (asked["module"], asked["scheme"]) == (str(tiny_module), "float16")
    assert asked["module_digest"] == module_source.locate(str(tiny_module)).digest
    assert asked["toolchain"] == toolchain("edgeline.quantizer.component")
    common = edgeline.step_parameters(str(tiny_module))
    assert common.keys() == {"module", "module_digest", "toolchain"}
    assert common["toolchain"] == toolchain("edgeline.evaluator.component")


def test_hyperparameters_reach_the_hooks_by_name(tiny_module: Path, tmp_path: Path) -> None:
    tiny_module.write_text(MODULE)
    config = {
        "space": [
            {"class_name": "Int", "config": {"name": "units", "default": None, "conditions": [], "min_value": 5,
             "max_value": 7, "step": 1, "sampling": "linear"}},
        ],
        "values": {"units": 6},
    }  # fmt: skip
    (tmp_path / "found").mkdir()
    (tmp_path / "found" / "best_hyperparameters.txt").write_text(json.dumps(config))
    found = hyperparameters.read(str(tmp_path / "found"))
    assert hooks.load(str(tiny_module), hyperparameters=found).build_model().layers[0].units == 6
    assert hooks.load(str(tiny_module)).build_model().layers[0].units == 8


def test_hyperparameters_that_no_hook_takes_are_refused(tiny_module: Path) -> None:
    with pytest.raises(UserError, match=r"neither build_model nor compile_model of .* has a parameter of that name"):
        hooks.load(str(tiny_module), hyperparameters=object())


@pytest.mark.parametrize(
    ("files", "found"), [({}, "found none"), ({"a": "{}", "b": ""}, "found a, b"), ({"a": "["}, "found a")]
)
def test_unreadable_hyperparameters(tmp_path: Path, files: dict[str, str], found: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=f"the hyperparameters in .* cannot be read: one file is expected.*{found}"):
        hyperparameters.read(str(tmp_path))


def test_the_importer_takes_one_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes one model: .*received neither"):
        importing.located(Import(), None)
    with pytest.raises(UserError, match=r"takes one model: .*received both"):
        importing.located(Import(source="m.keras"), str(tmp_path))
    with pytest.raises(UserError, match="has no Format-Serving"):
        importing.located(Import(), str(tmp_path))
