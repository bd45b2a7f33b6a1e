"""`edgeline export`, and the options of every command that takes a trained model. Nothing slow is imported early."""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from edgeline import model_module, targets
from edgeline.errors import UserError
from edgeline.model_importer.config import GRAPHS, WITH_SIGNATURES, Import, digest_of, kind_of
from edgeline.pipelines import onnx_export, options
from edgeline.pipelines.datasets import SHARD_SUFFIX
from edgeline.pipelines.recipe import Recipe
from edgeline.quantizer.config import IO_TYPES, POST_TRAINING, Quantize
from edgeline.tflite_exporter.config import Export

_MODEL = "a .keras or .h5 file (tf-keras, Keras 2 or 3), a SavedModel's folder, a GraphDef (.pb), or a float .tflite"


def add_import_options(parser: argparse.ArgumentParser) -> None:
    """Adds the positional MODEL and the options that `imported` reads."""
    parser.add_argument("model", type=Path, metavar="MODEL", help=_MODEL)
    group = parser.add_argument_group("the model")
    group.add_argument(
        "--signature", default="", metavar="NAME", help="of a SavedModel or .tflite file that has several"
    )
    group.add_argument(
        "--input",
        action="append",
        dest="inputs",
        default=[],
        metavar="NAME[=?,96,96,3]",
        help="of a GraphDef, with its shape where the graph does not say; may be repeated (default: all placeholders)",
    )
    group.add_argument(
        "--output-name",
        action="append",
        dest="outputs",
        default=[],
        metavar="NAME",
        help="of a GraphDef; may be repeated (default: what nothing else reads)",
    )
    group.add_argument(
        "--allow-lambda",
        action="store_true",
        help="run the Python code that Lambda layers in the file hold: only if you trust its author",
    )


def imported(arguments: argparse.Namespace) -> Import:
    """Returns what the options of `add_import_options` say.

    Raises:
      UserError: the path holds no model, or of another kind than an option is for.
    """
    path = arguments.model.absolute()
    kind = kind_of(path)
    for flag, given, wanted, words in (
        ("--signature", arguments.signature, WITH_SIGNATURES, "SavedModel or a .tflite file"),
        ("--input", arguments.inputs, ("graph_def",), _KINDS["graph_def"]),
        ("--output-name", arguments.outputs, ("graph_def",), _KINDS["graph_def"]),
    ):
        if given and kind not in wanted:
            raise UserError(f"{flag} is for a {words}, but {arguments.model} is a {_KINDS[kind]}")
    return Import(
        str(path),
        digest_of(path),
        signature=arguments.signature,
        inputs=";".join(arguments.inputs),
        outputs=";".join(arguments.outputs),
        allow_lambda=int(arguments.allow_lambda),
    )


_KINDS = {
    "keras": ".keras file",
    "h5": ".h5 file",
    "keras_saved_model": "SavedModel with Keras metadata",
    "saved_model": "SavedModel without Keras metadata",
    "graph_def": "frozen GraphDef",
    "tflite": ".tflite file",
}


def is_graph(source: Import) -> bool:
    """Returns whether of a model only the graph is known, not its layers."""
    return source.kind in GRAPHS


def check_recipes(source: Import, recipes: Sequence[Recipe]) -> None:
    """Checks before a run that a model can be what the recipes want to make of it.

    Raises:
      UserError: a recipe trains, but of the model only the graph is known; names these recipes.
    """
    trained = [
        recipe.name for recipe in recipes if any(not isinstance(step, Quantize) or step.trains for step in recipe.steps)
    ]
    if is_graph(source) and trained:
        raise UserError(
            f"model {source.source} is a {_KINDS[source.kind]}: its layers are unknown, so it cannot be trained on, "
            f"and {', '.join(trained)} needs that. Give the Keras model it was exported from, or recipes of one of "
            f"{', '.join(POST_TRAINING)} alone"
        )


def add_commands(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds `export` to the commands of `edgeline`.

    Args:
      commands: what `add_subparsers` returned.
      common: parent of every command's parser.
    """
    export = commands.add_parser(
        "export",
        parents=[common],
        help="make one TFLite or ONNX file of a trained model, without a pipeline",
        description=(
            "Convert a trained model by one post-training scheme, or as it is into ONNX, and prove the result on "
            "samples of the data."
        ),
    )
    export.set_defaults(command=_export)
    add_import_options(export)
    export.add_argument("--scheme", choices=POST_TRAINING, default="int8", help="(default: %(default)s)")
    export.add_argument("--io-type", choices=IO_TYPES, default="float32", help="of int8 (default: %(default)s)")
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
    output = export.add_mutually_exclusive_group(required=True)
    output.add_argument("-o", "--output", type=Path, metavar="OUT.tflite", help="the file to write")
    output.add_argument("--onnx", type=Path, metavar="OUT.onnx", help="write a float ONNX file (needs edgeline[onnx])")
    export.add_argument(
        "--opset",
        type=int,
        choices=onnx_export.OPSETS,
        default=onnx_export.DEFAULT_OPSET,
        metavar="N",
        help="of ONNX (default: %(default)s)",
    )


def _export(arguments: argparse.Namespace) -> int:
    source = imported(arguments)
    with options.as_user_error():
        scheme = Quantize(arguments.scheme, arguments.io_type)
    if arguments.samples < 1:
        raise UserError(f"--samples must be at least 1, received {arguments.samples}")
    located = model_module.locate(arguments.module, needs_model=False)
    flag, output = ("--onnx", arguments.onnx) if arguments.onnx else ("--output", arguments.output)
    if not output.parent.is_dir():
        raise UserError(f"{flag} {output}: the folder {output.parent} does not exist")
    shards = sorted(str(path) for path in (arguments.data / "train").glob(f"*{SHARD_SUFFIX}"))
    if not shards:
        raise UserError(f"--data {arguments.data} has no files train/*{SHARD_SUFFIX} (see: edgeline data --help)")

    if arguments.onnx:
        facts = _export_onnx(source, located.reference, shards, output, arguments.samples, arguments.opset)
        size = f"{facts['bytes']:,} bytes, opset {facts['opset']}"
    else:
        facts = export(
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
    return 0


def _export_onnx(
    source: Import, module: str, shards: list[str], output: Path, samples: int, opset: int
) -> dict[str, Any]:
    onnx_export.check_installed()
    if source.kind == "tflite":
        raise UserError(f"--onnx is for a model that TensorFlow runs, but {source.source} is a .tflite file")
    _, model, io, values = _open(source, module, shards, samples)
    return onnx_export.export(model, io, values, output, opset)


def _open(source: Import, module: str, shards: list[str], samples: int) -> tuple[Any, Any, dict[str, Any], Any]:
    """Returns the module, the model, its `io` and the first examples of the shards, after checks that they fit."""
    import tensorflow as tf

    from edgeline import data
    from edgeline.model_importer import importing

    code = model_module.load(module)
    model, io = importing.load(source, code)
    parser = data.ExampleParser(code)
    data.check_fits_model(parser, model, module)
    try:
        inputs, _, _ = next(iter(data.parsed_batches(shards, parser, samples)), (None, None, None))
    except tf.errors.OpError as error:
        raise data.explain(error, shards, code) from error
    if inputs is None:
        raise UserError(f"the train split is empty: 0 records in {len(shards)} shards")
    return code, model, io, data.named_inputs(inputs, [port["name"] for port in io["inputs"]])


def export(
    source: Import,
    scheme: Quantize,
    module: str,
    shards: list[str],
    output: Path,
    *,
    samples: int,
    target: str = targets.DEFAULT,
) -> dict[str, Any]:
    """Makes one TFLite file of a trained model.

    Args:
      source: which model.
      scheme: a post-training one.
      module: reference of the model module.
      shards: files of the train split; calibration takes the first examples.
      output: the file to write.
      samples: how many, at most.
      target: the kind of hardware that has to be able to run it.

    Returns:
      The exporter's metadata: sha256, bytes, zlib_bytes, inputs, outputs, parity.

    Raises:
      UserError: the model, the module and the data do not fit each other, the result does not hold, or the target
        cannot run it.
    """
    from edgeline import calibration_set, graph_model, keras_io
    from edgeline.passport import Passport, toolchain
    from edgeline.quantizer import quantization
    from edgeline.tflite_exporter import conversion
    from edgeline.tflite_exporter.trial import ExportError

    code, model, io, values = _open(source, module, shards, samples)
    config = Export(one_example=int(targets.needs_fixed_shapes(target)))
    with tempfile.TemporaryDirectory(prefix="edgeline-") as root:
        folders = {name: str(Path(root, name)) for name in ("model", "calibration", "quantized", "serving")}
        for folder in folders.values():
            Path(folder).mkdir()
        if isinstance(model, graph_model.GraphModel):
            graph_model.save(model, code, io, folders["model"])
        else:
            keras_io.save(model, folders["model"])
        Passport(io=io).with_step(
            "ModelImporter",
            source.parameters(),
            inputs={"source": source.digest, "module": code.source.digest},
            toolchain=toolchain(),
            model=source.digest,
        ).write(folders["model"])
        calibration_set.write(folders["calibration"], values, {})
        try:
            quantization.quantize(
                scheme, code, Passport.read(folders["model"]), toolchain=toolchain(), examples_uri="",
                model_uri=folders["model"], calibration_uri=folders["calibration"],
                compressed_uri=folders["quantized"], run_uri="",
            )  # fmt: skip
            facts = conversion.export(
                config, code, Passport.read(folders["quantized"]), toolchain=toolchain(),
                model_uri=folders["quantized"], calibration_uri=folders["calibration"],
                serving=Path(folders["serving"]),
            )  # fmt: skip
        except (ExportError, ValueError) as error:
            raise UserError(f"{source.source} as {scheme.scheme}: {error}") from error
        if misfits := targets.misfits(target, facts):
            raise UserError(f"{source.source} as {scheme.scheme}: {'; '.join(misfits)}. Nothing is written")
        shutil.copy(Path(folders["serving"], conversion.MODEL_FILE), output)
    return facts
