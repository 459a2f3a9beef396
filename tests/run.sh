#!/usr/bin/env bash
# Lint, types and tests, in this checkout's own virtual environment.
#
#   bash tests/run.sh [pytest arguments]      # -m slow: the long runs instead of the default suite
#
# PROCESSES       how many tests run at a time (default: 2; each takes one core, those on several ranks two)
# VENV and PYTHON: see tests/setup_venv.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

unset PYTHONDONTWRITEBYTECODE # else each process compiles anew what was not compiled when it was installed
bash tests/setup_venv.sh
venv=$(cd "${VENV:-.venv}" && pwd)
export PATH="$venv/bin:$PATH"

echo "== ruff"
ruff check .
echo "== mypy"
mypy
echo "== pytest $*"
# A file is one process's: what its tests share is made once.
python -m pytest --numprocesses "${PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
