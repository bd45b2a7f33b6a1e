"""Killed at random points, a command that is run again leaves what one leaves that nobody killed."""

import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parents[1] / "tools" / "campaign.py"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("operation", "kills"), [("run", 10), ("rollback", 20)])
def test_a_killed_command_is_as_if_nobody_had_killed_it(operation: str, kills: int, tmp_path: Path) -> None:
    command = [sys.executable, CAMPAIGN, "--only", operation, "--kills", str(kills), "--work", tmp_path / "work"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    _, _, row = done.stdout.rstrip("\n").split("\n")
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:2] == [operation, str(kills)]
    assert int(cells[2]) > kills // 2  # most came before the command's end, else nothing was tried
    assert cells[3] == "0"
