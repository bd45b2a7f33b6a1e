"""The root of a pipeline: the folder that keeps everything of it, and who may work in it.

metadata.db             ML Metadata: every run, every artifact
artifacts/              what the steps made, and the lock of those who make or delete it
pushed/                 a folder per pushed model, and the pointer to the one that is deployed
report/                 report.json and report.html of the latest evaluation, history.html
logs/<run>.log          what the steps of a run printed
events.jsonl            what became of every run
metrics.prom            the state of the pipeline, for Prometheus
schemas/<digest>.pbtxt  copies of the schemas that data were checked by
last_statistics/        of the data of the last run that checked them, for drift
data/                   the digits, where a run was given no data
.checkpoints/           of the trainings of a run that has not finished
.data-checked.json      which shards were read to their end before; of spans .data-checked/<span>.json
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from edgeline import files
from edgeline.errors import UserError

#: Which steps a cache can serve: raised where the types or parameters of all steps change, so that none can be.
CACHE = 2

#: Folders that a pipeline on a cluster has in its root too, under a URI.
PUSHED, LAST_STATISTICS = "pushed", "last_statistics"


@dataclasses.dataclass(frozen=True)
class Root:
    """Says where the parts of a pipeline are kept; makes none of them.

    Attributes:
      path: the folder, which need not be there yet.
    """

    path: Path

    def __str__(self) -> str:
        """Returns the path."""
        return str(self.path)

    def __fspath__(self) -> str:
        """Returns the path."""
        return str(self.path)

    @classmethod
    def above(cls, file: Path) -> Root | None:
        """Returns the root that a file lies in: the nearest folder above it that has ML Metadata; None without one."""
        return next((root for root in map(cls, file.parents) if root.metadata_db.is_file()), None)

    def absolute(self) -> Root:
        """Returns the same root by its absolute path."""
        return Root(self.path.absolute())

    @property
    def pipeline(self) -> str:
        """The name of the pipeline: the folder's, in small letters, digits and hyphens."""
        return pipeline_name(self.path.name)

    @property
    def metadata_db(self) -> Path:
        """The file of ML Metadata."""
        return self.path / "metadata.db"

    @property
    def artifacts(self) -> Path:
        """The folder of what the steps made; TFX calls it the pipeline root."""
        return self.path / "artifacts"

    @property
    def pushed(self) -> Path:
        """The folder that gets a folder per pushed model."""
        return self.path / PUSHED

    @property
    def report(self) -> Path:
        """The folder of the latest report."""
        return self.path / "report"

    @property
    def history_page(self) -> Path:
        """The page that `edgeline history --html` draws."""
        return self.report / "history.html"

    @property
    def logs(self) -> Path:
        """The folder of the runs' logs."""
        return self.path / "logs"

    def log(self, run: str) -> Path:
        """Returns the log file of a run."""
        return self.logs / f"{run}.log"

    @property
    def events(self) -> Path:
        """The event log."""
        return self.path / "events.jsonl"

    @property
    def metrics(self) -> Path:
        """The file for Prometheus."""
        return self.path / "metrics.prom"

    @property
    def schemas(self) -> Path:
        """The folder of copies of schemas."""
        return self.path / "schemas"

    @property
    def last_statistics(self) -> Path:
        """The folder of the statistics of the last data that were checked."""
        return self.path / LAST_STATISTICS

    @property
    def data(self) -> Path:
        """The data folder of a run that was given none."""
        return self.path / "data"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints of unfinished trainings."""
        return self.path / ".checkpoints"

    def data_checked(self, span: str | None = None) -> Path:
        """Returns the file that remembers which shards were read, of a data folder or of a span of this name."""
        if span is None:
            return self.path / ".data-checked.json"
        return self.path / ".data-checked" / f"{span.replace('/', '_')}.json"

    def make(self) -> None:
        """Makes the folder if need be.

        Raises:
          UserError: it cannot be made.
        """
        try:
            files.make_folder(self.path)
        except OSError as error:
            raise UserError(f"--root {self} cannot be written: {error.strerror}; choose another folder") from None

    def locked(self, refusal: str) -> contextlib.AbstractContextManager[None]:
        """Holds the artifacts for this process, see `lock`."""
        return lock(self.artifacts, refusal)


#: Of the digits example, which needs none to be given.
DEFAULT_ROOT = Root(Path("runs/digits"))


def pipeline_name(text: str) -> str:
    """Returns the name of a pipeline made of any text.

    >>> pipeline_name("Night Runs (v2)")
    'night-runs-v2'
    """
    return re.sub("[^a-z0-9-]+", "-", text.lower()).strip("-") or "edgeline"


@contextlib.contextmanager
def lock(artifacts: Path, refusal: str) -> Iterator[None]:
    """Holds a folder of artifacts for this process; the kernel lets go of it when the process ends, however it ends.

    Args:
      artifacts: the folder; made if need be.
      refusal: what to tell the user where another process holds it.

    Raises:
      UserError: another process holds it.
    """
    files.make_folder(artifacts)
    descriptor = os.open(artifacts / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode().strip() or "unknown"
            raise UserError(f"Another run (process {holder}) is working in {artifacts}; {refusal}") from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
