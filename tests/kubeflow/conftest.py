"""Makes the modules beside it importable as containers import theirs: by name."""

import importlib.util
import sys
from pathlib import Path

if importlib.util.find_spec("kfp"):
    for _name in ("recorder", "launcher", "toysteps"):
        _spec = importlib.util.spec_from_file_location(_name, Path(__file__).with_name(f"{_name}.py"))
        assert _spec is not None
        assert _spec.loader is not None
        sys.modules[_name] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules[_name])
