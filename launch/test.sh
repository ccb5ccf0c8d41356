#!/usr/bin/env bash
# Checks and tests. Further arguments go to pytest.
#
#   bash launch/test.sh [fast|all] [pytest arguments]
#
# fast: format, lint, types and the quick tests, some minutes. all (default): also the slow tests and those that start
# Ray, several hosts or a browser, or need a GPU; tests whose means are missing here say so and are skipped.
set -euo pipefail
scope="${1:-all}"
case "$scope" in
    fast | all) shift || true ;;
    -*) scope=all ;;
    *) echo "error: '$scope': allowed is fast or all, then arguments of pytest" >&2; exit 2 ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# settings of the person at the desk must not change what is tested
unset DATA_DIR MLFLOW_TRACKING_URI RAY_ADDRESS
export OMP_NUM_THREADS=1 MPLBACKEND=Agg RAY_USAGE_STATS_ENABLED=0

failed=()
step() {
    local name="$1" started=$SECONDS code=0
    shift
    echo "== $name"
    "$@" || code=$?
    if [ "$code" = 5 ]; then code=0; fi # pytest: no test of that kind
    echo "== $name: $([ "$code" = 0 ] && echo passed || echo "FAILED (exit code $code)"), $((SECONDS - started)) s"
    if [ "$code" != 0 ]; then failed+=("$name"); fi
}

apart="ray or cluster or browser or gpu" # these fill the machine by themselves
abreast=(--numprocesses auto --maxprocesses 4 --dist loadfile)
if [ "$scope" = all ]; then quick="not ($apart)"; else quick="not (slow or $apart)"; fi

step "format" "$python" -m ruff format --check .
step "lint" "$python" -m ruff check .
step "types" "$python" -m mypy
step "tests" "$python" -m pytest -q "${abreast[@]}" -m "$quick" "$@"
if [ "$scope" = all ]; then step "tests with Ray, hosts, browser, GPU" "$python" -m pytest -q -m "$apart" "$@"; fi

if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
echo "all passed in $SECONDS s"
