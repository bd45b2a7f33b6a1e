"""The Quantizer as a TFX component."""

import logging

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model, ModelRun

from edgeline import errors
from edgeline.artifacts import RepresentativeDataset
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.quantizer import quantization
from edgeline.quantizer.config import Quantize


@component
def Quantizer(
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    calibration: InputArtifact[RepresentativeDataset],
    compressed: OutputArtifact[Model],
    model_run: OutputArtifact[ModelRun],
    module: Parameter[str],
    module_digest: Parameter[str],
    toolchain: Parameter[str],
    epochs: Parameter[int],
    batch_size: Parameter[int],
    seed: Parameter[int],
    deterministic: Parameter[int],
    scheme: Parameter[str],
    io_type: Parameter[str],
    keep_float: Parameter[str],
    keep_float_ops: Parameter[str],
    sensitivity_layers: Parameter[int],
    auto_max_drop: Parameter[float],
    sparse: Parameter[int],
    distillation: Parameter[float],
    temperature: Parameter[float],
) -> None:
    """Decides how the model will be converted, and fine-tunes it for that if the scheme asks for it.

    A scheme that does not work for this model is a rejected candidate, not a failed run: the passport says why.
    """
    config = Quantize(
        scheme=scheme, io_type=io_type, keep_float=keep_float, keep_float_ops=keep_float_ops,
        sensitivity_layers=sensitivity_layers, auto_max_drop=auto_max_drop,
        sparse=sparse, distillation=distillation, temperature=temperature,
        epochs=epochs, batch_size=batch_size, seed=seed, deterministic=deterministic,
    )  # fmt: skip
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
        logging.exception("Quantizer %s failed; the candidate is rejected", scheme)
        passport.failed("Quantizer", error).write(compressed.uri)
    compressed.set_string_custom_property("stage", "quantized")
