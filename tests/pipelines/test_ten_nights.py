"""Ten nights of unattended retraining: what goes wrong with data, code, model and machine, and what is deployed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_digits

from edgeline.pipelines import recipes
from edgeline.pipelines.cli import main
from edgeline.pipelines.records import events
from edgeline.pipelines.root import Root

EXAMPLES = {"train": 400, "validation": 40, "eval": 120}
EPOCHS = 6


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    return bunch.images.astype(np.uint8), bunch.target


def write_day(folder: Path, seed: int, *, light: float = 1.0, off_by: int = 0) -> None:
    """Writes a day of photographed digits, in the place of what is there.

    Args:
      folder: the span.
      seed: of the day.
      light: factor to the pixels.
      off_by: what is wrongly added to the labels of the train split.
    """
    shutil.rmtree(folder, ignore_errors=True)
    random = np.random.default_rng(seed)
    images, labels = digits()
    # no image that is trained on, not even a noisy copy, is evaluated on
    pools = {"train": (0, 1), "validation": (2,), "eval": (3,)}
    for split, count in EXAMPLES.items():
        (folder / split).mkdir(parents=True)
        chosen = random.choice(np.flatnonzero(np.isin(np.arange(len(images)) % 4, pools[split])), count)
        noisy = np.clip(images[chosen] + random.integers(-1, 2, (count, 8, 8)), 0, 16)
        taken = np.round(noisy * light).astype(np.uint8)
        written = (labels[chosen] + (off_by if split == "train" else 0)) % 10
        with tf.io.TFRecordWriter(str(folder / split / "data-00000-of-00001.tfrecord.gz"), "GZIP") as writer:
            for image, label in zip(taken, written, strict=True):
                features = {
                    "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.tobytes()])),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
                    "brightness": tf.train.Feature(float_list=tf.train.FloatList(value=[image.mean()])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    (folder / "labels.txt").write_text("".join(f"{digit}\n" for digit in range(10)))


@dataclasses.dataclass
class Pipeline:
    """A folder of data that grows by day, a module, a root, and the line of crontab."""

    folder: Path
    capfd: pytest.CaptureFixture[str]
    out: str = ""
    err: str = ""
    told: str = ""  # what the last night said on standard error

    @property
    def root(self) -> Path:
        return self.folder / "runs" / "digits"

    @property
    def module(self) -> Path:
        return self.folder / "model.py"

    def day(self, number: int) -> Path:
        return self.folder / "data" / f"day-{number}"

    @property
    def line(self) -> list[str]:
        return [
            "run", "--module", str(self.module), "--data", str(self.folder / "data" / "day-{SPAN}"), "--window", "2",
            "--root", str(self.root), "--schema", str(self.folder / "schema.pbtxt"), "--recipe", "int8",
            "--epochs", str(EPOCHS), "--batch-size", "16", "--max-accuracy-drop", "0.05",
            "--max-deployed-drop", "0.05", "--output", "json",
        ]  # fmt: skip

    def edgeline(self, *arguments: object) -> int:
        """Runs the command line in this process, whose imports are paid for."""
        self.capfd.readouterr()
        code = main.main([str(argument) for argument in arguments])
        self.out, self.err = self.capfd.readouterr()
        return code

    def night(self, code: int, verdict: str, *more: str) -> dict[str, Any]:
        """Lives through a night, checks how it ended, and returns the line of JSON; empty where there is none."""
        logged = len(self.nights())
        assert self.edgeline(*self.line, *more) == code, self.err
        self.told = self.err
        nights = self.nights()
        assert len(nights) == logged + 1
        assert (nights[-1].exit_code, nights[-1].verdict) == (code, verdict)
        assert f'edgeline_last_run_exit_code{{pipeline="digits"}} {code}\n' in self.metrics()
        if not self.out:
            return {}
        outcome: dict[str, Any] = json.loads(self.out)
        assert outcome["exit_code"] == code
        return outcome

    def nights(self) -> list[events.Night]:
        return events.nights(events.read(Root(self.root))) if self.root.exists() else []

    def metrics(self) -> str:
        return (self.root / "metrics.prom").read_text()

    def report(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.root / "report" / "report.json").read_text())
        return content

    def pointer(self) -> dict[str, Any]:
        """Returns latest.json, after checking that the version that it names is whole and does what it did."""
        content: dict[str, Any] = json.loads((self.root / "pushed" / "latest.json").read_text())
        model = self.root / "pushed" / content["model"]
        assert hashlib.sha256(model.read_bytes()).hexdigest() == content["sha256"]
        assert self.edgeline("verify", model.parent) == 0, self.out
        return content

    def pushes(self, outcome: dict[str, Any], previous: str | None, spans: list[str]) -> str:
        """Checks that a night has pushed what it selected; returns the version."""
        report, pointer = self.report(), self.pointer()
        [selected] = [c for c in report["candidates"] if c["name"] == report["selected"]]
        assert selected["blessed"]
        assert pointer["sha256"] == selected["sha256"]
        assert (pointer["name"], pointer["previous"]) == (selected["name"], previous)
        assert pointer["contract"]["labels"] == list("0123456789")
        assert outcome["selected"] == selected["name"]
        assert outcome["pushed"] == str(self.root / "pushed" / pointer["model"])
        assert report["dataset"]["spans"] == spans
        assert report["dataset"]["examples"] == EXAMPLES["eval"] * len(spans)
        assert (report["deployed"] or {}).get("version") == previous
        assert self.nights()[-1].pushed == pointer["version"]
        deployed = (
            f'edgeline_deployed_metric{{pipeline="digits",metric="accuracy"}} {selected["metrics"]["accuracy"]!r}'
        )
        assert deployed in self.metrics()
        return str(pointer["version"])

    def pushed(self) -> dict[str, str]:
        """Returns a digest of every file of what is deployed and was."""
        files = sorted(path for path in (self.root / "pushed").rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    @contextlib.contextmanager
    def nothing_pushed(self) -> Any:
        before = self.pushed()
        yield
        assert self.pushed() == before
        self.pointer()

    def kill_in_training(self) -> int:
        """Starts a night and kills it after an epoch; returns how many were done."""

        def epochs() -> int:
            with contextlib.suppress(OSError, ValueError):  # there is none yet, or it is replaced just now
                return max(
                    json.loads(path.read_text())["epochs"] for path in (self.root / ".checkpoints").glob("*/state.json")
                )
            return 0

        command = [sys.executable, "-m", "edgeline.pipelines.cli", *self.line]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as child:
            while child.poll() is None and not epochs():
                time.sleep(0.01)
            os.killpg(child.pid, signal.SIGKILL)
        return epochs()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_nights(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    here = Pipeline(tmp_path, capfd)
    example = Path(recipes.__file__).parent / "examples" / "digits" / "model.py"
    shutil.copy(example, here.module)
    write_day(here.day(1), 1)
    assert here.edgeline("data", "schema", here.day(1), "-o", tmp_path / "schema.pbtxt") == 0
    assert "brightness, image, label" in here.out

    # 1: the first model
    outcome = here.night(0, "pushed")
    first = here.pushes(outcome, None, ["day-1"])

    # 2: the camera was off
    report = here.report()
    with here.nothing_pushed():
        outcome = here.night(0, "no new data")
    assert outcome["no_new_data"]
    assert "day-1): nothing trained, nothing pushed" in outcome["why"]
    assert here.report() == report

    # 3: the copy of a shard broke off
    write_day(here.day(2), 2)
    shard = here.day(2) / "train" / "data-00000-of-00001.tfrecord.gz"
    shard.write_bytes(shard.read_bytes()[:-500])
    with here.nothing_pushed():
        assert here.night(2, "refused") == {}
    assert here.told.startswith(f"edgeline: {shard} is a truncated gzip file")
    assert here.told.count("\n") == 1
    assert str(shard) in (here.nights()[-1].why or "")
    assert here.report() == report

    # 4: it was copied again; the power fails in mid-training, and comes back
    write_day(here.day(2), 2)
    with here.nothing_pushed():
        done = here.kill_in_training()
    assert 0 < done < EPOCHS
    assert (here.nights()[-1].verdict, here.nights()[-1].exit_code) == ("killed", None)
    outcome = here.night(0, "pushed")
    second = here.pushes(outcome, first, ["day-1", "day-2"])
    [log] = (here.root / "logs").glob(f"{here.nights()[-1].run}.log")
    trained = [epoch for epoch in range(1, EPOCHS + 1) if f"epoch {epoch}/{EPOCHS}" in log.read_text()]
    assert trained == list(range(done + 1, EPOCHS + 1))
    assert not (here.root / ".checkpoints").exists()

    # 5: a lamp has failed
    write_day(here.day(3), 3, light=0.4)
    report = here.report()
    with here.nothing_pushed():
        outcome = here.night(2, "refused")
    assert outcome["steps"]["failed"] == 1
    [failure] = outcome["failures"]
    assert failure.startswith("DataGate: the data have moved, in brightness:\n")
    assert not any(step in here.told for step in ("done    Trainer", "done    Evaluator", "done    Pusher"))
    assert here.report() == report

    # 6: the lamp is mended, and somebody has sorted the classes in the module
    write_day(here.day(3), 3)
    source = here.module.read_text()
    assert "for digit in range(10)" in source
    here.module.write_text(source.replace("for digit in range(10)", "for digit in reversed(range(10))"))
    with here.nothing_pushed():
        outcome = here.night(1, "nothing fits")
    assert (outcome["selected"], outcome["pushed"]) == (None, None)
    assert outcome["candidates"][0]["reasons"] == [
        "label order: 0 is '9', deployed has '0' (and 9 more) (--like none allows a new contract)"
    ]
    assert "int8: label order: 0 is '9'" in (here.nights()[-1].why or "")
    assert here.report()["selected"] is None

    # 7: the module is put back; in the morning, the new model is found to be bad
    here.module.write_text(source)
    outcome = here.night(0, "pushed")
    third = here.pushes(outcome, second, ["day-2", "day-3"])
    assert here.edgeline("push", "--root", here.root, "--rollback", "--why", "sevens", "--by", "ann") == 0
    assert (here.pointer()["version"], here.pointer()["withdrawn"][0]["version"]) == (second, third)
    with here.nothing_pushed():
        here.night(0, "no new data")

    # 8: the labels of the day are off by one
    write_day(here.day(4), 4, off_by=1)
    with here.nothing_pushed():
        outcome = here.night(1, "nothing fits")
    assert any("worse than the deployed model's" in reason for reason in outcome["candidates"][0]["reasons"])
    assert here.report()["deployed"]["version"] == second
    assert here.pointer()["version"] == second

    # 9: they are mended
    write_day(here.day(4), 4)
    outcome = here.night(0, "pushed")
    fourth = here.pushes(outcome, second, ["day-3", "day-4"])
    assert here.pointer()["withdrawn"][0]["version"] == third

    # what the ten rows say, before the tenth is there
    expected = [
        ("pushed", 0, first),
        ("no new data", 0, None),
        ("refused", 2, None),
        ("killed", None, None),
        ("pushed", 0, second),
        ("refused", 2, None),
        ("nothing fits", 1, None),
        ("pushed", 0, third),
        ("no new data", 0, None),
        ("nothing fits", 1, None),
        ("pushed", 0, fourth),
    ]
    assert here.edgeline("history", here.root, "--html") == 0
    rows = [row for row in here.out.splitlines() if re.match(r"\s+\d{4}-\d\d-\d\d ", row)]
    for row, (verdict, _, version) in zip(rows, expected, strict=True):
        assert verdict in row
        assert version is None or version in row
    assert f"{third} → {second}, by ann: sevens" in here.out
    page = (here.root / "report" / "history.html").read_text()
    assert all(version in page for version in (first, second, third, fourth))
    assert here.edgeline("history", here.root, "--output", "json") == 0
    told = json.loads(here.out)["runs"]
    assert [(run["verdict"], run["exit_code"], run["pushed"]) for run in told] == expected

    before = here.pushed()
    logs = len(list((here.root / "logs").iterdir()))
    assert here.edgeline("gc", here.root, "--keep", "3") == 0
    assert re.match(r"freed [1-9][\d,]* bytes: .*; 3 of \d+ runs are kept whole\n", here.out)
    assert len(list((here.root / "logs").iterdir())) < logs
    assert here.pushed() == before

    # 10: as it should always be
    write_day(here.day(5), 5)
    outcome = here.night(0, "pushed")
    fifth = here.pushes(outcome, fourth, ["day-4", "day-5"])
    assert here.edgeline("push", "--root", here.root, "--list", "--output", "json") == 0
    versions = json.loads(here.out)["versions"]
    assert [version["version"] for version in versions] == [fifth, fourth, third, second, first]
    assert not any(version["problem"] for version in versions)
    for version in versions:
        assert here.edgeline("verify", here.root / "pushed" / version["version"]) == 0, here.out
