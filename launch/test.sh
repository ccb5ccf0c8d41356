#!/usr/bin/env bash
# Checks and tests. Further arguments go to pytest.
#
#   bash launch/test.sh [fast|default|nightly] [pytest arguments]
#
# fast: format, lint, types and the quick tests, some minutes. default: also slower tests, and of those that start Ray,
# several hosts or a browser, or need a GPU, at least one of each kind; about 15 minutes. nightly: everything, with the
# long repetitions; tests/README.md lists what only it runs. Times are those of a laptop with two free cores. Tests whose
# means are missing here say so and are skipped.
set -euo pipefail
scope="${1:-default}"
case "$scope" in
    fast | default | nightly) shift || true ;;
    -*) scope=default ;;
    *) echo "error: '$scope': allowed is fast, default or nightly, then arguments of pytest" >&2; exit 2 ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

# settings of the person at the desk must not change what is tested
unset DATA_DIR MLFLOW_TRACKING_URI RAY_ADDRESS
export OMP_NUM_THREADS=1 MPLBACKEND=Agg RAY_USAGE_STATS_ENABLED=0
export RAY_worker_niceness=0 # else the other tests, beside which they run, would starve Ray's processes

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

told() { # what went on beside the other steps
    local code=0
    wait "$beside" || code=$?
    beside=""
    cat "$log"
    rm -f "$log"
    return "$code"
}

apart="ray or cluster or browser or gpu" # one after the other: two Rays side by side would meddle with each other
abreast=(--numprocesses auto --maxprocesses 4 --dist loadfile)
together="not ($apart)" alone="($apart)"
case "$scope" in
    fast) together+=" and not (slow or nightly)" ;;
    default) together+=" and not nightly" alone+=" and not nightly" ;;
esac

beside="" log=""
trap 'if [ -n "$beside" ]; then kill -INT -- "-$beside" 2>/dev/null || true; wait; fi' EXIT
if [ "$scope" = default ]; then # they wait more than they compute
    log="$(mktemp)"
    set -m # in a process group of its own, where an interruption is not ignored
    "$python" -m pytest -q -m "$alone" "$@" >"$log" 2>&1 &
    beside=$!
    set +m
fi

step "format" "$python" -m ruff format --check .
step "lint" "$python" -m ruff check .
step "types" "$python" -m mypy --num-workers 2
step "tests" "$python" -m pytest -q "${abreast[@]}" -m "$together" "$@"
slower="tests with Ray, hosts, browser, GPU"
if [ -n "$beside" ]; then step "$slower" told; fi
# by night one after the other: some tests hold how long hosts take
if [ "$scope" = nightly ]; then step "$slower" "$python" -m pytest -q -m "$alone" "$@"; fi

if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}"
    exit 1
fi
echo "all passed in $SECONDS s"
