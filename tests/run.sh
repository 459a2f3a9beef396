#!/usr/bin/env bash
# Lint, types and tests, in this checkout's own virtual environment.
#
#   bash tests/run.sh [pytest arguments]      # -m slow: the long runs instead of the default suite
#
# VENV and PYTHON: see tests/setup_venv.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tests/setup_venv.sh
venv=$(cd "${VENV:-.venv}" && pwd)
export PATH="$venv/bin:$PATH"

echo "== ruff"
ruff check .
echo "== mypy"
mypy
echo "== pytest $*"
python -m pytest "$@"
