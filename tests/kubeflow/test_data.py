"""`edgeline kubeflow data`: what is made of a data folder, and what is refused."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeline.data import reading
from edgeline.data.data_folder import SPLITS
from edgeline.errors import UserError
from edgeline.kubeflow import data
from edgeline.pipelines.cli import main

pytestmark = pytest.mark.kubeflow


@pytest.fixture
def source(digits_data: Path, tmp_path: Path) -> Path:
    """A data folder that a test may spoil."""
    return Path(shutil.copytree(digits_data, tmp_path / "digits"))


def test_the_layout_is_what_the_steps_read(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("_SUCCESS", ".DS_Store"):  # of other tools: a step would read them as examples
        (source / "train" / name).touch()
    out = tmp_path / "my upload"
    assert main.main(["kubeflow", "data", str(source), str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["Split-eval", "Split-train", "Split-validation"]
    for split in SPLITS:
        shards = sorted((source / split).glob("*.tfrecord.gz"))
        files = [Path(file) for file in reading.split_files(str(out), split)]
        assert [path.name for path in files] == [path.name for path in shards]
        assert all(file.samefile(shard) for file, shard in zip(files, shards, strict=True))  # no room is taken twice
    shown = capsys.readouterr().out
    assert "my upload: 1,461 train, 163 validation, 173 eval" in shown
    assert f"--data s3://BUCKET/PATH     aws s3 sync --delete '{out}' s3://BUCKET/PATH" in shown


def test_links_are_followed(source: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.tfrecord.gz"
    [shard] = list((source / "eval").iterdir())[:1]
    shard.rename(elsewhere)
    shard.symlink_to(elsewhere)
    data.lay_out(source, tmp_path / "out")
    made = tmp_path / "out" / "Split-eval" / shard.name
    assert made.samefile(elsewhere)
    assert not made.is_symlink()  # which no tool would upload


def test_what_cannot_be_linked_is_copied(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def another_file_system(self: Path, target: Path) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", another_file_system)
    data.lay_out(source, tmp_path / "out")
    for shard in (source / "train").iterdir():
        assert (tmp_path / "out" / "Split-train" / shard.name).read_bytes() == shard.read_bytes()


def _without_a_split(source: Path) -> None:
    shutil.rmtree(source / "eval")


def _cut(source: Path) -> None:
    [shard, *_] = (source / "validation").iterdir()
    shard.write_bytes(shard.read_bytes()[:-9])


def _laid_out(source: Path) -> None:
    for split in SPLITS:
        (source / split).rename(source / f"Split-{split}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_a_split, "lacks the folder eval; it holds"),
        (_cut, "is a truncated gzip file"),
        (_laid_out, "is laid out already: upload it as it is"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_data_that_cannot_be_used(
    spoil: Callable[[Path], None], message: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(source)
    assert main.main(["kubeflow", "data", str(source), str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_places_that_cannot_be_used(source: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match=r"taken exists already: delete it, or choose another folder"):
        data.lay_out(source, tmp_path / "taken")
    with pytest.raises(UserError, match=re.escape(f"lies in the data folder {source}: choose a folder beside it")):
        data.lay_out(source, source / "train" / "out")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written: Not a directory; choose another folder"):
        data.lay_out(source, tmp_path / "file" / "out")


def test_a_full_disk_leaves_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(shard: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(data, "_link", full)
    with pytest.raises(UserError, match="out cannot be written: No space left on device"):
        data.lay_out(source, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["digits"]
