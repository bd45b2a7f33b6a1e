#!/usr/bin/env bash
# Runs mypy. It cannot follow the renaming in pyproject.toml (components/ is edgeline), so it is shown a folder of links.
set -euo pipefail
cd "$(dirname "$0")/.."
tree=$PWD/.mypy_cache/tree/edgeline
rm -rf "$tree"
mkdir -p "$tree"
ln -s "$PWD"/components/* "$PWD/pipelines" "$PWD/kubeflow" "$tree/"
rm -f "$tree/__pycache__"
MYPYPATH=$(dirname "$tree") .venv/bin/mypy "$tree" tools/docs.py "$@"
