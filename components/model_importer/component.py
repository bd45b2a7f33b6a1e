"""The ModelImporter as a TFX component."""

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact
from tfx.types.standard_artifacts import Examples, Model, TransformGraph

from edgeline.data import reading, transformation
from edgeline.model_importer import importing
from edgeline.model_importer.config import Import
from edgeline.model_io import graph_model, keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.step import step


@step(Import)
def ModelImporter(
    config: Import,
    examples: InputArtifact[Examples],
    model: OutputArtifact[Model],
    module: str,
    module_digest: str,
    toolchain: str,
    trained: InputArtifact[Model] = None,
    transform_graph: InputArtifact[TransformGraph] = None,
) -> None:
    """Takes a trained model in the Trainer's place, checks that it fits the data, writes what the Trainer writes.

    The model is that of `source`, or the SavedModel of `trained`, where TFX's own Trainer put it. `transform_graph` is
    what made the examples: the SavedModel that is written then takes raw ones.
    """
    code = hooks.load(module, module_digest)
    transform_uri = transform_graph.uri if transform_graph is not None else None
    transformed = transformation.opened(transform_uri, code)
    found = importing.located(config, trained.uri if trained is not None else None)
    imported, io = importing.load(found, code, transform_uri)
    reading.check_fits_model(reading.ExampleParser(code), imported, module)
    if isinstance(imported, graph_model.GraphModel):
        graph_model.copy(imported.folder, model.uri)
        made = found.digest_now
    else:
        keras_file.save(imported, model.uri)
        keras_file.save_serving(imported, code, io, model.uri, transformed)
        made = keras_file.digest(imported)
    came_from = {"source": found.digest_now, "module": module_digest, "examples": reading.fingerprint(examples.uri)}
    Passport(io=io).with_step(
        "ModelImporter", config.parameters(), inputs=came_from, toolchain=toolchain, model=made
    ).write(model.uri)
    model.set_string_custom_property("stage", "imported")
