"""The data sets of small grey images: scikit-learn's digits, MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeline.data import data_folder
from edgeline.errors import UserError
from edgeline.pipelines.datasets import writing
from edgeline.pipelines.datasets.writing import DatasetSummary, Example

if TYPE_CHECKING:
    from rich.console import Console

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
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_IDX_NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_MNIST_SHAPE = (28, 28)


def write_digits(out: Path, *, shards: int = 8, console: Console | None = None) -> DatasetSummary:
    """Writes scikit-learn's bundled digits: 1,797 images, uint8 [8, 8] with values 0 to 16, split 80/10/10.

    Args:
      out: data folder to make; may exist if it is empty or holds this very data set.
      shards: files of the train split, at least 1; the other splits get fewer in proportion.
      console: where progress is shown; None for silence.

    Raises:
      UserError: `out` holds something else or cannot be written, or `shards` is below 1.
    """
    writing.check_request(out, shards)
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = [image.tobytes() for image in digits.images.astype("uint8")]
    splits = writing.split_by_digest(writing.examples(images, digits.target.tolist()))
    return writing.write("digits", out, splits, _DIGITS, _raw_pixels((8, 8), 16), shards, console)


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
    writing.check_request(out, shards)
    cache = writing.keras_cache() / "fashion-mnist"
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
    return writing.write(
        "fashion-mnist", out, writing.split_by_digest(train, test), _FASHION_MNIST_LABELS, pixels, shards, console
    )


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
    writing.check_request(out, shards)
    cache = writing.keras_cache() / "mnist.npz"
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
    return writing.write(
        "mnist", out, writing.split_by_digest(train, test), _DIGITS, _raw_pixels(_MNIST_SHAPE, 255), shards, console
    )


def _raw_pixels(shape: tuple[int, int], largest: int) -> dict[str, Any]:
    """Returns the features of a data set of grey images, as dataset.json states them."""
    image = {"encoding": "raw", "dtype": "uint8", "shape": list(shape), "range": [0, largest]}
    return {"image": image, "label": {"dtype": "int64"}}


def _find_idx(folder: Path) -> dict[str, Path]:
    """Returns those of the four idx files that are in `folder`, by their names without `.gz`."""
    candidates = [(name, folder / f"{name}{suffix}") for name in _IDX_NAMES for suffix in (".gz", "")]
    return {name: path for name, path in candidates if path.is_file()}


def _read_idx_folder(folder: Path) -> tuple[list[Example], list[Example]]:
    """Returns the training set and the test set of four idx files."""
    paths = _find_idx(folder)
    missing = [name for name in _IDX_NAMES if name not in paths]
    if missing:
        raise UserError(
            f"{folder} lacks the idx files {', '.join(missing)} (or the same with .gz); {data_folder.listing(folder)}"
        )
    sets = []
    for images_name, labels_name in (_IDX_NAMES[:2], _IDX_NAMES[2:]):
        images = _read_idx(paths[images_name], _MNIST_SHAPE)
        labels = _read_idx(paths[labels_name], ())
        if len(images) != len(labels):
            raise UserError(
                f"{paths[images_name]} holds {len(images)} images, but {paths[labels_name]} {len(labels)} labels"
            )
        sets.append(_ten_classes(paths[labels_name], images, [label[0] for label in labels]))
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
        raise UserError(f"cannot read {path}: {data_folder.reason_of(error)}") from error
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


def _read_npz(path: Path) -> tuple[list[Example], list[Example]]:
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
            f"{data_folder.reason_of(error)}. Remove it and load MNIST again, or give --source DIR"
        ) from error
    return sets[0], sets[1]


def _ten_classes(path: Path, images: list[bytes], labels: list[int]) -> list[Example]:
    wrong = sorted({label for label in labels if not 0 <= label <= 9})
    if wrong:
        raise UserError(
            f"{path} holds the labels {data_folder.first_of([str(label) for label in wrong])}, expected 0 to 9"
        )
    return writing.examples(images, labels)
