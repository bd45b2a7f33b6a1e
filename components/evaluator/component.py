"""The Evaluator as a TFX component: a class, since its ports are named when a pipeline is built."""

import contextlib
import dataclasses
import datetime
import json
import shutil
from pathlib import Path
from typing import Any

import apache_beam as beam
from tfx.dsl.components.base import base_beam_component, base_beam_executor, executor_spec
from tfx.types import artifact_utils, channel, component_spec
from tfx.types.standard_artifacts import Examples, Model, ModelBlessing, ModelEvaluation

from edgeline import artifacts, layout, progress
from edgeline.budget import DEPLOYED, Budget
from edgeline.conversion.failures import RefusedGraphError
from edgeline.data import reading
from edgeline.deployed import pointer_file
from edgeline.errors import UserError
from edgeline.evaluator.config import Evaluation
from edgeline.evaluator.judging import reporting
from edgeline.evaluator.judging.candidates import Candidate
from edgeline.evaluator.measuring import findings, transforms
from edgeline.evaluator.measuring.measurements import Plan
from edgeline.keras_models.model_form import ModelForm
from edgeline.model_io import graph_model, keras_file
from edgeline.model_module import hooks
from edgeline.passport import Passport
from edgeline.report import rendering, tfma_result
from edgeline.report.schema import DatasetReport

_PARAMETERS = ("module", "module_digest", "toolchain", "pipeline", "candidates", "deployed")


class Executor(base_beam_executor.BaseBeamExecutor):
    """Opens the artifacts, evaluates, writes the report, the blessing and the selected model."""

    def Do(self, input_dict: dict[str, Any], output_dict: dict[str, Any], exec_properties: dict[str, Any]) -> None:
        """Evaluates all candidates; see TFX's BaseExecutor."""
        self._log_startup(input_dict, output_dict, exec_properties)
        budget, config = Budget.decoded(exec_properties), Evaluation.decoded(exec_properties)
        ports = json.loads(exec_properties["candidates"])
        examples_uri = artifact_utils.get_single_uri(input_dict["examples"])
        baseline = _open("baseline", artifact_utils.get_single_uri(input_dict["baseline"]))
        artifacts = {
            name: artifact_utils.get_single_instance(input_dict[port])
            for name, port in ports.items()
            if input_dict.get(port)
        }
        candidates = [_open(name, artifact.uri) for name, artifact in artifacts.items()]
        if baseline.metadata is None:
            raise _no_baseline(baseline.passport.failure or {})

        form = _form(input_dict, baseline.passport)
        code = hooks.load(exec_properties["module"], exec_properties["module_digest"], form)
        unconverted = _keras(input_dict, code) if config.check_keras else None
        files = reading.split_files(examples_uri, "eval")
        folder = Path(artifact_utils.get_single_uri(output_dict["evaluation"]))
        with contextlib.ExitStack() as stack:
            compared = budget.max_deployed_drop is not None
            pushed = pointer_file.latest(exec_properties["deployed"]) if compared or config.like == DEPLOYED else None
            like = (DEPLOYED, pushed.contract) if pushed and config.like == DEPLOYED else config.given_contract
            field = pushed if compared else None
            field_path = stack.enter_context(field.local()) if field else None
            # the candidates were proved by the TFLiteExporter; this one perhaps by another version of the runtime
            refusal = findings.refusal(field_path) if field_path else None
            plan, unique = _plan(
                [baseline, *(c for c in candidates if c.metadata is not None)],
                None if refusal else field_path,
                exec_properties["module"],
                form,
                budget,
                config,
            )
            progress.report(0, 2, f"evaluating {len(plan.models)} models")
            path = str(folder / "results")
            with self._make_beam_pipeline() as pipeline:
                results = pipeline | "Shards" >> beam.Create(files) | "Evaluate" >> transforms.Evaluate(plan)
                results | "Write" >> beam.Map(transforms.write_results, path)
            merged = transforms.read_results(path)
            Path(path).unlink()
        reference = merged.models[plan.baseline]
        if isinstance(reference, str):
            raise ValueError(f"the float32 baseline could not be evaluated: {reference}")
        transforms.check_slices(reference)
        if not reference.overall.examples:
            raise UserError(f"the eval split is empty: 0 examples in {len(files)} shards of {Path(files[0]).parent}")

        progress.report(1, 2, "measuring latencies")
        sample, found_out = findings.find(plan, code, files, merged)
        keras = findings.check_keras(unconverted, plan, code, files) if unconverted is not None else None
        found_out = dataclasses.replace(found_out, devices=findings.measure(plan, found_out, sample))
        report = reporting.report(
            budget=budget,
            baseline=baseline,
            candidates=candidates,
            missing=[name for name in ports if name not in artifacts],
            findings=found_out.renamed(unique),
            deployed=reporting.deployed_report(field, refusal) if field else None,
            like=like,
            must_beat_chance=_must_beat_chance(exec_properties["deployed"], budget, config),
            keras=keras,
            dataset=DatasetReport(
                split="eval",
                examples=reference.overall.examples,
                fingerprint=reading.fingerprint(examples_uri),
                spans=_spans(input_dict["examples"][0]),
                label_names=tuple(baseline.passport.io["labels"]) or None,
                bad_records=sum(merged.bad_records.values()),
                slice_features=tuple(map(tuple, found_out.slice_features)),
                training_examples=baseline.metadata.get("training_examples", {}),
            ),
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            pipeline=exec_properties["pipeline"],
            module=exec_properties["module"],
            module_digest=exec_properties["module_digest"],
        )
        rendering.write_report(report, folder)
        tfma_result.write(report, folder)
        progress.report(2, 2, f"{report.dataset.examples:,} examples, {len(plan.models)} models")
        _bless(
            report.selected,
            budget.target,
            artifacts,
            artifact_utils.get_single_instance(output_dict["selected"]),
            artifact_utils.get_single_instance(output_dict["blessing"]),
        )


def _must_beat_chance(deployed: str, budget: Budget, config: Evaluation) -> bool:
    """Returns whether a guess must not be pushed: where one model has been, the next is compared with that."""
    if config.allow_chance_level or budget.value_threshold is not None:
        return False
    return not deployed or not pointer_file.exists(deployed)


def _plan(
    sound: list[Candidate],
    field: Path | None,
    module: str,
    form: ModelForm | None,
    budget: Budget,
    config: Evaluation,
) -> tuple[Plan, dict[str, str]]:
    """Returns what is evaluated, and for each name the one under which its file is: each file is run and timed once."""
    unique = {c.model_path: c.name for c in reversed(sound)}
    models = {name: path for path, name in unique.items()}
    if field is not None:
        models[findings.DEPLOYED] = str(field)
    io = sound[0].passport.io
    plan = Plan(
        module,
        tuple(port["name"] for port in io["inputs"]),
        tuple(port["name"] for port in io["outputs"]),
        models,
        sound[0].name,
        findings.DEPLOYED if field is not None else None,
        budget,
        config.max_bad_records,
        form,
    )
    return plan, {c.name: unique[c.model_path] for c in sound}


def _no_baseline(failure: dict[str, str]) -> Exception:
    """Returns what to raise where a step failed on the float32 model, beside which all others are judged."""
    kind, _, why = failure.get("error", "").partition(": ")
    step = failure.get("step", "an earlier step")
    text = f"no candidate can be judged without the float32 baseline, on which {step} failed: {why}"
    # whoever wrote the model can replace its operators
    return UserError(text) if kind == RefusedGraphError.__name__ else ValueError(text)


def _spans(examples: Any) -> tuple[str, ...] | None:
    """Returns the folders of the window of spans that the examples were made of; None where they were not."""
    text = examples.get_string_custom_property(artifacts.SPANS_PROPERTY)
    return tuple(json.loads(text)) if text else None


def _keras(input_dict: dict[str, Any], code: hooks.ModelModule) -> Any:
    if not input_dict.get("keras"):
        raise UserError("check_keras needs the Evaluator's input `keras`: the Model that the baseline was made from")
    uri = artifact_utils.get_single_uri(input_dict["keras"])
    if graph_model.is_one(uri):
        raise UserError(
            "check_keras compares the baseline with its Keras model, but what was imported is a graph without layers; "
            "run without it, or import the Keras model"
        )
    return keras_file.load(uri, code)


def _form(input_dict: dict[str, Any], passport: Passport) -> ModelForm | None:
    """Returns the form of the model where it was imported: what the module builds may be another one, or nothing."""
    if all(step["step"] != "ModelImporter" for step in passport.steps):
        return None
    if not input_dict.get("keras"):
        return ModelForm(passport.io)
    return keras_file.form(artifact_utils.get_single_uri(input_dict["keras"]), passport.io)


def _open(name: str, uri: str) -> Candidate:
    folder = Path(uri, layout.SERVING_FOLDER)
    passport = Passport.read(folder)
    if passport.failure:
        return Candidate(name, folder, passport, None)
    path = folder / layout.METADATA_FILE
    try:
        return Candidate(name, folder, passport, json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}, which the TFLiteExporter wrote, cannot be read: {error}. Put it back, or run with another root"
        ) from error


def _bless(name: str | None, target: str, candidates: dict[str, Any], selected: Any, blessing: Any) -> None:
    """Writes the blessing as the stock Pusher and LatestBlessedModelStrategy read it, and the copy that is pushed."""
    blessed = int(name is not None)
    blessing.set_int_custom_property("blessed", blessed)
    Path(blessing.uri).mkdir(parents=True, exist_ok=True)
    Path(blessing.uri, "BLESSED" if blessed else "NOT_BLESSED").touch()
    Path(selected.uri, layout.SERVING_FOLDER).mkdir(parents=True, exist_ok=True)
    if name is None:
        return
    chosen = candidates[name]
    shutil.copytree(
        Path(chosen.uri, layout.SERVING_FOLDER), Path(selected.uri, layout.SERVING_FOLDER), dirs_exist_ok=True
    )
    # whoever points to this folder later, after a rollback too, finds there what the model was judged for
    described = Path(selected.uri, layout.SERVING_FOLDER, layout.METADATA_FILE)
    described.write_text(json.dumps({**json.loads(described.read_text()), "target": target}, indent=1) + "\n")
    selected.set_string_custom_property("candidate", name)
    selected.set_string_custom_property("sha256", chosen.get_string_custom_property("sha256"))
    # an output has no id yet while its executor runs: the strategy would look for model 0 and silently find none
    blessing.set_string_custom_property("current_model", chosen.uri)
    blessing.set_int_custom_property("current_model_id", chosen.id)


def _source(given: channel.BaseChannel) -> tuple[str, str] | int:
    """Returns what two channels have in common where they are the same output of the same node."""
    if isinstance(given, channel.OutputChannel):
        return given.producer_component_id, given.output_key
    return id(given)


class Evaluator(base_beam_component.BaseBeamComponent):
    """Compares all candidates with the float baseline, and selects the best one that meets the budget.

    Args:
      examples: Examples with an `eval` split.
      baseline: Model from the TFLiteExporter of the unmodified float32 model.
      candidates: Models from TFLiteExporters by candidate name. Each output becomes one port, named after the first
        candidate that it is, or `baseline`: ML Metadata knows an artifact once as the input of an execution. A
        candidate may be absent at run time, where an earlier step of it failed.
      keras: Model that the baseline was converted from; needed for `check_keras` alone.
      budget: what a candidate may cost.
      evaluation: how the candidates are evaluated.
      deployed: folder (path or URI) that models are pushed to; the candidates are compared with the one pushed last,
        and must keep its contract unless `evaluation` says otherwise. Empty: with none.
      module: reference of the model module.
      module_digest: its digest.
      toolchain: versions of everything that decides the result.
      pipeline: name to show in the report.

    Outputs: `evaluation` (ModelEvaluation: report.json, report.html, and what `tfma.load_eval_result` reads),
    `selected` (Model: copy of the chosen candidate, without files if there is none), `blessing` (ModelBlessing of it).
    """

    SPEC_CLASS = component_spec.ComponentSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(Executor)

    def __init__(
        self,
        examples: channel.BaseChannel,
        baseline: channel.BaseChannel,
        candidates: dict[str, channel.BaseChannel],
        *,
        keras: channel.BaseChannel | None = None,
        budget: Budget,
        evaluation: Evaluation,
        deployed: str = "",
        module: str,
        module_digest: str,
        toolchain: str,
        pipeline: str,
    ):
        by_source = {_source(baseline): ("baseline", baseline)}
        ports = {name: by_source.setdefault(_source(given), (name, given))[0] for name, given in candidates.items()}
        distinct = {port: given for port, given in by_source.values() if port != "baseline"}
        inputs = {
            "examples": component_spec.ChannelParameter(type=Examples),
            "baseline": component_spec.ChannelParameter(type=Model),
            "keras": component_spec.ChannelParameter(type=Model, optional=True),
            **{port: component_spec.ChannelParameter(type=Model, optional=True) for port in distinct},
        }
        outputs = {"evaluation": ModelEvaluation, "selected": Model, "blessing": ModelBlessing}
        types = {**dict.fromkeys(_PARAMETERS, str), **Budget.encoded_types(), **Evaluation.encoded_types()}
        spec_class = type(
            "EvaluatorSpec",
            (component_spec.ComponentSpec,),
            {
                "PARAMETERS": {name: component_spec.ExecutionParameter(type=kind) for name, kind in types.items()},
                "INPUTS": inputs,
                "OUTPUTS": {n: component_spec.ChannelParameter(type=t) for n, t in outputs.items()},
            },
        )
        super().__init__(
            spec=spec_class(
                examples=examples,
                baseline=baseline,
                **({"keras": keras} if keras is not None else {}),
                **distinct,
                **{name: channel.Channel(type=kind) for name, kind in outputs.items()},
                **budget.encoded(),
                **evaluation.encoded(),
                deployed=deployed,
                module=module,
                module_digest=module_digest,
                toolchain=toolchain,
                pipeline=pipeline,
                candidates=json.dumps(ports),
            )
        )
