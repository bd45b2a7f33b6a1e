"""The Quantizer as a TFX component."""

import logging

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact
from tfx.types.standard_artifacts import Examples, Model, ModelRun

from edgeline import errors
from edgeline.artifacts import RepresentativeDataset
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.quantizer import quantization
from edgeline.quantizer.config import Quantize
from edgeline.step import step
from edgeline.training import loop


@step(Quantize)
def Quantizer(
    config: Quantize,
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    calibration: InputArtifact[RepresentativeDataset],
    compressed: OutputArtifact[Model],
    model_run: OutputArtifact[ModelRun],
    module: str,
    module_digest: str,
    toolchain: str,
) -> None:
    """Decides how the model will be converted, and fine-tunes it for that if the scheme asks for it.

    A scheme that does not work for this model is a rejected candidate, not a failed run: the passport says why.
    """
    loop.use_threads(config.threads)  # before the module can do anything
    code = hooks.load(module, module_digest)
    passport = Passport.read(model.uri)
    try:
        quantization.quantize(
            config, code, passport, toolchain=toolchain, examples_uri=examples.uri, model_uri=model.uri,
            calibration_uri=calibration.uri, compressed_uri=compressed.uri, run_uri=model_run.uri,
        )  # fmt: skip
    except Exception as error:
        if errors.is_environment(error):
            raise
        logging.exception("Quantizer %s failed; the candidate is rejected", config.scheme)
        passport.failed("Quantizer", error).write(compressed.uri)
    compressed.set_string_custom_property("stage", "quantized")
