"""The only place that knows how a Keras model lies in an artifact's folder, and how it is put together again."""

from __future__ import annotations

import json
import types
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgeline import files
from edgeline.data.reading import ExampleParser
from edgeline.errors import UserError
from edgeline.files import digest_of_bytes
from edgeline.keras_models import quantization_aware as quantization
from edgeline.keras_models.model_form import ModelForm
from edgeline.layout import KERAS_FILE, QAT_FILE, SERVING_FOLDER
from edgeline.model_module.hooks import ModelModule
from edgeline.tflite import inspection

if TYPE_CHECKING:
    from edgeline.data.transformation import Transformation  # imports Beam


def save(model: tf_keras.Model, folder: str) -> None:
    """Writes `Format-Keras/model.keras`, without the optimizer's state.

    Raises:
      UserError: a layer computes with a function that has no name.
    """
    path = Path(folder, KERAS_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a copy that was never compiled: the format always keeps the optimizer's state of a compiled model
    with tf_keras.utils.custom_object_scope(functions_of(model)):
        plain = tf_keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    plain.save(path, save_format="keras")


def functions_of(model: tf_keras.Model) -> dict[str, Any]:
    """Returns the functions that layers compute with, by name: a layer's config holds the name alone.

    Raises:
      UserError: one has no name.
    """
    functions = {}
    for layer in model._flatten_layers():
        for value in vars(layer).values():
            if not isinstance(value, types.FunctionType) or isinstance(layer, tf_keras.layers.Lambda):
                continue
            if value.__name__ == "<lambda>":
                raise UserError(
                    f"layer {layer.name} computes with a lambda, which no file can hold; give the function a name, and "
                    f"return it from custom_objects()"
                )
            functions[value.__name__] = value
    return functions


def load(folder: str, module: ModelModule) -> tf_keras.Model:
    """Returns the model of an artifact's folder, uncompiled, in safe mode; after a QAT step the wrapped one's base.

    Raises:
      UserError: of the model only the graph is known.
    """
    path = Path(folder, KERAS_FILE)
    if not path.exists() and Path(folder, SERVING_FOLDER).exists():
        raise UserError(
            f"the model in {folder} was imported without its layers (no {KERAS_FILE}, only {SERVING_FOLDER}): it can "
            f"be converted and quantized after training, but not trained on; import the Keras model it was exported "
            f"from"
        )
    return tf_keras.models.load_model(path, custom_objects=module.custom_objects(), compile=False, safe_mode=True)


def form(folder: str, io: dict[str, Any]) -> ModelForm:
    """Returns the form of the model in an artifact's folder; `io` is its passport's."""
    path = Path(folder, KERAS_FILE)
    if not path.exists():
        return ModelForm(io)
    with zipfile.ZipFile(path) as archive:
        return ModelForm(io, archive.read("config.json").decode())


def quantization_aware(model: tf_keras.Model, plan: dict[str, Any]) -> tf_keras.Model:
    """Returns a float model wrapped for quantization-aware training; the model stays as it is.

    Args:
      model: Sequential or functional.
      plan: `layers`: names of the layers to be quantized, as the prepared model has them.
    """
    return quantization.wrap(quantization.prepared(model), set(plan["layers"]))


def save_qat(model: tf_keras.Model, folder: str) -> None:
    """Writes the weights of a wrapped model to `Format-Keras/qat.npz`.

    tf-keras cannot load tfmot's quantize wrappers from a `.keras` file, so the wrapping is done anew from the float
    model by the plan in the passport, and these weights are put into it.
    """
    values = {f"{i:05d}": weight.numpy() for i, weight in enumerate(model.weights)}
    files.write_arrays(Path(folder, QAT_FILE), values, compress=True)


def load_qat(folder: str, module: ModelModule, plan: dict[str, Any]) -> tf_keras.Model:
    """Returns the wrapped model that `save_qat` wrote beside its float model.

    Raises:
      ValueError: the weights do not fit: another version of the tools wrapped it.
    """
    model = quantization_aware(load(folder, module), plan)
    stored = files.read_arrays(Path(folder, QAT_FILE))
    values = [stored[name] for name in sorted(stored)]
    if [tuple(w.shape) for w in model.weights] != [v.shape for v in values]:
        raise ValueError(
            f"{Path(folder, QAT_FILE)} does not fit the model wrapped by this version of tensorflow-model-optimization "
            f"({len(model.weights)} weights, the file has {len(values)}); train the qat8 step anew"
        )
    for weight, value in zip(model.weights, values, strict=True):
        weight.assign(value)
    return model


def digest(model: tf_keras.Model) -> str:
    """Returns the hexadecimal SHA-256 of the model's config and weights (a `.keras` file itself holds times)."""
    config = json.dumps(model.get_config(), sort_keys=True, default=str).encode()
    return digest_of_bytes(config, *(weight.numpy().tobytes() for weight in model.weights))


def zlib_bytes(model: tf_keras.Model) -> int:
    """Returns the size of the model's float32 weights after zlib at level 9, in bytes: what a step bought so far."""
    with inspection.compressing() as pool:
        parts = (weight.numpy().astype(np.float32).tobytes() for weight in model.weights)
        return sum(pool.map(inspection.compressed_size, parts))


def describe_io(model: tf_keras.Model, module: ModelModule) -> dict[str, Any]:
    """Returns the passport's `io`: the names by which every TFLite candidate will be called.

    Raises:
      UserError: `output_names()` has another number of names than the model has outputs, or one twice.
    """
    names = module.output_names() or list(model.output_names)
    if len(names) != len(model.outputs):
        raise UserError(
            f"output_names() of {module.source.reference} returns {len(names)} names, but the model has "
            f"{len(model.outputs)} outputs: {', '.join(model.output_names)}"
        )
    if len(set(names)) != len(names):
        raise UserError(
            f"the model of {module.source.reference} has outputs of the same name: {', '.join(names)}; "
            f"give each its own in output_names()"
        )

    def ports(names: list[str], tensors: list[Any]) -> list[dict[str, Any]]:
        return [
            {"name": name, "shape": tensor.shape.as_list(), "dtype": tensor.dtype.name}
            for name, tensor in zip(names, tensors, strict=True)
        ]

    return {
        "inputs": ports(list(model.input_names), model.inputs),
        "outputs": ports(names, model.outputs),
        "labels": module.class_names(),
    }


def inference_function(model: tf_keras.Model, io: dict[str, Any]) -> Any:
    """Returns the model's inference as a tf.function from inputs to outputs by the passport's names."""

    def infer(**inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        ordered = [inputs[port["name"]] for port in io["inputs"]]
        outputs = tf.nest.flatten(model(ordered[0] if len(ordered) == 1 else ordered, training=False))
        return {port["name"]: tensor for port, tensor in zip(io["outputs"], outputs, strict=True)}

    return tf.function(infer)


def input_signature(io: dict[str, Any], batch: int | None = None) -> dict[str, tf.TensorSpec]:
    """Returns the specs of the inputs by name, with the given batch size."""
    return {
        port["name"]: tf.TensorSpec([batch, *port["shape"][1:]], port["dtype"], name=port["name"])
        for port in io["inputs"]
    }


def save_serving(
    model: tf_keras.Model,
    module: ModelModule,
    io: dict[str, Any],
    folder: str,
    transformation: Transformation | None = None,
) -> None:
    """Writes `Format-Serving/`, the SavedModel that other TFX components expect.

    Signatures: `serving_default` takes serialized `tf.train.Example`s (`examples`, shape [batch], string), parsing and
    preprocessing inside; labels need not be in them. `serving_raw` takes preprocessed inputs by name.

    Args:
      model: a Keras model, or what is called as one.
      module: for its `preprocess`.
      io: the passport's.
      folder: of the Model artifact.
      transformation: what makes the examples that the module reads of those that are served; None: they are the same.
    """
    infer = inference_function(model, io)
    parser = ExampleParser(module)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = parser.inputs(examples, transformation.features if transformation else None)
        names = [port["name"] for port in io["inputs"]]
        values = inputs if isinstance(inputs, dict) else dict(zip(names, tf.nest.flatten(inputs), strict=True))
        return infer(**values)

    holder = tf.Module()
    holder.model = model
    if transformation:
        holder.transform = transformation.layer  # its vocabularies go with the model
    signatures = {
        "serving_default": serve.get_concrete_function(),
        "serving_raw": infer.get_concrete_function(**input_signature(io)),
    }
    tf.saved_model.save(holder, str(Path(folder, SERVING_FOLDER)), signatures=signatures)
