"""Two ranks as a user starts them, each a process of its own: what the forked ranks of the other tests stand for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests import host
from tests.engines.test_engines import LAYOUTS, launch

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_torchrun_leaves_what_forked_ranks_leave(engine: str, tmp_path: Path) -> None:
    inputs = host.make_inputs(tmp_path / "inputs")
    keys = {"max_steps": 4, "micro_batch_size": 2, **LAYOUTS[engine].keys}
    launch({"forked": {"directory": str(inputs), "output_dir": str(tmp_path / "forked"), **keys}}, tmp_path)

    config = inputs / "launched.yml"
    config.write_text(yaml.safe_dump(host.config_of(output_dir=str(tmp_path / "launched"), **keys)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "axolotl.cli.train", config.name]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=inputs, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    forked, launched = (
        [json.loads(line) for line in (tmp_path / name / "scalebio/history.jsonl").open()]
        for name in ("forked", "launched")
    )
    assert launched == forked
    assert [record["step"] for record in launched] == [1, 2, 3, 4]
    assert (tmp_path / "launched/model.safetensors").is_file()
