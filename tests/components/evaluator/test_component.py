"""The Evaluator's executor on real artifacts: what comes out, and what the model in the field does to the verdict."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_analysis as tfma
from tfx.proto import pusher_pb2
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, ModelEvaluation, PushedModel
from tfx.utils import proto_utils

from edgeline.budget import Budget
from edgeline.conversion.failures import RefusedGraphError
from edgeline.data import reading
from edgeline.deployed import contract, pointer_file
from edgeline.errors import UserError
from edgeline.evaluator.component import Executor, _open
from edgeline.evaluator.config import Evaluation
from edgeline.model_io import keras_file
from edgeline.model_module.hooks import ModelModule
from edgeline.passport import Passport
from edgeline.pusher import component
from edgeline.tflite import device_cost
from edgeline.tflite.litert import TFLiteModel
from edgeline.tflite_exporter import conversion
from edgeline.tflite_exporter.config import Export

STEP = {"step": "Trainer", "config": {}, "model": "d1", "metrics": {"accuracy": 1.0}}


@dataclasses.dataclass
class Made:
    """What there is to evaluate: examples, exported models by name, and what the good one really does."""

    module: ModelModule
    examples: str
    keras: str
    exported: dict[str, str]
    labels: np.ndarray
    predicted: np.ndarray

    def recall(self, label: int) -> float:
        return float(np.mean(self.predicted[self.labels == label] == label))


def save_export(folder: Path, content: bytes, passport: Passport) -> None:
    """The folder of a TFLiteExporter's output whose model was made here."""
    serving = folder / "Format-Serving"
    serving.mkdir(parents=True)
    ports = {
        side: [
            {**port, "shape": [-1 if size is None else size for size in port["shape"]]} for port in passport.io[side]
        ]
        for side in ("inputs", "outputs")
    }
    metadata = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "zlib_bytes": len(zlib.compress(content, 9)),
        "sparsity": 0.0,
        **ports,
    }
    (serving / "model.tflite").write_bytes(content)
    (serving / "metadata.json").write_text(json.dumps(metadata))
    passport.write(serving)


@pytest.fixture(scope="module")
def made(small: Any, calibration: str, write_split: Any, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("made")
    random = np.random.default_rng(8)
    examples: list[dict[str, Any]] = []
    for index in range(90):
        image = random.uniform(0, 0.8, [8, 8]).astype(np.float32)
        image[3 * (index % 3) : 3 * (index % 3) + 2] += 0.2  # fainter than what it learned: some are taken for others
        examples.append({"image": image, "label": index % 3})
    write_split(root / "examples", "eval", examples, 3)
    plain = Passport(Passport.read(small.folder).io, steps=(STEP,))
    exported = {}
    for scheme, io_type, name, one in (
        ("float32", "float32", "float32", False),
        ("float16", "float32", "float16", False),
        ("int8", "int8", "int8_io", True),
    ):
        exported[name] = str(root / name)
        serving = root / name / "Format-Serving"
        serving.mkdir(parents=True)
        conversion.export(
            Export(one_example=one),
            small.module,
            dataclasses.replace(plain, scheme={"scheme": scheme, "io_type": io_type}),
            toolchain="tools",
            model_uri=small.folder,
            calibration_uri=calibration,
            serving=serving,
        )
    exported["relabelled"] = str(root / "relabelled")
    shutil.copytree(exported["float16"], exported["relabelled"])
    serving = root / "relabelled" / "Format-Serving"
    passport, labels = Passport.read(serving), ["top", "bottom", "middle"]
    dataclasses.replace(passport, io={**passport.io, "labels": labels}).write(serving)
    (serving / "labels.txt").write_text("\n".join(labels) + "\n")
    float32 = dataclasses.replace(plain, scheme={"scheme": "float32", "io_type": "float32"})
    biased = small.load()
    weights = biased.get_weights()
    weights[-1] += np.array([1000, 0, 0], np.float32)
    biased.set_weights(weights)
    renamed = {**plain.io, "inputs": [{**plain.io["inputs"][0], "name": "picture"}]}
    contents = {
        "biased": conversion.convert(biased, float32, {}),  # takes everything for "top"
        "renamed": conversion.convert(small.load(), dataclasses.replace(float32, io=renamed), {}),
        "garbage": b"no model at all",
    }
    for name, content in contents.items():
        exported[name] = str(root / name)
        save_export(root / name, content, plain)
    exported["failed"] = str(root / "failed")
    (root / "failed" / "Format-Serving").mkdir(parents=True)
    plain.failed("Quantizer", ValueError("no")).write(root / "failed" / "Format-Serving")
    images = np.stack([example["image"] for example in examples])[..., None]
    logits = TFLiteModel(f"{exported['float32']}/Format-Serving/model.tflite").run({"image": images})["logits"]
    labels = np.array([example["label"] for example in examples])
    return Made(small.module, str(root / "examples"), small.folder, exported, labels, logits.argmax(1))


@dataclasses.dataclass
class Outcome:
    """The outputs of one run."""

    evaluation: Path
    selected: Model
    blessing: ModelBlessing

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.evaluation / "report.json").read_text())


Run = Callable[..., Outcome]


def artifact(kind: Any, uri: str, number: int = 0) -> Any:
    found = kind()
    found.uri = uri
    if number:
        found.id = number
    return found


@pytest.fixture(scope="module")
def measured() -> Callable[..., dict[str, Any]]:
    """Measures what a model costs, and each file once: that takes a new process."""
    measure, costs = device_cost.measure, dict[tuple[str, float], dict[str, Any]]()

    def once(model: Any, sample: Any = None, *, seconds: float) -> dict[str, Any]:
        key = hashlib.sha256(Path(model).read_bytes()).hexdigest(), seconds
        if key not in costs:
            costs[key] = measure(model, sample, seconds=seconds)
        return copy.deepcopy(costs[key])

    return once


@pytest.fixture
def run(made: Made, measured: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the executor as TFX does, on some of the exported models."""
    monkeypatch.setattr(device_cost, "measure", measured)

    def execute(
        candidates: list[str],
        budget: Budget | None = None,
        *,
        baseline: str = "float32",
        keras: bool = False,
        examples: str = "",
        out: str = "out",
        **changes: Any,
    ) -> Outcome:
        inputs = {
            "examples": [artifact(Examples, examples or made.examples)],
            "baseline": [artifact(Model, made.exported[baseline])],
            **({"keras": [artifact(Model, made.keras)]} if keras else {}),
        }
        ports = {name: "baseline" if name == baseline else name for name in candidates}
        for number, name in enumerate(candidates, 11):
            if name in made.exported and ports[name] == name:
                inputs[name] = [artifact(Model, made.exported[name], number)]
                inputs[name][0].set_string_custom_property("sha256", f"sha256 of {name}")
        kinds = {"evaluation": ModelEvaluation, "selected": Model, "blessing": ModelBlessing}
        outputs = {name: [artifact(kind, str(tmp_path / out / name))] for name, kind in kinds.items()}
        for name in kinds:
            (tmp_path / out / name).mkdir(parents=True)
        settings = {
            **(budget or Budget(max_drop=0.05)).encoded(),
            **Evaluation(**{name: changes.pop(name) for name in Evaluation.field_types() if name in changes}).encoded(),
            "module": made.module.source.reference,
            "module_digest": made.module.source.digest,
            "toolchain": "tools",
            "pipeline": "p",
            "candidates": json.dumps(ports),
            "deployed": "",
        }
        context = Executor.Context(make_beam_pipeline_fn=lambda: beam.Pipeline("FnApiRunner"))
        Executor(context).Do(inputs, outputs, {**settings, **changes})
        return Outcome(tmp_path / out / "evaluation", outputs["selected"][0], outputs["blessing"][0])

    return execute


@pytest.fixture
def push(made: Made, tmp_path: Path) -> Callable[[str], str]:
    """Makes an exported model the deployed one, as a push does; returns the folder."""

    def pushed(name: str) -> str:
        folder = tmp_path / "pushed"
        folder.mkdir()
        serving = Path(made.exported[name], "Format-Serving")
        (folder / "1790000000").symlink_to(serving, target_is_directory=True)
        pointer_file.point(str(folder), "1790000000", name)
        return str(folder)

    return pushed


def test_a_better_candidate_than_the_deployed_model_is_blessed(made: Made, run: Run, push: Any) -> None:
    outcome = run(["float16", "biased", "float32"], keras=True, check_keras=True, deployed=push("biased"))
    report = outcome.report
    found = {entry["name"]: entry for entry in report["candidates"]}
    right = int((made.predicted == made.labels).sum())
    assert 45 < right < 90  # else this would show little
    assert report["dataset"] == {
        "split": "eval",
        "fingerprint": reading.fingerprint(made.examples),
        "spans": None,
        "label_names": ["top", "middle", "bottom"],
        "bad_records": 0,
        "slice_features": [["label"]],
        "training_examples": {"0": 40, "2": 7},
        "examples": 90,
    }
    assert report["baseline"]["metrics"]["accuracy"] == pytest.approx(right / 90)
    # half precision says the same of each of these; and the baseline's own file is a candidate too
    for name in ("float16", "float32"):
        assert found[name]["metrics"]["accuracy"] == pytest.approx(right / 90)
        assert found[name]["deployed_drop"] == pytest.approx((30 - right) / 90)
        assert found[name]["deployed_drop_interval"][1] < 0
        assert found[name]["blessed"]
        assert found[name]["device"]["one_thread"]["runs"] >= 5
    assert found["float32"]["drop_interval"] == [0, 0]
    assert found["float32"]["device"] == report["baseline"]["device"]
    # of 30 examples of each class the biased one has all of "top" right, and nothing else
    assert found["biased"]["metrics"]["accuracy"] == pytest.approx(1 / 3)
    assert found["biased"]["classification"]["confusion"] == [[30, 0, 0]] * 3
    assert [part["metrics"]["accuracy"] for part in found["biased"]["slices"]] == [1, 0, 0]
    assert found["biased"]["reasons"] == [f"accuracy drop {right / 90 - 1 / 3:.4g} exceeds 0.05"]
    assert found["biased"]["comparison"]["agreement"] == pytest.approx(np.mean(made.predicted == 0))
    # the field
    pushed = report["deployed"]
    assert (pushed["name"], pushed["version"], pushed["failure"]) == ("biased", "1790000000", None)
    assert pushed["metrics"]["accuracy"] == pytest.approx(1 / 3)
    assert pushed["sha256"] == found["biased"]["sha256"]
    # the Keras model that the baseline was made from
    model = keras_file.load(made.keras, made.module)
    made.module.compile_model(model)
    opened = reading.evaluation_data(reading.split_files(made.examples, "eval"), made.module, batch_size=90)
    expected = model.evaluate(opened.dataset, verbose=0, return_dict=True)
    assert report["baseline"]["keras"]["metrics"] == pytest.approx(expected, abs=1e-6)
    assert 0 < report["baseline"]["keras"]["max_abs_difference"] < 1e-4
    # what the next steps read
    assert report["selected"] == "float16"
    assert sorted(path.name for path in outcome.evaluation.iterdir()) == [
        "eval_config.json", "metrics-00000-of-00001.tfrecord", "report.html", "report.json", "validations.tfrecord",
    ]  # fmt: skip
    assert [path.name for path in Path(outcome.blessing.uri).iterdir()] == ["BLESSED"]
    assert outcome.blessing.get_int_custom_property("blessed") == 1
    assert outcome.blessing.get_string_custom_property("current_model") == made.exported["float16"]
    assert outcome.blessing.get_int_custom_property("current_model_id") == 11
    assert outcome.selected.get_string_custom_property("candidate") == "float16"
    assert outcome.selected.get_string_custom_property("sha256") == "sha256 of float16"
    copied = Path(outcome.selected.uri, "Format-Serving", "model.tflite").read_bytes()
    assert copied == Path(made.exported["float16"], "Format-Serving", "model.tflite").read_bytes()
    result = tfma.load_eval_result(str(outcome.evaluation), model_name="biased")
    assert result.get_slice_names() == [(), (("label", 0),), (("label", 1),), (("label", 2),)]
    assert result.get_metrics_for_slice((("label", 0),))["accuracy"] == {"doubleValue": 1.0}
    assert result.get_metrics_for_slice()["example_count"] == {"doubleValue": 90.0}
    assert tfma.load_validation_result(str(outcome.evaluation)).validation_ok


def test_a_worse_candidate_than_the_deployed_model_is_not_blessed(made: Made, run: Run, push: Any) -> None:
    outcome = run(["biased"], Budget(max_drop=1.0), deployed=push("float32"))
    right = int((made.predicted == made.labels).sum())
    lost = sorted(((made.recall(label), f"label={label}") for label in (1, 2)), key=lambda pair: (-pair[0], pair[1]))
    [entry] = outcome.report["candidates"]
    assert entry["reasons"] == [
        f"accuracy is {right / 90 - 1 / 3:.4g} worse than the deployed model's, which exceeds 0 (--max-deployed-drop); "
        f"worse in {lost[0][1]} ({lost[0][0]:.4g}), {lost[1][1]} ({lost[1][0]:.4g})"
    ]
    assert outcome.report["selected"] is None
    assert outcome.report["closest"] == "biased"
    assert [path.name for path in Path(outcome.blessing.uri).iterdir()] == ["NOT_BLESSED"]
    assert outcome.blessing.get_int_custom_property("blessed") == 0
    assert not any(path.is_file() for path in Path(outcome.selected.uri).rglob("*"))
    assert not tfma.load_validation_result(str(outcome.evaluation)).validation_ok


@pytest.mark.parametrize(
    ("name", "failure"), [("renamed", "KeyError: 'picture'"), ("garbage", "LiteRT cannot run the model: ")]
)
def test_a_deployed_model_that_cannot_run_blocks_nobody(run: Run, push: Any, name: str, failure: str) -> None:
    outcome = run(["float16", "failed", "gone"], deployed=push(name))
    assert outcome.report["deployed"]["failure"].startswith(failure)
    assert outcome.report["deployed"]["metrics"] is None
    assert outcome.report["selected"] == "float16"
    assert outcome.report["candidates"][0]["deployed_drop"] is None
    # and those that failed before are told of
    assert [entry["reasons"] for entry in outcome.report["candidates"][1:]] == [
        ["Quantizer failed: ValueError: no"],
        ["it failed, so that there is nothing to evaluate; see the log"],
    ]


def test_a_guess_is_never_the_first_that_is_pushed(run: Run, push: Any, tmp_path: Path) -> None:
    # of 30 examples of each of three classes it has one class right, as any guess has
    budget = Budget(max_drop=1.0)
    [entry] = run(["biased"], budget, out="refused").report["candidates"]
    margin = 1.96 * np.sqrt(1 / 3 * 2 / 3 / 90)
    assert entry["chance"]["accuracy"] == {
        **{"guess": "commonest class", "answer": 0, "value": pytest.approx(1 / 3), "beaten": False},
        "margin": pytest.approx(margin),
    }
    assert entry["misses"] == ["chance"]
    [reason] = entry["reasons"]
    assert reason.startswith("at chance level: accuracy 0.3333, where always to answer top, the commonest class, has")
    (tmp_path / "empty").mkdir()
    assert run(["biased"], budget, deployed=str(tmp_path / "empty"), out="nothing yet").report["selected"] is None
    for name, allowed, changes in (
        ("asked", budget, {"allow_chance_level": True}),
        ("threshold", Budget(max_drop=1.0, value_threshold=0.3), {}),
        ("not first", Budget(max_drop=1.0, max_deployed_drop=None), {"deployed": push("float32"), "like": None}),
    ):
        assert run(["biased"], allowed, out=name, **changes).report["selected"] == "biased"


def test_one_example_is_no_reason_to_push(run: Run, write_split: Any, tmp_path: Path) -> None:
    image = np.zeros([8, 8], np.float32)
    image[0:2] = 1
    write_split(tmp_path / "one", "eval", [{"image": image, "label": 0}], 2)
    report = run(["float16"], examples=str(tmp_path / "one")).report
    [entry] = report["candidates"]
    assert (report["dataset"]["examples"], entry["metrics"]["accuracy"]) == (1, 1.0)
    assert (entry["drop_interval"], entry["misses"]) == (None, ["chance"])
    assert (report["selected"], report["closest"]) == (None, "float16")


def test_a_broken_pointer_stops_the_run_before_it_evaluates(run: Run, push: Any) -> None:
    folder = push("float16")
    pointer = Path(folder, "latest.json")
    content = json.loads(pointer.read_text())
    pointer.write_text(json.dumps({**content, "sha256": "0" * 64}))
    with pytest.raises(UserError, match=r"latest.json names .*model.tflite, which is not what was pushed: SHA-256"):
        run(["float16"], deployed=folder)


def test_a_broken_pointer_does_not_matter_where_nothing_is_compared_with_it(run: Run, push: Any) -> None:
    folder = push("float16")
    Path(folder, "latest.json").write_text("{")
    with pytest.raises(UserError, match=r"latest.json is not the pointer of a push"):
        run(["float16"], Budget(max_deployed_drop=None), deployed=folder, out="for its contract")
    outcome = run(["float16"], Budget(max_deployed_drop=None), deployed=folder, like=None)
    assert outcome.report["deployed"] is None
    assert outcome.report["selected"] == "float16"


@pytest.mark.parametrize("deployed_name", [None, "garbage"])
def test_an_empty_eval_split(run: Run, push: Any, write_split: Any, tmp_path: Path, deployed_name: str | None) -> None:
    [path, _] = write_split(tmp_path / "empty", "eval", [], 2)
    folder = push(deployed_name) if deployed_name else ""
    with pytest.raises(UserError) as error:
        run(["float16"], examples=str(tmp_path / "empty"), deployed=folder)
    assert str(error.value) == f"the eval split is empty: 0 examples in 2 shards of {Path(path).parent}"


def test_checking_keras_needs_the_model(run: Run) -> None:
    with pytest.raises(UserError, match="check_keras needs the Evaluator's input `keras`: the Model that the baseline"):
        run(["float16"], check_keras=True)


def test_a_baseline_that_could_not_be_exported(run: Run) -> None:
    message = r"^no candidate can be judged without the float32 baseline, on which Quantizer failed: "
    with pytest.raises(ValueError, match=message):
        run(["float16"], baseline="failed")


def test_a_baseline_of_operators_that_litert_lacks_is_the_users_to_mend(made: Made, run: Run, tmp_path: Path) -> None:
    operators = "the model needs operators that are not LiteRT's own: tf.Betainc (layer betainc, allow_select_tf_ops)"
    refused = Passport.read(Path(made.exported["float32"], "Format-Serving")).failed(
        "TFLiteExporter", RefusedGraphError(operators, ("tf.Betainc",))
    )
    (tmp_path / "Format-Serving").mkdir()
    refused.write(tmp_path / "Format-Serving")
    made.exported["refused"] = str(tmp_path)
    with pytest.raises(UserError) as told:
        run(["float16"], baseline="refused")
    assert str(told.value) == (
        f"no candidate can be judged without the float32 baseline, on which TFLiteExporter failed: {operators}"
    )
    del made.exported["refused"]


def test_a_baseline_that_crashes_on_the_data(
    made: Made, run: Run, tmp_path: Path, crashing: Callable[..., bytes]
) -> None:
    passport = Passport.read(Path(made.exported["float32"], "Format-Serving"))
    source = tf.TensorSpec([None, 8, 8, 1], tf.float32, name="image")
    content = crashing(source, "logits", lambda x: tf.reshape(x, [-1, 64])[:, :3])
    save_export(tmp_path, content, passport)
    made.exported["crashing"] = str(tmp_path)
    try:
        outcome = run(["float16", "crashing"])
        [crashed] = [c for c in outcome.report["candidates"] if c["name"] == "crashing"]
        assert crashed["reasons"] == ["Evaluator failed: LiteRT crashed on the model with SIGSEGV"]
        assert outcome.report["selected"] == "float16"
        with pytest.raises(
            ValueError, match=r"^the float32 baseline could not be evaluated: LiteRT crashed on the mod"
        ):
            run(["float16"], baseline="crashing", out="again")
    finally:
        del made.exported["crashing"]


# where it is to go ----------------------------------------------------------------------------------------------------


def push_selected(outcome: Outcome, push_to: Path) -> bool:
    """Does what the Pusher does with the outputs of an Evaluator; returns whether it pushed."""
    pushed = artifact(PushedModel, str(outcome.evaluation.parent / "pushed"))
    Path(pushed.uri).mkdir()
    destination = pusher_pb2.PushDestination(
        filesystem=pusher_pb2.PushDestination.Filesystem(base_directory=str(push_to))
    )
    component.Executor().Do(
        {"model": [outcome.selected], "model_blessing": [outcome.blessing]},
        {"pushed_model": [pushed]},
        {"push_destination": proto_utils.proto_to_json(destination), "custom_config": "null"},
    )
    return bool(pushed.get_int_custom_property("pushed"))


def test_a_target_decides_what_is_blessed(run: Run) -> None:
    outcome = run(["float16", "int8_io"], Budget(max_drop=0.1, target="micro"), baseline="float32")
    found = {entry["name"]: entry for entry in outcome.report["candidates"]}
    [ports, shapes, floats] = found["float16"]["reasons"]
    assert ports == (
        "target micro: inputs and outputs must be int8, uint8, int16 or int32, image is float32, logits is float32; "
        "choose int8_io"
    )
    assert shapes.startswith("target micro: all sizes must be fixed, image is [any, 8, 8, 1], logits is [any, 3]; ")
    assert floats.startswith("target micro: it computes on integers only, but on floats compute ")
    assert found["int8_io"]["reasons"] == []
    assert outcome.report["selected"] == "int8_io"
    assert outcome.report["budget"]["target"] == "micro"
    assert "<dt>Target</dt><dd>micro</dd>" in (outcome.evaluation / "report.html").read_text()
    metadata = json.loads(Path(outcome.selected.uri, "Format-Serving", "metadata.json").read_text())
    assert metadata["target"] == "micro"
    assert metadata["inputs"][0]["shape"] == [1, 8, 8, 1]


def test_a_second_push_must_keep_the_contract(run: Run, tmp_path: Path) -> None:
    push_to = tmp_path / "pushed"
    budget = Budget(max_drop=0.1, max_deployed_drop=1.0)
    first = run(["float16"], budget, deployed=str(push_to), out="first")
    assert first.report["like"] is None
    assert push_selected(first, push_to)
    pointer = (push_to / "latest.json").read_bytes()
    promised = json.loads(pointer)["contract"]
    assert promised == {
        "inputs": [{"name": "image", "shape": [-1, 8, 8, 1], "dtype": "float32"}],
        "outputs": [{"name": "logits", "shape": [-1, 3], "dtype": "float32"}],
        "labels": ["top", "middle", "bottom"],
        "target": "cpu",
    }

    reasons = {
        "relabelled": [
            "label order: 1 is 'bottom', deployed has 'middle' (and 1 more) (--like none allows a new contract)"
        ],
        "int8_io": [
            "input image: shape [1, 8, 8, 1], deployed has [any, 8, 8, 1]",
            "input image: dtype int8, deployed has float32",
            "output logits: shape [1, 3], deployed has [any, 3]",
            "output logits: dtype int8, deployed has float32 (--like none allows a new contract)",
        ],
    }
    second = run([*reasons], budget, deployed=str(push_to), out="second")
    assert {entry["name"]: entry["reasons"] for entry in second.report["candidates"]} == reasons
    assert (second.report["selected"], second.report["closest"]) == (None, "relabelled")
    assert second.report["like"] == {"of": "deployed", "contract": promised}
    assert "<dt>Contract</dt><dd>as of the deployed model</dd>" in (second.evaluation / "report.html").read_text()
    assert second.blessing.get_int_custom_property("blessed") == 0
    assert not push_selected(second, push_to)
    assert (push_to / "latest.json").read_bytes() == pointer
    assert len(list(push_to.glob("[!.]*"))) == 2  # the pointer and the version


def test_a_new_contract_may_be_allowed(run: Run, push: Any) -> None:
    folder = push("float32")
    pointer = Path(folder, "latest.json")
    outcome = run(["relabelled"], deployed=folder, like=None)
    assert (outcome.report["selected"], outcome.report["like"]) == ("relabelled", None)
    assert push_selected(outcome, Path(folder))
    assert json.loads(pointer.read_text())["contract"]["labels"] == ["top", "bottom", "middle"]


def test_another_target_is_another_contract(run: Run, push: Any) -> None:
    folder = push("int8_io")
    pointer = Path(folder, "latest.json")
    content = json.loads(pointer.read_text())
    assert content["contract"]["target"] is None  # an exported folder that no Evaluator judged
    content["contract"]["target"] = "micro"
    pointer.write_text(json.dumps(content))
    [entry] = run(["int8_io"], Budget(max_drop=0.1, target="dsp"), deployed=folder).report["candidates"]
    assert entry["reasons"] == ["target: dsp, deployed has micro (--like none allows a new contract)"]


def test_the_contract_of_a_file_takes_the_place_of_the_deployed_one(made: Made, run: Run, push: Any) -> None:
    path = Path(made.exported["int8_io"], "Format-Serving", "model.tflite")
    like = {"of": "model.tflite", "contract": contract.of_file(path)}
    folder = push("float32")
    outcome = run(["float16", "int8_io"], Budget(max_drop=0.1, max_deployed_drop=1.0), deployed=folder, like=like)
    found = {entry["name"]: entry["reasons"] for entry in outcome.report["candidates"]}
    assert found["int8_io"] == []
    assert "input image: dtype float32, model.tflite has int8" in found["float16"]
    assert outcome.report["like"]["of"] == "model.tflite"
    assert outcome.report["deployed"]["name"] == "float32"


@pytest.mark.parametrize("content", [None, '{"sha256": "12'])
def test_an_export_that_was_damaged_is_named(made: Made, tmp_path: Path, content: str | None) -> None:
    folder = tmp_path / "Format-Serving"
    shutil.copytree(Path(made.exported["float32"], "Format-Serving"), folder)
    (folder / "metadata.json").unlink()
    if content is not None:
        (folder / "metadata.json").write_text(content)
    with pytest.raises(UserError, match=rf"^{folder}/metadata\.json, which the TFLiteExporter wrote, cannot be read: "):
        _open("float32", str(tmp_path))
