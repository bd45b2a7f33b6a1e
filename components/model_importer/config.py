"""What the ModelImporter may be asked, and what kind of model a path holds, found without loading it."""

from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

from edgeline.config import StepConfig
from edgeline.errors import UserError

#: Kinds that have layers: every step can follow. Of the others only the graph is known: no step that trains.
WITH_LAYERS = ("keras", "h5", "keras_saved_model")
GRAPHS = ("saved_model", "graph_def", "tflite")
#: Kinds that may have several signatures.
WITH_SIGNATURES = ("keras_saved_model", "saved_model", "tflite")
#: What each is called.
KINDS = {
    "keras": ".keras file",
    "h5": ".h5 file",
    "keras_saved_model": "SavedModel with Keras metadata",
    "saved_model": "SavedModel without Keras metadata",
    "graph_def": "frozen GraphDef",
    "tflite": ".tflite file",
}

_H5_MAGIC = b"\x89HDF\r\n\x1a\n"
_READABLE = (
    "a .keras or .h5 file of tf-keras or Keras 3, the folder of a SavedModel, a frozen GraphDef (.pb) or a float "
    ".tflite file is expected"
)


@dataclasses.dataclass(frozen=True)
class Import(StepConfig):
    """Take a trained model from a file or folder instead of training one.

    Attributes:
      source: absolute path of the model; None: that of the input `trained`.
      digest: hexadecimal SHA-256 of its contents, as a path is no cache key; None: it is not checked.
      signature: of a SavedModel or a `.tflite` file, the one that is the model; None: `serving_default`, or the only
        one. A SavedModel with Keras metadata of which one is chosen counts as a graph.
      inputs: of a frozen GraphDef, the names of its inputs, each with its shape where the graph does not say, such as
        `image:0=?,96,96,3`; empty: all placeholders.
      outputs: of a frozen GraphDef, the names of its outputs; empty: what nothing else reads.
      allow_lambda: whether to run the Python code that Lambda layers in the file hold; else such a file is refused.
    """

    source: str | None = None
    digest: str | None = None
    signature: str | None = None
    inputs: Sequence[str] = ()
    outputs: Sequence[str] = ()
    allow_lambda: bool = False

    @property
    def path(self) -> Path:
        """Where the model is; raises ValueError where `source` does not say."""
        self.check("source", self.source is not None, "the path of a model")
        return Path(str(self.source))

    @property
    def digest_now(self) -> str:
        """The digest, of what is there now where none was given."""
        return self.digest or digest_of(self.path)

    @property
    def kind(self) -> str:
        """What the model is taken as: one of `WITH_LAYERS` or `GRAPHS`; raises as `kind_of`."""
        found = kind_of(self.path)
        return "saved_model" if found == "keras_saved_model" and self.signature else found


def kind_of(path: Path) -> str:
    """Returns what a path holds: one of `WITH_LAYERS` or `GRAPHS`, by the contents, not by the name.

    Raises:
      UserError: nothing that can be imported.
    """
    if not path.exists():
        raise UserError(f"model {path} does not exist")
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise UserError(f"model {path} is a folder without saved_model.pb, so no SavedModel; {_READABLE}")
        return "keras_saved_model" if (path / "keras_metadata.pb").is_file() else "saved_model"
    with path.open("rb") as file:
        start = file.read(8)
    if start.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            raise UserError(f"model {path} is a truncated or damaged .keras file: its end is missing")
        with zipfile.ZipFile(path) as archive:
            missing = {"config.json", "metadata.json", "model.weights.h5"} - set(archive.namelist())
        if missing:
            raise UserError(f"model {path} is a zip file, but no .keras file: {', '.join(sorted(missing))} is missing")
        return "keras"
    if start == _H5_MAGIC:
        return "h5"
    if start[4:8] == b"TFL3":
        return "tflite"
    if path.name == "saved_model.pb":
        raise UserError(f"model {path} is a part of a SavedModel; give its folder, {path.parent}")
    if path.suffix == ".pb":
        return "graph_def"
    raise UserError(f"model {path} is of no known kind (it begins with {start!r}); {_READABLE}")


def digest_of(path: Path) -> str:
    """Returns the hexadecimal SHA-256 over the names and contents of a file, or of all files below a folder."""
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            inner = hashlib.file_digest(content, "sha256").hexdigest()
        name = str(file.relative_to(path)) if path.is_dir() else path.suffix
        total.update(f"{name}\0{inner}\n".encode())
    return total.hexdigest()
