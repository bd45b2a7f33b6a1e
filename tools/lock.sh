#!/usr/bin/env bash
# Writes requirements.lock anew from pyproject.toml: exact versions with hashes, no index addresses.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/uv pip compile pyproject.toml --extra dev --extra kubeflow --generate-hashes --no-emit-index-url --no-annotate \
  --custom-compile-command tools/lock.sh --python-version 3.11 --python-platform x86_64-manylinux_2_39 --output-file requirements.lock "$@"
