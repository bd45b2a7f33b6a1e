"""The artifact types that TFX has none for, and the layout of the standard ones as Edgeline fills them.

`Model` between the steps: `Format-Keras/model.keras` (tf-keras, loaded in safe mode), `passport.json`; after a
quantization-aware training also `Format-Keras/qat.npz`. From Trainer also `Format-Serving/`, a SavedModel with
`serving_default` (serialized tf.train.Examples in, outputs out) and `serving_raw` (preprocessed inputs in).

`Model` from TFLiteExporter: `Format-Serving/` with `model.tflite`, `labels.txt` where the labels are known,
`metadata.json`, `passport.json`, `golden.npz` (8 calibration samples as the model's inputs and its outputs, in the
types of its ports) and `golden.jsonl` (the examples that they were made of, before `preprocess`, in protobuf's JSON
form); it is what the stock Pusher copies. Custom properties: `sha256` (hexadecimal, of the file), `bytes`,
`zlib_bytes`.

`ModelEvaluation`: `report.json`, `report.html`, and what `tfma.load_eval_result` reads.
"""

from tfx.types import artifact
from tfx.types.artifact import Property, PropertyType

#: Custom property of `Examples` that were made of a window of spans: a JSON list of their folders, oldest first. Beside
#: it TFX's own `span`, the number of the newest.
SPANS_PROPERTY = "spans"


class RepresentativeDataset(artifact.Artifact):
    """Calibration samples of the training split.

    File layout: `samples.npz`, one array per model input name, shape [samples, ...] as `preprocess` returns it, in the
    order of a hash, so that any first ones are a random choice; `raw.jsonl`, the first 8 of the examples that they
    were made of, a `tf.train.Example` in protobuf's JSON form per line; and `manifest.json`, which
    `edgeline.data.calibration_set` reads and checks:

    - of the samples: schema_version, samples (how many), digest (of their tensors), inputs (shape and dtype by name),
      ranges ([min, max] by name), digests (SHA-256 of every serialized example), sample_label_histogram, strata
      (examples and samples by stratum), stability (score 0-1 and by input: the ranges of two disjoint halves compared);
    - of the training split: source (digest of the examples), examples (how many), label_histogram;
    - of the draw: strategy, seed, asked (all that was asked), left_out (examples not drawn: not_finite, in_eval; copies
      of samples: duplicates; of the pool: outliers), eval_split (what the samples were compared with, how likely an
      example is wrongly taken for one of it, and samples_in_it, 0), and for `diverse` pool (examples compared) and
      winsorised (by input: range, and how many examples of the pool are below and above).

    Properties:
      samples: number of samples, at least 1.
      digest: hexadecimal SHA-256 over the samples' tensors.
    """

    TYPE_NAME = "edgeline.RepresentativeDataset"
    PROPERTIES = {  # noqa: RUF012 - TFX's own form
        "samples": Property(type=PropertyType.INT),
        "digest": Property(type=PropertyType.STRING),
    }
