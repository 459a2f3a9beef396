#!/usr/bin/env bash
# Builds the virtual environment of this checkout, or leaves it alone when it is up to date.
#
#   bash tests/setup_venv.sh [requirement ...]     # further requirements for pip, such as axolotl==0.21.0
#
# VENV    where it is built (default: .venv)
# PYTHON  the interpreter to build it with (default: the first Python >= 3.11 that is found)
#
# It is the same as: python3.11 -m venv .venv && .venv/bin/pip install -e '.[dev]'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${VENV:-.venv}

usable() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate candidates=(python3.11 python3.12 python3)
    if [ -n "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if usable "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "no usable Python >= 3.11 found (tried: ${candidates[*]});" \
        "install one with its venv module, or name it: PYTHON=/path/to/python3.11" >&2
    return 1
}

python=$(find_python)
version=$("$python" --version)
wanted="$version $(cksum <pyproject.toml) $*"
if [ "$(cat "$venv/.installed" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
built=$("$venv/bin/python" --version 2>/dev/null || echo "$version")
if [ "$built" != "$version" ]; then
    echo "$venv was built with $built, not $version; remove it, or build another: VENV=.venv-other" >&2
    exit 1
fi

echo "Installing into $venv with $version; this takes some minutes the first time."
"$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
# Of 40,000 modules an import compiles the few that are used, unless it may not keep them.
compile=--no-compile
if [ -n "${PYTHONDONTWRITEBYTECODE:-}" ]; then compile=--compile; fi
# Without a GPU a CPU build of torch will do: asked for by itself, it is taken where pip has been given one.
if [[ $version == "Python 3.11."* ]] && ! command -v nvidia-smi >/dev/null; then
    "${pip[@]}" install "$compile" torch==2.13.0
fi
"${pip[@]}" install "$compile" -e '.[dev]' "$@"
echo "$wanted" >"$venv/.installed"
