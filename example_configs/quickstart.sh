#!/usr/bin/env bash
# From a fresh clone to a learned mixture, on a CPU, in minutes: a tiny model and tiny data are made on the spot, and
# the host trains on example_configs/quickstart.yml.
#
# VENV and PYTHON: see tests/setup_venv.sh. Further arguments go to `scalebio quickstart`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bash tests/setup_venv.sh
venv=$(cd "${VENV:-.venv}" && pwd)
export PATH="$venv/bin:$PATH" # the host looks up its launcher there

scalebio quickstart "$@"
