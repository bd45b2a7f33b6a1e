"""`edgeline data`: making data folders and schemas."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgeline import files
from edgeline.data import data_folder
from edgeline.errors import UserError
from edgeline.pipelines import console
from edgeline.pipelines.console import Console
from edgeline.pipelines.datasets import data_schema, images, imdb, mnist, writing
from edgeline.pipelines.exit_codes import ExitCode


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `data` to the commands of `edgeline`.

    Args:
      commands: what `add_subparsers` of `edgeline` returned.
      common: parent of every command's parser.
    """
    data = commands.add_parser("data", parents=[common])
    kinds = data.add_subparsers(metavar="KIND", required=True)
    for name, text, write in (
        ("digits", "scikit-learn's digits, 1,797 images of 8x8 pixels", _write_digits),
        ("fashion-mnist", "Fashion-MNIST, 70,000 images of 28x28 pixels", _write_fashion_mnist),
        ("mnist", "MNIST, 70,000 images of 28x28 pixels", _write_mnist),
        ("imdb", "the IMDB reviews of tf-keras, 50,000 of 100 words", _write_imdb),
        ("images", "a folder with one sub-folder of jpeg or png files per class", _write_images),
    ):
        kind = kinds.add_parser(name, help=text, parents=[common])
        if name == "images":
            kind.add_argument("source", type=Path, metavar="SRC", help="one sub-folder per class")
        elif name != "digits":
            what = "the file imdb.npz" if name == "imdb" else "folder with the four idx files"
            kind.add_argument("--source", type=Path, help=what)
        kind.add_argument("out", type=Path, metavar="DIR", help="the folder to make")
        kind.add_argument("--shards", type=int, default=8, help="files of the train split (default: %(default)s)")
        kind.set_defaults(command=_data, write=write)
    add_schema_command(kinds, common)


def _write_digits(arguments: argparse.Namespace, shown: Console) -> writing.DatasetSummary:
    return mnist.write_digits(arguments.out, shards=arguments.shards, console=shown)


def _write_fashion_mnist(arguments: argparse.Namespace, shown: Console) -> writing.DatasetSummary:
    return mnist.write_fashion_mnist(arguments.out, source=arguments.source, shards=arguments.shards, console=shown)


def _write_mnist(arguments: argparse.Namespace, shown: Console) -> writing.DatasetSummary:
    return mnist.write_mnist(arguments.out, source=arguments.source, shards=arguments.shards, console=shown)


def _write_imdb(arguments: argparse.Namespace, shown: Console) -> writing.DatasetSummary:
    return imdb.write_imdb(arguments.out, source=arguments.source, shards=arguments.shards, console=shown)


def _write_images(arguments: argparse.Namespace, shown: Console) -> writing.DatasetSummary:
    return images.write_images(arguments.source, arguments.out, shards=arguments.shards, console=shown)


def _data(arguments: argparse.Namespace) -> int:
    shown = Console(stderr=True)
    summary = arguments.write(arguments, shown)
    counts = ", ".join(f"{count:,} {split}" for split, count in summary.counts.items())
    if summary.written:
        console.say(shown, f"{summary.path}: {summary.name}, {counts}, {len(summary.labels)} classes")
    return ExitCode.DONE


def add_schema_command(kinds: Any, common: argparse.ArgumentParser) -> None:
    """Adds `schema` to the commands of `edgeline data`."""
    parser = kinds.add_parser(
        "schema",
        parents=[common],
        help="write down what the data of a folder look like, for --schema",
        description=(
            "Infer a schema from the data: features, types, shapes, categories, and the range of whole numbers.\n"
            "It is a first draft, yours to edit: what is in it is what later data are held to."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="data folder with train, validation and eval")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.pbtxt", help="must not exist yet")
    parser.set_defaults(command=_schema)


def _schema(arguments: argparse.Namespace) -> int:
    if arguments.output.exists():
        raise UserError(f"-o {arguments.output} exists already; a schema may have been edited: choose another name")
    if not arguments.output.parent.is_dir():
        raise UserError(f"-o {arguments.output}: the folder {arguments.output.parent} does not exist")
    data_folder.check_readable(arguments.data)
    text, names = data_schema.infer_schema(arguments.data)
    files.write_text(arguments.output, text)
    console.say(Console(), f"{arguments.output}: {', '.join(names)}")
    return ExitCode.DONE
