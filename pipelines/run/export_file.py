"""One TFLite or ONNX file of a trained model, without a pipeline."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from edgeline import files, layout, targets
from edgeline.errors import UserError
from edgeline.isolation import fork_server
from edgeline.model_importer.config import Import
from edgeline.model_module import hooks
from edgeline.quantizer.config import Quantize
from edgeline.tflite_exporter.config import Export


def opened(source: Import, module: str, shards: list[str], samples: int) -> tuple[Any, Any, dict[str, Any], Any]:
    """Returns the module, the model, its `io` and the first examples of the shards, after checks that they fit."""
    fork_server.start()  # while TensorFlow is imported here, too

    import tensorflow as tf

    from edgeline.data import reading
    from edgeline.model_importer import importing

    code = hooks.load(module)
    model, io = importing.load(source, code)
    parser = reading.ExampleParser(code)
    reading.check_fits_model(parser, model, module)
    try:
        inputs, _, _ = next(iter(reading.parsed_batches(shards, parser, samples)), (None, None, None))
    except tf.errors.OpError as error:
        raise reading.explain(error, shards, code) from error
    if inputs is None:
        raise UserError(f"the train split is empty: 0 records in {len(shards)} shards")
    return code, model, io, reading.named_inputs(inputs, [port["name"] for port in io["inputs"]])


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
    from edgeline.conversion.failures import ExportError
    from edgeline.data import calibration_set
    from edgeline.model_io import graph_model, keras_file
    from edgeline.passport import Passport
    from edgeline.quantizer import quantization
    from edgeline.tflite_exporter import conversion
    from edgeline.toolchain import toolchain

    code, model, io, values = opened(source, module, shards, samples)
    config = Export(one_example=targets.needs_fixed_shapes(target))
    with tempfile.TemporaryDirectory(prefix="edgeline-") as root:
        folders = {name: str(Path(root, name)) for name in ("model", "calibration", "quantized", "serving")}
        for folder in folders.values():
            Path(folder).mkdir()
        if isinstance(model, graph_model.GraphModel):
            graph_model.copy(model.folder, folders["model"])
        else:
            keras_file.save(model, folders["model"])
        Passport(io=io).with_step(
            "ModelImporter",
            source.parameters(),
            inputs={"source": source.digest_now, "module": code.source.digest},
            toolchain=toolchain("edgeline.model_importer.component"),
            model=source.digest_now,
        ).write(folders["model"])
        calibration_set.write(folders["calibration"], values, {})
        try:
            quantization.quantize(
                scheme, code, Passport.read(folders["model"]), examples_uri="",
                toolchain=toolchain("edgeline.quantizer.component"), model_uri=folders["model"],
                calibration_uri=folders["calibration"], compressed_uri=folders["quantized"], run_uri="",
            )  # fmt: skip
            facts = conversion.export(
                config, code, Passport.read(folders["quantized"]),
                toolchain=toolchain("edgeline.tflite_exporter.component"), model_uri=folders["quantized"],
                calibration_uri=folders["calibration"],
                serving=Path(folders["serving"]),
            )  # fmt: skip
        except (ExportError, ValueError) as error:
            raise UserError(f"{source.source} as {scheme.scheme}: {error}") from error
        if misfits := targets.misfits(target, facts):
            raise UserError(f"{source.source} as {scheme.scheme}: {'; '.join(misfits)}. Nothing is written")
        files.write_bytes(output, Path(folders["serving"], layout.TFLITE_FILE).read_bytes())
    return facts
