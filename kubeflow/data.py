"""`edgeline kubeflow data`: lays a data folder out as the pipeline expects it in a bucket."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from edgeline import files
from edgeline.data import data_folder
from edgeline.data.data_folder import SHARD_SUFFIX, SPLITS
from edgeline.errors import UserError


def lay_out(source: Path, out: Path) -> dict[str, int]:
    """Makes a folder with `Split-train`, `Split-validation` and `Split-eval` from a data folder.

    The files are hard links to those of the data folder where the file system allows it, else copies. Only shards are
    taken: a step would read any other file as examples.

    Args:
      source: the data folder, with `train`, `validation` and `eval`.
      out: the folder to make.

    Returns:
      Examples per split, in the order train, validation, eval.

    Raises:
      UserError: the data folder is damaged or lacks something, or `out` exists, lies in the data folder or cannot be
        written; nothing is left behind.
    """
    if (source / f"Split-{SPLITS[0]}").is_dir():
        raise UserError(f"{source} is laid out already: upload it as it is")
    if out.exists():
        raise UserError(f"{out} exists already: delete it, or choose another folder")
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies in the data folder {source}: choose a folder beside it")
    counts = data_folder.check_readable(source)
    try:
        with files.new_folder(out) as new:
            for split in SPLITS:
                folder = new / f"Split-{split}"
                folder.mkdir()
                for shard in (source / split).glob(f"*{SHARD_SUFFIX}"):
                    _link(shard, folder / shard.name)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; choose another folder") from error
    return counts


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source.resolve())
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)


def upload_commands(out: Path) -> dict[str, str]:
    """Returns the commands that make a bucket's folder the same as a local one, by the URI it then has.

    They also delete what is only there: shards of an earlier upload would be read with the new ones.
    """
    folder = shlex.quote(str(out))
    return {
        "minio://BUCKET/PATH": f"mc mirror --overwrite --remove {folder} ALIAS/BUCKET/PATH",
        "s3://BUCKET/PATH": f"aws s3 sync --delete {folder} s3://BUCKET/PATH",
        "gs://BUCKET/PATH": "gcloud storage rsync --recursive --delete-unmatched-destination-objects "
        f"{folder} gs://BUCKET/PATH",
    }
