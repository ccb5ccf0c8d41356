#!/usr/bin/env bash
# Checks and measures on a GPU what a GPU must show; README.md beside this tells how to read it.
#
#   bash tests/gpu/check.sh [--device cuda|cpu] [--tiny] [--only PART] [--minutes 8] [--baseline FOLDER]
#   bash tests/gpu/check.sh --show | --requirements
#
# Nothing is installed and nothing is fetched: it runs with $PYTHON, or this checkout's .venv, or python3.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
python="${PYTHON:-}"
if [ -z "$python" ]; then
    python=python3
    if [ -x "$root/.venv/bin/python" ]; then python="$root/.venv/bin/python"; fi
fi
export PYTHONPATH="$root:$root/tests/gpu${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export PYTORCH_NVML_BASED_CUDA_CHECK=1 # asking whether there is a GPU must not keep forked processes from using it
exec "$python" -m gpu_check "$@"
