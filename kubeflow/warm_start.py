"""Which weights a training on a cluster begins with: `--warm-start` of `edgeline kubeflow compile`."""

from __future__ import annotations

import dataclasses
import re

from edgeline import layout
from edgeline.errors import UserError
from edgeline.kubeflow.settings import Settings, mounted_at
from edgeline.pipelines.run.warm_start import LATEST
from edgeline.trainer.config import Train


def on_cluster(train: Train, given: str, target: str, settings: Settings) -> Train:
    """Returns the Trainer's config with the weights to begin with, which only the cluster can read.

    Args:
      train: what is asked besides.
      given: a path or a gs:// URI, and perhaps `@sha256:` and the digest of the file.
      target: `oss` or `vertex`.
      settings: of the deployment.

    Raises:
      UserError: the path is none that the Trainer can read there.
    """
    path, _, digest = given.partition("@sha256:")
    if path == LATEST:
        raise UserError(
            f"--warm-start {LATEST} is for runs on this machine, where the metadata tells which float model a pushed "
            f"file was made of; give the path or URI of the Trainer's Model"
        )
    if "@sha256:" in given and not re.fullmatch("[0-9a-f]{64}", digest):
        raise UserError(f"--warm-start: the digest must be 64 hexadecimal digits, received {digest!r}")
    mounted = path.startswith("/") and (
        path.startswith("/gcs/") if target == "vertex" else bool(mounted_at(settings, "Trainer", path))
    )
    if not path.startswith("gs://") and not mounted:
        where = "below /gcs/" if target == "vertex" else "in a volume that the settings file mounts for the Trainer"
        raise UserError(f"--warm-start must be a gs:// URI or a path {where}, received {path!r}")
    if not path.endswith(".keras"):
        path = f"{path.rstrip('/')}/{layout.KERAS_FILE}"
    return dataclasses.replace(train, warm_start=path, warm_start_digest=digest or None)
