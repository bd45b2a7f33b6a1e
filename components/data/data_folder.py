"""The data folder: train, validation and eval with TFRecord shards. Standard library only."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import struct
import zlib
from pathlib import Path

from edgeline import files
from edgeline.errors import UserError

SPLITS = ("train", "validation", "eval")
SHARD_SUFFIX = ".tfrecord.gz"
#: Of a folder whose labels have names: one class name per line; the line, from 0, is the label.
LABELS_FILE = "labels.txt"

_NO_RECORD = "is not a TFRecord file, or its first record is damaged: not one record can be read"


def check_readable(data_dir: Path, stamp: Path | None = None) -> dict[str, int]:
    """Reads every shard of a data folder to its end and returns the number of examples per split.

    Both checksums are verified, those of the TFRecords and that of each gzip file: a gzip file cut between two records
    looks complete to tf.data.

    Args:
      data_dir: the data folder.
      stamp: file that remembers the result. While names, sizes and modification times of all shards are what they were
        when it was written, the counts in it are returned and nothing is read.

    Returns:
      Examples per split, in the order train, validation, eval; each at least 1.

    Raises:
      UserError: a folder is missing or empty, a split has no examples, or a shard is damaged or no GZIP TFRecord file;
        the message names the file and how many records before the fault can be read.
    """
    shards = {split: shards_of(data_dir, split) for split in SPLITS}
    # Taken before reading: files that change meanwhile do not match the stamp the next time.
    fingerprint = _fingerprint(data_dir, shards)
    if stamp is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            saved = json.loads(stamp.read_text(encoding="utf-8"))
            if saved["fingerprint"] == fingerprint:
                return {split: int(saved["counts"][split]) for split in SPLITS}
    counts = {split: sum(map(_count_records, paths)) for split, paths in shards.items()}
    for split, count in counts.items():
        if count == 0:
            raise UserError(f"{data_dir / split} holds no examples: its {len(shards[split])} files have 0 records")
    if stamp is not None:
        # The stamp only saves time: a folder that cannot be written is no reason to stop.
        with contextlib.suppress(OSError):
            files.make_folder(stamp.parent)
            files.write_text(stamp, json.dumps({"fingerprint": fingerprint, "counts": counts}))
    return counts


def fingerprint(data_dir: Path) -> str:
    """Returns a digest over the names, sizes and modification times of all shards of a data folder; none is read.

    Raises:
      UserError: a folder is missing or holds something else.
    """
    return _fingerprint(data_dir, {split: shards_of(data_dir, split) for split in SPLITS})


def shards_of(data_dir: Path, split: str) -> list[Path]:
    """Returns the shards of a split, sorted by name; anything else in its folder is an error: nothing would read it."""
    folder = data_dir / split
    make = f"make one with `edgeline data digits {data_dir}`, for example"
    try:
        if not data_dir.is_dir():
            problem = "is not a folder" if data_dir.exists() else "does not exist"
            raise UserError(f"the data folder {data_dir} {problem}: {make}")
        if not folder.is_dir():
            raise UserError(
                f"the data folder {data_dir} lacks the folder {split}; {listing(data_dir)}. Expected are "
                f"{', '.join(SPLITS)}, each with *{SHARD_SUFFIX} files; {make}"
            )
        # Names like _SUCCESS and .DS_Store are bookkeeping of other tools; but `*` in the pipeline's pattern matches a
        # leading dot too, so a hidden shard is a shard.
        entries = sorted(folder.iterdir())
        entries = [p for p in entries if p.name.endswith(SHARD_SUFFIX) or not p.name.startswith((".", "_"))]
        for path in entries:
            if path.is_file() and not path.name.endswith(SHARD_SUFFIX):
                if _is_gzip(path):
                    raise UserError(f"{path} would not be read: rename it to *{SHARD_SUFFIX} or move it away")
                raise UserError(_not_gzip(path))
    except OSError as error:
        raise UserError(f"cannot read the data folder {data_dir}: {reason_of(error)}") from error
    shards = [path for path in entries if path.is_file()]
    if not shards or len(shards) < len(entries):
        raise UserError(f"{folder} must hold *{SHARD_SUFFIX} files and no folders; {listing(folder)}")
    return shards


def _fingerprint(data_dir: Path, shards: dict[str, list[Path]]) -> str:
    files = []
    for path in (path for paths in shards.values() for path in paths):
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"cannot read {path}: {reason_of(error)}") from error
        files.append((path.relative_to(data_dir).as_posix(), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def _count_records(path: Path) -> int:
    """Returns the number of records of a shard after reading it to its end, twice.

    Neither reader sees everything: Python's gzip verifies the checksum and the end of the file, tf.data verifies the
    checksum of each record.
    """
    import tensorflow as tf

    count = _walk(path)
    try:
        # Small batches: one by one takes three times as long, and large ones of photographs fill the memory.
        for _ in tf.data.TFRecordDataset(str(path), "GZIP").batch(32):
            pass
    except tf.errors.OpError as error:
        whole = 0
        with contextlib.suppress(tf.errors.OpError):
            for _ in tf.data.TFRecordDataset(str(path), "GZIP"):
                whole += 1
        damaged = f"is damaged: a checksum is wrong after {whole} of {count} records. Write it again"
        raise UserError(f"{path} {damaged if whole else _NO_RECORD}") from error
    return count


def _walk(path: Path) -> int:
    """Returns the number of records of a GZIP TFRecord file, read to its end without the records' checksums.

    A record is: length (uint64, little-endian), checksum of the length (4 bytes), the data, checksum of the data (4).
    """
    count = 0
    try:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes): its writer was cut off. Write it again")
        if not _is_gzip(path):
            raise UserError(_not_gzip(path))
        with gzip.open(path) as stream:
            while header := stream.read(12):
                if len(header) < 12 or not _skip(stream, struct.unpack("<Q", header[:8])[0] + 4):
                    cut = f"is cut off in a record: only the first {count} are whole. Write it again"
                    raise UserError(f"{path} {cut if count else _NO_RECORD}")
                count += 1
    except EOFError as error:
        raise UserError(
            f"{path} is a truncated gzip file: it ends after {count} whole records without a trailer. Write it again"
        ) from error
    except (OSError, zlib.error) as error:
        raise UserError(f"{path} cannot be read to its end: {reason_of(error)} (after {count} records)") from error
    return count


def _skip(stream: gzip.GzipFile, size: int) -> bool:
    """Reads `size` bytes in pieces, as a file that is no TFRecord announces absurd sizes; False if there are fewer."""
    while size and (piece := stream.read(min(size, 1 << 20))):
        size -= len(piece)
    return size == 0


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def _not_gzip(path: Path) -> str:
    """Returns the message about a file in a split's folder that is not gzipped."""
    import tensorflow as tf

    try:
        records = sum(1 for _ in tf.data.TFRecordDataset(str(path)).take(1))
    except tf.errors.OpError:
        records = 0
    if records:
        return (
            f"{path} is an uncompressed TFRecord file, but Edgeline (through TFX) reads GZIP TFRecords: compress it "
            f"with gzip and let its name end with {SHARD_SUFFIX}"
        )
    return f"{path} is not a TFRecord file: the folder of a split may hold *{SHARD_SUFFIX} files only"


def first_of(items: list[str], *, separator: str = ", ", most: int = 10) -> str:
    """Joins the first items and says how many more there are."""
    more = [f"{len(items) - most} more"] if len(items) > most else []
    return separator.join(items[:most] + more)


def listing(folder: Path) -> str:
    """Returns what a folder holds, in words for an error."""
    try:
        names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    except OSError as error:
        return f"it cannot be listed: {reason_of(error)}"
    return f"it holds {first_of(names)}" if names else "it is empty"


def reason_of(error: Exception) -> str:
    """Returns what went wrong, without number and path: `No space left on device`."""
    return getattr(error, "strerror", None) or getattr(error, "message", None) or str(error) or type(error).__name__
