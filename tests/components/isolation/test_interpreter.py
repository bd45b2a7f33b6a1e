"""Interpreters that are run to their end."""

from __future__ import annotations

import subprocess

import pytest

from edgeline.isolation import interpreter


def test_it_runs_to_its_end_and_keeps_what_was_said() -> None:
    code = "print(*sys.argv[1:]); sys.stderr.write('why'); sys.exit(3)"
    ended = interpreter.run(code, ["a b", "c"], timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, b"a b c\n", b"why")


def test_it_is_killed_in_time_and_keeps_what_was_said() -> None:
    with pytest.raises(subprocess.TimeoutExpired) as late:
        interpreter.run("print('begun', flush=True); import time; time.sleep(60)", [], timeout=1)
    assert late.value.stdout == b"begun\n"
