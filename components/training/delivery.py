"""What every step that trains does with its model: save, promise, record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeline.config import FineTuning
from edgeline.model_io import keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.training import loop
from edgeline.training.loop import Outcome

HISTORY_FILE = "history.json"


def deliver(
    outcome: Outcome, passport: Passport, *, step: str, config: FineTuning, inputs: dict[str, str], toolchain: str,
    model_uri: str, run_uri: str,
) -> None:  # fmt: skip
    """Writes what a training step made: the Keras model, its passport, and the history.

    Args:
      outcome: what was made.
      passport: of the model that went in.
      step: name of the component.
      config: what was asked.
      inputs: digests of what went in, by name.
      toolchain: the versions it was done with.
      model_uri: folder of the Model artifact.
      run_uri: folder of the ModelRun artifact.
    """
    keras_file.save(outcome.model, model_uri)
    in_use = loop.threads_in_use()
    facts = outcome.facts if in_use == config.threads else {**outcome.facts, "threads_in_use": in_use}
    passport.with_step(
        step,
        config.parameters(),
        inputs=inputs,
        toolchain=toolchain,
        metrics=outcome.metrics,
        layers=outcome.layers,
        promises=outcome.promises,
        model=keras_file.digest(outcome.model),
        weights_zlib_bytes=keras_file.zlib_bytes(outcome.model),
        history=outcome.history,
        **facts,
    ).write(model_uri)
    write_history(step, outcome.history, run_uri, **outcome.facts)


def compress(
    technique: Callable[..., Outcome], config: FineTuning, *,
    step: str, module: str, module_digest: str, toolchain: str,
    examples_uri: str, model_uri: str, compressed_uri: str, run_uri: str,
) -> None:  # fmt: skip
    """Runs a technique that fine-tunes a plain model into another one, from artifact folders to artifact folders.

    Args:
      technique: takes the model, the module, the splits, the config, the promises to keep and the folder for logs.
      config: what is asked.
      step: name of the component.
      module: reference of the model module.
      module_digest: its digest.
      toolchain: the versions it is done with.
      examples_uri: folder of the Examples artifact.
      model_uri: folder of the Model that goes in.
      compressed_uri: folder of the Model that comes out.
      run_uri: folder of the ModelRun artifact.
    """
    loop.use_threads(config.threads)  # before the module can do anything
    code = hooks.load(module, module_digest)
    loop.start(config.seed, deterministic=config.deterministic, threads=config.threads)
    splits = loop.open_splits(examples_uri, code, config)
    passport = Passport.read(model_uri)
    outcome = technique(keras_file.load(model_uri, code), code, splits, config, passport.promises, run_uri)
    inputs = {"examples": splits.fingerprint, "module": module_digest, "model": passport.steps[-1]["model"]}
    deliver(
        outcome, passport, step=step, config=config, inputs=inputs, toolchain=toolchain,
        model_uri=compressed_uri, run_uri=run_uri,
    )  # fmt: skip


def write_history(step: str, history: dict[str, list[float]], run_uri: str, **facts: Any) -> None:
    """Writes `history.json` beside the TensorBoard logs of a ModelRun: step, values by metric and epoch, and facts."""
    Path(run_uri).mkdir(parents=True, exist_ok=True)
    Path(run_uri, HISTORY_FILE).write_text(json.dumps({"step": step, "history": history, **facts}, indent=1) + "\n")
