"""Edgeline: TFX components that compress a Keras model for phones, cameras and microcontrollers.

Importing this package is cheap: what is listed below is imported on first use (PEP 562), so that neither TensorFlow nor
TFX is loaded before it is needed. Recipes and the configs that they are made of never load them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same once more, for type checkers and editors
    from edgeline.artifacts import RepresentativeDataset as RepresentativeDataset
    from edgeline.budget import Budget as Budget
    from edgeline.clusterer.component import Clusterer as Clusterer
    from edgeline.clusterer.config import Cluster as Cluster
    from edgeline.data_gate.component import DataGate as DataGate
    from edgeline.data_gate.config import Gate as Gate
    from edgeline.errors import UserError as UserError
    from edgeline.evaluator.component import Evaluator as Evaluator
    from edgeline.evaluator.config import Evaluation as Evaluation
    from edgeline.model_importer.component import ModelImporter as ModelImporter
    from edgeline.model_importer.config import Import as Import
    from edgeline.model_module.hooks import step_parameters as step_parameters
    from edgeline.pruner.component import Pruner as Pruner
    from edgeline.pruner.config import Prune as Prune
    from edgeline.quantizer.component import Quantizer as Quantizer
    from edgeline.quantizer.config import Quantize as Quantize
    from edgeline.recipe import Recipe as Recipe
    from edgeline.representative_dataset.component import RepresentativeDatasetGen as RepresentativeDatasetGen
    from edgeline.representative_dataset.config import Sample as Sample
    from edgeline.tflite.beam_inference import LiteRTModelHandler as LiteRTModelHandler
    from edgeline.tflite_exporter.component import TFLiteExporter as TFLiteExporter
    from edgeline.tflite_exporter.config import Export as Export
    from edgeline.trainer.component import Trainer as Trainer
    from edgeline.trainer.config import Train as Train

_EXPORTS = {
    "Budget": "edgeline.budget",
    "Cluster": "edgeline.clusterer.config",
    "Clusterer": "edgeline.clusterer.component",
    "DataGate": "edgeline.data_gate.component",
    "Evaluation": "edgeline.evaluator.config",
    "Evaluator": "edgeline.evaluator.component",
    "Export": "edgeline.tflite_exporter.config",
    "Gate": "edgeline.data_gate.config",
    "Import": "edgeline.model_importer.config",
    "LiteRTModelHandler": "edgeline.tflite.beam_inference",
    "ModelImporter": "edgeline.model_importer.component",
    "Prune": "edgeline.pruner.config",
    "Pruner": "edgeline.pruner.component",
    "Quantize": "edgeline.quantizer.config",
    "Quantizer": "edgeline.quantizer.component",
    "Recipe": "edgeline.recipe",
    "RepresentativeDataset": "edgeline.artifacts",
    "RepresentativeDatasetGen": "edgeline.representative_dataset.component",
    "Sample": "edgeline.representative_dataset.config",
    "TFLiteExporter": "edgeline.tflite_exporter.component",
    "Train": "edgeline.trainer.config",
    "Trainer": "edgeline.trainer.component",
    "UserError": "edgeline.errors",
    "step_parameters": "edgeline.model_module.hooks",
}

__all__ = sorted(_EXPORTS)


if TYPE_CHECKING:
    __version__: str
else:  # hidden from type checkers, which would believe that every name exists

    def __getattr__(name: str) -> Any:
        """Imports an exported name on first use; `__version__` is that of the installed distribution."""
        if name == "__version__":
            # here, since the module that knows it takes longer to import than this package
            from importlib import metadata

            return metadata.version("edgeline")
        if name not in _EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
