"""The IMDB reviews of tf-keras, as sequences of word numbers."""

from __future__ import annotations

import codecs
import pickle
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeline.data import data_folder
from edgeline.errors import UserError
from edgeline.pipelines.datasets import writing
from edgeline.pipelines.datasets.writing import DatasetSummary, Example

if TYPE_CHECKING:
    from rich.console import Console

#: The published size of the problem, and what tf-keras makes of the file's numbers: each word's is moved up by three.
_IMDB_WORDS, _IMDB_STEPS = 20_000, 100
_IMDB_START, _IMDB_UNKNOWN, _IMDB_FIRST = 1, 2, 3


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
    writing.check_request(out, shards)
    cache = writing.keras_cache() / "imdb.npz"
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
    return writing.write(
        "imdb", out, writing.split_by_digest(train, test), ("negative", "positive"), features, shards, console
    )


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
        allowed_class = allowed.get(f"{module.split('.')[0]}.{name}")
        if allowed_class is None:
            raise ValueError(f"it holds {module}.{name} where lists of numbers are expected")
        return allowed_class


def _read_imdb(path: Path) -> tuple[list[Example], list[Example]]:
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
                sets.append(writing.examples([_last_words(review).tobytes() for review in reviews], labels))
    except (OSError, EOFError, ValueError, TypeError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path} is not the IMDB file of tf-keras (x_train, y_train, x_test, y_test; lists of word numbers, labels "
            f"0 and 1): {data_folder.reason_of(error)}"
        ) from error
    return sets[0], sets[1]


def _last_words(review: list[int]) -> Any:
    """Returns the last words of a review by their numbers in the vocabulary, int64 [100]."""
    import numpy as np

    words = np.concatenate([[_IMDB_START], np.asarray(review, np.int64) + _IMDB_FIRST])[-_IMDB_STEPS:]
    words[words >= _IMDB_WORDS] = _IMDB_UNKNOWN
    return np.pad(words, (_IMDB_STEPS - len(words), 0))
