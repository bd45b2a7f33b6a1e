"""Trainings that were killed go on from their last whole epoch, and end as if nothing had happened."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgeline import files

#: Names the folder where checkpoints are kept; without it, none are.
FOLDER_VARIABLE = "EDGELINE_CHECKPOINTS"

_STATE_FILE = "state.json"
_VARIABLES = "variables"
_BEST_FILE = "best_weights.npz"
#: What Keras' EarlyStopping knows beside the best weights.
_PATIENCE_FIELDS = ("wait", "stopped_epoch", "best", "best_epoch")


class Checkpoints(tf_keras.callbacks.Callback):
    """Keeps the state of a training after each epoch: weights, masks, counters, optimizer, history.

    It is kept under everything that the result depends on, so that another training never finds it. Only the last
    epoch is kept. Whoever runs the steps clears the folder when all of them are done: a training that has ended, in a
    step that was killed later, is not repeated.

    To be the last callback of `fit`: it keeps what the others made of the epoch.

    Args:
      model: compiled; its variables have their values from before the training.
      about: what else the result depends on; JSON values.
      patience: the EarlyStopping of the training, if it has one.
      first: the number of its first epoch, from 0.
    """

    _supports_tf_logs = True

    def __init__(
        self,
        model: tf_keras.Model,
        about: Mapping[str, Any],
        patience: tf_keras.callbacks.EarlyStopping | None = None,
        first: int = 0,
    ):
        super().__init__()
        root = os.environ.get(FOLDER_VARIABLE)
        self._folder = Path(root, _key(model, about)) if root else None
        self._patience = patience
        self._state: dict[str, Any] = {"epochs": first, "stopped": False, "history": {}, "patience": None}

    @property
    def epochs(self) -> int:
        """How many epochs are done, with those before the first one."""
        return int(self._state["epochs"])

    @property
    def stopped(self) -> bool:
        """Whether the training ended before its last epoch, for want of patience."""
        return bool(self._state["stopped"])

    @property
    def history(self) -> dict[str, list[float]]:
        """Values by metric, one per epoch done."""
        return dict(self._state["history"])

    def restore(self, model: tf_keras.Model) -> None:
        """Gives the model the state of the last epoch that was kept, if there is one.

        A checkpoint that cannot be read is a training that starts afresh.
        """
        if self._folder is None:
            return
        new = self._folder.with_suffix(".new")
        if not self._folder.exists() and (new / _STATE_FILE).is_file():
            files.move_folder(new, self._folder)  # it was killed between the two renames of _write
        if not (self._folder / _STATE_FILE).is_file():
            return
        before = [variable.numpy() for variable in model.weights]
        try:
            state = json.loads((self._folder / _STATE_FILE).read_text())
            tf.train.Checkpoint(model=model).read(str(self._folder / _VARIABLES)).assert_existing_objects_matched()
            self._state = state
        except Exception as error:
            logging.warning("the checkpoint %s cannot be read, the training starts afresh: %s", self._folder, error)
            for variable, value in zip(model.weights, before, strict=True):
                variable.assign(value)
            shutil.rmtree(self._folder)

    def on_train_begin(self, logs: Any = None) -> None:
        """Gives EarlyStopping back what it knew."""
        patience = self._state["patience"]
        if self._folder is None or self._patience is None or patience is None:
            return
        for name in _PATIENCE_FIELDS:
            setattr(self._patience, name, patience[name])
        best = self._folder / _BEST_FILE
        if best.is_file():
            values = files.read_arrays(best)
            self._patience.best_weights = [values[str(i)] for i in range(len(values))]

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Keeps the epoch."""
        history = self._state["history"]
        for name, value in (logs or {}).items():
            history.setdefault(name, []).append(float(value))
        self._state["epochs"] = epoch + 1
        self._state["stopped"] = bool(self.model.stop_training)
        if self._patience is not None:
            self._state["patience"] = {name: _plain(getattr(self._patience, name)) for name in _PATIENCE_FIELDS}
        if self._folder is not None:
            self._write(self._folder)

    def _write(self, folder: Path) -> None:
        """Puts the new checkpoint in the place of the old one; killed at any moment, one of them is whole."""
        new, old = folder.with_suffix(".new"), folder.with_suffix(".old")
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
        files.make_folder(new)
        tf.train.Checkpoint(model=self.model).write(str(new / _VARIABLES))
        if self._patience is not None and self._patience.best_weights is not None:
            files.write_arrays(new / _BEST_FILE, {str(i): w for i, w in enumerate(self._patience.best_weights)})
        files.sync_tree(new)  # the state comes last: by it a whole checkpoint is known
        files.write_text(new / _STATE_FILE, json.dumps(self._state))
        if folder.exists():
            folder.rename(old)
        files.move_folder(new, folder)
        shutil.rmtree(old, ignore_errors=True)


def _key(model: tf_keras.Model, about: Mapping[str, Any]) -> str:
    total = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for weight in model.weights:
        total.update(f"\0{weight.name}\0{weight.dtype}\0{tuple(weight.shape)}\0".encode() + weight.numpy().tobytes())
    return total.hexdigest()[:32]


def _plain(value: Any) -> float | int:
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


class DrawsByEpoch(tf_keras.callbacks.Callback):
    """Lets every random layer (dropout, noise) draw from (seed, epoch) alone: an epoch then needs none before it.

    Only for layers that were built while `enable_tf_random_generator` was on.
    """

    _supports_tf_logs = True

    def __init__(self, seed: int):
        super().__init__()
        self._seed = seed

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Sets the generators of all random layers."""
        for number, layer in enumerate(self.model._flatten_layers()):
            random = getattr(layer, "_random_generator", None)
            generator = getattr(random, "_generator", None)
            if generator is not None:
                draw = np.random.SeedSequence([self._seed, epoch, number]).generate_state(1)
                generator.reset_from_seed(int(draw[0]))
