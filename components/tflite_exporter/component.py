"""The TFLiteExporter as a TFX component."""

import logging
from pathlib import Path

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact
from tfx.types.standard_artifacts import Model

from edgeline import errors, layout
from edgeline.artifacts import RepresentativeDataset
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.step import step
from edgeline.tflite_exporter import conversion
from edgeline.tflite_exporter.config import Export


@step(Export)
def TFLiteExporter(
    config: Export,
    model: InputArtifact[Model],
    calibration: InputArtifact[RepresentativeDataset],
    tflite: OutputArtifact[Model],
    module: str,
    module_digest: str,
    toolchain: str,
) -> None:
    """Converts by the passport, proves the file in a child process, and writes the folder that is deployed.

    A model that cannot be converted or does not hold is a rejected candidate, not a failed run: the passport says why.
    """
    serving = Path(tflite.uri, layout.SERVING_FOLDER)
    serving.mkdir(parents=True, exist_ok=True)
    passport = Passport.read(model.uri)
    try:
        if passport.failure is None:
            metadata = conversion.export(
                config, hooks.load(module, module_digest), passport, toolchain=toolchain,
                model_uri=model.uri, calibration_uri=calibration.uri, serving=serving,
            )  # fmt: skip
            tflite.set_string_custom_property("sha256", metadata["sha256"])
            tflite.set_int_custom_property("bytes", metadata["bytes"])
            tflite.set_int_custom_property("zlib_bytes", metadata["zlib_bytes"])
        else:
            passport.write(serving)
    except Exception as error:
        if errors.is_environment(error):
            raise
        logging.exception("TFLiteExporter failed; the candidate is rejected")
        passport.failed("TFLiteExporter", error).write(serving)
    tflite.set_string_custom_property("stage", "exported")
