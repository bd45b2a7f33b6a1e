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

import codecs
import contextlib
import functools
import gzip
import hashlib
import json
import math
import pickle
import secrets
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeline.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

SPLITS = ("train", "validation", "eval")
SHARD_SUFFIX = ".tfrecord.gz"

_FORMAT_VERSION = 1
_DIGITS = tuple("0123456789")
_FASHION_MNIST_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
#: The published size of the problem, and what tf-keras makes of the file's numbers: each word's is moved up by three.
_IMDB_WORDS, _IMDB_STEPS = 20_000, 100
_IMDB_START, _IMDB_UNKNOWN, _IMDB_FIRST = 1, 2, 3
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_MNIST_SHAPE = (28, 28)
_NO_RECORD = "is not a TFRecord file, or its first record is damaged: not one record can be read"
_IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")


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


class _Example(NamedTuple):
    """An image with its label; sorts by the hash of the content, which is a shuffle that every machine repeats."""

    digest: bytes  # SHA-256 of the image's bytes
    label: int
    image: bytes | Path  # a path where the images of a data set may not fit into memory; tokens as bytes, int64


def write_digits(out: Path, *, shards: int = 8, console: Console | None = None) -> DatasetSummary:
    """Writes scikit-learn's bundled digits: 1,797 images, uint8 [8, 8] with values 0 to 16, split 80/10/10.

    Args:
      out: data folder to make; may exist if it is empty or holds this very data set.
      shards: files of the train split, at least 1; the other splits get fewer in proportion.
      console: where progress is shown; None for silence.

    Raises:
      UserError: `out` holds something else or cannot be written, or `shards` is below 1.
    """
    _check_request(out, shards)
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = [image.tobytes() for image in digits.images.astype("uint8")]
    splits = _split(_examples(images, digits.target.tolist()))
    return _write("digits", out, splits, _DIGITS, _raw_pixels((8, 8), 16), shards, console)


def write_fashion_mnist(
    out: Path, *, source: Path | None = None, shards: int = 8, console: Console | None = None
) -> DatasetSummary:
    """Writes Fashion-MNIST: 70,000 images, uint8 [28, 28]; its test set is `eval`, `validation` is 10% of the rest.

    Nothing is downloaded. The four idx files are taken from `source` if given, else from Debian's package
    `dataset-fashion-mnist`, else from the download cache of tf-keras.

    Args:
      out: data folder to make; may exist if it is empty or holds this very data set.
      source: folder with the four idx files, gzipped or not.
      shards: files of the train split, at least 1; the other splits get fewer in proportion.
      console: where progress is shown; None for silence.

    Raises:
      UserError: no source found, a source file is damaged, `out` holds something else or cannot be written, or
        `shards` is below 1.
    """
    _check_request(out, shards)
    cache = _keras_cache() / "fashion-mnist"
    if source is None:
        source = next((path for path in (_DEBIAN_FASHION_MNIST, cache) if len(_find_idx(path)) == 4), None)
    if source is None:
        raise UserError(
            "Fashion-MNIST was not found on this machine, and Edgeline downloads nothing. Three ways to provide it:\n"
            f"  --source DIR with the files {', '.join(_IDX_NAMES)} (each may end with .gz)\n"
            f"  Debian's package: apt install dataset-fashion-mnist (puts them into {_DEBIAN_FASHION_MNIST})\n"
            f"  tf_keras.datasets.fashion_mnist.load_data() on a machine with internet access (puts them into {cache})"
        )
    train, test = _read_idx_folder(source)
    pixels = _raw_pixels(_MNIST_SHAPE, 255)
    return _write("fashion-mnist", out, _split(train, test), _FASHION_MNIST_LABELS, pixels, shards, console)


def write_mnist(
    out: Path, *, source: Path | None = None, shards: int = 8, console: Console | None = None
) -> DatasetSummary:
    """Writes MNIST: 70,000 images, uint8 [28, 28]; its test set is `eval`, `validation` is 10% of the rest.

    Nothing is downloaded. Without `source` the download cache of tf-keras is read.

    Args:
      out: data folder to make; may exist if it is empty or holds this very data set.
      source: folder with the four idx files, gzipped or not.
      shards: files of the train split, at least 1; the other splits get fewer in proportion.
      console: where progress is shown; None for silence.

    Raises:
      UserError: no source found, a source file is damaged, `out` holds something else or cannot be written, or
        `shards` is below 1.
    """
    _check_request(out, shards)
    cache = _keras_cache() / "mnist.npz"
    if source is not None:
        train, test = _read_idx_folder(source)
    elif cache.is_file():
        train, test = _read_npz(cache)
    else:
        raise UserError(
            "MNIST was not found on this machine, and Edgeline downloads nothing. Two ways to provide it:\n"
            f"  --source DIR with the files {', '.join(_IDX_NAMES)} (each may end with .gz)\n"
            f"  tf_keras.datasets.mnist.load_data() on a machine with internet access (puts it into {cache})"
        )
    return _write("mnist", out, _split(train, test), _DIGITS, _raw_pixels(_MNIST_SHAPE, 255), shards, console)


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
    _check_request(out, shards)
    if out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"the data folder {out} would lie inside {source}, whose folders are classes: choose another")
    labels, files = _image_files(source)
    examples = []
    broken = []
    with _progress(console) as progress:
        for label, path in progress.track(files, description="images: checking"):
            try:
                content = path.read_bytes()
            except OSError as error:
                broken.append(f"  {path}: {_reason(error)}")
                continue
            if fault := _image_fault(content):
                broken.append(f"  {path}: {fault}")
            else:
                examples.append(_Example(hashlib.sha256(content).digest(), label, path))
    if broken:
        raise UserError(
            f"{len(broken)} of {len(files)} image files in {source} cannot be decoded as JPEG or PNG; repair or remove "
            "them:\n" + _first(broken, separator="\n")
        )
    features = {"image": {"encoding": "jpeg or png"}, "label": {"dtype": "int64"}}
    return _write("images", out, _split(examples), labels, features, shards, console)


def write_imdb(
    out: Path, *, source: Path | None = None, shards: int = 8, console: Console | None = None
) -> DatasetSummary:
    """Writes the IMDB reviews as tf-keras gives them: 50,000, each the numbers of its last 100 words, int64 [100].

    As `tf_keras.datasets.imdb.load_data(num_words=20_000)` and `pad_sequences(maxlen=100)`: 0 fills up the beginning of
    a shorter review, 1 is the start of one, 2 a word that is not among the 20,000. The published test set is `eval`,
    `validation` is 10% of the rest. Label 1 is a positive review.

    Nothing is downloaded. Without `source` the download cache of tf-keras is read.

    Args:
      out: data folder to make; may exist if it is empty or holds this very data set.
      source: the file `imdb.npz`.
      shards: files of the train split, at least 1; the other splits get fewer in proportion.
      console: where progress is shown; None for silence.

    Raises:
      UserError: no source found, the source is damaged or another file, `out` holds something else or cannot be
        written, or `shards` is below 1.
    """
    _check_request(out, shards)
    cache = _keras_cache() / "imdb.npz"
    if source is None and not cache.is_file():
        raise UserError(
            "The IMDB reviews were not found on this machine, and Edgeline downloads nothing. Two ways to provide "
            "them:\n"
            "  --source FILE, the imdb.npz of tf-keras\n"
            f"  tf_keras.datasets.imdb.load_data() on a machine with internet access (puts it into {cache})"
        )
    train, test = _read_imdb(source or cache)
    tokens = {"dtype": "int64", "shape": [_IMDB_STEPS], "range": [0, _IMDB_WORDS - 1]}
    features = {"tokens": tokens, "label": {"dtype": "int64"}}
    return _write("imdb", out, _split(train, test), ("negative", "positive"), features, shards, console)


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
    shards = {split: _shards_of(data_dir, split) for split in SPLITS}
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
            stamp.parent.mkdir(parents=True, exist_ok=True)
            temporary = stamp.with_name(f".{stamp.name}.{secrets.token_hex(4)}")
            temporary.write_text(json.dumps({"fingerprint": fingerprint, "counts": counts}), encoding="utf-8")
            temporary.replace(stamp)
    return counts


def fingerprint(data_dir: Path) -> str:
    """Returns a digest over the names, sizes and modification times of all shards of a data folder; none is read.

    Raises:
      UserError: a folder is missing or holds something else.
    """
    return _fingerprint(data_dir, {split: _shards_of(data_dir, split) for split in SPLITS})


def _raw_pixels(shape: tuple[int, int], largest: int) -> dict[str, Any]:
    """Returns the features of a data set of grey images, as dataset.json states them."""
    image = {"encoding": "raw", "dtype": "uint8", "shape": list(shape), "range": [0, largest]}
    return {"image": image, "label": {"dtype": "int64"}}


def _examples(images: Iterable[bytes], labels: Iterable[int]) -> list[_Example]:
    return [_Example(hashlib.sha256(image).digest(), label, image) for image, label in zip(images, labels, strict=True)]


def _split(examples: list[_Example], test: list[_Example] | None = None) -> dict[str, list[_Example]]:
    """Splits by the hash of each image and puts each split into the order of the hashes.

    Args:
      examples: the training set, or the whole data set if it has no published test set.
      test: the published test set, taken as it is; None to cut 10% of `examples`.
    """
    splits: dict[str, list[_Example]] = {split: [] for split in SPLITS}
    splits["eval"].extend(test or ())
    for example in examples:
        tenth = int.from_bytes(example.digest[:8], "big") % 10
        split = "validation" if tenth == 0 else "eval" if tenth == 1 and test is None else "train"
        splits[split].append(example)
    return {split: sorted(members, key=lambda example: example[:2]) for split, members in splits.items()}


def _write(
    name: str,
    out: Path,
    splits: dict[str, list[_Example]],
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
    temporary = out.with_name(f".{out.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        with _progress(console) as progress:
            for split, examples in splits.items():
                task = progress.add_task(f"{name}: writing {split}", total=len(examples))
                advance = functools.partial(progress.advance, task)
                _write_split(temporary / split, examples, manifest["shards"][split], "tokens" in features, advance)
        (temporary / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        (temporary / "dataset.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        temporary.replace(out)
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"cannot write the data folder {out}: {_reason(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return DatasetSummary(name, out, counts, labels, written=True)


def _write_split(
    folder: Path, examples: list[_Example], shards: int, are_tokens: bool, advance: Callable[[], None]
) -> None:
    import numpy as np
    import tensorflow as tf

    folder.mkdir()
    for number in range(shards):
        part = examples[number * len(examples) // shards : (number + 1) * len(examples) // shards]
        path = folder / _shard_name(number, shards)
        with tf.io.TFRecordWriter(str(path), tf.io.TFRecordOptions("GZIP")) as writer:
            for example in part:
                content = _image_bytes(example)
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


def _image_bytes(example: _Example) -> bytes:
    if isinstance(example.image, bytes):
        return example.image
    try:
        content = example.image.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {example.image}: {_reason(error)}") from error
    if hashlib.sha256(content).digest() != example.digest:
        raise UserError(f"{example.image} was changed while the data folder was written; run it again")
    return content


def _check_request(out: Path, shards: int) -> None:
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
        raise UserError(f"cannot read the data folder {out}: {_reason(error)}; choose another name") from error
    what = "is not empty and was not made by `edgeline data`" if out.is_dir() else "is a file"
    raise UserError(f"{out} {what}: choose a name that is free")


def _already_there(out: Path, manifest: dict[str, Any]) -> bool:
    found = _read_manifest(out)
    if found is None:
        return False
    if found != manifest:
        differing = [key for key in manifest if not isinstance(found, dict) or found.get(key) != manifest[key]]
        raise UserError(
            f"{out} holds another data set than the one asked for (different: {', '.join(differing)}; see "
            f"{out / 'dataset.json'}): remove the folder, or choose another name"
        )
    names = [f"{split}/{_shard_name(i, count)}" for split, count in found["shards"].items() for i in range(count)]
    missing = [name for name in (*names, "labels.txt") if not (out / name).is_file()]
    if missing:
        raise UserError(f"{out} is incomplete, it lacks {_first(missing)}: remove the folder and run it again")
    return True


def _keras_cache() -> Path:
    """Returns the folder into which tf_keras.datasets.*.load_data() downloads."""
    return Path.home() / ".keras" / "datasets"


def _find_idx(folder: Path) -> dict[str, Path]:
    """Returns those of the four idx files that are in `folder`, by their names without `.gz`."""
    candidates = [(name, folder / f"{name}{suffix}") for name in _IDX_NAMES for suffix in (".gz", "")]
    return {name: path for name, path in candidates if path.is_file()}


def _read_idx_folder(folder: Path) -> tuple[list[_Example], list[_Example]]:
    """Returns the training set and the test set of four idx files."""
    found = _find_idx(folder)
    missing = [name for name in _IDX_NAMES if name not in found]
    if missing:
        raise UserError(f"{folder} lacks the idx files {', '.join(missing)} (or the same with .gz); {_listing(folder)}")
    sets = []
    for images_name, labels_name in (_IDX_NAMES[:2], _IDX_NAMES[2:]):
        images = _read_idx(found[images_name], _MNIST_SHAPE)
        labels = _read_idx(found[labels_name], ())
        if len(images) != len(labels):
            raise UserError(
                f"{found[images_name]} holds {len(images)} images, but {found[labels_name]} {len(labels)} labels"
            )
        sets.append(_ten_classes(found[labels_name], images, [label[0] for label in labels]))
    return sets[0], sets[1]


def _read_idx(path: Path, shape: tuple[int, ...]) -> list[bytes]:
    """Returns the items of an idx file of unsigned bytes, each of the given shape, row by row.

    The format: two zero bytes, the type (8 = unsigned byte), the number of dimensions, each dimension as a big-endian
    uint32 (the first is the number of items), the values.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            content = stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {path}: {_reason(error)}") from error
    start = 4 * (2 + len(shape))
    if len(content) < start or content[:4] != bytes((0, 0, 8, 1 + len(shape))):
        raise UserError(
            f"{path} is not an idx file of unsigned bytes with {1 + len(shape)} dimensions: expected it to begin with "
            f"0000080{1 + len(shape)} (hexadecimal), received {content[:4].hex() or 'nothing'}"
        )
    count, *item_shape = struct.unpack(f">{1 + len(shape)}I", content[4:start])
    if tuple(item_shape) != shape:
        raise UserError(f"{path} holds items of shape {item_shape}, expected {list(shape)}")
    size = math.prod(shape)
    if len(content) != start + count * size:
        raise UserError(
            f"{path} is damaged: its header promises {count} items of {size} bytes, {start + count * size} bytes in "
            f"all, received {len(content)}"
        )
    return [content[i : i + size] for i in range(start, len(content), size)]


def _read_npz(path: Path) -> tuple[list[_Example], list[_Example]]:
    """Returns the training set and the test set of tf-keras's mnist.npz."""
    import numpy as np

    sets = []
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for part in ("train", "test"):
                images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
                if images.dtype != np.uint8 or images.shape != (len(labels), *_MNIST_SHAPE):
                    raise ValueError(f"x_{part} is {images.dtype} {list(images.shape)} for {len(labels)} labels")
                sets.append(_ten_classes(path, [image.tobytes() for image in images], labels.tolist()))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} is not the MNIST file of tf-keras (x_train, y_train, x_test, y_test; images uint8 [n, 28, 28]): "
            f"{_reason(error)}. Remove it and load MNIST again, or give --source DIR"
        ) from error
    return sets[0], sets[1]


class _ListsOnly(pickle.Unpickler):
    """Reads what numpy pickles for an array of lists, and nothing else: a pickle could run any code."""

    def find_class(self, module: str, name: str) -> Any:
        import numpy as np

        allowed = {
            "numpy._reconstruct": np.zeros(0).__reduce__()[0],
            "numpy.ndarray": np.ndarray,
            "numpy.dtype": np.dtype,
            "_codecs.encode": codecs.encode,  # bytes, as old versions pickled them
        }
        found = allowed.get(f"{module.split('.')[0]}.{name}")
        if found is None:
            raise ValueError(f"it holds {module}.{name} where lists of numbers are expected")
        return found


def _read_imdb(path: Path) -> tuple[list[_Example], list[_Example]]:
    """Returns the training set and the test set of tf-keras's imdb.npz."""
    import numpy as np

    sets = []
    try:
        with zipfile.ZipFile(path) as archive:
            for part in ("train", "test"):
                with archive.open(f"x_{part}.npy") as stream:
                    np.lib.format.read_magic(stream)
                    _, _, dtype = np.lib.format.read_array_header_1_0(stream)
                    if not dtype.hasobject:
                        raise ValueError(f"x_{part} is {dtype}, not lists of words")
                    reviews = _ListsOnly(stream).load()
                with archive.open(f"y_{part}.npy") as stream:
                    labels = np.lib.format.read_array(stream, allow_pickle=False).tolist()
                if len(reviews) != len(labels) or not set(labels) <= {0, 1}:
                    raise ValueError(f"{len(reviews)} reviews, {len(labels)} labels from {sorted(set(labels))[:5]}")
                sets.append(_examples([_last_words(review).tobytes() for review in reviews], labels))
    except (OSError, EOFError, ValueError, TypeError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not the IMDB file of tf-keras (x_train, y_train, x_test, y_test; lists of word numbers, labels "
            f"0 and 1): {_reason(error)}"
        ) from error
    return sets[0], sets[1]


def _last_words(review: list[int]) -> Any:
    """Returns the last words of a review by their numbers in the vocabulary, int64 [100]."""
    import numpy as np

    words = np.concatenate([[_IMDB_START], np.asarray(review, np.int64) + _IMDB_FIRST])[-_IMDB_STEPS:]
    words[words >= _IMDB_WORDS] = _IMDB_UNKNOWN
    return np.pad(words, (_IMDB_STEPS - len(words), 0))


def _ten_classes(path: Path, images: list[bytes], labels: list[int]) -> list[_Example]:
    wrong = sorted({label for label in labels if not 0 <= label <= 9})
    if wrong:
        raise UserError(f"{path} holds the labels {_first([str(label) for label in wrong])}, expected 0 to 9")
    return _examples(images, labels)


def _image_files(source: Path) -> tuple[tuple[str, ...], list[tuple[int, Path]]]:
    """Returns the class names and the (label, path) of every image file, sorted by path."""
    try:
        if not source.is_dir():
            raise UserError(f"the image folder {source} does not exist")
        folders = sorted(path for path in source.iterdir() if path.is_dir() and not path.name.startswith("."))
        members = [sorted(path for path in folder.iterdir() if not path.name.startswith(".")) for folder in folders]
    except OSError as error:
        raise UserError(f"cannot read the image folder {source}: {_reason(error)}") from error
    if len(folders) < 2:
        raise UserError(
            f"{source} must hold one sub-folder per class, at least two, with JPEG or PNG files in them; "
            f"{_listing(source)}"
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
            f"{len(strangers)}:\n" + _first(strangers, separator="\n")
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


def _shards_of(data_dir: Path, split: str) -> list[Path]:
    """Returns the shards of a split, sorted by name; anything else in its folder is an error: nothing would read it."""
    folder = data_dir / split
    make = f"make one with `edgeline data digits {data_dir}`, for example"
    try:
        if not data_dir.is_dir():
            problem = "is not a folder" if data_dir.exists() else "does not exist"
            raise UserError(f"the data folder {data_dir} {problem}: {make}")
        if not folder.is_dir():
            raise UserError(
                f"the data folder {data_dir} lacks the folder {split}; {_listing(data_dir)}. Expected are "
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
        raise UserError(f"cannot read the data folder {data_dir}: {_reason(error)}") from error
    shards = [path for path in entries if path.is_file()]
    if not shards or len(shards) < len(entries):
        raise UserError(f"{folder} must hold *{SHARD_SUFFIX} files and no folders; {_listing(folder)}")
    return shards


def _fingerprint(data_dir: Path, shards: dict[str, list[Path]]) -> str:
    files = []
    for path in (path for paths in shards.values() for path in paths):
        try:
            stat = path.stat()
        except OSError as error:
            raise UserError(f"cannot read {path}: {_reason(error)}") from error
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
        raise UserError(f"{path} cannot be read to its end: {_reason(error)} (after {count} records)") from error
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


def _progress(console: Console | None) -> Progress:
    from rich.progress import Progress

    return Progress(console=console, disable=console is None)


def _first(items: list[str], *, separator: str = ", ", most: int = 10) -> str:
    """Joins the first items and says how many more there are."""
    more = [f"{len(items) - most} more"] if len(items) > most else []
    return separator.join(items[:most] + more)


def _listing(folder: Path) -> str:
    try:
        names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    except OSError as error:
        return f"it cannot be listed: {_reason(error)}"
    return f"it holds {_first(names)}" if names else "it is empty"


def _reason(error: Exception) -> str:
    """Returns what went wrong, without number and path: `No space left on device`."""
    return getattr(error, "strerror", None) or getattr(error, "message", None) or str(error) or type(error).__name__
