"""`edgeline kubeflow`: what its commands are. Nothing slow is imported at first."""

from __future__ import annotations

import argparse
from typing import Any

from edgeline.kubeflow.cli import compiling, scheduling


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `kubeflow` to the commands of `edgeline`.

    Args:
      commands: what `add_subparsers` of `edgeline` returned.
      common: parent of every command's parser.
    """
    kinds = commands.add_parser("kubeflow").add_subparsers(metavar="COMMAND", required=True)
    compiling.add_commands(kinds, common)
    scheduling.add_commands(kinds, common)
