"""Everything that is about Kubeflow Pipelines: compiling for it, running there, submitting and scheduling."""

import importlib
import importlib.metadata

from edgeline.errors import UserError

#: Versions of TFX whose inner parts were looked at.
TFX_SERIES = "1.21."


def check_tfx(*names: str) -> None:
    """Checks that the installed TFX has the inner parts that this package leans on: they may change at any release.

    Args:
      *names: dotted names of functions.

    Raises:
      UserError: TFX is of another series, or one of the names is not there.
    """
    version = importlib.metadata.version("tfx")
    missing = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        try:
            present = hasattr(importlib.import_module(module), attribute)
        except ImportError:
            present = False
        if not present:
            missing.append(name)
    if missing or not version.startswith(TFX_SERIES):
        absent = f" and lacks {', '.join(missing)}" if missing else ""
        raise UserError(
            f"TFX {version} is installed{absent}; Edgeline's Kubeflow support mends TFX {TFX_SERIES}x from within: "
            f"install that, or a version of Edgeline made for TFX {version}"
        )
