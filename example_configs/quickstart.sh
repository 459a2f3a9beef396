#!/usr/bin/env bash
# From a fresh clone to a learned mixture, on a CPU, in minutes: a tiny model and tiny data are made on the spot, and
# the host trains on example_configs/quickstart.yml.
#
# A virtual environment that has this checkout and a host it supports is taken as it is; else it is built.
# VENV and PYTHON: see tests/setup_venv.sh. Further arguments go to `scalebio quickstart`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

works() {
    [ -x "$1/bin/scalebio" ] && "$1/bin/python" -P - 2>/dev/null <<'PYTHON'
from importlib.metadata import requires, version
from pathlib import Path

import scalebio_plugin
from packaging.requirements import Requirement

assert Path(scalebio_plugin.__file__).parents[1].samefile(".")
for needed in map(Requirement, requires("scalebio-axolotl")):
    if needed.marker is None or needed.marker.evaluate({"extra": ""}):
        assert needed.specifier.contains(version(needed.name), prereleases=True)
PYTHON
}

works "${VENV:-.venv}" || bash tests/setup_venv.sh
venv=$(cd "${VENV:-.venv}" && pwd)
export PATH="$venv/bin:$PATH" # the host looks up its launcher there

scalebio quickstart "$@"
