"""Stands for an imported model where its form alone counts: to compile metrics, and to tell what the labels are.

The module need not have `build_model` then, and if it has, that may build another model.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any


@dataclasses.dataclass(frozen=True)
class ModelForm:
    """A model without its weights, ready for Beam's workers: it can be pickled, and needs no file.

    Attributes:
      io: the passport's.
      architecture: JSON of the Keras model's config; None where only the graph is known.
    """

    io: dict[str, Any]
    architecture: str | None = None

    def build(self, custom_objects: dict[str, Any]) -> Any:
        """Returns an uncompiled tf_keras model of this form.

        Where only the graph is known it has the graph's inputs and outputs, and computes nothing.
        """
        import tf_keras

        if self.architecture is None:
            return self._of_ports()
        return tf_keras.saving.deserialize_keras_object(json.loads(self.architecture), custom_objects=custom_objects)

    def _of_ports(self) -> Any:
        import tensorflow as tf
        import tf_keras

        inputs = [
            tf_keras.Input(batch_shape=port["shape"], dtype=port["dtype"], name=port["name"])
            for port in self.io["inputs"]
        ]

        def output(shape: list[int | None], dtype: str) -> Any:
            def value(_: Any) -> tf.Tensor:
                # zeros alone would have no dimension that varies
                return tf.compat.v1.placeholder_with_default(tf.zeros([n or 1 for n in shape], dtype), shape)

            return tf_keras.layers.Lambda(value)(inputs)

        outputs = [output(port["shape"], port["dtype"]) for port in self.io["outputs"]]
        model = tf_keras.Model(inputs, outputs if len(outputs) > 1 else outputs[0])
        # not the layers' names: a graph may call an input and an output alike
        model.output_names = [port["name"] for port in self.io["outputs"]]
        return model
