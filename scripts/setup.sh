#!/bin/sh
# Create .venv if it is missing and install this project into it.    usage: scripts/setup.sh lab|dev
# Called by the Makefile, which runs it again only when pyproject.toml, constraints.txt or this file changed.
set -eu
cd "$(dirname "$0")/.."

EXTRA=${1:?usage: scripts/setup.sh lab|dev}
PYTHON=${PYTHON:-python3}
PIP_ARGS=${PIP_ARGS:-}
NEEDED_GB=6
export PYTHONUTF8=1 PIP_DISABLE_PIP_VERSION_CHECK=1

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

recent() { # does this Python run, and is it new enough?
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

if ! .venv/bin/python -c '' 2>/dev/null; then
    command -v "$PYTHON" >/dev/null 2>&1 ||
        fail "no Python found as '$PYTHON'." "Install Python 3.10 or newer, or name one: make test PYTHON=/path/to/python3.11"
    recent "$PYTHON" ||
        fail "'$PYTHON' is $("$PYTHON" --version 2>&1 | head -n 1), but Python 3.10 or newer is needed." \
            "Name a newer one: make test PYTHON=python3.11"
    "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "'$PYTHON' has no venv module." "On Debian and Ubuntu: apt install python3-venv"
    echo "setup: creating .venv with $("$PYTHON" --version 2>&1)"
    "$PYTHON" -m venv --clear .venv || fail "could not create .venv (see the lines above)."
fi
.venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip >/dev/null 2>&1 ||
    fail ".venv has no pip and none could be installed." "Remove it and run make again: rm -rf .venv"
recent .venv/bin/python ||
    fail ".venv holds $(.venv/bin/python --version 2>&1), but Python 3.10 or newer is needed." "Remove it and run make again: rm -rf .venv"

if ! .venv/bin/python -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; then
    free_gb=$(($(df -Pk . | awk 'NR == 2 {print $4}') / 1048576))
    [ "$free_gb" -ge "$NEEDED_GB" ] ||
        fail "only $free_gb GB are free here; PyTorch and the lab need $NEEDED_GB GB." "Free some space and run make again."
    if [ "$(uname -s)" = Linux ] && [ -z "$PIP_ARGS" ] && ! command -v nvidia-smi >/dev/null 2>&1; then
        echo "setup: hint: if pip starts to download the CUDA build of torch (several GB), stop it and get the CPU build: make ... PIP_ARGS=\"--extra-index-url <PyTorch's CPU wheel index>\""
    fi
fi

# The build backend is installed first, from the same pins, so that nothing unpinned takes part in the build.
echo "setup: installing steepest[$EXTRA] into .venv"
# shellcheck disable=SC2086  # PIP_ARGS is a list of words
if ! { .venv/bin/python -m pip install --quiet -c constraints.txt $PIP_ARGS hatchling editables &&
    .venv/bin/python -m pip install --no-build-isolation -c constraints.txt $PIP_ARGS -e ".[$EXTRA]"; }; then
    fail "pip could not install steepest[$EXTRA]; its reason is above." \
        "If it speaks of connections or 'no matching distribution': check the network, or name a reachable index or wheel folder," \
        "for example PIP_ARGS=\"--index-url URL\" or PIP_ARGS=\"--find-links FOLDER\". Then run make again; it continues where it stopped."
fi

touch .venv/.installed-lab # dev contains lab
[ "$EXTRA" != dev ] || touch .venv/.installed-dev
