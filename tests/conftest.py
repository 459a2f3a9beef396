"""What holds for every test: nothing is fetched, reported or run on an accelerator.

Set before anything imports the host, which reads most of these at import.
"""

import os
from pathlib import Path

import pytest

os.environ.update(
    {
        "AXOLOTL_DO_NOT_TRACK": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DO_NOT_TRACK": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_OFFLINE": "1",
        "WANDB_MODE": "offline",
    }
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: more threads only wait for each other


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model, planted data and the host's prepared caches, shared by the runs of a session.

    Give every run an `output_dir` of its own.
    """
    from . import host

    return host.make_inputs(tmp_path_factory.mktemp("inputs"))
