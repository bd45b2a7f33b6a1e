"""The exit codes of `edgeline`: each is a verdict that cron, CI and a person can act on."""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """What became of a command.

    Attributes:
      DONE: it did what was asked; of a run: a model was selected and is deployed.
      NOTHING_FITS: no candidate was selected: none meets the budget, keeps the contract, runs on the target and is
        better than chance; of `inspect`: the target cannot run the file.
      USERS_MISTAKE: the user can mend it: what was given is wrong, a disk is full, a folder is closed to this user.
      STEP_FAILED: a step of a run failed, or a command met an error that nobody expected.
      HUNG_UP, INTERRUPTED, TERMINATED: stopped by SIGHUP, by Ctrl-C, by SIGTERM; as shells report such a process.
    """

    DONE = 0
    NOTHING_FITS = 1
    USERS_MISTAKE = 2
    STEP_FAILED = 3
    HUNG_UP = 129
    INTERRUPTED = 130
    TERMINATED = 143


#: What a command ends with that was stopped from outside.
STOPPED = frozenset({ExitCode.HUNG_UP, ExitCode.INTERRUPTED, ExitCode.TERMINATED})
