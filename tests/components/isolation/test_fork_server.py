"""What a function does in a process of its own stays there."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeline.errors import UserError
from edgeline.isolation import fork_server

FUNCTIONS = """
import ctypes, os, resource, signal, sys, time
from pathlib import Path
from edgeline.errors import UserError

def write(folder, text):
    folder.joinpath("text").write_text(f"{text} {os.getpid()}")

def crash(folder, signal):
    os.kill(os.getpid(), signal)

def end(folder, status):
    os._exit(status)

def leave(folder):
    sys.exit(0)

def hang(folder, started):
    Path(started).write_text(str(os.getpid()))
    while True:
        time.sleep(100)

def refuse(folder):
    raise UserError("this is no model")

def fail(folder):
    raise KeyError("first\\nsecond")

def talk(folder):
    print("0\\nbegun\\n0", flush=True)
    os.write(1, b"0\\n0\\n0\\n")
    assert sys.stdin.read() == ""

def eat(folder):
    bytearray(2**40)

def eat_natively(folder):
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    if not libc.malloc(2**40):
        os.abort()

def fill_the_disk(folder):
    with folder.joinpath("much").open("wb") as file:
        file.seek(2**40)
        file.write(b"0")

def refuse_at_length(folder):
    folder.joinpath("refusal.json").write_bytes(b'"' + b"a" * 2**21 + b'"')

def refuse_through_a_pipe(folder):
    os.mkfifo(folder / "refusal.json")

def refuse_in_depth(folder):
    folder.joinpath("refusal.json").write_text("[" * 10**5)

def temporary(folder):
    import tempfile
    folder.joinpath("text").write_text(tempfile.mkdtemp())
"""


@pytest.fixture(autouse=True)
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server that imports nothing slow, whose children know the functions above."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "hostile.py").write_text(FUNCTIONS)
    monkeypatch.syspath_prepend(tmp_path / "code")
    running: list[Any] = []
    monkeypatch.setattr(fork_server, "_PRELOADED", ())
    monkeypatch.setattr(fork_server, "_running", running)
    yield
    for each in running:
        each.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "answer"
    path.mkdir()
    return path


def call(name: str, folder: Path, timeout: float = 60, **arguments: Any) -> None:
    fork_server.call(f"hostile:{name}", arguments, folder, what="model m", timeout=timeout)


def is_there(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 30
    while is_there(pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_each_call_has_a_process_of_its_own(folder: Path) -> None:
    seen = set()
    for text in ("a", "b"):
        call("write", folder, text=text)
        written, pid = (folder / "text").read_text().split()
        assert written == text
        wait_until_gone(int(pid))
        seen.add(int(pid))
    assert len(seen - {os.getpid()}) == 2


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGABRT", "SIGTERM"])
def test_a_crash(folder: Path, name: str) -> None:
    # SIGKILL is what the system's killer sends where memory runs out
    with pytest.raises(UserError, match=rf"model m is refused: .* ended by {name}; .* GiB .*--memory-limit"):
        call("crash", folder, signal=getattr(signal, name))
    call("write", folder, text="the next one is served")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("end", {"status": 3}, "model m is refused: the process that opened it ended with status 3"),
        ("leave", {}, "ended with status 1"),
        ("refuse", {}, "^this is no model$"),
        ("fail", {}, r"^model m cannot be taken apart: 'first\\nsecond'$"),
        ("eat", {}, r"model m is refused: it takes more than [\d.]+ GiB \(--memory-limit\)"),
        ("eat_natively", {}, r"ended by SIGABRT; it is damaged, or needs more than the [\d.]+ GiB"),
        ("fill_the_disk", {}, "model m cannot be taken apart: .* File too large"),
        ("refuse_at_length", {}, "left no answer"),
        ("refuse_through_a_pipe", {}, "left no answer"),
        ("refuse_in_depth", {}, "left no answer"),
    ],
)
def test_a_refusal(folder: Path, name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(name, folder, **arguments)


def test_what_it_prints_and_reads_is_not_the_servers(folder: Path) -> None:
    call("talk", folder)
    call("write", folder, text="still in step")
    assert (folder / "text").read_text().startswith("still in step")


def test_its_temporary_files_go_with_the_folder(folder: Path) -> None:
    call("temporary", folder)
    assert Path((folder / "text").read_text()).is_relative_to(folder)


def test_a_hang(folder: Path, tmp_path: Path) -> None:
    call("write", folder, text="the server is there")
    with pytest.raises(UserError, match=r"model m is refused: it was not opened in 0\.5 s"):
        call("hang", folder, timeout=0.5, started=str(tmp_path / "started"))
    wait_until_gone(int((tmp_path / "started").read_text()))
    call("write", folder, text="the next one is served")


def test_ctrl_c_while_it_hangs(folder: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"

    def interrupt() -> None:
        while not started.exists() or not started.read_text():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        call("hang", folder, started=str(started))
    thread.join()
    wait_until_gone(int(started.read_text()))
    call("write", folder, text="the next one is served")


def test_a_server_that_was_killed_between_two_calls(folder: Path) -> None:
    call("write", folder, text="a")
    os.kill(fork_server._running[0]._process.pid, signal.SIGKILL)
    call("write", folder, text="b")
    assert (folder / "text").read_text().startswith("b ")


def test_a_server_that_is_killed_during_a_call(folder: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"

    def kill() -> None:
        while not started.exists() or not started.read_text():
            time.sleep(0.01)
        os.kill(fork_server._running[0]._process.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(UserError, match="ended by SIGKILL"):
        call("hang", folder, started=str(started))
    thread.join()
    wait_until_gone(int(started.read_text()))


def test_a_server_without_work_ends_and_another_begins(folder: Path) -> None:
    call("write", folder, text="a")
    first = fork_server._running[0]._process
    first.stdin.close()  # it ends by itself, as where nothing was asked for long
    os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)
    call("write", folder, text="b")
    assert fork_server._running[0]._process.pid != first.pid


def test_nobody_survives_who_asked(folder: Path, tmp_path: Path) -> None:
    started = tmp_path / "started"
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'code')!r})\n"
        "from pathlib import Path\n"
        "from edgeline.isolation import fork_server\n"
        "fork_server._PRELOADED = ()\n"
        f"folder, arguments = Path({str(folder)!r}), {{'started': {str(started)!r}}}\n"
        "fork_server.call('hostile:hang', arguments, folder, what='', timeout=99)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as asking:
        while not started.exists() or not started.read_text():
            time.sleep(0.01)
        asking.kill()
    wait_until_gone(int(started.read_text()))


def test_nothing_is_imported_from_the_working_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "resource.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (tmp_path / "downloads" / "edgeline.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.chdir(tmp_path / "downloads")
    call("write", folder, text="a")
    assert not (tmp_path / "ran").exists()


def test_threads_wait_for_each_other(tmp_path: Path) -> None:
    folders = [tmp_path / f"answer-{index}" for index in range(4)]

    def ask(folder: Path) -> None:
        folder.mkdir()
        call("write", folder, text=folder.name)

    threads = [threading.Thread(target=ask, args=[each]) for each in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(each / "text").read_text().split()[0] for each in folders] == [each.name for each in folders]
    assert len(fork_server._running) == 1
