from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from rich.console import Console

from edgeline.data import data_folder
from edgeline.errors import UserError
from edgeline.pipelines.datasets import images as image_folders
from edgeline.pipelines.datasets import imdb, mnist, writing

Records = dict[str, list[tuple[bytes, int]]]


def read(data_dir: Path) -> Records:
    """Returns (image, label) of every record in the order of the shards."""
    records: Records = {}
    for split in ("train", "validation", "eval"):
        files = sorted(str(path) for path in (data_dir / split).glob("*.tfrecord.gz"))
        examples = [tf.train.Example.FromString(r.numpy()) for r in tf.data.TFRecordDataset(files, "GZIP")]
        features = [example.features.feature for example in examples]
        records[split] = [(f["image"].bytes_list.value[0], f["label"].int64_list.value[0]) for f in features]
    return records


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def make_images(folder: Path, seeds: range, name: Callable[[int], str] = "{}.png".format) -> Path:
    """Makes a folder of images: even seeds in class `cat`, odd ones in `dog`."""
    for seed in seeds:
        path = folder / ("cat", "dog")[seed % 2] / name(seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
    return folder


def idx(*dimensions: int, values: bytes) -> bytes:
    return struct.pack(f">4B{len(dimensions)}I", 0, 0, 8, len(dimensions), *dimensions) + values


def make_idx(folder: Path, train: int = 40, test: int = 4) -> Path:
    """Makes four idx files, two of them gzipped; image i has i in every pixel and the label i % 10."""
    folder.mkdir(parents=True)
    for prefix, count in (("train", train), ("t10k", test)):
        pixels = b"".join(bytes([i]) * 784 for i in range(count))
        labels = bytes(i % 10 for i in range(count))
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(count, 28, 28, values=pixels)))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(count, values=labels))
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without downloads, on a machine without Debian's package."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(mnist, "_DEBIAN_FASHION_MNIST", tmp_path / "debian")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as `write_digits` writes them; tests only read it."""
    out = tmp_path_factory.mktemp("digits") / "data"
    mnist.write_digits(out)
    return out


# --- what is written


def test_digits_are_complete_and_in_disjoint_splits(digits: Path):
    records = read(digits)
    everything = [record for split in records.values() for record in split]
    assert len(everything) == 1797
    assert len({image for image, _ in everything}) == 1797
    assert {len(image) for image, _ in everything} == {64}
    assert max(max(image) for image, _ in everything) == 16
    # The first digit of the data set is a zero; no other image begins with its two top rows.
    top = bytes((0, 0, 5, 13, 9, 1, 0, 0)) + bytes((0, 0, 13, 15, 10, 15, 5, 0))
    assert [label for image, label in everything if image.startswith(top)] == [0]
    assert len(records["train"]) / 1797 == pytest.approx(0.8, abs=0.03)
    assert len(records["validation"]) / 1797 == pytest.approx(0.1, abs=0.02)


def test_shards_are_proportional_and_mix_the_classes(digits: Path):
    files = {split: sorted(p.name for p in (digits / split).iterdir()) for split in ("train", "validation", "eval")}
    assert files["train"] == [f"data-0000{i}-of-00008.tfrecord.gz" for i in range(8)]
    assert files["validation"] == files["eval"] == ["data-00000-of-00001.tfrecord.gz"]
    train = read(digits)["train"]
    assert {label for _, label in train[:100]} == set(range(10))


def test_dataset_json_and_labels_describe_the_folder(digits: Path):
    manifest = json.loads((digits / "dataset.json").read_text())
    assert manifest["name"] == "digits"
    assert manifest["counts"] == {split: len(records) for split, records in read(digits).items()}
    assert manifest["features"]["image"] == {"encoding": "raw", "dtype": "uint8", "shape": [8, 8], "range": [0, 16]}
    assert manifest["shards"] == {"train": 8, "validation": 1, "eval": 1}
    assert (digits / "labels.txt").read_text() == "0\n1\n2\n3\n4\n5\n6\n7\n8\n9\n"


def test_written_folder_is_readable_with_the_same_counts(digits: Path):
    assert data_folder.check_readable(digits) == json.loads((digits / "dataset.json").read_text())["counts"]


def test_second_run_writes_the_same_bytes(digits: Path, tmp_path: Path):
    summary = mnist.write_digits(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(digits)
    assert summary.written
    assert summary.path == tmp_path / "again"
    assert summary.labels == tuple("0123456789")
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_no_split_has_more_shards_than_examples(tmp_path: Path):
    source = make_images(tmp_path / "photos", range(40))
    summary = image_folders.write_images(source, tmp_path / "data", shards=1000)
    files = {split: len(list((tmp_path / "data" / split).iterdir())) for split in summary.counts}
    assert files == summary.counts
    assert data_folder.check_readable(tmp_path / "data") == summary.counts


def test_split_follows_from_the_digest():
    def example(tenth: int) -> writing.Example:
        return writing.Example(tenth.to_bytes(8, "big") + bytes(24), 7, b"")

    def tenths(splits: dict[str, list[writing.Example]]) -> dict[str, list[int]]:
        return {split: [int.from_bytes(e.digest[:8], "big") for e in examples] for split, examples in splits.items()}

    numbers = [example(n) for n in (21, 5, 0, 30, 1, 2)]
    assert tenths(writing.split_by_digest(numbers)) == {"train": [2, 5], "validation": [0, 30], "eval": [1, 21]}
    published = writing.split_by_digest(numbers, [example(9), example(3)])
    assert tenths(published) == {"train": [1, 2, 5, 21], "validation": [0, 30], "eval": [3, 9]}


def test_progress_goes_to_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    console = Console(file=io.StringIO(), width=300)
    mnist.write_digits(tmp_path / "data", console=console)
    assert "digits: writing train" in console.file.getvalue()
    mnist.write_digits(tmp_path / "data", console=console)
    assert "already holds this data set" in console.file.getvalue().replace("\n", " ")
    mnist.write_digits(tmp_path / "silent")
    assert capsys.readouterr() == ("", "")


# --- the target folder


def test_same_request_leaves_the_folder_alone(tmp_path: Path):
    first = mnist.write_digits(tmp_path / "data")
    before = (tmp_path / "data").stat().st_mtime_ns
    second = mnist.write_digits(tmp_path / "data")
    assert not second.written
    assert second.counts == first.counts
    assert (tmp_path / "data").stat().st_mtime_ns == before


def test_empty_folder_is_used(tmp_path: Path):
    (tmp_path / "data").mkdir()
    assert mnist.write_digits(tmp_path / "data").written


def test_other_request_for_the_same_folder_is_refused(digits: Path):
    with pytest.raises(UserError, match=r"holds another data set .*different: shards; see .*dataset\.json"):
        mnist.write_digits(digits, shards=4)


def test_other_images_for_the_same_folder_are_refused(tmp_path: Path):
    source = make_images(tmp_path / "photos", range(40))
    image_folders.write_images(source, tmp_path / "data")
    make_images(source, range(40, 41))
    with pytest.raises(UserError, match=r"different: counts, .*content_sha256"):
        image_folders.write_images(source, tmp_path / "data")


def test_incomplete_folder_is_refused(digits: Path, tmp_path: Path):
    shutil.copytree(digits, tmp_path / "data")
    (tmp_path / "data/train/data-00003-of-00008.tfrecord.gz").unlink()
    with pytest.raises(UserError, match=r"incomplete, it lacks train/data-00003-of-00008\.tfrecord\.gz: remove"):
        mnist.write_digits(tmp_path / "data")


def test_foreign_folder_and_file_are_refused(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and was not made by `edgeline data`"):
        mnist.write_digits(tmp_path / "data")
    with pytest.raises(UserError, match="is a file"):
        mnist.write_digits(tmp_path / "data/thesis.txt")
    assert contents(tmp_path / "data") == {"thesis.txt": b"mine"}


def test_unreadable_dataset_json_is_refused(tmp_path: Path):
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="cannot read the data folder"):
        mnist.write_digits(tmp_path)


def test_shards_below_one_are_refused(tmp_path: Path):
    with pytest.raises(UserError, match="at least 1, received 0"):
        mnist.write_digits(tmp_path / "data", shards=0)


def test_place_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write the data folder .*data: Not a directory"):
        mnist.write_digits(tmp_path / "file" / "data")


def test_full_disk_leaves_nothing_behind(tmp_path: Path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot write the data folder .*data: .*File too large"):
            mnist.write_digits(tmp_path / "data")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_interrupted_run_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(example: writing.Example) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "image_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        mnist.write_digits(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []


# --- idx files and caches


def test_fashion_mnist_from_idx_files(tmp_path: Path):
    summary = mnist.write_fashion_mnist(tmp_path / "data", source=make_idx(tmp_path / "idx"))
    records = read(tmp_path / "data")
    assert sorted(records["eval"]) == [(bytes([i]) * 784, i) for i in range(4)]
    # The test set repeats images 0 to 3 of the training set: published splits are kept as they are.
    assert sorted(records["train"] + records["validation"]) == [(bytes([i]) * 784, i % 10) for i in range(40)]
    assert summary.counts == {split: len(split_records) for split, split_records in records.items()}
    assert (tmp_path / "data/labels.txt").read_text().splitlines() == [
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ]


def test_fashion_mnist_sources_in_order(home: Path, tmp_path: Path):
    def eval_count(name: str, source: Path | None = None) -> int:
        return mnist.write_fashion_mnist(tmp_path / name, source=source).counts["eval"]

    make_idx(home / ".keras/datasets/fashion-mnist", test=5)
    assert eval_count("cache") == 5
    make_idx(tmp_path / "debian", test=6)
    assert eval_count("debian-data") == 6
    assert eval_count("source", make_idx(tmp_path / "idx", test=7)) == 7


def test_missing_fashion_mnist_names_three_ways(home: Path, tmp_path: Path):
    with pytest.raises(UserError) as caught:
        mnist.write_fashion_mnist(tmp_path / "data")
    message = str(caught.value)
    assert "--source DIR" in message
    assert "train-images-idx3-ubyte" in message
    assert "apt install dataset-fashion-mnist" in message
    assert f"{home}/.keras/datasets/fashion-mnist" in message
    assert not (tmp_path / "data").exists()


def test_mnist_from_source_and_from_the_cache(home: Path, tmp_path: Path):
    source = make_idx(tmp_path / "idx")
    mnist.write_mnist(tmp_path / "from-idx", source=source)
    images = np.repeat(np.arange(40, dtype=np.uint8), 784).reshape(40, 28, 28)
    labels = np.arange(40, dtype=np.uint8) % 10
    (home / ".keras/datasets").mkdir(parents=True)
    np.savez(home / ".keras/datasets/mnist.npz", x_train=images, y_train=labels, x_test=images[:4], y_test=labels[:4])
    mnist.write_mnist(tmp_path / "from-cache")
    assert contents(tmp_path / "from-idx") == contents(tmp_path / "from-cache")
    assert (tmp_path / "from-idx/labels.txt").read_text().split() == list("0123456789")


def test_missing_mnist_names_both_ways(home: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"(?s)--source DIR .*tf_keras\.datasets\.mnist\.load_data\(\).*mnist\.npz"):
        mnist.write_mnist(tmp_path / "data")


@pytest.mark.parametrize("damage", [b"", b"PK", b"not a zip file at all"])
def test_damaged_mnist_cache(home: Path, tmp_path: Path, damage: bytes):
    (home / ".keras/datasets").mkdir(parents=True)
    (home / ".keras/datasets/mnist.npz").write_bytes(damage)
    with pytest.raises(UserError, match=r"mnist\.npz is not the MNIST file"):
        mnist.write_mnist(tmp_path / "data")


def test_mnist_cache_of_another_shape(home: Path, tmp_path: Path):
    (home / ".keras/datasets").mkdir(parents=True)
    path = home / ".keras/datasets/mnist.npz"
    np.savez(path, x_train=np.zeros((3, 8, 8)), y_train=np.zeros(3))
    with pytest.raises(UserError, match=r"x_train is float64 \[3, 8, 8\] for 3 labels"):
        mnist.write_mnist(tmp_path / "data")
    np.savez(path, other=np.zeros(3))
    with pytest.raises(UserError, match="x_train is not a file in the archive"):
        mnist.write_mnist(tmp_path / "data")


def test_source_without_idx_files_lists_what_is_there(tmp_path: Path):
    source = make_idx(tmp_path / "idx")
    (source / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match=r"lacks the idx files t10k-labels-idx1-ubyte \(.*it holds t10k-images-idx3"):
        mnist.write_mnist(tmp_path / "data", source=source)
    with pytest.raises(UserError, match=r"lacks the idx files .*cannot be listed: No such file"):
        mnist.write_mnist(tmp_path / "data", source=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx(40, values=bytes(39)), r"header promises 40 items of 1 bytes, 48 bytes in all, received 47"),
        (idx(39, values=bytes(39)), r"holds 40 images, but .*train-labels-idx1-ubyte 39 labels"),
        (idx(40, values=bytes([10, 12] + [0] * 38)), r"holds the labels 10, 12, expected 0 to 9"),
        (idx(40, 1, values=bytes(40)), r"expected it to begin with 00000801 \(hexadecimal\), received 00000802"),
        (b"hello, this is text", r"not an idx file of unsigned bytes with 1 dimensions: .*received 68656c6c"),
        (b"", r"not an idx file .*received nothing"),
        (b"\0\0\x08\x01\0\0", r"not an idx file"),
    ],
)
def test_damaged_idx_labels(tmp_path: Path, content: bytes, message: str):
    source = make_idx(tmp_path / "idx")
    (source / "train-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(UserError, match=message):
        mnist.write_mnist(tmp_path / "data", source=source)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(idx(40, 8, 8, values=bytes(40 * 64))), r"items of shape \[8, 8\], expected \[28, 28\]"),
        (gzip.compress(idx(40, 28, 28, values=bytes(40 * 784)))[:-9], r"cannot read .*train-images.*end-of-stream"),
        (b"not gzip", r"cannot read .*train-images-idx3-ubyte\.gz: Not a gzipped file"),
    ],
    ids=["other shape", "truncated", "not gzip"],  # gzip puts the time into the content
)
def test_damaged_idx_images(tmp_path: Path, content: bytes, message: str):
    source = make_idx(tmp_path / "idx")
    (source / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=message):
        mnist.write_mnist(tmp_path / "data", source=source)


# --- folders of images


def test_images_are_written_as_they_are(tmp_path: Path):
    source = make_images(tmp_path / "photos", range(40))
    stream = io.BytesIO()
    Image.new("L", (5, 3), 100).save(stream, "JPEG")
    (source / "dog/last.JPG").write_bytes(stream.getvalue())
    (source / "dog/.DS_Store").write_bytes(b"junk")
    (source / ".git").mkdir()
    (source / "LICENSE.txt").write_text("free")
    summary = image_folders.write_images(source, tmp_path / "data")
    records = read(tmp_path / "data")
    expected = [(png(seed), seed % 2) for seed in range(40)] + [(stream.getvalue(), 1)]
    assert sorted(record for split in records.values() for record in split) == sorted(expected)
    assert summary.labels == ("cat", "dog")
    assert (tmp_path / "data/labels.txt").read_text() == "cat\ndog\n"


def test_equal_images_are_in_the_same_split(tmp_path: Path):
    source = make_images(tmp_path / "photos", range(40))
    make_images(source, range(40), "copy-of-{}.png".format)
    for seed in range(0, 40, 2):  # and a third time, with another label
        (source / "dog" / f"cat-{seed}.png").write_bytes(png(seed))
    image_folders.write_images(source, tmp_path / "data")
    images = {split: [image for image, _ in records] for split, records in read(tmp_path / "data").items()}
    assert sum(len(members) for members in images.values()) == 100
    assert sum(len(set(members)) for members in images.values()) == 40


def test_names_and_order_of_the_files_do_not_matter(tmp_path: Path):
    first = make_images(tmp_path / "first", range(40))
    second = make_images(tmp_path / "second", range(39, -1, -1), lambda seed: f"IMG_{1000 - seed}.jpeg")
    image_folders.write_images(first, tmp_path / "a")
    image_folders.write_images(second, tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_images_stay_in_their_split_when_others_are_added(tmp_path: Path):
    source = make_images(tmp_path / "photos", range(40))
    image_folders.write_images(source, tmp_path / "before")
    make_images(source, range(40, 60))
    image_folders.write_images(source, tmp_path / "after")
    before, after = read(tmp_path / "before"), read(tmp_path / "after")
    assert all(set(before[split]) < set(after[split]) or before[split] == after[split] for split in before)


def test_every_broken_image_is_named(tmp_path: Path):
    source = make_images(tmp_path / "photos", range(40))
    (source / "cat/cut.png").write_bytes(png(99)[:-1])
    (source / "dog/text.jpg").write_text("not an image")
    Image.new("L", (4, 4)).save(source / "dog/gif.png", "GIF")
    with pytest.raises(UserError) as caught:
        image_folders.write_images(source, tmp_path / "data")
    message = str(caught.value)
    assert message.startswith(f"3 of 43 image files in {source} cannot be decoded")
    assert "cat/cut.png: is damaged or cut off" in message
    assert "dog/gif.png: is neither JPEG nor PNG, whatever its name" in message
    assert "dog/text.jpg: is neither JPEG nor PNG" in message
    assert not (tmp_path / "data").exists()


def test_other_files_in_class_folders_are_named(tmp_path: Path):
    source = make_images(tmp_path / "photos", range(40))
    (source / "cat/notes.txt").write_text("")
    (source / "dog/more").mkdir()
    with pytest.raises(UserError, match=r"(?s)these 2:\n  .*cat/notes\.txt\n  .*dog/more$"):
        image_folders.write_images(source, tmp_path / "data")


def test_image_folders_of_another_shape(tmp_path: Path):
    with pytest.raises(UserError, match=r"image folder .* does not exist"):
        image_folders.write_images(tmp_path / "nowhere", tmp_path / "data")
    (tmp_path / "photos/cat").mkdir(parents=True)
    with pytest.raises(UserError, match=r"one sub-folder per class, at least two, .*it holds cat/"):
        image_folders.write_images(tmp_path / "photos", tmp_path / "data")
    (tmp_path / "photos/dog").mkdir()
    with pytest.raises(UserError, match=r"class folder .*cat is empty"):
        image_folders.write_images(tmp_path / "photos", tmp_path / "data")
    with pytest.raises(UserError, match="would lie inside"):
        image_folders.write_images(tmp_path / "photos", tmp_path / "photos/data")


def test_too_few_images_for_three_splits(tmp_path: Path):
    with pytest.raises(UserError, match="none of the 2 images falls into the split"):
        image_folders.write_images(make_images(tmp_path / "photos", range(2)), tmp_path / "data")


def test_image_changed_between_the_passes(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(png(1))
    with pytest.raises(UserError, match=r"a\.png was changed"):
        writing.image_bytes(writing.Example(bytes(32), 0, path))
    path.unlink()
    with pytest.raises(UserError, match=r"cannot read .*a\.png: No such file"):
        writing.image_bytes(writing.Example(bytes(32), 0, path))


# --- check_readable


SIZE = 316  # bytes of one record: 8 length + 4 checksum + 300 data + 4 checksum


@pytest.fixture
def records(tmp_path: Path) -> bytes:
    """Five records as an uncompressed TFRecord file: 5 * 316 bytes."""
    with tf.io.TFRecordWriter(str(tmp_path / "raw")) as writer:
        for i in range(5):
            writer.write(np.random.default_rng(i).bytes(300))
    return (tmp_path / "raw").read_bytes()


@pytest.fixture
def data_dir(tmp_path: Path, records: bytes) -> Path:
    """A data folder: train 5 + 3 records, validation 2, eval 1."""
    for name, count in (("train/a", 5), ("train/b", 3), ("validation/a", 2), ("eval/a", 1)):
        path = tmp_path / "data" / f"{name}.tfrecord.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(records[: count * SIZE]))
    return tmp_path / "data"


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def cut_between_records(records: bytes) -> bytes:
    """Returns a gzip stream that ends after the third record, as a writer leaves it that dies after a flush."""
    compressor = zlib.compressobj(wbits=31)
    return compressor.compress(records[: 3 * SIZE]) + compressor.flush(zlib.Z_FULL_FLUSH)


def test_counts(data_dir: Path):
    (data_dir / "train/_SUCCESS").write_text("")
    (data_dir / "train/.DS_Store").write_text("")
    assert data_folder.check_readable(data_dir) == {"train": 8, "validation": 2, "eval": 1}


def test_hidden_shard_counts_as_the_pipeline_reads_it(data_dir: Path):
    hidden = data_dir / "train/.c.tfrecord.gz"
    shutil.copy(data_dir / "train/b.tfrecord.gz", hidden)
    assert str(hidden) in tf.io.gfile.glob(f"{data_dir}/train/*.tfrecord.gz")
    assert data_folder.check_readable(data_dir)["train"] == 11


def test_gzip_members_one_after_the_other_are_one_file(data_dir: Path):
    path = data_dir / "train/a.tfrecord.gz"
    path.write_bytes(path.read_bytes() * 2)
    assert data_folder.check_readable(data_dir)["train"] == 13


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: gzip.compress(raw)[:-8], "truncated gzip file: it ends after 5 whole records without a trailer"),
        (lambda raw: gzip.compress(raw)[:-1], "truncated gzip file: it ends after 5 whole records"),
        (cut_between_records, "truncated gzip file: it ends after 3 whole records"),
        (lambda raw: gzip.compress(raw)[:-100], "truncated gzip file: it ends after 4 whole records"),
        (lambda raw: gzip.compress(raw)[:5], "truncated gzip file: it ends after 0 whole records"),
        (lambda raw: flip(gzip.compress(raw), -6), r"cannot be read to its end: CRC check failed .*after 5 records"),
        (
            lambda raw: gzip.compress(raw) + b"garbage",
            r"cannot be read to its end: Not a gzipped file .*after 5 records",
        ),
        (lambda raw: gzip.compress(raw)[:10] + b"\xff" * 500, "cannot be read to its end: .*invalid block type"),
        (lambda raw: gzip.compress(raw[: 3 * SIZE + 5]), "cut off in a record: only the first 3 are whole"),
        (lambda raw: gzip.compress(raw[: 3 * SIZE + 15]), "cut off in a record: only the first 3 are whole"),
        (lambda raw: gzip.compress(raw[: SIZE - 1]), "its first record is damaged: not one record can be read"),
        (lambda raw: gzip.compress(flip(raw, 2 * SIZE + 50)), "damaged: a checksum is wrong after 2 of 5 records"),
        (lambda raw: gzip.compress(flip(raw, 10)), "its first record is damaged: not one record can be read"),
        (lambda raw: gzip.compress(b"a text that somebody has compressed"), "is not a TFRecord file, or"),
        (lambda raw: gzip.compress(b"hi"), "is not a TFRecord file, or"),
        (lambda raw: b"just a text, not even compressed", r"is not a TFRecord file: .*may hold \*\.tfrecord\.gz files"),
        (lambda raw: b"", r"is empty \(0 bytes\)"),
        (lambda raw: raw, r"is an uncompressed TFRecord file, but Edgeline \(through TFX\) reads GZIP TFRecords"),
    ],
)
def test_damaged_shard(data_dir: Path, records: bytes, damage: Callable[[bytes], bytes], message: str):
    (data_dir / "train/b.tfrecord.gz").write_bytes(damage(records))
    with pytest.raises(UserError, match=r"^\S*/train/b\.tfrecord\.gz " + f".*{message}"):
        data_folder.check_readable(data_dir)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("c.tfrecord", lambda raw: raw, r"uncompressed TFRecord file.*its name end with \.tfrecord\.gz"),
        ("c.gz", gzip.compress, r"would not be read: rename it to \*\.tfrecord\.gz"),
        ("README", lambda raw: b"about this data", "is not a TFRecord file"),
    ],
)
def test_file_that_would_not_be_read(
    data_dir: Path, records: bytes, name: str, make: Callable[[bytes], bytes], message: str
):
    (data_dir / "train" / name).write_bytes(make(records))
    with pytest.raises(UserError, match=f"/train/{name} .*{message}"):
        data_folder.check_readable(data_dir)


def test_missing_folder_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(UserError, match=r"nowhere does not exist: make one with `edgeline data digits \S*/nowhere`"):
        data_folder.check_readable(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file is not a folder"):
        data_folder.check_readable(tmp_path / "file")


def test_missing_split_lists_what_is_there(data_dir: Path):
    (data_dir / "validation").rename(data_dir / "val")
    with pytest.raises(UserError, match="lacks the folder validation; it holds eval/, train/, val/"):
        data_folder.check_readable(data_dir)


def test_split_without_files(data_dir: Path):
    (data_dir / "eval/a.tfrecord.gz").unlink()
    with pytest.raises(UserError, match=r"/eval must hold \*\.tfrecord\.gz files and no folders; it is empty"):
        data_folder.check_readable(data_dir)
    (data_dir / "eval/part1").mkdir()
    with pytest.raises(UserError, match="it holds part1/"):
        data_folder.check_readable(data_dir)


def test_split_without_records(data_dir: Path):
    (data_dir / "eval/a.tfrecord.gz").write_bytes(gzip.compress(b""))
    with pytest.raises(UserError, match="/eval holds no examples: its 1 files have 0 records"):
        data_folder.check_readable(data_dir)


def test_stamp_spares_the_reading_until_a_file_changes(data_dir: Path, tmp_path: Path):
    stamp = tmp_path / "new folder/stamp"
    counts = data_folder.check_readable(data_dir, stamp)
    shard = data_dir / "train/a.tfrecord.gz"
    before = shard.stat()
    shard.write_bytes(bytes(before.st_size))
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert data_folder.check_readable(data_dir, stamp) == counts  # not read: size and time are as they were
    os.utime(shard, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(UserError, match=r"a\.tfrecord\.gz is not a TFRecord file"):
        data_folder.check_readable(data_dir, stamp)


def test_stamp_notices_a_new_and_a_renamed_shard(data_dir: Path, tmp_path: Path):
    data_folder.check_readable(data_dir, tmp_path / "stamp")
    shutil.copy(data_dir / "train/b.tfrecord.gz", data_dir / "eval/b.tfrecord.gz")
    assert data_folder.check_readable(data_dir, tmp_path / "stamp")["eval"] == 4
    (data_dir / "train/b.tfrecord.gz").rename(data_dir / "validation/b.tfrecord.gz")
    assert data_folder.check_readable(data_dir, tmp_path / "stamp") == {"train": 5, "validation": 5, "eval": 4}


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"fingerprint": null}'])
def test_damaged_stamp_is_ignored_and_renewed(data_dir: Path, tmp_path: Path, content: str):
    stamp = tmp_path / "stamp"
    stamp.write_text(content)
    assert data_folder.check_readable(data_dir, stamp)["train"] == 8
    assert json.loads(stamp.read_text())["counts"] == {"train": 8, "validation": 2, "eval": 1}


def test_stamp_that_cannot_be_written_does_not_matter(data_dir: Path):
    assert data_folder.check_readable(data_dir, data_dir / "eval/a.tfrecord.gz/stamp")["train"] == 8


def test_no_stamp_after_an_error(data_dir: Path, tmp_path: Path):
    (data_dir / "eval/a.tfrecord.gz").write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        data_folder.check_readable(data_dir, tmp_path / "stamp")
    assert not (tmp_path / "stamp").exists()


# IMDB -----------------------------------------------------------------------------------------------------------------


def write_imdb_file(path: Path, **changed: Any) -> Path:
    """A file like tf-keras's: reviews as lists of word numbers, of 1 to 119 words."""
    parts: dict[str, Any] = {}
    for part, first in (("train", 1), ("test", 60)):
        reviews = np.empty(60, object)
        for number in range(60):
            # numbers at both ends of the vocabulary: 19,996 is its last, 19,997 is unknown
            reviews[number] = [1, *(19_996 + (i + number) % 3 for i in range(first + number - 1))]
        parts |= {f"x_{part}": reviews, f"y_{part}": np.arange(60) % 2}
    np.savez(path, **(parts | changed))
    return path


def test_imdb_is_what_keras_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tf_keras.src.datasets import imdb as keras_imdb
    from tf_keras.utils import pad_sequences

    source = write_imdb_file(tmp_path / "imdb.npz")
    summary = imdb.write_imdb(tmp_path / "data", source=source, shards=2)
    assert (summary.name, summary.labels) == ("imdb", ("negative", "positive"))
    assert summary.counts["eval"] == 60
    assert summary.counts["train"] + summary.counts["validation"] == 60
    monkeypatch.setattr(keras_imdb, "get_file", lambda *given, **more: str(source))
    for part, splits in zip(keras_imdb.load_data(num_words=20_000), (("train", "validation"), ("eval",)), strict=True):
        expected = {(tuple(x), y) for x, y in zip(pad_sequences(part[0], maxlen=100).tolist(), part[1], strict=True)}
        written = {
            (tuple(features["tokens"].int64_list.value), features["label"].int64_list.value[0])
            for split in splits
            for path in (tmp_path / "data" / split).iterdir()
            for record in tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator()
            for features in [tf.train.Example.FromString(record).features.feature]
        }
        assert written == expected
    assert imdb._last_words([19_996, 19_997]).tolist() == [*[0] * 97, 1, 19_999, 2]
    assert len(imdb._last_words([5] * 119)) == 100
    assert not imdb.write_imdb(tmp_path / "data", source=source, shards=2).written


def test_imdb_as_old_versions_pickled_it(tmp_path: Path) -> None:
    source = write_imdb_file(tmp_path / "new.npz")
    with zipfile.ZipFile(source) as new, zipfile.ZipFile(tmp_path / "old.npz", "w") as old:
        for name in new.namelist():
            content = new.read(name)
            if name.startswith("x_"):
                start = 10 + int.from_bytes(content[8:10], "little")
                content = content[:start] + pickle.dumps(pickle.loads(content[start:]), protocol=2)
            old.writestr(name, content)
    one, two = imdb._read_imdb(source), imdb._read_imdb(tmp_path / "old.npz")
    assert one == two


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x_train": np.array([Harmful()] * 60)}, r"it holds posix\.mkdir where lists of numbers are expected"),
        ({"x_test": np.zeros([60, 100])}, "x_test is float64, not lists of words"),
        ({"y_train": np.arange(60)}, r"60 reviews, 60 labels from \[0, 1, 2, 3, 4\]"),
        ({"y_test": np.zeros(3, int)}, "60 reviews, 3 labels"),
        ({"x_train": np.array([["word"]] * 60 + [[]], object)[:60]}, "invalid literal"),
    ],
)
def test_imdb_files_that_are_none(
    tmp_path: Path, changed: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = write_imdb_file(tmp_path / "imdb.npz", **changed)
    with pytest.raises(UserError, match=rf"imdb.npz is not the IMDB file of tf-keras .*{message}"):
        imdb.write_imdb(tmp_path / "data", source=source)
    assert not (tmp_path / "harmed").exists()


def test_imdb_is_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"IMDB reviews were not found on this machine(.|\n)*--source FILE"):
        imdb.write_imdb(tmp_path / "data")
    (tmp_path / "imdb.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match="is not the IMDB file of tf-keras"):
        imdb.write_imdb(tmp_path / "data", source=tmp_path / "imdb.npz")
    (tmp_path / ".keras" / "datasets").mkdir(parents=True)
    write_imdb_file(tmp_path / ".keras" / "datasets" / "imdb.npz")
    assert imdb.write_imdb(tmp_path / "data").counts["eval"] == 60
