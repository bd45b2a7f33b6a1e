"""The names of the files in the artifacts; `edgeline.artifacts` says which artifact has which, and what is in them."""

from __future__ import annotations

#: Of a Model: what Keras can go on with.
KERAS_FOLDER = "Format-Keras"
KERAS_FILE = f"{KERAS_FOLDER}/model.keras"
QAT_FILE = f"{KERAS_FOLDER}/qat.npz"

#: Of a Model: what an app or a server runs.
SERVING_FOLDER = "Format-Serving"
TFLITE_FILE = "model.tflite"
METADATA_FILE = "metadata.json"
LABELS_FILE = "labels.txt"
GOLDEN_FILE = "golden.npz"
GOLDEN_RAW_FILE = "golden.jsonl"
PASSPORT_FILE = "passport.json"

#: Of a ModelEvaluation, and of the folder of a pipeline's latest report.
REPORT_FILE = "report.json"
REPORT_PAGE = "report.html"
