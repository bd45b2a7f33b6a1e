"""Starts interpreters for code of ours: new ones, never forks, since a process that has used TensorFlow has threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any


def start(
    code: str, environment: Mapping[str, str] | None = None, arguments: Sequence[str] = (), **options: Any
) -> subprocess.Popen[bytes]:
    """Starts an interpreter that imports what this one does, in a session of its own: no Ctrl-C reaches it.

    Args:
      code: what it runs; has `sys`.
      environment: variables besides this process' own.
      arguments: what it has as `sys.argv[1:]`.
      **options: of `subprocess.Popen`.

    Raises:
      OSError: none can be started.
    """
    return subprocess.Popen(
        # no `-m`: it would import what lies in the working folder before what is installed
        [sys.executable, "-P", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}", *arguments],
        # a GPU's memory is for one process
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **(environment or {})},
        start_new_session=True,
        **options,
    )


def run(code: str, arguments: Sequence[str], *, timeout: float) -> subprocess.CompletedProcess[bytes]:
    """Runs an interpreter to its end, as `start` starts it, and keeps what it says.

    Raises:
      OSError: none can be started.
      subprocess.TimeoutExpired: it was killed after so many seconds; has what it said until then.
    """
    with start(
        code, arguments=arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired as late:
            process.kill()
            late.output, late.stderr = process.communicate()
            raise
        except BaseException:  # also Ctrl-C, which does not reach it
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)
