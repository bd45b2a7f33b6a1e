#!/usr/bin/env bash
# Builds the wheel, installs it into a second environment, and checks that it is the same program without the checkout.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# from a copy: a build leaves its folders behind
git ls-files -co --exclude-standard -z | xargs -0 cp --parents -t "$scratch"
(cd "$scratch" && "$OLDPWD/.venv/bin/python" -m build --wheel --no-isolation --outdir "$scratch/dist" . >/dev/null)
wheel=$(echo "$scratch"/dist/*.whl)
VENV=$scratch/venv WHEEL=$wheel tools/setup.sh

cd "$scratch/dist" # nothing of the checkout is importable here
python=$scratch/venv/bin/python
"$scratch/venv/bin/edgeline" --help >/dev/null
"$scratch/venv/bin/edgeline" --version
"$python" - <<'PYTHON'
import importlib, importlib.metadata, pathlib, pkgutil, sys
import edgeline
assert "site-packages" in edgeline.__file__, edgeline.__file__
assert "tensorflow" not in sys.modules and "tfx" not in sys.modules
assert pathlib.Path(edgeline.__file__).with_name("py.typed").is_file(), "type checkers need py.typed"
[licence] = importlib.metadata.metadata("edgeline").get_all("License-File")
assert "Apache License" in importlib.metadata.distribution("edgeline").read_text(f"licenses/{licence}")
found = [module.name for module in pkgutil.walk_packages(edgeline.__path__, "edgeline.") if module.ispkg]
for name in found:
    importlib.import_module(name)
print(f"wheel: {len(found)} packages in {edgeline.__path__[0]}")
PYTHON
"$scratch/venv/bin/edgeline" run --root "$scratch/run" --recipe int8 --epochs 1 --max-accuracy-drop 1 --output json
