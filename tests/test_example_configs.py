"""Every example config is one that the host takes, as it stands: no key dropped, nothing fetched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import host

pytestmark = pytest.mark.host_contract

CONFIGS = sorted((Path(__file__).parent.parent / "example_configs").glob("*.yml"))
GPU = {"bf16": True, "tf32": True, "fp8": False, "n_gpu": 1, "compute_capability": "sm_90"}

each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


@pytest.fixture(autouse=True)
def beside_a_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory of a user who has run llama-3-8b-lora.yml, which apply.yml follows."""
    raw = _raw("apply")
    mixture = tmp_path / raw["scalebio"]["apply"]
    mixture.parent.mkdir(parents=True)
    names = raw["scalebio"]["names"]
    mixture.write_text(json.dumps({"schema": 1, "weights": dict.fromkeys(names, 1 / len(names))}))
    for path in CONFIGS[0].parent.glob("*.json"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)


def _raw(stem: str) -> dict[str, Any]:
    (path,) = [path for path in CONFIGS if path.stem == stem]
    return yaml.safe_load(path.read_text())


def validated(config: dict[str, Any]) -> Any:
    """The config as the host's `load_cfg` validates it on a machine with a GPU."""
    import torch
    from axolotl.utils.config import prepare_plugins, validate_config
    from axolotl.utils.dict import DictDefault

    host.forget_plugins()
    cfg = DictDefault(config)
    prepare_plugins(cfg)
    torch_version = str(torch.__version__).split("+")[0]
    return validate_config(cfg, capabilities=dict(GPU), env_capabilities={"torch_version": torch_version})


@each_config
def test_the_host_takes_every_key(path: Path) -> None:
    raw = yaml.safe_load(path.read_text())
    cfg = validated(yaml.safe_load(path.read_text()))
    assert set(raw) - set(cfg) == set()  # the host drops what it does not know
    for entry, taken in zip(raw["datasets"], cfg.datasets, strict=True):
        assert set(entry) - set(taken) == set()


@each_config
def test_validation_entries_are_entries_of_the_host(path: Path) -> None:
    entries = yaml.safe_load(path.read_text())["scalebio"].get("validation_datasets") or []
    raw = _raw("quickstart")
    raw["datasets"] = [*raw["datasets"], *entries]  # there the host checks them
    for entry, taken in zip(raw["datasets"], validated(json.loads(json.dumps(raw))).datasets, strict=True):
        assert set(entry) - set(taken) == set()


@each_config
def test_a_misspelt_key_is_named(path: Path) -> None:
    raw = yaml.safe_load(path.read_text())
    raw["scalebio"]["max_repeat"] = 2.0
    with pytest.raises(ValueError, match="max_repeat") as error:
        validated(raw)
    assert "scalebio.max_repeat: there is no such key; did you mean scalebio.max_repeats?" in str(error.value)


@each_config
def test_the_header_says_how_to_run_it(path: Path) -> None:
    header = path.read_text().split("\n\n")[0].splitlines()
    assert all(line.startswith("#") for line in header)
    assert any(f"axolotl train {path.name}" in line for line in header)


def test_apply_follows_the_lora_run() -> None:
    first, second = _raw("llama-3-8b-lora"), _raw("apply")
    assert second["scalebio"]["apply"] == f"{first['output_dir']}/scalebio/mixture.json"
    assert second["scalebio"]["names"] == first["scalebio"]["names"]
    assert [entry["path"] for entry in second["datasets"]] == [entry["path"] for entry in first["datasets"]]
    assert second["datasets"] == first["datasets"] or second["scalebio"]["on_mismatch"] == "warn"


def test_the_quickstart_says_the_defaults() -> None:
    from scalebio_plugin.config.block import ScaleBiOSettings

    block = _raw("quickstart")["scalebio"]
    default = ScaleBiOSettings().model_dump()
    learn = block.pop("learn")
    del block["validation_datasets"]
    assert block == {key: default[key] for key in block}
    assert ScaleBiOSettings(learn=learn).learn.last(150) == ScaleBiOSettings().learn.last(150)
