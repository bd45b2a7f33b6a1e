"""The artifact types that TFX has none for, and the layout of the standard ones as Edgeline fills them.

`Model` between the steps: `Format-Keras/model.keras` (tf-keras, loaded in safe mode), `passport.json`; after a
quantization-aware training also `Format-Keras/qat.npz`. From Trainer also `Format-Serving/`, a SavedModel with
`serving_default` (serialized tf.train.Examples in, outputs out) and `serving_raw` (preprocessed inputs in).

`Model` from TFLiteExporter: `Format-Serving/` with `model.tflite`, `labels.txt` where the labels are known,
`metadata.json` and `passport.json`; it is what the stock Pusher copies. Custom properties: `sha256` (hexadecimal, of
the file), `bytes`, `zlib_bytes`.

`ModelEvaluation`: `report.json` and `report.html`.
"""

from tfx.types import artifact
from tfx.types.artifact import Property, PropertyType


class RepresentativeDataset(artifact.Artifact):
    """Calibration samples of the training split.

    File layout: `samples.npz`, one array per model input name, shape [samples, ...] as `preprocess` returns it;
    `manifest.json`: strategy, seed, source (digest of the examples), a digest of every sample, label histogram (label
    to count, of the whole split), ranges (input name to [min, max] of the samples), examples (of the whole split).

    Properties:
      samples: number of samples, at least 1.
      digest: hexadecimal SHA-256 over the samples.
    """

    TYPE_NAME = "edgeline.RepresentativeDataset"
    PROPERTIES = {  # noqa: RUF012 - TFX's own form
        "samples": Property(type=PropertyType.INT),
        "digest": Property(type=PropertyType.STRING),
    }
