"""Which weights a training begins with: `--warm-start`, resolved where the pipeline is built."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeline import files, layout
from edgeline.deployed import pointer_file
from edgeline.errors import UserError
from edgeline.model_importer.config import kind_of
from edgeline.pipelines.root import Root
from edgeline.pipelines.run.published_files import PublishedFiles
from edgeline.trainer.config import Train

LATEST = "latest"

#: Those that give a pipeline its float model.
_SOURCES = ("Trainer", "ModelImporter")


def asked(train: Train, given: Path | str | None) -> Train:
    """Returns the Trainer's config with what the option says; `latest` stays as it is, see `resolved`.

    Args:
      train: what is asked besides.
      given: `latest`, a path, or None without the option.

    Raises:
      UserError: the path is not that of a `.keras` file or of a Model artifact's folder.
    """
    if given is None:
        return dataclasses.replace(train, warm_start=None)
    if given == LATEST:
        return dataclasses.replace(train, warm_start=LATEST)
    path = Path(given).absolute()
    if path.is_dir():
        path /= layout.KERAS_FILE
    if kind_of(path) != "keras":
        raise UserError(f"--warm-start {given}: expected a .keras file, or the folder of a Model that has one")
    return _of(train, path)


def resolved(train: Train, root: Root) -> tuple[Train, str]:
    """Returns the Trainer's config with the file that `latest` means now, and a line for the user where it is none.

    Args:
      train: as `asked` returned it. A run asked for `latest` twice is the same request, whatever that means each time.
      root: folder of the pipeline.

    Raises:
      UserError: the file is not the one that the run left which trained it.
    """
    if train.warm_start != LATEST:
        return train, ""
    try:
        version, folder, properties = _behind_the_pushed(root)
    except UserError as error:
        return dataclasses.replace(train, warm_start=None), f"warm start: starts from scratch because {error}"
    if not PublishedFiles.are_those(folder, properties):
        raise UserError(
            f"--warm-start {LATEST}: the float model behind version {version} is not what the run that made it has "
            f"left: the files in {folder} were changed since. Put them back, name another model to begin with, or "
            f"leave --warm-start out"
        )
    return _of(train, folder / layout.KERAS_FILE), ""


def _of(train: Train, path: Path) -> Train:
    return dataclasses.replace(train, warm_start=str(path), warm_start_digest=files.sha256_of(str(path)))


def _behind_the_pushed(root: Root) -> tuple[str, Path, Mapping[str, Any]]:
    """Returns the deployed version, and the folder and properties of the float model that it was made of.

    Raises:
      UserError: nothing is deployed, or that model is not in the metadata, or no longer on disk.
    """
    from edgeline.pipelines.records import lineage

    deployed = pointer_file.latest(str(root.pushed))
    if deployed is None:
        raise UserError("nothing was pushed yet")
    steps = lineage.trace(deployed.path, root).steps
    sources = {step.id for step in steps if step.component in _SOURCES}
    models = [i.artifact for step in steps for i in step.inputs if i.port == "model" and i.producer in sources]
    path = Path(models[0].uri, layout.KERAS_FILE) if models else None
    if path is None or not path.is_file():
        raise UserError(
            f"the float model behind version {deployed.version} is not there any more ({path or 'it has no layers'})"
        )
    return str(deployed.version), Path(models[0].uri), models[0].properties
