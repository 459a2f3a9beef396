"""A package in a zip file, as `PYTHONPATH=packages.zip` has it, finds the files that lie in it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CODE = {
    "report": "from scalebio_plugin.report.charts import script, style; print(len(script() + style()) > 50_000)",
    "shapes": "from scalebio_plugin.estimate.model import known_models; print(len(known_models()) > 10)",
    "quickstart": (
        "from scalebio_plugin.quickstart.command import CONFIG, example_config; "
        "print(b'scalebio:' in example_config(CONFIG).read_bytes())"
    ),
}


@pytest.fixture(scope="module")
def zipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the example configs where a wheel has them."""
    path = tmp_path_factory.mktemp("zipped") / "packages.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for folder, inside in ((ROOT / "scalebio_plugin", ""), (ROOT / "example_configs", "scalebio_plugin/")):
            for file in folder.rglob("*"):
                if file.is_file() and file.suffix != ".pyc":
                    archive.write(file, f"{inside}{file.relative_to(ROOT)}")
    return path


@pytest.mark.parametrize("what", CODE)
def test_what_lies_in_the_package_is_read_from_a_zip(zipped: Path, tmp_path: Path, what: str) -> None:
    code = f"import scalebio_plugin; assert {str(zipped)!r} in scalebio_plugin.__file__; {CODE[what]}"
    env = {**os.environ, "PYTHONPATH": str(zipped)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr
