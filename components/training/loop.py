"""The one training loop: of the Trainer, the Pruner, the Clusterer and the quantization-aware Quantizer."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from tensorflow.python.framework import config as tf_config

from edgeline import progress
from edgeline.config import Distilling, FineTuning
from edgeline.data import reading
from edgeline.data.reading import TrainingData
from edgeline.errors import UserError
from edgeline.model_module.hooks import ModelModule
from edgeline.passport import Promise
from edgeline.toolchain import toolchain
from edgeline.training import distillation
from edgeline.training.checkpoints import Checkpoints, DrawsByEpoch


@dataclasses.dataclass(frozen=True)
class Splits:
    """The two splits that training may see; `eval` is not among them.

    Attributes:
      train: all epochs, one after the other.
      validation: one pass.
      fingerprint: of the examples.
    """

    train: TrainingData
    validation: TrainingData
    fingerprint: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a training step made.

    Attributes:
      model: the model to hand on, without the step's wrappers.
      history: per epoch and metric.
      metrics: of the model as handed on, on the validation split.
      layers: what was done to each layer, or skipped and why.
      promises: what later steps must keep.
      facts: what else the passport is to say of the step.
    """

    model: tf_keras.Model
    history: dict[str, list[float]]
    metrics: dict[str, float]
    layers: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    promises: tuple[Promise, ...] = ()
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def use_threads(threads: int) -> None:
    """Lets TensorFlow split each operation among a fixed number of threads, whatever the number of cores.

    How sums are grouped, and so their last bits, goes by this number. TensorFlow takes it once in a process, before its
    first operation; where it comes too late, a warning says so, and `threads_in_use` what holds.

    Args:
      threads: at least 1, or 0 for TensorFlow's own choice.
    """
    if threads == threads_in_use():
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError:
        logging.warning(
            "TensorFlow is at work in this process with %s threads per operation, asked for are %d: trained weights "
            "may differ in their last bits from those of a process that begins with edgeline.training.loop.use_threads",
            threads_in_use() or "its own number of",
            threads,
        )


def threads_in_use() -> int:
    """Returns among how many threads operations are split; 0: as many as TensorFlow chooses."""
    return int(tf.config.threading.get_intra_op_parallelism_threads())


def start(seed: int, *, deterministic: bool = True, threads: int | None = None) -> None:
    """Begins a step from a clean slate: layer names and random draws then depend on nothing that ran before.

    Args:
      seed: of every random draw.
      deterministic: whether each operation must give the same bits every time, at whatever cost in time; holds for the
        whole process until the next step begins.
      threads: see `use_threads`; None: as many as before.
    """
    if threads is not None:
        use_threads(threads)
    # else TensorFlow takes the whole of every GPU, and a second run on the machine finds none left
    for gpu in tf.config.list_physical_devices("GPU"):
        with contextlib.suppress(RuntimeError):  # it is in use already, by an earlier step of this process
            tf.config.experimental.set_memory_growth(gpu, True)
    tf_keras.backend.clear_session()
    tf_keras.backend.experimental.enable_tf_random_generator()  # what DrawsByEpoch needs
    tf_keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    else:
        tf_config.disable_op_determinism()


def open_splits(examples_uri: str, module: ModelModule, config: FineTuning) -> Splits:
    """Opens the `train` and `validation` splits of an Examples artifact.

    Raises:
      UserError: a split is missing, empty or unreadable, or does not fit the module.
    """
    return Splits(
        reading.training_data(
            reading.split_files(examples_uri, "train"),
            module,
            batch_size=config.batch_size,
            epochs=config.epochs,
            seed=config.seed,
        ),
        reading.evaluation_data(
            reading.split_files(examples_uri, "validation"), module, batch_size=max(config.batch_size, 512)
        ),
        reading.fingerprint(examples_uri),
    )


def fit(
    model: tf_keras.Model,
    module: ModelModule,
    splits: Splits,
    config: FineTuning,
    *,
    step: str,
    technique: str,
    log_dir: str,
    patience: int | None = None,
    callbacks: Sequence[tf_keras.callbacks.Callback] = (),
    phase: str | None = None,
    span: range | None = None,
    teacher: tf_keras.Model | None = None,
) -> dict[str, list[float]]:
    """Compiles the model by the module's hook and trains it; one that was killed before goes on after its last epoch.

    Args:
      model: changed in place.
      module: whose `compile_model` sets optimizer, loss and metrics.
      splits: opened for this config.
      config: epochs, batch size and seed.
      step: name of the step, for messages.
      technique: dotted name of the module that asks: a training that was killed goes on only where that, and all that
        it imports, is as it was.
      log_dir: where TensorBoard logs go.
      patience: epochs without a better validation loss before it stops and restores the best weights; None: never.
      callbacks: those of the step's own technique.
      phase: what is told to `compile_model`.
      span: which of the config's epochs, from 0; None: all.
      teacher: whose outputs are learned too, as the config asks; shares no layer with the model. None: labels alone.

    Returns:
      Values by metric, one per epoch.

    Raises:
      UserError: the loss became NaN or infinite.
    """
    _compile(model, module, phase)
    _build_metrics(model, splits)
    if hasattr(model.optimizer, "build"):  # a legacy one has none
        model.optimizer.build(model.trainable_variables)
    span = span or range(config.epochs)
    stopper = (
        tf_keras.callbacks.EarlyStopping("val_loss", patience=patience, restore_best_weights=True) if patience else None
    )
    about = {
        "step": step, "config": config.parameters(), "patience": patience, "module": module.source.digest,
        "examples": splits.fingerprint, "toolchain": toolchain(technique), "phase": phase,
        "span": [span.start, span.stop],
        "hyperparameters": module.hyperparameters and module.hyperparameters.values,
    }  # fmt: skip
    checkpoints = Checkpoints(model, about, stopper, span.start)
    checkpoints.restore(model)
    if teacher is not None and isinstance(config, Distilling):
        distillation.teach(model, teacher, config.distillation, config.temperature)
    watchers: list[tf_keras.callbacks.Callback] = [
        DrawsByEpoch(config.seed),
        *callbacks,
        tf_keras.callbacks.TensorBoard(log_dir, write_graph=False, profile_batch=0),
        _Watch(step, config.epochs, splits.train.steps_per_epoch, phase),
        *([stopper] if stopper else []),
        checkpoints,
    ]
    model.fit(
        splits.train.after(checkpoints.epochs),
        initial_epoch=checkpoints.epochs,
        # of a training that has ended, what callbacks do at its end is all that is done
        epochs=checkpoints.epochs if checkpoints.stopped else span.stop,
        steps_per_epoch=splits.train.steps_per_epoch,
        validation_data=splits.validation.dataset,
        callbacks=watchers,
        verbose=0,
    )
    vars(model).pop("train_step", None)  # a distillation's, which holds the teacher
    return checkpoints.history


def _compile(model: tf_keras.Model, module: ModelModule, phase: str | None = None) -> None:
    """Compiles a model, whose outputs keep their names where tfmot has wrapped their layers: losses go by them."""
    by_name = {layer.name: layer for layer in model.layers}
    names = []
    for name in model.output_names:
        layer = by_name.get(name)
        wrapped = layer is not None and type(layer).__module__.startswith(("tensorflow_model_opt", "edgeline."))
        names.append(layer.layer.name if wrapped and isinstance(layer, tf_keras.layers.Wrapper) else name)
    model.output_names = names
    module.compile_model(model, phase)


def _build_metrics(model: tf_keras.Model, splits: Splits) -> None:
    """Builds the loss and the metrics of a compiled model, which Keras would do in its training step.

    TensorFlow traces a function a second time where the first has created variables, and until a large network's first
    step tracing is most of the time.
    """
    specs = (model.output, splits.validation.dataset.element_spec[1])
    # what "accuracy" is of, the last axis tells; where it is open, the training step will know
    if all(each.shape[1:].is_fully_defined() for each in tf.nest.flatten(specs)):
        outputs, labels = tf.nest.map_structure(lambda each: tf.zeros([1, *each.shape[1:]], each.dtype), specs)
        model.compiled_loss.build(outputs)
        model.compiled_metrics.build(outputs, model.compiled_metrics._conform_to_outputs(outputs, labels))


def evaluate(model: tf_keras.Model, module: ModelModule, splits: Splits) -> dict[str, float]:
    """Returns the loss and the compiled metrics on the validation split."""
    _compile(model, module)
    _build_metrics(model, splits)
    return {k: float(v) for k, v in model.evaluate(splits.validation.dataset, verbose=0, return_dict=True).items()}


class _Watch(tf_keras.callbacks.Callback):
    """Reports progress, and stops a training whose loss is no number any more."""

    # leaves the logs as tensors: turning them into numbers in every batch would wait for the device each time
    _supports_tf_logs = True

    def __init__(self, step: str, epochs: int, steps_per_epoch: int, phase: str | None = None):
        super().__init__()
        self._step = step
        self._phase = f"{phase}: " if phase else ""
        self._epochs = epochs
        self._steps = steps_per_epoch
        self._epoch = 0
        self._spoken = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch
        self._say(0, f"epoch {epoch + 1}/{self._epochs}")

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now = time.monotonic()
        if now - self._spoken > 0.5:
            self._spoken = now
            self._say(batch + 1, f"epoch {self._epoch + 1}/{self._epochs}")

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        values = {name: float(value) for name, value in (logs or {}).items()}
        broken = next((n for n in ("loss", "val_loss") if not math.isfinite(values.get(n, 0.0))), None)
        if broken:
            raise UserError(
                f"{self._step}: {broken} became {values[broken]} in epoch {epoch + 1} of {self._epochs}; lower the "
                f"learning rate in compile_model, or check the inputs' scale in preprocess"
            )
        shown = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        self._say(self._steps, f"epoch {epoch + 1}/{self._epochs} {shown}")

    def _say(self, batch: int, text: str) -> None:
        progress.report(self._epoch * self._steps + batch, self._epochs * self._steps, self._phase + text)
