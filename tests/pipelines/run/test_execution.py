"""Doing what was asked: what must hold before the first step."""

import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import sys
from edgeline.pipelines import compression
from edgeline.pipelines.cli.main import main
from edgeline.training import loop

def check(job):
    print("threads", loop.threads_in_use(), file=open(sys.argv[1], "w"))
    raise SystemExit

compression.check = check
main(["run", "--root", sys.argv[2], "--data", sys.argv[3]])
"""


@pytest.mark.slow
def test_the_number_of_threads_holds_from_the_first_look_at_the_data(tmp_path: Path, digits_data: Path) -> None:
    told = tmp_path / "told"
    program = [sys.executable, "-c", _PROGRAM, str(told), str(tmp_path / "root"), str(digits_data)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert told.read_text() == "threads 8\n", done.stderr
