"""A data set of a folder with one sub-folder of images per class."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from edgeline.data import data_folder
from edgeline.errors import UserError
from edgeline.pipelines.datasets import writing
from edgeline.pipelines.datasets.writing import DatasetSummary, Example

if TYPE_CHECKING:
    from rich.console import Console

_IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")


def write_images(source: Path, out: Path, *, shards: int = 8, console: Console | None = None) -> DatasetSummary:
    """Writes a folder of JPEG and PNG files, one sub-folder per class, split 80/10/10; the bytes stay as they are.

    Every image is decoded once, so that a damaged file is found here and not in the middle of a training. Hidden files
    and folders are left out.

    Args:
      source: the folder; the sorted names of its sub-folders are the classes. Never changed.
      out: data folder to make, outside of `source`; may exist if it is empty or holds this very data set.
      shards: files of the train split, at least 1; the other splits get fewer in proportion.
      console: where progress is shown; None for silence.

    Raises:
      UserError: `source` is not such a folder, holds other or damaged files or too few images to fill every split,
        `out` holds something else or cannot be written, or `shards` is below 1.
    """
    writing.check_request(out, shards)
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"the data folder {out} would lie inside {source}, whose folders are classes: choose another")
    labels, files = _image_files(source)
    examples = []
    broken = []
    with writing.progress(console) as progress:
        for label, path in progress.track(files, description="images: checking"):
            try:
                content = path.read_bytes()
            except OSError as error:
                broken.append(f"  {path}: {data_folder.reason_of(error)}")
                continue
            if fault := _image_fault(content):
                broken.append(f"  {path}: {fault}")
            else:
                examples.append(Example(hashlib.sha256(content).digest(), label, path))
    if broken:
        raise UserError(
            f"{len(broken)} of {len(files)} image files in {source} cannot be decoded as JPEG or PNG; repair or remove "
            "them:\n" + data_folder.first_of(broken, separator="\n")
        )
    features = {"image": {"encoding": "jpeg or png"}, "label": {"dtype": "int64"}}
    return writing.write("images", out, writing.split_by_digest(examples), labels, features, shards, console)


def _image_files(source: Path) -> tuple[tuple[str, ...], list[tuple[int, Path]]]:
    """Returns the class names and the (label, path) of every image file, sorted by path."""
    try:
        if not source.is_dir():
            raise UserError(f"the image folder {source} does not exist")
        folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
        members = [sorted(path for path in folder.iterdir() if not path.name.startswith(".")) for folder in folders]
    except OSError as error:
        raise UserError(f"cannot read the image folder {source}: {data_folder.reason_of(error)}") from error
    if len(folders) < 2:
        raise UserError(
            f"{source} must hold one sub-folder per class, at least two, with JPEG or PNG files in them; "
            f"{data_folder.listing(source)}"
        )
    files = []
    strangers = []
    for label, (folder, paths) in enumerate(zip(folders, members, strict=True)):
        if not paths:
            raise UserError(f"the class folder {folder} is empty: put images into it or remove it")
        for path in paths:
            if path.is_file() and path.suffix.lower() in _IMAGE_SUFFIXES:
                files.append((label, path))
            else:
                strangers.append(f"  {path}")
    if strangers:
        raise UserError(
            f"class folders may hold {', '.join(_IMAGE_SUFFIXES)} files only; convert, move or remove these "
            f"{len(strangers)}:\n" + data_folder.first_of(strangers, separator="\n")
        )
    return tuple(folder.name for folder in folders), files


def _image_fault(content: bytes) -> str:
    """Returns what is wrong with an encoded image, "" if nothing is.

    TensorFlow decodes, as it will in the pipeline; Pillow accepts cut PNG files that TensorFlow refuses.
    """
    import tensorflow as tf

    if not content.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return "is neither JPEG nor PNG, whatever its name"
    try:
        tf.io.decode_image(content)
    except tf.errors.OpError:
        return "is damaged or cut off"
    return ""
