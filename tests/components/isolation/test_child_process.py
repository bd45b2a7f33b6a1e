from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from called_in_child import echoed, printed, raised, told_and_slept

from edgeline.errors import MachineError
from edgeline.isolation.child_process import ChildProcess, DiedError, RaisedError


@pytest.fixture
def child() -> Iterator[ChildProcess]:
    started = ChildProcess(["json"])
    yield started
    started.stop()


def is_there(pid: int) -> bool:
    """Whether a process runs; one that has ended stays in the list until somebody asks."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_answers_are_bytes_of_any_number_and_size(child: ChildProcess) -> None:
    large = os.urandom(3_000_000)
    assert child.call(echoed, b"", large, timeout=60) == [b"", large]
    assert child.call(echoed, timeout=60) == []
    assert child.calls == 2
    assert child.usable


def test_an_exception_is_told_and_the_child_lives(child: ChildProcess) -> None:
    with pytest.raises(RaisedError) as told:
        child.call(raised, timeout=60)
    assert (told.value.kind, told.value.message, told.value.details) == ("OddError", "two\nlines", {"names": ["a"]})
    assert child.call(echoed, b"x", timeout=60) == [b"x"]


def test_what_it_prints_goes_where_this_process_prints(child: ChildProcess, capfd: pytest.CaptureFixture[str]) -> None:
    child.call(echoed, timeout=60)
    capfd.readouterr()
    child.call(printed, timeout=60)
    assert capfd.readouterr() == ("of the child\n", "its complaint\n")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_death_is_told_with_its_signal(child: ChildProcess, number: signal.Signals) -> None:
    with pytest.raises(DiedError) as told:
        child.call(signal.raise_signal, number, timeout=60)
    assert told.value.status == -number
    assert number.name in str(told.value)
    assert not child.usable


def test_a_time_out_kills_it_and_tells_what_it_was_at(child: ChildProcess) -> None:
    child.call(echoed, timeout=60)
    with pytest.raises(DiedError, match="a time-out") as told:
        child.call(told_and_slept, "calibrating", timeout=0.5)
    assert (told.value.status, told.value.stage) == (None, "calibrating")
    assert not is_there(child.pid)


def test_whoever_kills_it_while_it_works_is_noticed(child: ChildProcess) -> None:
    child.call(echoed, timeout=60)
    threading.Timer(0.3, os.kill, (child.pid, signal.SIGKILL)).start()
    with pytest.raises(DiedError) as told:
        child.call(told_and_slept, "quantizing", timeout=60)
    assert (told.value.status, told.value.stage) == (-signal.SIGKILL, "quantizing")


def test_a_child_that_cannot_start_is_the_machines_fault() -> None:
    child = ChildProcess(["no_such_module"])
    with pytest.raises(MachineError, match="does not start: it ended with status 1"):
        child.call(echoed, timeout=60)


def test_a_fork_of_this_process_has_no_child(child: ChildProcess) -> None:
    child.call(echoed, timeout=60)
    child._owner += 1  # what a fork would see
    assert not child.usable
    child.stop()
    child._owner -= 1
    assert child.usable


@pytest.mark.parametrize(
    ("busy", "number"), [("stuck", signal.SIGKILL), ("stuck", signal.SIGINT), ("echoed", signal.SIGTERM)]
)
def test_it_ends_with_this_process_even_in_the_middle_of_a_call(busy: str, number: signal.Signals) -> None:
    code = (
        f"import sys, time; sys.path[:] = {sys.path!r}\n"
        f"from edgeline.isolation.child_process import ChildProcess\nimport called_in_child as called\n"
        f"child = ChildProcess(['json'])\nchild.call(called.echoed, timeout=60)\nprint(child.pid, flush=True)\n"
        f"child.call(called.{busy}, timeout=60)\ntime.sleep(60)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as parent:
        assert parent.stdout
        pid = int(parent.stdout.readline())
        assert is_there(pid)
        time.sleep(0.2)
        parent.send_signal(number)
        parent.wait(20)
    end = time.monotonic() + 20
    while is_there(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_there(pid)


def test_it_holds_no_output_open_between_calls(child: ChildProcess) -> None:
    # else a pipe that a log is written through would never end
    child.call(printed, timeout=60)
    opened = {str(Path(f"/proc/{child.pid}/fd/{number}").readlink()) for number in (1, 2)}
    assert opened == {os.devnull}
