"""Runs of the real host inside the test process, with what they left and, on request, every step's λ, w and u."""

from __future__ import annotations

import atexit
import gc
import json
import os
import shutil
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, metadata
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml

from scalebio_plugin.quickstart import planted

atexit.register(gc.unfreeze)  # see `train`

# In a few steps λ moves, on rows in the order of the host, which twins and comparisons read. What the block has by
# default is run by test_ordinary_configs.py and test_defaults.py in tests/runs.
LIVELY: dict[str, Any] = {"mixture_update": "exponentiated_gradient", "mixture_init": "uniform", "sampling": "host"}

# What every config must say, and departures from the host's defaults: each with its reason. A test that departs from
# another one says why; tests/runs/ordinary.py has configs that depart from as few as can be.
BASE: dict[str, Any] = {
    "base_model": "model",
    "plugins": ["scalebio", "tests.host.ProbePlugin"],
    "datasets": [{"path": f"data/{name}.jsonl", "type": "alpaca"} for name in ("clean", "wrong", "offtopic")],
    "scalebio": {"validation_datasets": [{"path": "data/validation.jsonl", "type": "alpaca"}], **LIVELY},
    "output_dir": "out",
    "learning_rate": 2e-3,
    # A CPU forces it: the host's `auto` turns fp16 on where it finds no GPU.
    "bf16": False,
    # Seconds.
    "max_steps": 6,
    "micro_batch_size": 4,  # of 1, six steps would show few sources
    "sequence_len": 128,  # what the rows take, with room for a second one in a packed row
    "dataset_num_proc": 1,  # of a few rows: forked workers take longer; see also `_hasten`
    "dataloader_num_workers": 0,  # the same of tiny batches; tests/runs/ordinary.py has the host's default
    "save_strategy": "no",  # what is saved and resumed is asked of runs that say so
    # What is compared.
    "logging_steps": 1,  # every loss
    "optimizer": "adamw_torch",  # the arithmetic of the literal twin, operation by operation
    "seed": 42,  # without one the host shuffles by chance; tests draw from it too
}
# Before 0.20 the host averages the means of micro-batches, later all of their tokens.
HOST_AVERAGES_MEANS = tuple(map(int, metadata.version("axolotl").split(".")[:2])) < (0, 20)
QAT: dict[str, Any] = {
    "weight_dtype": "int4",
    "activation_dtype": "int8",
    "group_size": 16,
    "fake_quant_after_n_steps": 4,
}
LORA: dict[str, Any] = {
    "adapter": "lora",
    "lora_r": 4,
    "lora_alpha": 8,
    "lora_target_linear": True,
    **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False),  # on by default, CUDA alone
}


def make_inputs(directory: Path, *, rows: int = 96, layers: int = 2, hidden: int = 32, **model: Any) -> Path:
    """Model and planted data, as the quickstart makes them, small."""
    planted.build_model(directory / "model", hidden=hidden, layers=layers, heads=2, **model)
    planted.write_data(directory / "data", rows=rows, held_out=32)
    return directory


def add_model(directory: Path, name: str, **model: Any) -> dict[str, str]:
    """Another model in `directory`, and the keys that choose it: its runs share the prepared data of the others."""
    if not (directory / name).exists():
        planted.build_model(directory / name, **{"hidden": 32, "heads": 2, **model})
    return {"base_model": name, "tokenizer_config": "model"}


@dataclass
class Run:
    """What a finished run of the host left.

    Attributes:
        trainer: The host's trainer.
        weights: λ as weights, after each optimiser step.
        model, inner: Parameters of w and u by name, after each optimiser step (with `probe: {parameters: true}`).
        losses: The logged training losses.
    """

    cfg: Any
    trainer: Any
    directory: Path
    weights: list[torch.Tensor] = field(default_factory=list)
    model: list[dict[str, torch.Tensor]] = field(default_factory=list)
    inner: list[dict[str, torch.Tensor]] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        return [entry["loss"] for entry in self.trainer.state.log_history if "loss" in entry]

    @property
    def grad_norms(self) -> list[float]:
        return [entry["grad_norm"] for entry in self.trainer.state.log_history if "loss" in entry]

    @property
    def folder(self) -> Path:
        return Path(self.cfg.output_dir) / "scalebio"


class Probe:
    """What the test asks of a run: hooks on its trainer, or a model changed before training."""

    parameters = False
    float64 = False
    stop_after: int | None = None
    on_batch: Callable[[Any, dict[str, Any]], None] | None = None
    nan_from: tuple[int, str] | None = None
    after_step: Callable[[Any], None] | None = None
    at_end: Callable[[Any], None] | None = None
    run: Run | None = None


def config_of(**overrides: Any) -> dict[str, Any]:
    """BASE with `overrides`; a `scalebio` dict is merged into BASE's (gone without the plugin), None removes a key."""
    config = {**BASE, **overrides}
    if "scalebio" in config["plugins"]:
        block = overrides.get("scalebio") or {}
        config["scalebio"] = block if "apply" in block else {**BASE["scalebio"], **block}
    else:
        del config["scalebio"]
    return {key: value for key, value in config.items() if value is not None}


def forget_plugins() -> None:
    """The host's one manager of the process keeps the plugins of the run before."""
    from axolotl.integrations.base import PluginManager

    if PluginManager._instance is not None:
        PluginManager._instance.plugins = OrderedDict()
    PluginManager._cfg = None


def forget_parameters() -> None:
    """bitsandbytes notes parameters by `id`, and one of the run before may have had the same."""
    from bitsandbytes.optim import GlobalOptimManager

    GlobalOptimManager.get_instance().initialize()


@cache
def _hasten() -> None:
    """What takes longer than the steps of a run and ends as it did the last time, done once a process or not at all."""
    import accelerate.utils.imports as packages
    import axolotl.utils.config as validation
    from axolotl.integrations.base import PluginManager
    from datasets import Dataset
    from pluggy import PluginManager as Hooks
    from transformers import PretrainedConfig

    packages._is_package_available = cache(packages._is_package_available)  # read from the disk in every pass
    merge = validation.merge_input_args  # builds the host's two large models anew
    merged = cache(lambda blocks: merge())
    validation.merge_input_args = lambda: merged(tuple(PluginManager.get_instance().get_input_args()))

    PretrainedConfig.__repr__ = object.__repr__  # for a log that nobody keeps
    find, nothing = Hooks.load_setuptools_entrypoints, set()  # looks into every package

    def found(self: Any, group: str, name: str | None = None) -> int:
        where = (group, name, *sys.path)
        count = 0 if where in nothing else find(self, group, name)
        nothing.update([] if count else [where])
        return count

    Hooks.load_setuptools_entrypoints = found
    for method in (Dataset.map, Dataset.save_to_disk):  # start a pool even for one process

        def here(self: Any, *args: Any, num_proc: int | None = None, method: Any = method, **kwargs: Any) -> Any:
            return method(self, *args, num_proc=None if num_proc == 1 else num_proc, **kwargs)

        setattr(Dataset, method.__name__, here)


def warm() -> None:
    """In a server of forks: what of their first run takes as long as another run, without its threads."""
    import axolotl.utils.config as validation
    from axolotl.integrations.base import PluginManager

    from scalebio_plugin.hooks.manager import build_manager

    for module in ("axolotl.cli.config", *(f"scalebio_plugin.training.{name}" for name in ("trainer", "connect"))):
        import_module(module)
    _hasten()
    PluginManager.get_instance().register("scalebio")
    validation.merge_input_args()
    forget_plugins()
    build_manager()


def load(directory: Path, config: dict[str, Any]) -> Any:
    """The host's validated config."""
    from axolotl.cli.config import load_cfg

    _hasten()
    forget_plugins()
    path = directory / f"config{os.environ.get('RANK', '')}.yml"  # ranks start together
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return load_cfg(str(path))


def no_picture(history: Any, names: Any) -> bytes:
    from PIL import Image

    Image.new("RGB", (1, 1)).save(buffer := BytesIO(), "PNG")
    return buffer.getvalue()


def train(
    directory: Path,
    *,
    parameters: bool = False,
    float64: bool = False,
    stop_after: int | None = None,
    on_batch: Callable[[Any, dict[str, Any]], None] | None = None,
    nan_from: tuple[int, str] | None = None,
    after_step: Callable[[Any], None] | None = None,
    at_end: Callable[[Any], None] | None = None,
    picture: bool = False,
    whole_config: dict[str, Any] | None = None,
    **overrides: Any,
) -> Run:
    """Train in `directory` (made by `make_inputs`) as `axolotl train` would.

    Args:
        parameters: Keep w and u after every step.
        float64: Train in double precision.
        stop_after: Raise KeyboardInterrupt at the end of this step, as a killed run.
        on_batch: Called with the trainer and every collated training batch.
        nan_from: (finished steps, word): from then on the word's embedding is NaN.
        after_step: Called with the trainer at the end of every step.
        at_end: Called with the trainer after the last step, while the engine still stands.
        picture: Draw `mixture.png` too, for half a second.
        whole_config: Instead of BASE with `overrides`.
    """
    import transformers
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager
    from axolotl.train import train as host_train

    gc.collect()
    gc.freeze()  # what is imported by now stays: the host asks for ten collections a run, half a second each
    gc.enable()  # in forks of a server that imported without
    before = Path.cwd()
    os.chdir(directory)
    Probe.parameters, Probe.float64, Probe.stop_after, Probe.run = parameters, float64, stop_after, None
    Probe.on_batch, Probe.nan_from = staticmethod(on_batch) if on_batch else None, nan_from
    Probe.after_step = staticmethod(after_step) if after_step else None
    Probe.at_end = staticmethod(at_end) if at_end else None
    transformers.set_seed(int(overrides.get("seed", BASE["seed"])))  # as in a fresh process: adapters start at random
    try:
        cfg = load(directory, whole_config or config_of(**overrides))
        cfg.output_dir = str(directory / cfg.output_dir)
        manager = PluginManager.get_instance()
        meta = (manager.load_datasets(cfg, preprocess=False) if cfg.plugins else None) or load_datasets(cfg=cfg)
        with nullcontext() if picture else patch("scalebio_plugin.report.page.drawn_mixture", no_picture):
            _, _, trainer = host_train(cfg=cfg, dataset_meta=meta)
    finally:
        os.chdir(before)
    run = Probe.run or Run(cfg, trainer, directory)
    run.trainer, run.directory, run.cfg = trainer, directory, cfg
    return run


def saved(checkpoint: Path, name: str) -> Any:
    """Of a checkpoint the host's file of that name, or our state."""
    from scalebio_plugin.training.state_file import read_state

    if name.endswith(".pt"):
        return torch.load(checkpoint / name, weights_only=True)
    return read_state(checkpoint / "scalebio" / f"{name}.safetensors")


def as_if_killed(whole: Path, killed: Path, after: int) -> None:
    """What a run would have left that did as `whole` did and was killed two steps after that checkpoint."""
    for checkpoint in whole.glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) <= after:
            shutil.copytree(checkpoint, killed / checkpoint.name)
    (killed / "scalebio").mkdir()
    lines = (whole / "scalebio/history.jsonl").read_text().splitlines(keepends=True)
    written = "".join(line for line in lines if json.loads(line)["step"] <= after + 2)
    (killed / "scalebio/history.jsonl").write_text(written)


def _make_probe_plugin() -> type:
    from axolotl.integrations.base import BasePlugin
    from transformers import TrainerCallback

    class Recorder(TrainerCallback):
        def __init__(self, trainer: Any):
            self.trainer = trainer
            Probe.run = Run(None, trainer, Path())

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if Probe.nan_from is not None and state.global_step == Probe.nan_from[0]:
                word = self.trainer.processing_class(" " + Probe.nan_from[1], add_special_tokens=False)["input_ids"]
                self.trainer.model.get_input_embeddings().weight.data[word] = float("nan")

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == Probe.stop_after:
                raise KeyboardInterrupt
            learning = getattr(self.trainer, "learning", None)
            if learning is not None:
                Probe.run.weights.append(learning.run.weights_S.clone())
            if Probe.parameters:
                named = self.trainer.model.named_parameters()
                Probe.run.model.append({name: p.detach().clone() for name, p in named if _trained(learning, name, p)})
                inner = {} if learning is None or learning.inner is None else learning.inner.values
                Probe.run.inner.append({name: value.detach().clone() for name, value in inner.items()})
            if Probe.after_step is not None:
                Probe.after_step(self.trainer)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if Probe.at_end is not None:
                Probe.at_end(self.trainer)

    class ProbePlugin(BasePlugin):
        def post_model_load(self, cfg: Any, model: Any) -> None:
            if Probe.float64:
                model.double()

        def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list:
            return [Recorder(trainer)]

        def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
            if Probe.on_batch is None:
                return
            collate = trainer.data_collator

            def watched(features: Any) -> Any:
                batch = collate(features)
                Probe.on_batch(trainer, batch)
                return batch

            trainer.data_collator = watched

    return ProbePlugin


def _trained(learning: Any, name: str, parameter: torch.nn.Parameter) -> bool:
    return parameter.requires_grad if learning is None else name in learning.trainable


def __getattr__(name: str) -> Any:
    """`ProbePlugin`, made when the host asks for it: importing this module imports no host."""
    if name == "ProbePlugin":
        globals()[name] = _make_probe_plugin()
        return globals()[name]
    raise AttributeError(name)
