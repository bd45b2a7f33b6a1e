"""The exit codes of `edgeline`: each is a verdict that cron, CI and a person can act on."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What became of a command.

    Attributes:
      DONE: it did what was asked; of a run: a model was selected and is deployed.
      NOTHING_FITS: no candidate met the budget; of `inspect`: the target cannot run the file.
      USERS_MISTAKE: what was given is wrong; nothing was changed.
      STEP_FAILED: a step of a run failed.
      INTERRUPTED: Ctrl-C; as shells report a process that SIGINT ended.
    """

    DONE = 0
    NOTHING_FITS = 1
    USERS_MISTAKE = 2
    STEP_FAILED = 3
    INTERRUPTED = 130
