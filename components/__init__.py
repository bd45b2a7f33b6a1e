"""Edgeline: TFX components that compress a Keras model for phones, cameras and microcontrollers.

Importing this package is cheap: what is listed below is imported on first use (PEP 562), so that neither TensorFlow nor
TFX is loaded before it is needed. Recipes and the configs that they are made of never load them.
"""

import importlib
from typing import Any

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


def __getattr__(name: str) -> Any:
    """Imports an exported name from its module on first use; `__version__` is that of the installed distribution."""
    if name == "__version__":
        # here, since the module that knows it takes longer to import than this package
        from importlib import metadata

        return metadata.version("edgeline")
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
