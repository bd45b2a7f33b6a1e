"""`edgeline export`, and the options of every command that takes a trained model. Nothing slow is imported early."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgeline import schemes
from edgeline.conversion import onnx
from edgeline.data.data_folder import SHARD_SUFFIX
from edgeline.errors import UserError
from edgeline.isolation import limits
from edgeline.model_importer.config import Import
from edgeline.model_module import module_source
from edgeline.pipelines.cli import options
from edgeline.pipelines.console import Console
from edgeline.pipelines.exit_codes import ExitCode
from edgeline.pipelines.run import export_file
from edgeline.quantizer.config import Quantize
from edgeline.schemes import SCHEMES


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `export` to the commands of `edgeline`.

    Args:
      commands: what `add_subparsers` returned.
      common: parent of every command's parser.
    """
    export = commands.add_parser(
        "export",
        parents=[common],
        description=(
            "Convert a trained model by one post-training scheme, or as it is into ONNX, and prove the result on "
            "samples of the data."
        ),
    )
    export.set_defaults(command=_export)
    options.add_import_options(export)
    names, unset = schemes.post_training(), Quantize()
    words = "; ".join(f"{name}: {SCHEMES[name].words}" for name in names)
    export.add_argument("--scheme", choices=names, default=unset.scheme, help=f"{words} (default: %(default)s)")
    integer = ", ".join(name for name in names if SCHEMES[name].integer_io)
    export.add_argument(
        "--io-type",
        choices=schemes.io_types(),
        default=unset.io_type,
        help=f"number type of inputs and outputs; an integer one for {integer} alone (default: %(default)s)",
    )
    export.add_argument("--data", type=Path, required=True, metavar="DIR", help="data folder; its train split is used")
    export.add_argument("--module", required=True, help="the model module, for feature_spec and preprocess")
    export.add_argument(
        "--samples",
        type=int,
        default=256,
        metavar="N",
        help="of the train split, for calibration (default: %(default)s)",
    )
    options.add_target(export)
    options.add_memory_limit(export)
    output = export.add_mutually_exclusive_group(required=True)
    output.add_argument("-o", "--output", type=Path, metavar="OUT.tflite", help="the file to write")
    output.add_argument("--onnx", type=Path, metavar="OUT.onnx", help="write a float ONNX file (needs edgeline[onnx])")
    export.add_argument(
        "--opset",
        type=int,
        choices=onnx.OPSETS,
        default=onnx.DEFAULT_OPSET,
        metavar="N",
        help="of ONNX (default: %(default)s)",
    )


def _export(arguments: argparse.Namespace) -> int:
    source = options.imported(arguments)
    with options.as_user_error():
        scheme = Quantize(arguments.scheme, arguments.io_type)
    if arguments.samples < 1:
        raise UserError(f"--samples must be at least 1, received {arguments.samples}")
    located = module_source.locate(arguments.module, needs_model=False)
    flag, output = ("--onnx", arguments.onnx) if arguments.onnx else ("--output", arguments.output)
    if not output.parent.is_dir():
        raise UserError(f"{flag} {output}: the folder {output.parent} does not exist")
    shards = sorted(str(path) for path in (arguments.data / "train").glob(f"*{SHARD_SUFFIX}"))
    if not shards:
        raise UserError(f"--data {arguments.data} has no files train/*{SHARD_SUFFIX} (see: edgeline data --help)")

    with limits.memory(arguments.memory_limit):
        if arguments.onnx:
            facts = _export_onnx(source, located.reference, shards, output, arguments.samples, arguments.opset)
            size = f"{facts['bytes']:,} bytes, opset {facts['opset']}"
        else:
            facts = export_file.export(
                source, scheme, located.reference, shards, output, samples=arguments.samples, target=arguments.runs_on
            )
            size = f"{facts['bytes']:,} bytes, {facts['zlib_bytes']:,} zlib bytes"
    shown = Console(soft_wrap=True, highlight=False)
    shown.print(f"{output}: {size}", markup=False)
    for name, closeness in facts["parity"].items():
        shown.print(
            f"output {name}: largest difference {closeness['max_abs']:.3g} ({closeness['relative']:.2%} of the largest "
            f"value), cosine {closeness['cosine']:.5f}",
            markup=False,
        )
    return ExitCode.DONE


def _export_onnx(
    source: Import, module: str, shards: list[str], output: Path, samples: int, opset: int
) -> dict[str, Any]:
    onnx.check_installed()
    if source.kind == "tflite":
        raise UserError(f"--onnx is for a model that TensorFlow runs, but {source.source} is a .tflite file")
    _, model, io, values = export_file.opened(source, module, shards, samples)
    return onnx.export(model, io, values, output, opset)
