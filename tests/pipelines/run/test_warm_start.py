"""`--warm-start`: which file it is, in what it is part of the cache's key, and what the user is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from edgeline import files, layout
from edgeline.errors import UserError
from edgeline.kubeflow import settings
from edgeline.kubeflow import warm_start as on_kubeflow
from edgeline.model_io import keras_file
from edgeline.passport import Passport
from edgeline.pipelines.cli import main
from edgeline.pipelines.records import cleaning
from edgeline.pipelines.root import Root
from edgeline.pipelines.run import warm_start
from edgeline.trainer.config import Train


@pytest.fixture
def model(tmp_path: Path, digits_module: Any) -> Path:
    keras_file.save(digits_module.build_model(), str(tmp_path / "model"))
    return tmp_path / "model"


def test_a_file_and_its_folder_are_the_same(model: Path) -> None:
    file = model / layout.KERAS_FILE
    expected = Train(epochs=7, warm_start=str(file), warm_start_digest=files.sha256_of(str(file)))
    assert warm_start.asked(Train(epochs=7), str(model)) == warm_start.asked(Train(epochs=7), str(file)) == expected
    assert warm_start.resolved(expected, Root(model)) == (expected, "")
    assert warm_start.asked(Train(), None) == Train()


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.keras does not exist"):
        warm_start.asked(Train(), str(tmp_path / "gone.keras"))
    with pytest.raises(UserError, match=r"Format-Keras/model\.keras does not exist"):
        warm_start.asked(Train(), str(tmp_path))
    (tmp_path / "model.tflite").write_bytes(b"\0\0\0\0TFL3")
    with pytest.raises(UserError, match=r"--warm-start .*model\.tflite: expected a \.keras file, or the folder"):
        warm_start.asked(Train(), str(tmp_path / "model.tflite"))


def test_latest_of_nothing(tmp_path: Path) -> None:
    latest = warm_start.asked(Train(epochs=7), "latest")
    assert latest.warm_start == "latest"  # the same request every night
    found, note = warm_start.resolved(latest, Root(tmp_path))
    assert found == Train(epochs=7)
    assert note == "warm start: starts from scratch because nothing was pushed yet"


class On:
    """A cluster that mounts /mnt for the Trainer, or none."""

    mounting = settings.Settings(steps={"Trainer": {"volumes": [{"claim": "c", "path": "/mnt"}]}})
    plain = settings.Settings()


@pytest.mark.parametrize(
    ("given", "target", "where", "path", "digest"),
    [
        ("gs://b/run/model", "vertex", On.plain, "gs://b/run/model/Format-Keras/model.keras", None),
        ("gs://b/x.keras@sha256:" + "a" * 64, "oss", On.plain, "gs://b/x.keras", "a" * 64),
        ("/gcs/b/x.keras", "vertex", On.plain, "/gcs/b/x.keras", None),
        ("/mnt/run/model/", "oss", On.mounting, "/mnt/run/model/Format-Keras/model.keras", None),
    ],
)
def test_on_a_cluster(given: str, target: str, where: Any, path: str, digest: str | None) -> None:
    expected = Train(epochs=3, warm_start=path, warm_start_digest=digest)
    assert on_kubeflow.on_cluster(Train(epochs=3), given, target, where) == expected


@pytest.mark.parametrize(
    ("given", "target", "message"),
    [
        ("latest", "oss", "--warm-start latest is for runs on this machine"),
        ("gs://b/x.keras@sha256:12", "oss", "must be 64 hexadecimal digits, received '12'"),
        ("/home/x.keras", "oss", "a path in a volume that the settings file mounts for the Trainer, received '/home/x"),
        ("/mnt/x.keras", "vertex", "a path below /gcs/, received '/mnt/x.keras'"),
        ("s3://b/x.keras", "oss", "must be a gs:// URI or a path"),
    ],
)
def test_what_a_cluster_cannot_read(given: str, target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        on_kubeflow.on_cluster(Train(), given, target, On.mounting)


# whole runs -----------------------------------------------------------------------------------------------------------


def trainers(root: Path) -> list[Path]:
    return sorted((root / "artifacts" / "Trainer" / "model").iterdir(), key=lambda path: int(path.name))


@pytest.mark.slow
def test_a_retraining_goes_on_from_the_pushed_model(
    digits_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "root"

    def run(*more: object) -> str:
        asked = ("run", "--data", digits_data, "--root", root, "--recipe", "float16", "--epochs", 1)
        capfd.readouterr()
        assert main.main([*map(str, asked), "--max-accuracy-drop", "1", *map(str, more)]) == 0
        return "".join(capfd.readouterr())

    assert "warm start: starts from scratch because nothing was pushed yet" in run("--warm-start", "latest")
    [first] = trainers(root)
    assert "warm_start" not in Passport.read(first).steps[0]
    # the same without the option: nothing was there to begin with
    assert "warm start" not in run()
    assert trainers(root) == [first]

    file = first / layout.KERAS_FILE
    said = run("--warm-start", "latest")
    assert f"warm start: starts from the weights of {file}" in said
    [_, second] = trainers(root)
    [before], [after] = (Passport.read(folder).steps for folder in (first, second))
    assert after["warm_start"] | {"note": ""} == {
        "from": str(file), "sha256": files.sha256_of(str(file)), "taken": True, "note": ""
    }  # fmt: skip
    assert after["config"]["warm_start"] == str(file)
    assert after["history"]["loss"][0] < before["history"]["loss"][0] / 2  # it knows what the first one learned
    report = json.loads((root / "report" / "report.json").read_text())
    assert report["training"][0]["warm_start"]["taken"]
    assert "Warm start: starts from the weights of" in (root / "report" / "report.html").read_text()
    # what the deployed model was made of outlasts the garbage collection
    cleaning.delete(Root(root), 1)
    assert (second / layout.KERAS_FILE).is_file()
    found, note = warm_start.resolved(Train(warm_start="latest"), Root(root))
    assert (found.warm_start, note) == (str(second / layout.KERAS_FILE), "")
    # another model in its place is none to begin with, and nothing to be silent about
    kept = (second / layout.KERAS_FILE).read_bytes()
    (second / layout.KERAS_FILE).write_bytes((first / layout.KERAS_FILE).read_bytes())
    with pytest.raises(UserError, match=rf"is not what the run that made it has left: the files in {second} were chan"):
        warm_start.resolved(Train(warm_start="latest"), Root(root))
    (second / layout.KERAS_FILE).write_bytes(kept)
    assert warm_start.resolved(Train(warm_start="latest"), Root(root)) == (found, "")
    # if it is gone all the same, that is no reason to stop
    shutil.rmtree(second)
    _, note = warm_start.resolved(Train(warm_start="latest"), Root(root))
    assert note.startswith("warm start: starts from scratch because the float model behind version ")
