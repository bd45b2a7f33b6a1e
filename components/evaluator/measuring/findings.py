"""What the pass over the eval split found, ready to be read, and what each model costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras

from edgeline import progress
from edgeline.data import reading
from edgeline.evaluator.measuring import transforms
from edgeline.evaluator.measuring.classification import Task
from edgeline.evaluator.measuring.measurements import Evaluated, Plan, Results
from edgeline.evaluator.measuring.metrics import CompiledMetrics, State
from edgeline.evaluator.measuring.outputs import Output
from edgeline.evaluator.measuring.outputs import find as find_outputs
from edgeline.evaluator.measuring.slices import Slicer
from edgeline.model_module.hooks import ModelModule
from edgeline.report.dataclass_json import from_json
from edgeline.report.schema import DeviceCost, KerasReport
from edgeline.tflite import device_cost
from edgeline.tflite.model_processes import ModelProcesses, SharedBatches

#: Key of the deployed model among the results; no candidate's name can be so.
DEPLOYED = "@deployed"

#: How long the latencies of one model are measured.
_SECONDS = 0.6


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the pass over the eval split and the measurements of cost found.

    Attributes:
      results: by name of candidate, baseline and deployed model: what it did, or why it was given up.
      devices: by name, what it costs, or why that could not be measured.
      metrics: that the results' states belong to.
      task: how the module's outputs are read as classes; None where the model is no classifier.
      outputs: of which more is measured than the metrics, by name.
      slice_features: the features that are sliced by, joined where crossed.
    """

    results: dict[str, Evaluated | str]
    devices: dict[str, DeviceCost | str]
    metrics: CompiledMetrics
    task: Task | None
    slice_features: list[list[str]] = dataclasses.field(default_factory=list)
    outputs: dict[str, Output] = dataclasses.field(default_factory=dict)

    def renamed(self, unique: dict[str, str]) -> Findings:
        """Returns the findings with those of a file that several names stand for under each of them.

        Args:
          unique: by name, the one under which its file was evaluated.
        """
        results = {name: self.results[file] for name, file in unique.items() if file in self.results}
        devices = {name: self.devices[file] for name, file in unique.items() if file in self.devices}
        return dataclasses.replace(self, results=self.results | results, devices=self.devices | devices)

    def device(self, name: str) -> DeviceCost | None:
        """Returns what a model costs; None where it was not measured."""
        cost = self.devices.get(name)
        return cost if isinstance(cost, DeviceCost) else None


def find(plan: Plan, module: ModelModule, files: list[str], merged: Results) -> tuple[dict[str, np.ndarray], Findings]:
    """Prepares for reading what the pass over the eval split found.

    Args:
      plan: of the pass.
      module: the model module.
      files: shards of the eval split.
      merged: what the pass found.

    Returns:
      One example by input name, shape [1, ...], and the findings, without costs.
    """
    inputs, label, _ = next(iter(reading.parsed_batches(files, reading.ExampleParser(module), 2)))
    named = reading.named_inputs(inputs, list(plan.inputs))
    metrics = CompiledMetrics(module)
    metrics.prepare(label, _outputs(plan, named, 2))
    task = Task.of(metrics.model, list(plan.outputs))
    crosses = Slicer(module, task.classes if task else None).crosses
    parts = find_outputs(metrics, list(plan.outputs))
    findings = Findings(dict(merged.models), {}, metrics, task, [list(cross) for cross in crosses], parts)
    return {name: values[:1] for name, values in named.items()}, findings


def refusal(path: Path) -> str | None:
    """Returns why a file cannot be run in a child process, so that it must not be run in this one; None if it can."""
    try:
        device_cost.measure(path, seconds=0.01)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return None


def measure(plan: Plan, findings: Findings, sample: dict[str, np.ndarray]) -> dict[str, DeviceCost | str]:
    """Measures what all models cost that can run, one after the other; nothing else may run meanwhile.

    Args:
      plan: whose models they are.
      findings: what they did: those that were given up are left out.
      sample: one real example by input name, shape [1, ...].

    Returns:
      By name, what a model costs, or why that could not be measured.
    """
    costs: dict[str, DeviceCost | str] = {}
    for done, (name, path) in enumerate(plan.models.items()):
        if not isinstance(findings.results.get(name, ""), str) and name != DEPLOYED:
            progress.report(done, len(plan.models), f"cost of {name}")
            try:
                costs[name] = from_json(DeviceCost, device_cost.measure(path, sample, seconds=_SECONDS))
            except (ValueError, RuntimeError) as error:
                costs[name] = str(error)
    return costs


def check_keras(model: tf_keras.Model, plan: Plan, module: ModelModule, files: list[str]) -> KerasReport:
    """Evaluates the Keras model that the baseline was converted from, beside the baseline.

    Args:
      model: the Keras model.
      plan: of the pass.
      module: the model module.
      files: shards of the eval split.
    """
    metrics, state, largest = CompiledMetrics(module), State(), 0.0
    parser = reading.ExampleParser(module)
    size = reading.fitting_batch(parser.compiled.get_concrete_function().structured_outputs[0], transforms.BATCH_SIZE)
    run = tf.function(lambda inputs: model(inputs, training=False), reduce_retracing=True)
    for inputs, label, weight in reading.parsed_batches(files, parser, size):
        outputs = [output.numpy() for output in tf.nest.flatten(run(inputs))]
        state += metrics.batch(label, outputs, weight, metrics.masks(inputs))
        pairs = zip(outputs, _outputs(plan, reading.named_inputs(inputs, list(plan.inputs)), size), strict=True)
        largest = max(largest, *(float(np.abs(output - other).max(initial=0)) for output, other in pairs))
    return KerasReport(metrics=metrics.result(state), max_abs_difference=largest)


def _outputs(plan: Plan, inputs: dict[str, np.ndarray], batch: int) -> list[np.ndarray]:
    """Returns what the baseline makes of a batch, in a child process: LiteRT may crash on it."""
    models = ModelProcesses({plan.baseline: plan.models[plan.baseline]})
    with SharedBatches([inputs]) as shared:
        try:
            return models.run(plan.baseline, shared, batch, plan.outputs)
        finally:
            models.close()
