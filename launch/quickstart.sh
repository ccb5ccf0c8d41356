#!/usr/bin/env bash
# The whole job on this machine, from nothing to a promoted champion. Arguments go to launch/sweep.py (see its --help).
#
#   bash launch/quickstart.sh [--data-dir DIR] [--name NAME] [--resume] [--set dotted.path=value ...]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec "$python" launch/sweep.py --config tune_configs/quickstart.yaml "$@"
