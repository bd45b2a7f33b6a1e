"""The whole pipeline on real data: what `edgeline run` promises, on scikit-learn's digits."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from command_line import CommandLine

from edgeline.passport import Passport
from edgeline.pipelines import compression, recipes
from edgeline.pipelines.job import Job
from edgeline.pipelines.root import Root
from edgeline.report import report_file, schema
from edgeline.report.dataclass_json import to_json
from edgeline.tflite.litert import TFLiteModel

RECIPES = ("int8_io", "qat8", "prune80_cluster16_int8")


class Edgeline(CommandLine):
    """The command line, and what it says for machines."""

    def json(self, *arguments: object) -> dict[str, Any]:
        """Runs with --output json and returns the line."""
        self("run", *arguments, "--output", "json")
        [line] = self.out.splitlines()
        return json.loads(line)


@pytest.fixture
def edgeline(capfd: pytest.CaptureFixture[str]) -> Edgeline:
    return Edgeline(capfd)


@pytest.fixture(scope="module")
def module_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the digits example, to be edited."""
    path = tmp_path_factory.mktemp("module") / "model.py"
    path.write_bytes((Path(recipes.__file__).parent / "examples" / "digits" / "model.py").read_bytes())
    return path


@pytest.fixture(scope="module")
def asked(module_file: Path, digits_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """The arguments of the run that the tests of this module go on from, in their order."""
    root = tmp_path_factory.mktemp("root") / "digits"
    named = [part for name in RECIPES for part in ("--recipe", name)]
    short = ["--max-accuracy-drop", 0.05, "--finetune-epochs", 1]
    return ["--module", module_file, "--data", digits_data, "--root", root, *short, *named]


def root_of(asked: list[object]) -> Path:
    return Path(str(asked[asked.index("--root") + 1]))


def nodes(asked: list[object]) -> dict[str, int]:
    """The number of executions of each node that really ran (no cached ones), from MLMD."""
    from ml_metadata import MetadataStore
    from ml_metadata.proto import metadata_store_pb2 as pb

    config = pb.ConnectionConfig()
    config.sqlite.filename_uri = str(root_of(asked) / "metadata.db")
    store = MetadataStore(config)
    ran: dict[str, int] = {}
    for execution in store.get_executions():
        if execution.last_known_state == pb.Execution.COMPLETE:
            [node] = [c.name for c in store.get_contexts_by_execution(execution.id) if c.type == "node"]
            name = node.split(".", 1)[1]
            ran[name] = ran.get(name, 0) + 1
    return ran


def test_first_run_selects_and_pushes(edgeline: Edgeline, asked: list[object]) -> None:
    assert edgeline("run", *asked) == 0, edgeline.err
    root = root_of(asked)
    report = json.loads((root / "report" / "report.json").read_text())
    assert {c["name"] for c in report["candidates"]} == set(RECIPES)
    assert report["schema_version"] == 3
    jsonschema.validate(report, schema.json_schema())
    # and it says nothing that the schema does not know
    assert to_json(report_file.read(root / "report" / "report.json")) == report
    assert report["dataset"]["examples"] == 173
    assert report["baseline"]["metrics"]["accuracy"] > 0.9
    selected = next(c for c in report["candidates"] if c["name"] == report["selected"])
    assert selected["blessed"]
    assert selected["zlib_bytes"] == min(c["zlib_bytes"] for c in report["candidates"] if c["blessed"])

    [pushed] = (root / "pushed").glob("*/model.tflite")
    content = pushed.read_bytes()
    assert hashlib.sha256(content).hexdigest() == selected["sha256"]
    assert (len(content), len(zlib.compress(content, 9))) == (selected["bytes"], selected["zlib_bytes"])
    assert selected["ratio"] == report["baseline"]["zlib_bytes"] / selected["zlib_bytes"]
    assert (pushed.parent / "labels.txt").read_text().split() == list("0123456789")
    for line in (f"▶ {selected['name']}", str(root / "report" / "report.html"), str(pushed)):
        assert line in edgeline.out
    for noise in ("oneDNN", "XNNPACK", "deprecat", "ZetaSQL", "WARNING", "W0000", "I0000"):
        assert noise not in edgeline.out + edgeline.err
    assert list((root / "logs").glob("*.log"))


def test_candidates_are_what_their_recipes_say(asked: list[object]) -> None:
    folders = (root_of(asked) / "artifacts" / "TFLiteExporter.int8_io" / "tflite").glob("*/Format-Serving")
    [folder] = folders
    model = TFLiteModel(folder / "model.tflite")
    assert [(port.name, port.dtype) for port in model.inputs] == [("image", np.dtype(np.int8))]
    assert [(port.name, port.dtype) for port in model.outputs] == [("logits", np.dtype(np.int8))]
    passport = Passport.read(folder)
    assert [step["step"] for step in passport.steps] == ["Trainer", "Quantizer", "TFLiteExporter"]
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["parity"]["logits"]["agreement"] > 0.9

    [small] = (root_of(asked) / "artifacts" / "TFLiteExporter.prune80_cluster16_int8" / "tflite").glob(
        "*/Format-Serving"
    )
    layers = {layer["name"]: layer for layer in Passport.read(small).steps[2]["layers"]}
    assert layers["dense"]["sparsity"] >= 0.8 - 1 / layers["dense"]["parameters"]
    assert layers["dense"]["unique_values"] <= 16
    assert "under 1.00%" in layers["conv2d"]["note"]


def test_second_run_is_served_from_the_cache(edgeline: Edgeline, asked: list[object]) -> None:
    before = nodes(asked)
    start = time.monotonic()
    outcome = edgeline.json(*asked)
    seconds = time.monotonic() - start
    assert outcome["exit_code"] == 0
    assert list(outcome["steps"]) == ["cached"]
    assert nodes(asked) == before
    assert Path(outcome["pushed"]).is_file()
    assert seconds < 30  # it takes 1 to 2; a training would take longer than that on the slowest machine


def test_adding_a_recipe_runs_nothing_again(edgeline: Edgeline, asked: list[object]) -> None:
    before = nodes(asked)
    outcome = edgeline.json(*asked, "--recipe", "prune80_int8")
    assert outcome["exit_code"] == 0
    ran = {name for name, count in nodes(asked).items() if count != before.get(name, 0)}
    assert ran == {"Quantizer.prune80_int8", "TFLiteExporter.prune80_int8", "Evaluator", "Pusher"}


def test_a_budget_no_candidate_meets(edgeline: Edgeline, asked: list[object]) -> None:
    pushed = list((root_of(asked) / "pushed").iterdir())
    assert edgeline("run", *asked, "--max-bytes", 1000) == 1
    assert "no candidate met the budget, nothing is pushed; closest was" in edgeline.out
    assert "bytes exceeds 1,000 bytes" in edgeline.out
    assert list((root_of(asked) / "pushed").iterdir()) == pushed
    report = json.loads((root_of(asked) / "report" / "report.json").read_text())
    assert report["selected"] is None


def test_a_metric_that_is_not_compiled(edgeline: Edgeline, asked: list[object]) -> None:
    assert edgeline("run", *asked, "--metric", "auc") == 2
    assert "the budget's metric 'auc' is not compiled" in edgeline.err
    assert "loss, accuracy" in edgeline.err


def test_editing_the_module_runs_all_steps_that_use_it(
    edgeline: Edgeline, asked: list[object], module_file: Path
) -> None:
    before = nodes(asked)
    module_file.write_text(module_file.read_text() + "\n# edited\n")
    short = [*asked[: asked.index("--recipe")], "--recipe", "prune80_int8"]
    # which may be worse than what is deployed: it trains for one epoch
    outcome = edgeline.json(*short, "--epochs", 1, "--max-accuracy-drop", 1, "--max-deployed-drop", "none")
    assert outcome["exit_code"] == 0
    assert outcome["steps"] == {"done": 9, "cached": 1}
    again = {name for name, count in nodes(asked).items() if count != before.get(name, 0)}
    assert again == {
        "RepresentativeDatasetGen", "Trainer", "Pruner.prune80", "Quantizer.float32", "Quantizer.prune80_int8",
        "TFLiteExporter.float32", "TFLiteExporter.prune80_int8", "Evaluator", "Pusher",
    }  # fmt: skip


@pytest.mark.slow
def test_another_version_runs_everything_again(
    edgeline: Edgeline, asked: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # what is deployed has float inputs
    anew = ("--max-deployed-drop", "none", "--like", "none")
    short = [*asked[: asked.index("--recipe")], "--recipe", "int8_io", "--epochs", 1, "--max-accuracy-drop", 1, *anew]
    assert edgeline.json(*short)["exit_code"] == 0
    before = nodes(asked)
    monkeypatch.setattr(compression, "toolchain", lambda module: "tfx==999")
    outcome = edgeline.json(*short)
    assert outcome["exit_code"] == 0
    assert outcome["steps"] == {"done": 9}
    assert nodes(asked)["ImportExampleGen"] == before["ImportExampleGen"] + 1


def test_stock_runner_continues_our_run(asked: list[object], digits_data: Path, module_file: Path) -> None:
    from tfx.orchestration.local.local_dag_runner import LocalDagRunner

    from edgeline.model_module import module_source
    from edgeline.pipelines.run.local_runner import BEAM_ARGS
    from edgeline.trainer.config import Train

    before = nodes(asked)
    run = Job(module_source.locate(str(module_file)), (recipes.int8_io(),), Train(epochs=1))
    examples = compression.import_examples(digits_data)
    pipeline = compression.create_pipeline(
        "digits", run, root=Root(root_of(asked)), examples=examples, beam_args=BEAM_ARGS
    )
    LocalDagRunner().run(pipeline)
    ran = {name for name, count in nodes(asked).items() if count != before.get(name, 0)}
    assert "Evaluator" in ran
    assert not [name for name in ran if "prune" in name or "qat8" in name]


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_epoch(digits_data: Path, tmp_path: Path) -> None:
    def command(root: str) -> list[str]:
        return [
            sys.executable, "-m", "edgeline.pipelines.cli", "run", "--data", str(digits_data),
            "--root", str(tmp_path / root), "--recipe", "prune80_int8", "--epochs", "2", "--finetune-epochs", "6",
            "--max-accuracy-drop", "1", "--output", "json",
        ]  # fmt: skip

    def kept() -> list[dict[str, Any]]:
        states = (tmp_path / "killed" / ".checkpoints").glob("*/state.json")
        # a name with a suffix is one that is being made or taken away
        return [json.loads(path.read_text()) for path in states if not path.parent.suffix]

    with subprocess.Popen(command("killed"), stderr=subprocess.DEVNULL, start_new_session=True) as child:
        while child.poll() is None:
            with contextlib.suppress(OSError):  # replaced while it is read
                if len(kept()) == 2:  # the Trainer's, and the Pruner's after its first epoch
                    break
            time.sleep(0.02)
        os.killpg(child.pid, signal.SIGKILL)
    assert 0 < sum(state["epochs"] for state in kept()) < 2 + 6
    assert not (tmp_path / "killed" / "report").exists()
    outcomes = []
    for root in ("killed", "unbroken"):
        done = subprocess.run(command(root), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        outcomes.append(json.loads(done.stdout))
    assert outcomes[0]["steps"]["cached"] >= 3
    assert Path(outcomes[0]["pushed"]).read_bytes() == Path(outcomes[1]["pushed"]).read_bytes()
    # the number of threads was settled before TensorFlow did anything, as the check of the data is the first to use it
    for passport in tmp_path.glob("*/artifacts/*/*/*/passport.json"):
        steps = json.loads(passport.read_text())["steps"]
        assert [step for step in steps if "threads_in_use" in step] == []
        assert steps[0]["config"]["threads"] == 8
    [history] = (tmp_path / "killed" / "artifacts" / "Pruner.prune80" / "model_run").glob("*/history.json")
    assert len(json.loads(history.read_text())["history"]["loss"]) == 6
    assert not (tmp_path / "killed" / ".checkpoints").exists()
