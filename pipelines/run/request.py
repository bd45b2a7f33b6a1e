"""What a run on this machine is asked to do: one object, whoever asks. Nothing slow is imported.

request = Request(Root(Path("runs/mine")), module="model.py", data=Path("data"), recipes=(recipes.int8(),))
with journal.recorded(request.root, "run") as log:
    outcome = execution.execute(prepare(request), LiveView(Console()), log)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from edgeline import schemes, targets
from edgeline.budget import Budget
from edgeline.config import FineTuning
from edgeline.data.spans import Window
from edgeline.data_gate.config import Gate
from edgeline.errors import UserError
from edgeline.evaluator.config import Evaluation
from edgeline.isolation import limits
from edgeline.model_importer.config import GRAPHS, KINDS, Import
from edgeline.model_module import module_source
from edgeline.pipelines import recipes
from edgeline.pipelines.job import Job
from edgeline.pipelines.root import Root
from edgeline.pipelines.run import new_data, warm_start
from edgeline.recipe import Recipe
from edgeline.representative_dataset.config import Sample
from edgeline.tflite_exporter.config import Export
from edgeline.trainer.config import Train

#: The module of a request that names none: scikit-learn's digits, which come with Edgeline.
DIGITS_MODULE = "edgeline.pipelines.examples.digits.model"


@dataclasses.dataclass(frozen=True)
class Request:
    """What a run on this machine is asked to do. Nothing is checked or read before `prepare`.

    Attributes:
      root: where everything of this pipeline is kept; its name is the pipeline's.
      module: the model module, a `.py` file or a dotted name.
      data: a data folder, or a pattern of spans such as `DIR/day-{SPAN}`; None, for the module of the digits alone:
        made in the root if need be.
      recipes: the candidates to make; empty: those that are tried where none is asked for.
      train: how the Trainer trains; of no use where a model is imported.
      finetune: epochs, batch size, seed and threads of every fine-tuning step.
      sample: the calibration samples.
      budget: what a candidate may cost, and on which hardware it runs.
      evaluation: how the candidates are evaluated.
      export: how each conversion is proved.
      gate: how far the data may move, where a schema is given.
      model: a trained model to import; None: train the module's.
      warm_start: the `.keras` file or Model folder whose weights the training begins with, or `latest`, the float model
        behind the pushed one; None: the module's initial weights.
      window: how many spans are read, the newest complete one and those before it; None: one.
      schema: the file that says what the data must look like; None: they are not checked.
      only_new_data: whether to do nothing where data, module and options are those of the last finished run; of spans
        every run does so.
      use_cache: whether steps with equal inputs and parameters are served from earlier runs.
      memory_limit: GiB that a process may take which opens a stranger's model; None: see `edgeline.isolation.limits`.
        It decides nothing of what is made.
    """

    root: Root
    module: str = DIGITS_MODULE
    data: Path | None = None
    recipes: tuple[Recipe, ...] = ()
    train: Train = dataclasses.field(default_factory=Train)
    finetune: FineTuning = dataclasses.field(default_factory=FineTuning)
    sample: Sample = dataclasses.field(default_factory=Sample)
    budget: Budget = dataclasses.field(default_factory=Budget)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    export: Export = dataclasses.field(default_factory=Export)
    gate: Gate = dataclasses.field(default_factory=Gate)
    model: Import | None = None
    warm_start: Path | str | None = None
    window: int | None = None
    schema: Path | None = None
    only_new_data: bool = False
    use_cache: bool = True
    memory_limit: float | None = None


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A request that was checked as far as it can be before anything slow is imported.

    Attributes:
      request: with absolute paths.
      job: what the run makes. The weights that its training begins with may still be `latest`.
      window: the spans that are read; None for a data folder.
      digest: of everything that decides what a run makes of its data.
    """

    request: Request
    job: Job
    window: Window | None
    digest: str

    def nothing_new(self) -> str | None:
        """Says why the run has nothing to do, None where it has, and where it was not asked to find out.

        Raises:
          UserError: a folder of the data is missing or holds something else.
        """
        asked = self.request
        if not asked.use_cache or asked.data is None or (self.window is None and not asked.only_new_data):
            return None
        return new_data.why_nothing_is_new(asked.root, asked.data, self.window, self.digest)


def prepare(request: Request) -> Prepared:
    """Checks a request; makes nothing.

    Raises:
      UserError: what of it is wrong: the module, a recipe that the target or the model does not allow, the pattern of
        the spans, the schema, the weights to begin with, the memory limit.
    """
    if request.memory_limit is not None:
        limits.checked_gib(request.memory_limit)
    root, data = request.root.absolute(), request.data and request.data.absolute()
    request = dataclasses.replace(request, root=root, data=data, schema=request.schema and request.schema.absolute())
    target = request.budget.target
    chosen = request.recipes or tuple(recipes.chosen(None, target))
    recipes.check_target(chosen, target)
    if request.model is not None:
        _check_model(request, request.model, chosen)
    if data is None and request.module != DIGITS_MODULE:
        raise UserError("--module needs --data: a folder with train, validation and eval (see: edgeline data --help)")
    if request.schema is None and request.gate != Gate():
        raise UserError(
            "how far the data may move is compared by a schema: give --schema, made by `edgeline data schema`"
        )
    one_example = request.export.one_example or targets.needs_fixed_shapes(target)
    job = Job(
        module_source.locate(request.module, needs_model=request.model is None),
        chosen,
        train=warm_start.asked(request.train, request.warm_start),
        finetune=request.finetune,
        budget=request.budget,
        evaluation=request.evaluation,
        sample=request.sample,
        export=dataclasses.replace(request.export, one_example=one_example),
        model=request.model,
        gate=dataclasses.replace(request.gate, last_statistics=str(root.last_statistics)),
    )
    window = new_data.window(data, request.window)
    return Prepared(request, job, window, new_data.digest(job, request.schema))


def _check_model(request: Request, model: Import, chosen: Sequence[Recipe]) -> None:
    check_recipes(model, chosen)
    if request.evaluation.check_keras and model.kind in GRAPHS:
        raise UserError(f"--check-keras needs a Keras model, but {model.source} is a graph without layers")
    if request.warm_start is not None:
        raise UserError(f"--warm-start is for a training, but the model {model.source} is trained already")


def check_recipes(model: Import, chosen: Sequence[Recipe]) -> None:
    """Checks that a model can be what the recipes want to make of it.

    Raises:
      UserError: a recipe trains, but of the model only the graph is known; names these recipes.
    """
    trained = [recipe.name for recipe in chosen if any(step.trains for step in recipe.steps)]
    if model.kind in GRAPHS and trained:
        raise UserError(
            f"model {model.source} is a {KINDS[model.kind]}: its layers are unknown, so it cannot be trained on, "
            f"and {', '.join(trained)} needs that. Give the Keras model it was exported from, or recipes of one of "
            f"{', '.join(schemes.post_training())} alone"
        )
