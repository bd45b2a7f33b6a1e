"""The Evaluator as a TFX component: a class, since its ports are named when a pipeline is built."""

import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import apache_beam as beam
from tfx.dsl.components.base import base_beam_component, base_beam_executor, executor_spec
from tfx.types import artifact_utils, channel, component_spec
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, ModelEvaluation

from edgeline import data, keras_io, model_module, progress
from edgeline.data import ExampleParser
from edgeline.evaluator import evaluation, report, transforms
from edgeline.evaluator.config import Budget
from edgeline.evaluator.evaluation import Candidate
from edgeline.evaluator.metrics import CompiledMetrics
from edgeline.litert import TFLiteModel
from edgeline.passport import Passport

_PARAMETERS = {
    "module": str, "module_digest": str, "toolchain": str, "pipeline": str, "candidates": str,
    "metric": str, "direction": str, "max_drop": float, "max_bytes": int, "max_zlib_bytes": int,
    "max_latency_ms": float, "objective": str,
}  # fmt: skip


class Executor(base_beam_executor.BaseBeamExecutor):
    """Opens the artifacts, evaluates, writes the report, the blessing and the selected model."""

    def Do(self, input_dict: dict[str, Any], output_dict: dict[str, Any], exec_properties: dict[str, Any]) -> None:
        """Evaluates all candidates; see TFX's BaseExecutor."""
        self._log_startup(input_dict, output_dict, exec_properties)
        budget = Budget(**{name: exec_properties[name] for name in Budget().parameters()})
        names = json.loads(exec_properties["candidates"])
        code = model_module.load(exec_properties["module"], exec_properties["module_digest"])
        examples_uri = artifact_utils.get_single_uri(input_dict["examples"])
        baseline = _open("baseline", artifact_utils.get_single_uri(input_dict["baseline"]))
        found = {name: artifact_utils.get_single_instance(input_dict[name]) for name in names if input_dict.get(name)}
        candidates = [_open(name, artifact.uri) for name, artifact in found.items()]
        sound = [baseline, *(c for c in candidates if c.metadata is not None)]
        if baseline.metadata is None:
            raise ValueError(f"the float32 baseline could not be exported: {baseline.passport.failure}")

        files = data.split_files(examples_uri, "eval")
        io = baseline.passport.io
        # the baseline is often a candidate too: each file is run and timed once
        unique = {c.model_path: c for c in reversed(sound)}
        arguments = (
            exec_properties["module"],
            [port["name"] for port in io["inputs"]],
            [port["name"] for port in io["outputs"]],
            {c.name: c.model_path for c in unique.values()},
        )
        progress.report(0, 2, f"evaluating {len(unique)} models")
        folder = Path(artifact_utils.get_single_uri(output_dict["evaluation"]))
        path = str(folder / "states")
        with self._make_beam_pipeline() as pipeline:
            states = pipeline | "Shards" >> beam.Create(files) | "Evaluate" >> transforms.Evaluate(*arguments)
            states | "Write" >> beam.Map(transforms.write_states, path)
        merged = transforms.read_states(path)
        Path(path).unlink()

        parser = ExampleParser(code)
        first = next(iter(data.parsed_batches(files, parser, 2)))
        sample = data.named_inputs(first[0], arguments[1])
        metrics = CompiledMetrics(code)
        outputs = TFLiteModel(baseline.model_path).run(sample)
        metrics.prepare(first[1], [outputs[name] for name in arguments[2]], first[2])
        progress.report(1, 2, "measuring latencies")
        results = {c.name: evaluation.outcome(merged.get(unique[c.model_path].name), metrics) for c in sound}
        runnable = [c for c in unique.values() if not isinstance(results[c.name], str)]
        times = evaluation.measure_latencies(runnable, {n: v[:1] for n, v in sample.items()})
        facts = evaluation.report(
            budget=budget,
            baseline=baseline,
            candidates=candidates,
            missing=[name for name in names if name not in found],
            results=results,
            latencies={c.name: times[name] for c in sound if (name := unique[c.model_path].name) in times},
            dataset={
                "split": "eval",
                "fingerprint": data.fingerprint(examples_uri),
                "label_names": io["labels"] or None,
            },
            about={
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "pipeline": exec_properties["pipeline"],
                "module": exec_properties["module"],
            },
        )
        report.write_report(facts, folder)
        progress.report(2, 2, f"{facts['dataset']['examples']:,} examples, {len(unique)} models")
        _bless(
            facts["selected"],
            found,
            artifact_utils.get_single_instance(output_dict["selected"]),
            artifact_utils.get_single_instance(output_dict["blessing"]),
        )


def _open(name: str, uri: str) -> Candidate:
    folder = Path(uri, keras_io.SERVING_FOLDER)
    passport = Passport.read(folder)
    metadata = None if passport.failure else json.loads((folder / "metadata.json").read_text())
    return Candidate(name, folder, passport, metadata)


def _bless(name: str | None, candidates: dict[str, Any], selected: Any, blessing: Any) -> None:
    """Writes the blessing as the stock Pusher and LatestBlessedModelStrategy read it, and the copy that is pushed."""
    blessed = int(name is not None)
    blessing.set_int_custom_property("blessed", blessed)
    Path(blessing.uri).mkdir(parents=True, exist_ok=True)
    Path(blessing.uri, "BLESSED" if blessed else "NOT_BLESSED").touch()
    Path(selected.uri, keras_io.SERVING_FOLDER).mkdir(parents=True, exist_ok=True)
    if name is None:
        return
    chosen = candidates[name]
    shutil.copytree(
        Path(chosen.uri, keras_io.SERVING_FOLDER), Path(selected.uri, keras_io.SERVING_FOLDER), dirs_exist_ok=True
    )
    selected.set_string_custom_property("candidate", name)
    selected.set_string_custom_property("sha256", chosen.get_string_custom_property("sha256"))
    # an output has no id yet while its executor runs: the strategy would look for model 0 and silently find none
    blessing.set_string_custom_property("current_model", chosen.uri)
    blessing.set_int_custom_property("current_model_id", chosen.id)


class Evaluator(base_beam_component.BaseBeamComponent):
    """Compares all candidates with the float baseline, and selects the best one that meets the budget.

    Args:
      examples: Examples with an `eval` split.
      baseline: Model from the TFLiteExporter of the unmodified float32 model.
      candidates: Models from TFLiteExporters by candidate name; each becomes a port of that name. A candidate may be
        absent at run time, where an earlier step of it failed.
      budget: what a candidate may cost.
      module: reference of the model module.
      module_digest: its digest.
      toolchain: versions of everything that decides the result.
      pipeline: name to show in the report.

    Outputs: `evaluation` (ModelEvaluation: report.json, report.html), `selected` (Model: copy of the chosen candidate,
    without files if there is none), `blessing` (ModelBlessing of it).
    """

    SPEC_CLASS = component_spec.ComponentSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        examples: channel.BaseChannel,
        baseline: channel.BaseChannel,
        candidates: dict[str, channel.BaseChannel],
        *,
        budget: Budget,
        module: str,
        module_digest: str,
        toolchain: str,
        pipeline: str,
    ):
        ports = {
            "examples": component_spec.ChannelParameter(type=Examples),
            "baseline": component_spec.ChannelParameter(type=Model),
            **{name: component_spec.ChannelParameter(type=Model, optional=True) for name in candidates},
        }
        outputs = {"evaluation": ModelEvaluation, "selected": Model, "blessing": ModelBlessing}
        spec_class = type(
            "EvaluatorSpec",
            (component_spec.ComponentSpec,),
            {
                "PARAMETERS": {n: component_spec.ExecutionParameter(type=t) for n, t in _PARAMETERS.items()},
                "INPUTS": ports,
                "OUTPUTS": {n: component_spec.ChannelParameter(type=t) for n, t in outputs.items()},
            },
        )
        super().__init__(
            spec=spec_class(
                examples=examples,
                baseline=baseline,
                **candidates,
                **{name: channel.Channel(type=kind) for name, kind in outputs.items()},
                **budget.parameters(),
                module=module,
                module_digest=module_digest,
                toolchain=toolchain,
                pipeline=pipeline,
                candidates=json.dumps(list(candidates)),
            )
        )
