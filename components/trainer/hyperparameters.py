"""Reading what a Tuner found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgeline.errors import UserError


def read(uri: str) -> Any:
    """Returns a HyperParameters artifact as `keras_tuner.HyperParameters`.

    Args:
      uri: folder of the artifact: one file, a config of keras_tuner as JSON.

    Raises:
      UserError: it holds something else.
    """
    import keras_tuner

    files = [path for path in Path(uri).glob("*") if path.is_file()]
    try:
        [file] = files
        return keras_tuner.HyperParameters.from_config(json.loads(file.read_text()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"the hyperparameters in {uri} cannot be read: one file is expected, the JSON of keras_tuner's "
            f"HyperParameters.get_config(), found {', '.join(sorted(path.name for path in files)) or 'none'} ({error})"
        ) from error
