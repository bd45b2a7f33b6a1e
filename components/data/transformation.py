"""What TFX's Transform made of the examples, as a graph that makes the same of raw ones."""

from __future__ import annotations

from typing import Any

import tensorflow as tf
import tensorflow_transform as tft

from edgeline.errors import UserError
from edgeline.model_module.hooks import ModelModule


def opened(uri: str | None, module: ModelModule) -> Transformation | None:
    """Returns what a TransformGraph artifact holds, None without one, after checking that the module reads it.

    Raises:
      UserError: `feature_spec` asks for a feature that is not made, or is made with another shape or type.
    """
    if uri is None:
        return None
    transformation = Transformation(uri)
    transformation.check(module)
    return transformation


class Transformation:
    """The transformation that a TransformGraph artifact holds.

    Attributes:
      layer: from raw features to transformed ones, for a SavedModel to keep; what cannot be computed from the features
        that it is given is not among its results.

    Args:
      uri: folder of the artifact.
    """

    def __init__(self, uri: str):
        output = tft.TFTransformOutput(uri)
        self._raw = output.raw_feature_spec()
        self._transformed = output.transformed_feature_spec()
        self.layer = output.transform_features_layer()

    def feature_spec(self) -> dict[str, Any]:
        """Returns the features of a transformed example by name, as `tf.io.parse_example` wants them."""
        return dict(self._transformed)

    def check(self, module: ModelModule) -> None:
        """Checks that what the module asks of an example is what Transform writes.

        Raises:
          UserError: a feature is missing, or has another shape or type.
        """
        for name, feature in module.feature_spec().items():
            transformed = self._transformed.get(name)
            kind = (type(feature), feature.dtype, getattr(feature, "shape", None))
            if transformed is None or kind != (
                type(transformed),
                transformed.dtype,
                getattr(transformed, "shape", None),
            ):
                raise UserError(
                    f"feature_spec() of {module.source.reference} asks for {name!r}: {feature}, but Transform's "
                    f"preprocessing_fn makes "
                    f"{f'of it {transformed}' if transformed else ', '.join(sorted(self._transformed))}"
                )

    def features(self, serialized: tf.Tensor, names: set[str]) -> dict[str, Any]:
        """Returns transformed features of raw examples, in which only what these depend on need be.

        Args:
          serialized: `tf.train.Example`s, shape [batch], dtype string.
          names: of the transformed features.
        """
        needed = {name: spec for name, spec in self._raw.items() if name in self._sources(names)}
        transformed = self.layer(tf.io.parse_example(serialized, needed))
        return {name: transformed[name] for name in names}

    def _sources(self, names: set[str]) -> set[str]:
        """Returns the raw features without which the graph cannot compute some transformed ones."""
        sources: set[str] = set()

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def leave_out_each(serialized: tf.Tensor) -> None:
            raw = tf.io.parse_example(serialized, self._raw)
            for left_out in raw:
                transformed = self.layer({name: value for name, value in raw.items() if name != left_out})
                if not names <= transformed.keys():
                    sources.add(left_out)

        leave_out_each.get_concrete_function()
        return sources
