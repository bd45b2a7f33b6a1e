"""The RepresentativeDatasetGen as a TFX component."""

import apache_beam as beam
from tfx.dsl.component.experimental.annotations import (
    BeamComponentParameter,
    InputArtifact,
    OutputArtifact,
)
from tfx.types.standard_artifacts import Examples, Model

from edgeline.artifacts import RepresentativeDataset
from edgeline.data import calibration_set, reading
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.representative_dataset import findings, transforms
from edgeline.representative_dataset.config import Sample
from edgeline.step import step
from edgeline.training import loop


@step(Sample, use_beam=True)
def RepresentativeDatasetGen(
    config: Sample,
    examples: InputArtifact[Examples],
    calibration: OutputArtifact[RepresentativeDataset],
    module: str,
    module_digest: str,
    model: InputArtifact[Model] = None,
    beam_pipeline: BeamComponentParameter[beam.Pipeline] = None,
) -> None:
    """Draws calibration samples from `train` and, in the same pass, stops on data that would spoil a training.

    The samples are for `model`; without one, for the model that the module builds.
    """
    form = keras_file.form(model.uri, Passport.read(model.uri).io) if model is not None else None
    code = hooks.load(module, module_digest, form)
    loop.start(config.seed)
    built = code.build_model()
    parser = reading.ExampleParser(code)
    reading.check_fits_model(parser, built, module)
    findings.check_strata(config, code, parser)
    plan = transforms.Plan(
        module, tuple(built.input_names), config, findings.class_count(code, built), reading.fingerprint(examples.uri),
        calibration.uri,
    )  # fmt: skip
    files = {split: reading.split_files(examples.uri, split) for split in ("train", "eval")}
    with beam_pipeline as pipeline:
        shards = {split: pipeline | f"Shards of {split}" >> beam.Create(paths) for split, paths in files.items()}
        shards | "DrawSamples" >> transforms.DrawSamples(plan)
    manifest = calibration_set.read_manifest(calibration.uri)
    calibration.samples = manifest["samples"]
    calibration.digest = manifest["digest"]
