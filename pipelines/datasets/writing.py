"""Data folders: makes them from well-known data sets or folders of images, and checks them before a pipeline runs.

A data folder is what a pipeline reads:

    DIR/train/*.tfrecord.gz  DIR/validation/*.tfrecord.gz  DIR/eval/*.tfrecord.gz   GZIP TFRecords of tf.train.Example
    DIR/labels.txt      one class name per line; line number (from 0) = label
    DIR/dataset.json    what was written: name, counts, labels, features, shards, digest of the content

Each example has two features: `image` (bytes: raw uint8 pixels, row by row, or an encoded JPEG or PNG file) or `tokens`
(int64), and `label` (int64). The split of an image follows from a hash of its bytes alone. So equal images are always
in the same split, whatever the names and the order of the files, and an image stays in its split when others are added
to the data set. Only a published test set is not cut this way: it is `eval` as it is.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeline import files
from edgeline.data import data_folder
from edgeline.data.data_folder import SHARD_SUFFIX, SPLITS
from edgeline.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class DatasetSummary:
    """What a data folder holds.

    Attributes:
      name: `digits`, `fashion-mnist`, `mnist`, `images` or `imdb`.
      path: the data folder.
      counts: examples per split, in the order train, validation, eval; each at least 1.
      labels: class names; the index is the label.
      written: False if the folder was already there with exactly this content.
    """

    name: str
    path: Path
    counts: dict[str, int]
    labels: tuple[str, ...]
    written: bool


class Example(NamedTuple):
    """An image with its label; sorts by the hash of the content, which is a shuffle that every machine repeats."""

    digest: bytes  # SHA-256 of the image's bytes
    label: int
    image: bytes | Path  # a path where the images of a data set may not fit into memory; tokens as bytes, int64


def examples(images: Iterable[bytes], labels: Iterable[int]) -> list[Example]:
    """Pairs images with their labels."""
    return [Example(hashlib.sha256(image).digest(), label, image) for image, label in zip(images, labels, strict=True)]


def split_by_digest(examples: list[Example], test: list[Example] | None = None) -> dict[str, list[Example]]:
    """Splits by the hash of each image and puts each split into the order of the hashes.

    Args:
      examples: the training set, or the whole data set if it has no published test set.
      test: the published test set, taken as it is; None to cut 10% of `examples`.
    """
    splits: dict[str, list[Example]] = {split: [] for split in SPLITS}
    splits["eval"].extend(test or ())
    for example in examples:
        tenth = int.from_bytes(example.digest[:8], "big") % 10
        split = "validation" if tenth == 0 else "eval" if tenth == 1 and test is None else "train"
        splits[split].append(example)
    return {split: sorted(members, key=lambda example: example[:2]) for split, members in splits.items()}


def write(
    name: str,
    out: Path,
    splits: dict[str, list[Example]],
    labels: tuple[str, ...],
    features: dict[str, Any],
    shards: int,
    console: Console | None,
) -> DatasetSummary:
    """Writes the data folder under a temporary name and renames it, unless it is already there."""
    counts = {split: len(examples) for split, examples in splits.items()}
    kind = "review" if "tokens" in features else "image"
    for split, count in counts.items():
        if count == 0:
            raise UserError(
                f"{name}: none of the {sum(counts.values())} {kind}s falls into the split {split}. The split of each "
                f"follows from a hash of its bytes (10% each to validation and eval): add {kind}s"
            )
    content = hashlib.sha256()
    for split, examples in splits.items():
        content.update(f"{split}\n".encode())
        for example in examples:
            content.update(example.digest + struct.pack("<q", example.label))
    manifest: dict[str, Any] = {
        "format_version": _FORMAT_VERSION,
        "name": name,
        "counts": counts,
        "labels": list(labels),
        "features": features,
        # In proportion to the train split, and never an empty file.
        "shards": {s: min(n, max(1, round(shards * n / counts["train"]))) for s, n in counts.items()},
        "content_sha256": content.hexdigest(),
    }
    if _already_there(out, manifest):
        if console is not None:
            console.print(f"{out} already holds this data set; nothing written", markup=False, highlight=False)
        return DatasetSummary(name, out, counts, labels, written=False)

    import tensorflow as tf

    out = out.resolve()
    try:
        with files.new_folder(out) as folder, progress(console) as bar:
            for split, examples in splits.items():
                task = bar.add_task(f"{name}: writing {split}", total=len(examples))
                advance = functools.partial(bar.advance, task)
                _write_split(folder / split, examples, manifest["shards"][split], "tokens" in features, advance)
            (folder / data_folder.LABELS_FILE).write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
            (folder / "dataset.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"cannot write the data folder {out}: {data_folder.reason_of(error)}") from error
    return DatasetSummary(name, out, counts, labels, written=True)


def _write_split(
    folder: Path, examples: list[Example], shards: int, are_tokens: bool, advance: Callable[[], None]
) -> None:
    import numpy as np
    import tensorflow as tf

    folder.mkdir()
    for number in range(shards):
        part = examples[number * len(examples) // shards : (number + 1) * len(examples) // shards]
        path = folder / _shard_name(number, shards)
        with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions("GZIP")) as writer:
            for example in part:
                content = image_bytes(example)
                if are_tokens:
                    numbers = tf.train.Int64List(value=np.frombuffer(content, np.int64))
                    name, value = "tokens", tf.train.Feature(int64_list=numbers)
                else:
                    name, value = "image", tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
                label = tf.train.Feature(int64_list=tf.train.Int64List(value=[example.label]))
                record = tf.train.Example(features=tf.train.Features(feature={name: value, "label": label}))
                # Features are a map, whose order is otherwise free to differ from run to run.
                writer.write(record.SerializeToString(deterministic=True))
                advance()


def _shard_name(number: int, shards: int) -> str:
    return f"data-{number:05d}-of-{shards:05d}{SHARD_SUFFIX}"


def image_bytes(example: Example) -> bytes:
    """Returns what is hashed and written of an example."""
    if isinstance(example.image, bytes):
        return example.image
    try:
        content = example.image.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {example.image}: {data_folder.reason_of(error)}") from error
    if hashlib.sha256(content).digest() != example.digest:
        raise UserError(f"{example.image} was changed while the data folder was written; run it again")
    return content


def check_request(out: Path, shards: int) -> None:
    """Refuses what is wrong whatever the data set, before any data is read."""
    if shards < 1:
        raise UserError(f"shards must be at least 1, received {shards}")
    _read_manifest(out)


def _read_manifest(out: Path) -> Any:
    """Returns what `out/dataset.json` holds, or None if `out` is free to be written."""
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return None
        if out.is_dir():
            return json.loads((out / "dataset.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the data folder {out}: {data_folder.reason_of(error)}; choose another name"
        ) from error
    what = "is not empty and was not made by `edgeline data`" if out.is_dir() else "is a file"
    raise UserError(f"{out} {what}: choose a name that is free")


def _already_there(out: Path, manifest: dict[str, Any]) -> bool:
    present = _read_manifest(out)
    if present is None:
        return False
    if present != manifest:
        differing = [key for key in manifest if not isinstance(present, dict) or present.get(key) != manifest[key]]
        raise UserError(
            f"{out} holds another data set than the one asked for (different: {', '.join(differing)}; see "
            f"{out / 'dataset.json'}): remove the folder, or choose another name"
        )
    names = [f"{split}/{_shard_name(i, count)}" for split, count in present["shards"].items() for i in range(count)]
    missing = [name for name in (*names, data_folder.LABELS_FILE) if not (out / name).is_file()]
    if missing:
        raise UserError(
            f"{out} is incomplete, it lacks {data_folder.first_of(missing)}: remove the folder and run it again"
        )
    return True


def keras_cache() -> Path:
    """Returns the folder into which tf_keras.datasets.*.load_data() downloads."""
    return Path.home() / ".keras" / "datasets"


def progress(console: Console | None) -> Progress:
    """Returns a progress bar on a console; one that shows nothing for None."""
    from rich.progress import Progress

    return Progress(console=console, disable=console is None)
