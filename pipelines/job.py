"""What one run of the pipeline makes, wherever it runs."""

from __future__ import annotations

import dataclasses

from edgeline.budget import Budget
from edgeline.config import FineTuning
from edgeline.data_gate.config import Gate
from edgeline.evaluator.config import Evaluation
from edgeline.model_importer.config import Import
from edgeline.model_module.module_source import Source
from edgeline.recipe import Recipe, check_distinct
from edgeline.representative_dataset.config import Sample
from edgeline.tflite_exporter.config import Export
from edgeline.trainer.config import Train


@dataclasses.dataclass(frozen=True)
class Job:
    """What one run of the pipeline makes.

    Attributes:
      module: the model module.
      recipes: the candidates to make.
      train: how the Trainer trains; of no use where a model is imported.
      finetune: epochs, batch size, seed and threads of every fine-tuning step.
      budget: what a candidate may cost.
      evaluation: how the candidates are evaluated.
      sample: the calibration samples.
      export: how each conversion is proved.
      model: a trained model to import; None: train the module's.
      gate: how far the data may move, where they are checked against a schema.

    Raises:
      UserError: two recipes that differ have one name.
    """

    module: Source
    recipes: tuple[Recipe, ...]
    train: Train = dataclasses.field(default_factory=Train)
    finetune: FineTuning = dataclasses.field(default_factory=FineTuning)
    budget: Budget = dataclasses.field(default_factory=Budget)
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    sample: Sample = dataclasses.field(default_factory=Sample)
    export: Export = dataclasses.field(default_factory=Export)
    model: Import | None = None
    gate: Gate = dataclasses.field(default_factory=Gate)

    def __post_init__(self) -> None:
        check_distinct(recipe.for_run(self.finetune) for recipe in self.recipes)
