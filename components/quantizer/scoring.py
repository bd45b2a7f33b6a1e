"""The quality of `.tflite` files on the validation split, by the metrics that the module compiles."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from edgeline.data import reading
from edgeline.model_io.graph_model import GraphModel
from edgeline.model_module.hooks import ModelModule
from edgeline.tflite.model_processes import ModelProcesses, RunError, SharedBatches

#: Metrics of which less is better; of all others, more is.
_LESS_IS_BETTER = ("loss", "error", "crossentropy", "divergence", "hinge", "mae", "mse", "mape", "msle", "poisson")

#: Examples that run together, and models that run at the same time.
_BATCH = 256
_THREADS = 2


class Scorer:
    """Runs models on examples that are kept in memory, and says how good they are.

    Args:
      model: the Keras model that they were made of; it is compiled. Of a graph, only the names and shapes are used.
      module: whose `compile_model` says the loss and the metrics.
      io: the passport's.
      examples_uri: of the Examples artifact.
      limit: examples of the validation split that are used at most, in file order.

    Raises:
      UserError: the split is missing or unreadable, or does not fit the module.
    """

    def __init__(
        self,
        model: tf_keras.Model | GraphModel,
        module: ModelModule,
        io: dict[str, Any],
        examples_uri: str,
        limit: int,
    ):
        self._judge = _stand_in(io) if isinstance(model, GraphModel) else model
        module.compile_model(self._judge)
        files = reading.split_files(examples_uri, "validation")
        names = [port["name"] for port in io["inputs"]]
        self._outputs = [port["name"] for port in io["outputs"]]
        self._models, self._inputs = ModelProcesses(), SharedBatches()
        self._labels: list[tuple[Any, Any]] = []
        self.examples = 0
        for inputs, label, *weight in reading.evaluation_data(files, module, batch_size=_BATCH).dataset:
            rows = min(_BATCH, limit - self.examples)
            label, weight = tf.nest.map_structure(lambda tensor, n=rows: tensor[:n], (label, weight))
            batch = {name: values[:rows] for name, values in reading.named_inputs(inputs, names).items()}
            self._inputs.add(batch)
            self._labels.append((label, weight[0] if weight else None))
            self.examples += len(next(iter(batch.values())))
            if self.examples >= limit:
                break

    def scores(self, contents: Sequence[bytes], limit: int | None = None) -> list[dict[str, float]]:
        """Returns the loss and the compiled metrics of each model, by name; the models run in parallel.

        Args:
          contents: of the `.tflite` files.
          limit: examples to use at most, rounded up to whole batches; None: all.

        Raises:
          RunError: LiteRT crashed on one, or cannot run it.
        """
        scored = []
        for scores in self.scores_or_errors(contents, limit):
            if isinstance(scores, RunError):
                raise scores
            scored.append(scores)
        return scored

    def scores_or_errors(
        self, contents: Sequence[bytes], limit: int | None = None
    ) -> list[dict[str, float] | RunError]:
        """Returns what `scores` returns, and the error of a model in its place."""
        count = len(self._labels) if limit is None else min(len(self._labels), -(-limit // _BATCH))
        with ThreadPoolExecutor(_THREADS) as pool:
            # a pool hands results on in order, so that few outputs wait in memory
            ran = pool.map(lambda content: self._run(content, count), contents)
            return [outputs if isinstance(outputs, RunError) else self._score(outputs) for outputs in ran]

    def metric(self, scores: dict[str, float]) -> str:
        """Returns what a model is judged by: the first compiled metric, or the loss where there is none."""
        return next((name for name in scores if name != "loss" and not name.endswith("_loss")), "loss")

    def drop(self, reference: dict[str, float], scores: dict[str, float] | RunError) -> float:
        """Returns how much worse a model is than the reference by `metric`; negative: better.

        Not a number is worst, and so is a model that cannot be run.
        """
        if isinstance(scores, RunError):
            return float("inf")
        name = self.metric(reference)
        difference = reference[name] - scores[name]
        worse = -difference if any(part in name.lower() for part in _LESS_IS_BETTER) else difference
        return worse if np.isfinite(worse) else float("inf")

    def _run(self, content: bytes, batches: int) -> list[list[np.ndarray]] | RunError:
        """Returns the outputs of each batch; runs in a child process, as LiteRT may crash on a model that is new."""
        try:
            outputs = self._models.run(content, self._inputs, _BATCH, self._outputs, batches)
        except RunError as error:
            return error
        ends = list(itertools.accumulate(self._inputs.sizes[:batches]))[:-1]
        return [list(parts) for parts in zip(*(np.split(values, ends) for values in outputs), strict=True)]

    def _score(self, outputs: list[list[np.ndarray]]) -> dict[str, float]:
        model = self._judge
        model.reset_metrics()
        for (label, weight), batch in zip(self._labels, outputs, strict=False):
            predicted = tf.nest.pack_sequence_as(model.output, [tf.convert_to_tensor(values) for values in batch])
            model.compiled_loss(label, predicted, weight)
            model.compiled_metrics.update_state(label, predicted, weight)
        return {metric.name: float(metric.result()) for metric in model.metrics}


def _stand_in(io: dict[str, Any]) -> tf_keras.Model:
    """Returns a model whose outputs are called as the graph's, for a module to compile."""
    inputs = [tf_keras.Input(port["shape"][1:], dtype=port["dtype"]) for port in io["outputs"]]
    outputs = [
        tf_keras.layers.Activation("linear", name=port["name"])(tensor)
        for port, tensor in zip(io["outputs"], inputs, strict=True)
    ]
    return tf_keras.Model(inputs, outputs)
