"""Edgeline: TFX components that compress a Keras model for phones, cameras and microcontrollers.

Importing this package is cheap: the components and artifact types below are imported on first use (PEP 562), so that
neither TensorFlow nor TFX is loaded before it is needed.
"""

import importlib
from typing import Any

_EXPORTS = {
    "Clusterer": "edgeline.clusterer.component",
    "DataGate": "edgeline.data_gate.component",
    "Evaluator": "edgeline.evaluator.component",
    "LiteRTModelHandler": "edgeline.tflite.beam_inference",
    "ModelImporter": "edgeline.model_importer.component",
    "Pruner": "edgeline.pruner.component",
    "Quantizer": "edgeline.quantizer.component",
    "RepresentativeDataset": "edgeline.artifacts",
    "RepresentativeDatasetGen": "edgeline.representative_dataset.component",
    "TFLiteExporter": "edgeline.tflite_exporter.component",
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
