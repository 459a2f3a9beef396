"""Two ranks as a user starts them, each a process of its own: what the forked ranks of the other tests stand for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from scalebio_plugin.training.resume_from import refuse_problem
from tests import host
from tests.engines.test_engines import LAYOUTS, launch

pytestmark = pytest.mark.slow


def torchrun(inputs: Path, out: Path, keys: dict[str, Any]) -> subprocess.Popen[str]:
    """Two ranks of a config in `inputs`, that train into `out`."""
    config = inputs / "launched.yml"
    config.write_text(yaml.safe_dump(host.config_of(output_dir=str(out), **keys)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "axolotl.cli.train", config.name]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        command, cwd=inputs, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_sigterm_to_the_launcher_ends_all_with_a_checkpoint(tmp_path: Path) -> None:
    """With as many workers as the host gives its loaders; torchrun passes the signal on to the whole group."""
    inputs, history = host.make_inputs(tmp_path / "inputs"), tmp_path / "out/scalebio/history.jsonl"
    keys = {"max_steps": 10_000, "save_strategy": "steps", "save_steps": 10_000, "dataloader_num_workers": None}
    launched = torchrun(inputs, tmp_path / "out", {**keys, **LAYOUTS["ddp"].keys, "gradient_accumulation_steps": 4})
    until = time.monotonic() + 300
    while time.monotonic() < until and launched.poll() is None and not history.exists():
        time.sleep(0.1)
    launched.terminate()
    said, _ = launched.communicate(timeout=120)
    written = list((tmp_path / "out").glob("checkpoint-*"))
    assert len(written) == 1, said[-6000:]
    (checkpoint,) = written
    refuse_problem(str(checkpoint))
    assert f"SIGTERM ends the run after optimiser step {checkpoint.name.split('-')[1]}" in said


@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_torchrun_leaves_what_forked_ranks_leave(engine: str, tmp_path: Path) -> None:
    inputs = host.make_inputs(tmp_path / "inputs")
    keys = {"max_steps": 4, "micro_batch_size": 2, **LAYOUTS[engine].keys, "dataloader_num_workers": 2}
    keys["scalebio"] = {"sampling": "mixture"}  # whose batches are not at their end with the run
    launch({"forked": {"directory": str(inputs), "output_dir": str(tmp_path / "forked"), **keys}}, tmp_path)

    launched = torchrun(inputs, tmp_path / "launched", keys)
    said, _ = launched.communicate(timeout=600)
    assert launched.returncode == 0, said[-6000:]

    forked, launched = (
        [json.loads(line) for line in (tmp_path / name / "scalebio/history.jsonl").open()]
        for name in ("forked", "launched")
    )
    assert launched == forked
    assert [record["step"] for record in launched] == [1, 2, 3, 4]
    assert (tmp_path / "launched/model.safetensors").is_file()
