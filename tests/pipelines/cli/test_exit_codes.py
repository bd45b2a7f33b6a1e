"""Every command ends with a verdict: no error of whatever kind leaves with Python's own exit code 1, or with 0."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from command_line import CommandLine

from edgeline.errors import UserError
from edgeline.pipelines import console, endings, stopping
from edgeline.pipelines.cli import listing
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.records import events, lineage
from edgeline.pipelines.root import Root
from edgeline.pipelines.run.journal import Journal

#: In a shell's background job, Ctrl-C is ignored.
START = (
    *(sys.executable, "-c"),
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from edgeline.pipelines.cli.main import main; sys.exit(main())",
)
#: A name as Python has it of bytes that are not UTF-8.
LATIN = os.fsdecode(b"caf\xe9")


class Shell(CommandLine):
    """The command line, and how it refuses."""

    def refused(self, *arguments: object) -> str:
        """Runs, and returns the one line of an error that the user can mend."""
        assert self(*arguments) == ExitCode.USERS_MISTAKE, self.out + self.err
        [line] = self.err.rstrip("\n").split("\n")
        assert line.startswith("edgeline: ")
        return line


@pytest.fixture
def shell(capfd: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capfd)


def raise_no_space(**_: object) -> None:
    raise OSError(28, "No space left on device")


def raising(error: BaseException) -> Callable[[object], int]:
    def command(_: object) -> int:
        raise error

    return command


def test_an_error_that_nobody_expects(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_recipes", raising(ZeroDivisionError("two\nlines")))
    assert shell("recipes") == ExitCode.STEP_FAILED
    shown = re.fullmatch(r"edgeline: ZeroDivisionError: two; full log: (.*edgeline-.*\.log)\n", shell.err)
    assert shown is not None
    log = Path(shown[1])
    assert "in command" in log.read_text()
    log.unlink()


def test_a_traceback_that_no_folder_takes_is_shown(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_recipes", raising(MemoryError()))
    monkeypatch.setattr("tempfile.mkstemp", raise_no_space)
    assert shell("recipes") == ExitCode.STEP_FAILED
    assert "Traceback" in shell.err
    assert shell.err.endswith("edgeline: MemoryError; no log can be written here\n")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("no"), 2, "no"),
        (PermissionError(13, "x", "a/b"), 2, "a/b: Permission denied; give this user the rights to it"),
        (OSError(28, "x"), 2, "No space left on device; free some space"),
        (OSError(5, "Input/output error", "a/b"), 3, "OSError: [Errno 5] Input/output error: 'a/b'"),
        (SystemExit(0), 3, "something called sys.exit(0)"),
        (SystemExit(1), 3, "something called sys.exit(1)"),
        (RecursionError("deep"), 3, "RecursionError: deep"),
        (UnicodeEncodeError("utf-8", LATIN, 3, 4, "surrogates not allowed"), 2, r"caf\udce9 is not in UTF-8"),
        (UnicodeEncodeError("ascii", "é", 0, 1, "not in range"), 3, "UnicodeEncodeError: "),
        (KeyboardInterrupt(), 130, "interrupted; finished steps are kept"),
        (stopping.Stopped(signal.SIGTERM), 143, "terminated; finished steps are kept"),
        (stopping.Stopped(signal.SIGHUP), 129, "hung up; finished steps are kept"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_what_an_error_means(error: BaseException, code: int, text: str) -> None:
    ending = endings.of(error)
    assert ending.code == code
    assert ending.text.startswith(text)


@pytest.mark.parametrize("module", ["rich", "tensorflow"])
def test_an_installation_that_is_not_whole(module: str, tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules[{module!r}] = None; from edgeline.pipelines.cli.main import main; "
        f"sys.exit(main(['data', 'digits', {str(tmp_path / 'out')!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == ExitCode.STEP_FAILED
    assert f"import of {module}" in ended.stderr or f"No module named '{module}." in ended.stderr
    assert ended.stderr.startswith("edgeline: ")


# names that are not UTF-8


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--module", "m.py", "--data", LATIN, "--root", "r"),
        ("run", "--root", LATIN),
        ("run", "--module", f"{LATIN}.py", "--data", "d", "--root", "r"),
        ("history", LATIN),
        ("inspect", LATIN),
    ],
)
def test_names_that_are_not_utf8(
    shell: Shell, arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert r"caf\udce9" in shell.refused(*arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_utf8(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / LATIN).mkdir()
    monkeypatch.chdir(tmp_path / LATIN)
    assert "is not in UTF-8" in shell.refused("run", "--root", "r")
    assert shell("recipes") == 0


@pytest.fixture
def root(tmp_path: Path, write_version: Callable[..., None]) -> Root:
    """The root of a pipeline that has pushed two versions."""
    root = Root(tmp_path / "root")
    for version, content in (("1790000000", b"one"), ("1790086400", b"three")):
        write_version(root, version, content)
    return root


@pytest.fixture
def write_version() -> Callable[..., None]:
    import hashlib

    from edgeline.deployed import pointer_file

    def write(root: Root, version: str, content: bytes) -> None:
        folder = root.pushed / version
        folder.mkdir(parents=True)
        (folder / "model.tflite").write_bytes(content)
        metadata = {"sha256": hashlib.sha256(content).hexdigest(), "inputs": [], "outputs": []}
        (folder / "metadata.json").write_text(json.dumps(metadata))
        pointer_file.point(str(root.pushed), version, "int8")

    return write


def test_a_reason_that_is_not_utf8_moves_no_pointer(shell: Shell, root: Root) -> None:
    before = (root.pushed / "latest.json").read_bytes()
    assert "is not in UTF-8" in shell.refused("push", "--root", root, "--rollback", "--why", LATIN)
    assert (root.pushed / "latest.json").read_bytes() == before


def test_a_user_whose_name_is_not_utf8(shell: Shell, root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", LATIN)
    assert shell("push", "--root", root, "--rollback") == 0
    [event] = events.read(root)
    assert event["to"] == "1790000000"
    assert event["by"].startswith("caf")
    assert shell("history", root) == 0
    assert shell("push", "--root", root, "--list") == 0


# what others have written into a root


def test_folders_that_are_no_versions(shell: Shell, root: Root) -> None:
    for name in ("20260131093000", "20260131", "99999999999999999999", "٣"):
        (root.pushed / name).mkdir()
    assert shell("push", "--root", root, "--list", "--output", "json") == 0
    # a day could be a second of 1970, which is whole without a model as little as any
    assert [v["version"] for v in json.loads(shell.out)["versions"]] == ["1790086400", "1790000000", "20260131"]
    assert shell("push", "--root", root, "--rollback") == 0


def odd(**changes: Any) -> Callable[[dict[str, Any]], str]:
    return lambda pointer: json.dumps(pointer | changes)


@pytest.mark.parametrize(
    "pointer",
    [
        lambda _: "",
        lambda _: "[" * 100_000,
        lambda _: '{"a":' * 100_000,
        lambda _: '"text"',
        lambda _: '{"schema_version": 1}',
        odd(version=7),
        odd(model=None),
        odd(name={}),
        odd(contract=[]),
        odd(contract={"inputs": [3], "outputs": [], "labels": []}),
        odd(contract={"inputs": [], "outputs": [], "labels": [{}]}),
        odd(withdrawn=[3]),
        odd(withdrawn={"sha256": "x"}),
        odd(withdrawn=[{"sha256": []}]),
        odd(previous=[]),
    ],
)
def test_odd_pointers(shell: Shell, root: Root, pointer: Callable[[dict[str, Any]], str]) -> None:
    from edgeline.deployed import pointer_file

    file = root.pushed / "latest.json"
    text = pointer(json.loads(file.read_text()))
    file.write_text(text)
    with pytest.raises(UserError, match="is not the pointer of a push"):
        pointer_file.latest(str(root.pushed))
    assert shell("push", "--root", root, "--list") == ExitCode.STEP_FAILED
    assert "latest.json does not say which version is deployed" in shell.refused("push", "--root", root, "--rollback")
    assert file.read_text() == text


def test_a_pointer_that_is_a_folder(shell: Shell, root: Root) -> None:
    (root.pushed / "latest.json").unlink()
    (root.pushed / "latest.json").mkdir()
    assert "latest.json: Is a directory" in shell.refused("push", "--root", root, "--rollback")


NOW = "2026-01-31T01:30:00.123+00:00"


@pytest.mark.parametrize(
    "line",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "NaN",
        *(
            json.dumps({"time": NOW, "run": "odd", "event": "started"} | change)
            for change in (
                {"time": 5},
                {"time": "2026-01-31T01:30:00"},
                {"time": "0001-01-01T00:00:00+23:00"},
                {"run": ["odd"]},
                {"event": {}},
                {"pid": 10**30},
                {"pid": "me"},
                {"event": "finished"},
                {"event": "finished", "exit_code": "0", "seconds": 1},
                {"event": "finished", "exit_code": 0, "seconds": float("nan")},
                {"event": "finished", "exit_code": 0, "seconds": float("inf")},
                {"event": "finished", "exit_code": 0, "seconds": 10**400},
                {"event": "evaluated", "metric": "a", "examples": 1, "candidates": 1, "blessed": 1, "deployed": [1]},
                {"event": "evaluated"},
                {"event": "selected", "name": 3},
                {"event": "none_selected", "closest": [], "value": "0.5"},
                {"event": "pushed", "version": {}},
                {"event": "rollback", "to": 3},
                {"event": "data", "spans": 3},
                {"event": "step", "state": ["running"]},
            )
        ),
    ],
)
def test_one_odd_line_in_the_event_log(shell: Shell, tmp_path: Path, line: str) -> None:
    root = Root(tmp_path)
    with Journal(root, "run") as journal:
        journal.write("not_pushed", why="\ud812 is half a character")
        journal.exit_code = 0
    with root.events.open("a") as log:
        log.write(line + "\n")
    assert shell("history", root, "--html", "--output", "json") == 0
    runs = [run for run in json.loads(shell.out)["runs"] if run["run"] != "odd"]
    assert [(run["exit_code"], run["why"]) for run in runs] == [(0, "? is half a character")]
    assert shell("history", root) == 0
    from edgeline.pipelines.records import prometheus

    prometheus.write(root)
    assert "edgeline_last_run_exit_code" in root.metrics.read_text()


def test_a_reason_with_other_line_ends_keeps_its_event(shell: Shell, tmp_path: Path) -> None:
    why = "one\u2028two\u2029three\u0085four\x0bfive\x0csix\x1cseven"
    with pytest.raises(UserError), Journal(Root(tmp_path), "run"):
        raise UserError(why)
    assert [event["error"] for event in events.read(Root(tmp_path)) if event["event"] == "finished"] == [why]


def test_an_event_log_that_has_no_end(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    assert "events.jsonl is no file" in shell.refused("history", tmp_path)
    events.append(Root(tmp_path), "gc")  # a disk that is full stops nothing


def test_an_event_log_on_a_full_disk_changes_no_verdict(shell: Shell, root: Root) -> None:
    root.events.symlink_to("/dev/full")
    assert shell("push", "--root", root, "--rollback") in (0, 2)
    with contextlib.suppress(UserError), Journal(root, "run"):
        raise UserError("refused")


@pytest.mark.parametrize(
    "arguments",
    [("runs", "--root"), ("push", "--list", "--root"), ("history",), ("run", "--root"), ("gc", "--keep", 1)],
    ids=lambda arguments: arguments[0],
)
def test_a_root_of_another_user(arguments: tuple[object, ...], tmp_path: Path) -> None:
    """Root may read everything, so the command runs as a user that may not."""
    root = tmp_path / "root"
    (root / "artifacts").mkdir(parents=True)
    (root / "pushed").mkdir()
    (root / "pushed" / "latest.json").touch()
    (root / "events.jsonl").touch()
    (root / "metadata.db").write_bytes(b"SQLite format 3\0")
    root.chmod(0o700)
    script = (
        "import os, sys\n"
        "from edgeline.pipelines.cli.main import main\n"
        "main([*sys.argv[1:-1], '/dev/null/none'])\n"  # imports all that it needs: root's Python may be closed too
        "os.getuid() == 0 and os.seteuid(65534)\n"
        "sys.exit(main())\n"
    )
    if os.getuid() != 0:
        root.chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, (*arguments, root))], capture_output=True, text=True, check=False
    )
    root.chmod(0o700)
    assert done.returncode == ExitCode.USERS_MISTAKE, done.stderr
    assert re.fullmatch(r"edgeline: .*\nedgeline: .*Permission denied.*\n", done.stderr)


# damaged files


def damaged(path: Path) -> Path:
    path.write_bytes(bytes(range(256)) * 20)
    return path


def test_damaged_models(shell: Shell, tmp_path: Path, tiny_module: Path, digits_data: Path) -> None:
    for name in ("m.keras", "m.h5", "m.tflite", "m.pb", "saved/saved_model.pb"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        model = damaged(path).parent if path.parent != tmp_path else path
        graph = ("--input", "x", "--output-name", "y") if name == "m.pb" else ()
        output = tmp_path / "out.tflite"
        line = shell.refused("export", model, *graph, "--data", digits_data, "--module", tiny_module, "-o", output)
        assert str(model) in line
        assert not output.exists()


def test_a_damaged_database(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "metadata.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 40)
    for arguments in (("runs", "--root"), ("lineage", 1, "--root"), ("gc", "--keep", 1)):
        assert "metadata.db" in shell.refused(*arguments, tmp_path)


# a locked database


@pytest.fixture
def database(tmp_path: Path) -> Root:
    root = Root(tmp_path / "root")
    root.make()
    with contextlib.closing(sqlite3.connect(root.metadata_db)) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.commit()
    return root


@contextlib.contextmanager
def locked(root: Root) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(root.metadata_db, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield


def test_a_locked_database_is_said_and_given_up(
    shell: Shell, database: Root, digits_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lineage.LOCKED_SECONDS == (2, 8)
    monkeypatch.setattr(lineage, "LOCKED_SECONDS", (0.1, 0.2))
    with locked(database):
        begun = time.monotonic()
        run = ("run", "--data", digits_data, "--root")
        for arguments in (("runs", "--root"), ("lineage", 1, "--root"), ("gc", "--keep", 1), run):
            assert shell(*arguments, database) == ExitCode.USERS_MISTAKE
            first, last = shell.err.rstrip("\n").split("\n")[-2:]
            assert "metadata.db is locked by another process, waiting up to" in first
            assert "metadata.db is locked by another process for more than" in last
        assert time.monotonic() - begun < 20
    lineage.wait_until_unlocked(database.metadata_db, write=True)
    assert not [path for path in database.path.iterdir() if "journal" in path.name]


# standard streams


def shown(arguments: str, redirect: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a shell with a redirection."""
    command = f"{sys.executable} -m edgeline.pipelines.cli {arguments} {redirect}"
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("arguments", "redirect", "code"),
    [
        ("recipes", ">&-", 0),
        ("recipes", ">&- 2>&-", 0),
        ("recipes", "<&- >&- 2>&-", 0),
        ("recipes", "| true; exit ${PIPESTATUS[0]}", 0),
        ("--help", "| true; exit ${PIPESTATUS[0]}", 0),
        ("recipes", "> /dev/full", 2),
        ("history none", "2> /dev/full", 2),
        ("history none", "2>&-", 2),
    ],
)
def test_streams_that_take_nothing(arguments: str, redirect: str, code: int) -> None:
    done = shown(arguments, redirect)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_log_on_a_full_disk_is_no_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.log").symlink_to("/dev/full")
    with console.capture_output(tmp_path / "run.log") as terminal:
        logging.getLogger().error("nobody reads this")
        terminal.out.print("said")
    out, err = capfd.readouterr()
    assert (out, err) == ("said\n", "")


# stopped from outside


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda value: str(value),
)
def test_signals(shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, code: int) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def command(_: object) -> int:
        with Journal(Root(tmp_path), "run"):
            os.kill(os.getpid(), number)
            time.sleep(5)
        return 0

    monkeypatch.setattr(listing, "_recipes", command)
    assert shell("recipes") == code
    assert "run the same command again to go on" in shell.err
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    [night] = events.nights(events.read(Root(tmp_path)))
    assert (night.verdict, night.exit_code) == ("interrupted", code)


def test_a_signal_that_was_made_an_error_of(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Beam does, and TensorFlow where it calls Python."""

    def command(_: object) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        except KeyboardInterrupt:
            raise RuntimeError("a bundle failed") from None
        return 0

    monkeypatch.setattr(listing, "_recipes", command)
    assert shell("recipes") == ExitCode.INTERRUPTED
    assert shell("recipes") == ExitCode.INTERRUPTED


def test_a_signal_that_is_ignored_stays_so(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        monkeypatch.setattr(listing, "_recipes", lambda _: os.kill(os.getpid(), signal.SIGHUP) or 0)
        assert shell("recipes") == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_that_ended_without_a_word(shell: Shell, tmp_path: Path) -> None:
    from edgeline.pipelines.run.node_events import Event

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    journal = Journal(Root(tmp_path), "run")
    journal.step(Event("Trainer", "done"))
    journal.step(Event("Pruner", "running"))
    with root_events(tmp_path) as lines:
        lines[0]["pid"] = child.pid
    assert [night.verdict for night in events.nights(events.read(Root(tmp_path)))] == ["running"]
    # a container gives the same number to another process
    with root_events(tmp_path) as lines:
        lines[0]["time"] = "2026-01-31T01:30:00.123+00:00"
    [night] = events.nights(events.read(Root(tmp_path)))
    assert (night.verdict, night.exit_code) == ("killed", None)
    assert (
        night.why
        == "it ended without a word while Pruner ran: it was killed, native code crashed, or the machine stopped"
    )
    child.kill()
    child.wait()


@contextlib.contextmanager
def root_events(root: Path) -> Iterator[list[dict[str, Any]]]:
    path = root / "events.jsonl"
    lines = [json.loads(line) for line in path.read_text().removesuffix("\n").split("\n")]
    yield lines
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


# whole runs


def logged(root: Root) -> list[dict[str, Any]]:
    return events.read(root) if root.events.exists() else []


CRASH = "__import__('ctypes').string_at(0)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hook", "code", "exit_code", "verdict"),
    [
        # when it computes, not when the module is looked into before the first step; a shell calls it 139
        ("preprocess", f"tf.py_function(lambda: {CRASH}, [], tf.string)", -signal.SIGSEGV, "killed"),
        ("build_model", "import os; os.kill(os.getpid(), 15)", 143, "interrupted"),
        ("build_model", "import sys; sys.exit(0)", 2, "refused"),
        ("build_model", "", 130, "interrupted"),
    ],
    ids=["crash", "sigterm", "sys_exit", "ctrl_c_in_the_evaluator"],
)
def test_how_a_run_ends(hook: str, code: str, exit_code: int, verdict: str, tmp_path: Path, digits_data: Path) -> None:
    from edgeline.pipelines.examples.digits import model

    lines = Path(model.__file__).read_text().split("\n")
    [start] = [number for number, line in enumerate(lines) if line.startswith(f"def {hook}(")]
    (tmp_path / "model.py").write_text("\n".join([*lines[: start + 2], f"    {code}", *lines[start + 2 :]]))
    root = Root(tmp_path / "root")
    asked = ["--module", tmp_path / "model.py", "--data", digits_data, "--root", root.path]
    asked += ["--recipe", "float16", "--epochs", 1, "--max-accuracy-drop", 1]
    with (tmp_path / "err").open("w") as err, subprocess.Popen([*START, "run", *map(str, asked)], stderr=err) as run:
        while run.poll() is None and not code:  # Beam makes an error of its own of what is raised while it runs
            steps = [event for event in logged(root) if event["event"] == "step" and event["step"] == "Evaluator"]
            if steps:
                time.sleep(0.5)
                run.send_signal(signal.SIGINT)
                break
            time.sleep(0.1)
        assert run.wait() == exit_code, (tmp_path / "err").read_text()
    [night] = events.nights(logged(root))
    assert night.verdict == verdict
    if verdict == "killed":
        assert night.why is not None
        assert re.fullmatch(r"it ended without a word while \w+ ran: .*", night.why)
    else:
        assert night.exit_code == exit_code
