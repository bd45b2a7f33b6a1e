"""Kills commands at random points, runs each again, and compares what is left with what an undisturbed one leaves.

    python tools/campaign.py --kills 100 [--only run,push,rollback,gc,data] [--seed 0] [--work DIR]

Prints a table; exit code 1 if anything differed, and then the folders of the trials that did are kept.

What is killed, with SIGKILL, which no clean-up survives:

    run        `edgeline run` from scratch: train, compress, export, evaluate, push
    push       `edgeline run` where the evaluation and the push are all that is left to do
    rollback   `edgeline push --rollback` in a folder of three versions
    gc         `edgeline gc --keep 1` after two runs
    data       `edgeline data digits`

Half of the kills come at a random time; the others when the command is about to open, make, rename or delete a file
for the n-th time, so that short moments, such as the move of a pointer, are met as often as long ones, such as a
training. Each command is a fork of one process that has imported TensorFlow and TFX, and has done nothing with them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MODULE = """
import tensorflow as tf
import tf_keras as keras


def feature_spec():
    return {"image": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}


def preprocess(features):
    pixels = tf.reshape(tf.io.decode_raw(features["image"], tf.uint8), [-1, 64])
    return tf.cast(pixels, tf.float32) / 16.0, features["label"]


def build_model():
    return keras.Sequential([keras.Input([64], name="x"), keras.layers.Dense(10)])


def compile_model(model):
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
"""

#: Names of files that are there only while somebody writes; after a re-run none may be left.
LEFT_OVER = re.compile(r"\.pushing-.*|\..+\.[0-9a-f]{32}")
#: What Python tells an audit hook of before it touches the file system.
FILE_EVENTS = frozenset(
    {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
)
#: Parts of report.json and metadata.json that are measured of time and memory.
OF_TIME = frozenset({
    "created", "run", "latency_ms", "seconds", "device", "devices", "machine", "pushed_at", "version", "peak_rss_bytes",
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
      code: its exit code; negative: the signal that ended it.
      seconds: how long it took.
      output: what it printed.
      files: how often it opened, made, renamed or deleted a file that is not of Python or a library.
    """

    code: int
    seconds: float
    output: str
    files: int


@dataclasses.dataclass(frozen=True)
class Kill:
    """When a command is killed: after so many seconds, or before it touches the file system for the n-th time."""

    seconds: float | None = None
    files: int | None = None

    def __str__(self) -> str:
        return f"after {self.seconds:.2f} s" if self.files is None else f"before touching file {self.files}"


def run(command: list[str], folder: Path, kill: Kill | None = None) -> Ended:
    """Runs a command of `edgeline` in a fork of this process.

    Args:
      command: its words.
      folder: to work in; gets the output in `output.txt`.
      kill: when to kill it; None: never.
    """
    counted, output = folder / "files.txt", folder / "output.txt"
    output.write_text("")
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            code = _in_child(command, folder, counted, kill)
        finally:
            os._exit(code)
    status = None
    while status is None:
        done, waited = os.waitpid(child, os.WNOHANG)
        if done:
            status = waited
        elif kill and kill.seconds is not None and time.monotonic() - begun > kill.seconds:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
        else:
            time.sleep(0.002)
    # what the killed one had begun itself, such as a trial of a conversion, works for nobody any more
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    files = int(counted.read_text()) if os.WIFEXITED(status) and counted.exists() else 0
    counted.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status), time.monotonic() - begun, output.read_text(errors="replace"), files)


def _in_child(command: list[str], folder: Path, counted: Path, kill: Kill | None) -> int:
    os.setsid()
    os.chdir(folder)
    output = os.open("output.txt", os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    touched = 0
    own = str(folder)

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal touched
        # deleting a tree names what is in it by itself; of other absolute paths, modules are imported
        path = str(arguments[0]) if event in FILE_EVENTS else "/"
        if path.startswith(own) or not path.startswith("/"):
            touched += 1
            if kill and touched == kill.files:
                os.kill(os.getpid(), signal.SIGKILL)

    from edgeline.pipelines.cli import main

    sys.addaudithook(count)
    code = main.main(command)
    sys.stdout.flush()
    counted.write_text(str(touched))
    return code


@dataclasses.dataclass(frozen=True)
class Operation:
    """A command that is killed.

    Attributes:
      command: its words; it works in the folder that it is run in.
      prepare: makes that folder's content, whole.
      facts: says what must be equal of a folder, whether the command was killed there or not.
      told: whether the output of a killed command says that it has done its work; then nobody asks again.
    """

    command: list[str]
    prepare: Callable[[Path], None]
    facts: Callable[[Path], dict[str, Any]]
    told: Callable[[str], bool] = lambda output: False


RUN = ["run", "--module", "model.py", "--data", "data", "--root", "root", "--epochs", "2", "--finetune-epochs", "1"]
RUN += ["--recipe", "float16", "--recipe", "prune80_int8", "--max-accuracy-drop", "1", "--output", "json"]
NOTHING_FITS = ["--max-bytes", "1"]


class Campaign:
    """Prepares, kills and compares.

    Args:
      work: a folder for everything.
      seed: of the random points.
    """

    def __init__(self, work: Path, seed: int):
        self.work = work
        self._random = random.Random(seed)
        self._templates: dict[str, Path] = {}
        self.operations = {
            "run": Operation(RUN, self._of_template("inputs"), facts_of_root),
            "push": Operation(RUN, self._of_template("unpushed"), facts_of_root),
            "rollback": Operation(
                ["push", "--root", "root", "--rollback", "--why", "grey", "--by", "ann", "--output", "json"],
                self._of_template("versions"),
                facts_of_root,
                told=lambda output: '"to"' in output,
            ),
            "gc": Operation(["gc", "root", "--keep", "1"], self._of_template("two_runs"), facts_of_root),
            "data": Operation(["data", "digits", "digits"], lambda folder: None, facts_of_data),
        }

    def _of_template(self, name: str) -> Callable[[Path], None]:
        def prepare(folder: Path) -> None:
            if name not in self._templates:
                template = self.work / "templates" / name
                template.mkdir(parents=True)
                getattr(self, f"_make_{name}")(template)
                self._templates[name] = template
            shutil.copytree(self._templates[name], folder, dirs_exist_ok=True, symlinks=True)

        return prepare

    def _make_inputs(self, folder: Path) -> None:
        (folder / "model.py").write_text(MODULE)
        _expect(run(["data", "digits", "data", "--shards", "2"], folder), 0)

    def _make_unpushed(self, folder: Path) -> None:
        self._of_template("inputs")(folder)
        _expect(run([*RUN, *NOTHING_FITS], folder), 1)

    def _make_two_runs(self, folder: Path) -> None:
        self._of_template("inputs")(folder)
        _expect(run([*RUN, *NOTHING_FITS], folder), 1)
        _expect(run([*RUN, "--epochs", "3"], folder), 0)

    def _make_versions(self, folder: Path) -> None:
        from edgeline.deployed import pointer_file
        from edgeline.pipelines.records import events
        from edgeline.pipelines.root import Root

        root = Root(folder / "root")
        for number, version in enumerate(("1790000000", "1790086400", "1790172800")):
            made = root.pushed / version
            made.mkdir(parents=True)
            content = f"model {number}".encode()
            (made / "model.tflite").write_bytes(content)
            metadata = {"sha256": hashlib.sha256(content).hexdigest(), "inputs": [], "outputs": []}
            (made / "metadata.json").write_text(json.dumps(metadata))
            pointer_file.point(str(root.pushed), version, f"recipe{number}")
            events.append(root, "pushed", version, version=version, name=f"recipe{number}")

    def compare(self, name: str, kills: int) -> tuple[dict[str, Any], list[str]]:
        """Kills a command so often; returns a row of the table, and what differed."""
        operation = self.operations[name]
        reference, whole = self._whole(name, operation)
        seconds, before, differ, differences = time.monotonic(), 0, 0, []
        for number in range(kills):
            print(f"{name} {number + 1}/{kills}, {differ} differ", file=sys.stderr)
            folder = self._new_folder()
            operation.prepare(folder)
            if number % 2:
                kill = Kill(seconds=self._random.uniform(0, whole.seconds))
            else:
                kill = Kill(files=self._random.randint(1, whole.files))
            killed = run(operation.command, folder, kill)
            before += killed.code == -signal.SIGKILL
            again = killed if operation.told(killed.output) else run(operation.command, folder)
            code = 0 if operation.told(killed.output) else again.code
            try:
                found = list(_different(reference, operation.facts(folder) | {"exit code": code}))
            except Exception as error:  # what is left is not even whole
                found = [f"exit code {code}, and what is left cannot be read: {type(error).__name__}: {error}"]
            if found:
                differ += 1
                differences += [f"{name}-{number}, killed {kill}: {each}" for each in found]
                (folder / "killed.txt").write_text(killed.output)
                (folder / "again.txt").write_text(again.output)
                folder.rename(self.work / f"{name}-{number}")
            else:
                shutil.rmtree(folder)
        row = {"operation": name, "kills": kills, "before its end": before, "differ": differ}
        return row | {"whole": f"{whole.seconds:.1f} s", "all": f"{time.monotonic() - seconds:.0f} s"}, differences

    def _whole(self, name: str, operation: Operation) -> tuple[dict[str, Any], Ended]:
        folder = self._new_folder()
        operation.prepare(folder)
        ended = run(operation.command, folder)
        _expect(ended, 0)
        facts = operation.facts(folder) | {"exit code": 0}
        folder.rename(self.work / f"{name}-whole")
        return facts, ended

    def _new_folder(self) -> Path:
        """Makes the folder of a trial: always of one path, since a report says where the module lies."""
        shutil.rmtree(self.work / "trial", ignore_errors=True)
        (self.work / "trial").mkdir()
        return self.work / "trial"


def _expect(ended: Ended, code: int) -> None:
    if ended.code != code:
        raise SystemExit(f"a command that nobody killed ended with {ended.code}, expected {code}:\n{ended.output}")


def facts_of_root(folder: Path) -> dict[str, Any]:
    """Returns what is equal of two roots in which the same was done, whenever that was."""
    from edgeline.pipelines.records import events
    from edgeline.pipelines.root import Root

    root = Root(folder / "root")
    names = {path.name: str(number) for number, path in enumerate(sorted(root.pushed.glob("[0-9]*")))}
    pointer = json.loads((root.pushed / "latest.json").read_text()) if (root.pushed / "latest.json").exists() else {}
    log = events.read(root)
    nights = events.nights(log)
    artifacts = [path.relative_to(root.artifacts) for path in root.artifacts.glob("*/[!.]*/*")]
    return {
        "versions": len(names),
        "bytes": {
            f"{names[path.parent.name]}/{path.name}": _digest(path)
            for path in sorted(root.pushed.glob("[0-9]*/*"))
            if path.is_file()
        },
        "pointer": {key: pointer.get(key) for key in ("sha256", "name", "contract")},
        "deployed": names.get(pointer.get("version", "")),
        "withdrawn": [[entry["sha256"], entry["by"], entry["why"]] for entry in pointer.get("withdrawn", [])],
        "report": _timeless(json.loads((root.report / "report.json").read_text()))
        if (root.report / "report.json").exists()
        else None,
        "pushes logged": sorted(names.get(e["version"], "gone") for e in log if e["event"] == "pushed"),
        "rollbacks logged": [
            [names.get(e["from"] or ""), names.get(e["to"]), e["by"], e["why"]] for e in log if e["event"] == "rollback"
        ],
        "last run": [nights[-1].verdict in ("pushed", "not pushed"), nights[-1].selected, _timeless(nights[-1].value)]
        if nights and nights[-1].mlmd_run
        else None,
        "gc logged": any(e["event"] == "gc" for e in log),
        "artifacts": sorted(str(path.parent) for path in artifacts),
        "left over": _left_over(folder),
    }


def facts_of_data(folder: Path) -> dict[str, Any]:
    """Returns the bytes of what was written."""
    data = folder / "digits"
    files = {str(path.relative_to(data)): _digest(path) for path in sorted(data.rglob("*")) if path.is_file()}
    return {"bytes": files, "left over": _left_over(folder)}


def _left_over(folder: Path) -> list[str]:
    inside = (path for path in folder.rglob(".*") if LEFT_OVER.fullmatch(path.name))
    return sorted(str(path.relative_to(folder)) for path in inside)


def _digest(path: Path) -> str:
    content = path.read_bytes()
    if path.suffix == ".json":
        content = json.dumps(_timeless(json.loads(content)), sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()


def _timeless(value: Any) -> Any:
    """Returns a part of a JSON file without what time decides, or what was measured of time and memory.

    Numbers are rounded: Beam adds sums up in an order of its own.
    """
    if isinstance(value, float):
        return float(f"{value:.9g}")
    if isinstance(value, dict):
        return {key: _timeless(each) for key, each in value.items() if key not in OF_TIME}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def _different(expected: Any, received: Any, where: str = "") -> Iterator[str]:
    """Yields the places in which two values differ."""
    if isinstance(expected, dict) and isinstance(received, dict):
        for key in sorted({*expected, *received}, key=str):
            yield from _different(expected.get(key), received.get(key), f"{where}.{key}".removeprefix("."))
    elif expected != received:
        yield f"{where} is {_short(received)}, expected {_short(expected)}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) < 200 else f"{text[:200]}..."


def main(arguments: list[str] | None = None) -> int:
    """Runs a campaign; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="of each command (default: %(default)s)")
    parser.add_argument("--only", default="run,push,rollback,gc,data", metavar="A,B", help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random points (default: %(default)s)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="an empty folder (default: one in /tmp)")
    given = parser.parse_args(arguments)
    _import_all()
    work = (given.work or Path(tempfile.mkdtemp(prefix="campaign-"))).absolute()
    work.mkdir(exist_ok=True)
    campaign, differences = Campaign(work, given.seed), []
    header = None
    for name in given.only.split(","):
        row, found = campaign.compare(name, given.kills)
        if header is None:
            header = list(row)
            print("| " + " | ".join(header) + " |\n" + "|---" * len(header) + "|")
        print("| " + " | ".join(str(row[key]) for key in header) + " |", flush=True)
        differences += found
    for each in differences:
        print(each)
    if not differences:
        shutil.rmtree(work)
    else:
        print(f"the folders are in {work}")
    return 1 if differences else 0


def _import_all() -> None:
    """Imports what takes seconds, so that the forks need not; nothing of it may have begun a thread yet."""
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_USE_LEGACY_KERAS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from edgeline.pipelines import compression  # noqa: F401
        from edgeline.pipelines.run import session  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
