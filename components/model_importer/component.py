"""The ModelImporter as a TFX component."""

from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact, Parameter
from tfx.dsl.component.experimental.decorators import component
from tfx.types.standard_artifacts import Examples, Model

from edgeline import data, graph_model, keras_io, model_module
from edgeline.model_importer import importing
from edgeline.model_importer.config import Import
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
) -> None:
    """Takes a trained model in the Trainer's place, checks that it fits the data, writes what the Trainer writes."""
    config = Import(
        source=source, digest=digest, signature=signature, inputs=inputs, outputs=outputs, allow_lambda=allow_lambda
    )
    code = model_module.load(module, module_digest)
    imported, io = importing.load(config, code)
    data.check_fits_model(data.ExampleParser(code), imported, module)
    if isinstance(imported, graph_model.GraphModel):
        graph_model.save(imported, code, io, model.uri)
        made = digest
    else:
        keras_io.save(imported, model.uri)
        keras_io.save_serving(imported, code, io, model.uri)
        made = keras_io.digest(imported)
    came_from = {"source": digest, "module": module_digest, "examples": data.fingerprint(examples.uri)}
    Passport(io=io).with_step(
        "ModelImporter", config.parameters(), inputs=came_from, toolchain=toolchain, model=made
    ).write(model.uri)
    model.set_string_custom_property("stage", "imported")
