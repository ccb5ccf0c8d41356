# Sourced by the scripts beside it: makes .venv from requirements.lock where it is missing or outdated, and sets $python.
#
# .venv/installed says what it was made from; .venv/unfinished stands while it is being made, so that one whose making was
# killed is made again from nothing. Two scripts at once: the second waits for the first.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="$root/.venv"
python="$venv/bin/python"

wanted() {  # all that decides what is installed; an editable installation also depends on where it lies
    echo "$root"
    cat "$root/requirements.lock" "$root/pyproject.toml"
}

ready() {
    [ -x "$python" ] && [ ! -e "$venv/unfinished" ] && wanted | cmp -s - "$venv/installed"
}

suitable() {
    "$1" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
}

find_python() {
    local name
    for name in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.13 python3; do
        if command -v "$name" >/dev/null && suitable "$name"; then
            command -v "$name"
            return
        fi
    done
    local found
    found="$(python3 --version 2>&1)" || found="no python3"
    printf '%s\n' "error: Python 3.11, 3.12 or 3.13 with its venv module is needed; found here:" "  $found." \
        "Install one (Debian, Ubuntu: apt install python3.11 python3.11-venv), or name it:" \
        "  PYTHON=/path/to/python3.11 bash $(printf %q "$0")" >&2
    return 1
}

install_packages() {  # each step only if the one before went well: the shell's "set -e" does not reach into here
    local maker="$1" quiet=(--quiet)
    if [ -t 1 ]; then quiet=(); fi
    if [ -e "$venv/unfinished" ] || ! suitable "$python"; then
        rm -rf "$venv" && mkdir "$venv" && touch "$venv/unfinished" && "$maker" -m venv "$venv" || return
    fi
    local pip=("$python" -m pip install --disable-pip-version-check --no-input ${quiet[@]+"${quiet[@]}"})
    touch "$venv/unfinished" &&
        "${pip[@]}" -r "$root/requirements.lock" &&
        "${pip[@]}" --no-deps --editable "$root" &&
        wanted >"$venv/installed" &&
        rm "$venv/unfinished"
}

set_up() {
    local maker
    maker="$(find_python)" || return 1
    exec 9>>"$venv.lock"
    # the lock belongs to the open file, not to the process that asks for it: this shell keeps it
    if ! "$maker" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null; then
        printf '%s\n' "Another set-up is running; waiting for it:" "  $venv" >&2
        "$maker" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
    fi
    if ! ready; then
        printf '%s\n' "Setting up, from requirements.lock; this takes some minutes, once:" "  $venv" "with $maker" >&2
        install_packages "$maker" || {
            printf '%s\n' "error: the packages could not be installed (message above);" \
                "  the same command starts over." >&2
            return 1
        }
    fi
    exec 9>&-
}

cd "$root"
ready || set_up || exit 1
unset PYTHONDONTWRITEBYTECODE # else each of some dozens of processes would compile this project anew

# caches beside the packages, if they can be written: home may be read-only
if mkdir -p "$venv/cache/matplotlib" "$venv/cache/numba" 2>/dev/null && [ -w "$venv/cache/numba" ]; then
    export MPLCONFIGDIR="${MPLCONFIGDIR:-$venv/cache/matplotlib}"
    export NUMBA_CACHE_DIR="${NUMBA_CACHE_DIR:-$venv/cache/numba}"
fi
