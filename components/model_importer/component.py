"""The ModelImporter as a TFX component."""

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model, TransformGraph

from edgeline.data import reading, transformation
from edgeline.model_importer import importing
from edgeline.model_importer.config import Import
from edgeline.model_io import graph_model, keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport


@component
def ModelImporter(
    examples: InputArtifact[Examples],
    model: OutputArtifact[Model],
    module: Parameter[str],
    module_digest: Parameter[str],
    toolchain: Parameter[str],
    source: Parameter[str],
    digest: Parameter[str],
    signature: Parameter[str],
    inputs: Parameter[str],
    outputs: Parameter[str],
    allow_lambda: Parameter[int],
    trained: InputArtifact[Model] = None,
    transform_graph: InputArtifact[TransformGraph] = None,
) -> None:
    """Takes a trained model in the Trainer's place, checks that it fits the data, writes what the Trainer writes.

    The model is that of `source`, or the SavedModel of `trained`, where TFX's own Trainer put it. `transform_graph` is
    what made the examples: the SavedModel that is written then takes raw ones.
    """
    config = Import(
        source=source, digest=digest, signature=signature, inputs=inputs, outputs=outputs, allow_lambda=allow_lambda
    )
    code = hooks.load(module, module_digest)
    transformed = transformation.opened(transform_graph.uri if transform_graph is not None else None, code)
    found = importing.located(config, trained.uri if trained is not None else None)
    imported, io = importing.load(found, code)
    reading.check_fits_model(reading.ExampleParser(code), imported, module)
    if isinstance(imported, graph_model.GraphModel):
        graph_model.save(imported, code, io, model.uri, transformed)
        made = found.digest
    else:
        keras_file.save(imported, model.uri)
        keras_file.save_serving(imported, code, io, model.uri, transformed)
        made = keras_file.digest(imported)
    came_from = {"source": found.digest, "module": module_digest, "examples": reading.fingerprint(examples.uri)}
    Passport(io=io).with_step(
        "ModelImporter", config.parameters(), inputs=came_from, toolchain=toolchain, model=made
    ).write(model.uri)
    model.set_string_custom_property("stage", "imported")
