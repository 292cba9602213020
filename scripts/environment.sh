# Sourced by scripts/quickstart and scripts/test: makes the repository's own virtual environment, once, without root.
# Give it the name of a stamp and the extras to install: `prepare quickstart quickstart`. A second run finds the stamp and returns at once.
# HEADRACE_VENV moves the environment (default .venv in the repository); PYTHON picks the interpreter.

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

VENV="${HEADRACE_VENV:-$PWD/.venv}"
unset PYTHONHOME PYTHONPATH
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 RAY_USAGE_STATS_ENABLED=0

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    fail "no Python 3.11 or newer${PYTHON:+ at $PYTHON}: install one (on Debian 12, Ubuntu 24.04 and later: apt-get install python3 python3-venv), or name it: PYTHON=/path/to/python3.12 $0"
}

# Debian ships venv without ensurepip unless python3-venv is installed. Try what needs no root: a pip of the system, then Debian's own pip wheel.
seed_pip() {
    local python="$1" folder wheel
    "$python" -m venv --without-pip "$VENV"
    if "$python" -m pip --python "$VENV/bin/python" install --quiet pip 2>/dev/null; then return; fi
    folder="$(mktemp -d)"
    if (cd "$folder" && apt-get download python3-pip-whl && dpkg -x python3-pip-whl_*.deb .) >/dev/null 2>&1; then
        wheel="$(find "$folder" -name 'pip-*.whl' | head -n 1)"
        if [ -n "$wheel" ] && "$VENV/bin/python" "$wheel/pip" install --quiet --no-index "$wheel"; then
            rm -rf "$folder"
            return
        fi
    fi
    rm -rf "$folder" "$VENV"
    fail "this Python has no ensurepip, so no virtual environment can be made: run 'sudo apt-get install python3-venv' once, or name another Python: PYTHON=/path/to/python3 $0"
}

make_venv() {
    local python
    if [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then return; fi
    python="$(find_python)"
    say "virtual environment in $VENV ($("$python" -V))"
    rm -rf "$VENV"
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then "$python" -m venv "$VENV"; else seed_pip "$python"; fi
}

pip_install() {
    "$VENV/bin/python" -m pip install --constraint scripts/constraints.txt "$@" || fail "pip could not install $*: the lines above say why; run this again once that is mended"
}

# Everything that decides what is installed: change it and the next run installs again.
fingerprint() {
    {
        cat setup.cfg pyproject.toml scripts/constraints.txt scripts/environment.sh
        { find setup.py loader/kernels -type f ! -name '*.so' ! -name '*.pyc' 2>/dev/null || true; } | LC_ALL=C sort | xargs -r cat
        printf '%s %s %s\n' "$1" "$2" "$PWD"
        readlink -f "$VENV/bin/python" || true
    } | sha256sum | cut -d ' ' -f 1
}

prepare() {
    local name="$1" extras="$2" torch="torch" device="cpu" stamp
    if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then device="gpu"; fi
    stamp="$VENV/.headrace-$name"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(fingerprint "$extras" "$device")" ]; then return; fi
    mkdir -p "$(dirname "$VENV")"
    exec 9>"${VENV%/}.lock"
    if command -v flock >/dev/null && ! flock --nonblock 9; then
        say "another command is installing into $VENV: waiting for it"
        flock 9
    fi
    make_venv
    # torch comes first and alone: where the registry offers a CPU build, pip prefers it, and nothing later brings CUDA packages in.
    if [ "$device" = gpu ]; then
        say "installing torch for the NVIDIA GPU that was found (some minutes on a first run)"
        torch="torch!=$(sed -n 's/^torch==//p' scripts/constraints.txt)+cpu"
    else
        say "installing torch for the CPU: no NVIDIA GPU was found (about a minute on a first run)"
    fi
    pip_install "$torch"
    say "installing headrace[$extras]"
    pip_install --editable ".[$extras]"
    fingerprint "$extras" "$device" >"$stamp"
    exec 9>&-
}
