"""The RepresentativeDatasetGen as a TFX component."""

import apache_beam as beam
from tfx.dsl.component.experimental.annotations import (
    BeamComponentParameter,
    InputArtifact,
    OutputArtifact,
    Parameter,
)
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples

from edgeline import calibration_set, data, model_module, training
from edgeline.artifacts import RepresentativeDataset
from edgeline.representative_dataset import transforms
from edgeline.representative_dataset.config import Sample


@component(use_beam=True)
def RepresentativeDatasetGen(
    examples: InputArtifact[Examples],
    calibration: OutputArtifact[RepresentativeDataset],
    module: Parameter[str],
    module_digest: Parameter[str],
    toolchain: Parameter[str],
    samples: Parameter[int],
    seed: Parameter[int],
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
) -> None:
    """Draws calibration samples from `train` and, in the same pass, stops on data that would spoil a training."""
    config = Sample(samples=samples, seed=seed)
    code = model_module.load(module, module_digest)
    training.start(config.seed)
    model = code.build_model()
    data.check_fits_model(data.ExampleParser(code), model, module)
    summarize = transforms.Summarize(module, list(model.input_names), config.samples, config.seed)
    write = transforms.CheckAndWrite(
        calibration.uri, data.fingerprint(examples.uri), transforms.class_count(code, model), config.seed, module
    )
    with beam_pipeline as pipeline:
        shards = pipeline | "Shards" >> beam.Create(data.split_files(examples.uri, "train"))
        shards | "Summarize" >> summarize | "CheckAndWrite" >> beam.ParDo(write)
    manifest = calibration_set.read_manifest(calibration.uri)
    calibration.samples = manifest["samples"]
    calibration.digest = manifest["digest"]
