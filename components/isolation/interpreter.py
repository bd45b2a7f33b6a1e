"""Starts interpreters for code of ours: new ones, never forks, since a process that has used TensorFlow has threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def start(code: str, environment: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
    """Starts an interpreter that imports what this one does, in a session of its own: no Ctrl-C reaches it.

    Args:
      code: what it runs.
      environment: variables besides this process' own.
      **options: of `subprocess.Popen`.

    Raises:
      OSError: none can be started.
    """
    return subprocess.Popen(
        # no `-m`: it would import what lies in the working folder before what is installed
        [sys.executable, "-P", "-c", f"import sys; sys.path[:] = {sys.path!r}; {code}"],
        # a GPU's memory is for one process
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **(environment or {})},
        start_new_session=True,
        **options,
    )
