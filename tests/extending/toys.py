"""A pass, schemes, a target and a limit that Edgeline does not have, as one would add them; the module `toys`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from ai_edge_quantizer import qtyping, quantizer, recipe_manager
from tfx.dsl.component.experimental.annotations import InputArtifact, OutputArtifact
from tfx.types.standard_artifacts import Examples, Model, ModelRun

from edgeline.budget import Limit
from edgeline.config import RUN_WIDE, FineTuning, deviation_tag
from edgeline.conversion import converter
from edgeline.keras_models import promise_checks
from edgeline.keras_models.promise_kinds import Kernel, Kind
from edgeline.model_module.hooks import ModelModule
from edgeline.passport import Promise
from edgeline.schemes import Scheme, Tolerance
from edgeline.step import step
from edgeline.targets import Target
from edgeline.training import delivery, loop

# a pass: every kernel on a grid -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Round(FineTuning):
    """Fine-tune, and round every weight of the kernels to a multiple of a fraction.

    Attributes:
      parts: the fraction is one of so many parts of 1, at least 1.
    """

    parts: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("parts", self.parts >= 1, "at least 1")

    @property
    def token(self) -> str:
        return f"round{self.parts}" + deviation_tag(self, ("parts", *RUN_WIDE))


def off_grid(promise: Promise, kernel: Kernel) -> int:
    return int((kernel.values * promise.value != np.round(kernel.values * promise.value)).sum())


def is_on_grid(promise: Promise, kernel: Kernel) -> bool:
    return off_grid(promise, kernel) == 0


def is_on_grid_in_file(promise: Promise, kernel: Kernel) -> bool:
    # integers have a grid of their own
    return kernel.values.dtype.kind != "f" or is_on_grid(promise, kernel)


def keep_on_grid(promise: Promise, weight: Any, by_channel: bool) -> Callable[[Any], Any]:
    return lambda value: tf.round(value * promise.value) / promise.value


MULTIPLES = Kind(
    of_zeros=False,
    technique="rounded",
    in_keras=is_on_grid,
    in_file=is_on_grid_in_file,
    keep=keep_on_grid,
    describe=lambda promise, kernel: f"{off_grid(promise, kernel)} weights off the grid",
)


def round_weights(
    model: tf_keras.Model,
    module: ModelModule,
    splits: loop.Splits,
    config: Round,
    promises: tuple[Promise, ...],
    log_dir: str,
) -> loop.Outcome:
    history = loop.fit(model, module, splits, config, step="Rounder", technique=__name__, log_dir=log_dir)
    made = []
    for layer in model.layers:
        if isinstance(layer, tf_keras.layers.Dense):
            layer.kernel.assign(tf.round(layer.kernel * config.parts) / config.parts)
            made.append(Promise("multiples", layer.name, tuple(layer.kernel.shape), config.parts, "kernel"))
    promise_checks.check_promises(model, (*promises, *made), "Rounder")
    return loop.Outcome(model, history, loop.evaluate(model, module, splits), promises=tuple(made))


@step(Round)
def Rounder(  # noqa: N802
    config: Round,
    examples: InputArtifact[Examples],
    model: InputArtifact[Model],
    compressed: OutputArtifact[Model],
    model_run: OutputArtifact[ModelRun],
    module: str,
    module_digest: str,
    toolchain: str,
) -> None:
    """Rounds the weights of the kernels."""
    delivery.compress(
        round_weights, config, step="Rounder", module=module, module_digest=module_digest, toolchain=toolchain,
        examples_uri=examples.uri, model_uri=model.uri, compressed_uri=compressed.uri, run_uri=model_run.uri,
    )  # fmt: skip


# schemes ------------------------------------------------------------------------------------------------------------

#: What the converters can make by its number types: an entry is all.
WIDE16 = Scheme(
    words="int8 weights, int16 activations, inputs and outputs",
    weights="int8",
    activations="int16",
    tolerance=Tolerance(cosine=0.98),
    calibrated=True,
    io=("float32", "int16"),
    note="int8 weights, int16 activations",
)
#: What needs a converter of its own.
WEIGHTS8 = Scheme(
    words="int8 weights, made floats again before they are used",
    weights="int8",
    activations="float32",
    tolerance=Tolerance(cosine=0.98),
    note="int8 weights",
    converter="weights_only",
)


def weights_only(
    model: tf_keras.Model, io: dict[str, Any], scheme: dict[str, Any], calibration: dict[str, np.ndarray]
) -> bytes:
    content = converter.convert(model, io, {**scheme, "scheme": "float32"}, calibration)
    manager = recipe_manager.RecipeManager()
    manager.add_weight_only_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, 8)
    made = quantizer.Quantizer(bytearray(content), manager.get_quantization_recipe())
    return bytes(made.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model)


# a target -----------------------------------------------------------------------------------------------------------

BOARD = Target(
    io=("float32",),
    numbers=("int8",),
    integers_only=False,
    operators=frozenset({"FULLY_CONNECTED"}),
    custom_operators=frozenset(),
    fixed_shapes=False,
    advice="choose float32",
)

# a limit of the budget -----------------------------------------------------------------------------------------------

MAX_OPERATORS = Limit("graph", "operators", lambda metadata, device: sum(metadata["ops"]["builtin"].values()))
