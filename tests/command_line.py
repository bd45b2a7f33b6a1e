"""The command line, run in the tests' own process."""

from __future__ import annotations

import pytest


class CommandLine:
    """Runs the command line in this process, whose imports are paid for, and keeps what it printed."""

    def __init__(self, capfd: pytest.CaptureFixture[str]):
        self._capfd = capfd
        self.out = self.err = ""

    def __call__(self, *arguments: object) -> int:
        from edgeline.pipelines.cli import main

        self._capfd.readouterr()
        code = main.main([str(argument) for argument in arguments])
        self.out, self.err = self._capfd.readouterr()
        return code
