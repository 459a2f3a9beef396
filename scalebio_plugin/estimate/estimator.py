"""An estimate of a run: from its config, before anything is downloaded, or of a model that is about to train."""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..algorithm.lisa import find_blocks
from ..algorithm.pieces import Pieces
from ..config.block import ScaleBiOSettings
from ..config.fused_loss import fused_loss_of
from ..config.raw import with_lisa_keys
from ..config.refusals import inside
from . import model as models
from .given import read_config
from .layout import Kind, Layout
from .memory import Parameter, StateBytes, Training, state_bytes
from .passes import Pass, PassBytes, measure, rule_of_thumb
from .setting import Setting, setting_of

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ALLOWANCE = 1.0 * 2**30  # CUDA context, cuBLAS workspaces and the allocator's rounding: a round number, not measured


@dataclass(frozen=True)
class Run:
    """Memory of one way to run a config.

    Attributes:
        state: Weights and what hangs on them. passes: Activations and logits; of nothing where only state was counted.
    """

    state: StateBytes
    passes: PassBytes = PassBytes(0.0, 0.0)

    @property
    def peak(self) -> float:
        """Bytes on one GPU, the allowance included."""
        return self.state.peak(self.passes.total) + ALLOWANCE


@dataclass(frozen=True)
class Estimate:
    """What `scalebio estimate` says.

    Attributes:
        model: Class, number of blocks and where the shapes are from.
        parameters: All of the model's. training: What the run does with them.
        run, ordinary: With the plugin, and the same config without `scalebio`.
        lisa_alone: With LISA, but one parameter set; None without LISA.
        rough: The error for which activations are those of a rule of thumb; empty: they were counted.
    """

    setting: Setting
    model: str
    parameters: Sequence[Parameter]
    training: Training
    run: Run
    ordinary: Run
    lisa_alone: Run | None
    rough: str = ""

    @property
    def total(self) -> int:
        """Elements of the model."""
        return sum(parameter.elements for parameter in self.parameters)

    @property
    def trained(self) -> int:
        return sum(parameter.elements for parameter in self.parameters if self.training.ever_trains(parameter))

    @property
    def active(self) -> int:
        """Elements that train at a time."""
        return sum(parameter.elements for parameter in self.parameters if self.training.is_active(parameter))


def estimate(path: Path, gpus: int = 1, model_config: Path | None = None) -> Estimate:
    """The estimate of the config at `path` on `gpus` GPUs; no weights, no data, nothing fetched but a config.json.

    Raises:
        FileNotFoundError, ValueError: The config, or what it names, is wrong or missing.
    """
    return of_setting(setting_of(read_config(path), path.parent, gpus), model_config)


def of_setting(setting: Setting, model_config: Path | None = None) -> Estimate:
    for noisy in ("transformers", "peft"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    cfg = setting.cfg
    trust = bool(cfg.get("trust_remote_code"))
    config, origin = models.config_of(str(cfg["base_model"]), setting.folder, model_config, trust_remote_code=trust)
    attention = "eager" if cfg.get("attn_implementation") == "eager" else None
    model = models.build(config, attention, inside(cfg, "overrides_of_model_config"))
    name = type(model).__name__
    with contextlib.redirect_stdout(sys.stderr):  # libraries of the host talk as they are imported
        trained = models.choose_what_trains(model, cfg)
    counting = _Counting(setting, trained, config)
    return counting.estimate(f"{cfg['base_model']}: {name}, {len(counting.blocks)} blocks ({origin})")


class _Counting:
    """The steps from a model on the meta device to an estimate, with what they share."""

    def __init__(self, setting: Setting, model: nn.Module, config: Any) -> None:
        self.setting, self.model, self.config = setting, model, config.get_text_config()
        path, self.blocks = find_blocks(model)
        fsdp = setting.layout.kind is Kind.FSDP2
        self.types = models.stored_types(model, setting.cfg, TYPES[setting.precision], fsdp=fsdp)
        self.parameters = models.parameters_to_load(model, path, setting.cfg, self.types)
        self.rough = ""

    def estimate(self, title: str) -> Estimate:
        setting = self.setting
        plain = Training(  # the same config without `scalebio`
            setting.optimizer,
            float32=False,
            second_set=False,
            momentum=setting.momentum,
            accumulates=setting.accumulation > 1,
        )
        ours = replace(
            plain,
            float32=True,
            second_set=True,
            inner_on_cpu=setting.block.inner_rests_on_cpu(gpu=True),
            active=largest_draw(self.parameters, setting.block),
            both_gradients=setting.precision == "fp16" and setting.layout.kind in (Kind.ONE, Kind.DDP),
        )
        ordinary = Run(self._state(plain), self._passes(plain))
        if setting.block.apply:
            run = ordinary
        else:
            same = ours.active is None and self._dtypes(True) == self._dtypes(False)
            same = same and self._pieces(ours) == self._pieces(plain)
            run = Run(self._state(ours), ordinary.passes if same else self._passes(ours))
        lisa_alone = None if ours.active is None else Run(self._state(without_inner(ours)), run.passes)
        return Estimate(setting, title, self.parameters, ours, run, ordinary, lisa_alone, self.rough)

    def _state(self, training: Training) -> StateBytes:
        return state_bytes(self.parameters, self.setting.layout, training)

    def _dtypes(self, float32: bool) -> dict[str, torch.dtype]:
        """Precision of every parameter in the module while a pass runs; sharded engines gather in the run's own."""
        gathers = self.setting.layout.kind in (Kind.FSDP2, Kind.DEEPSPEED)

        def of(parameter: Parameter) -> torch.dtype:
            if parameter.quantised or (gathers and parameter.trains):
                return TYPES[self.setting.precision]
            return torch.float32 if parameter.trains and float32 else self.types[parameter.name]

        return {parameter.name: of(parameter) for parameter in self.parameters}

    def _pieces(self, training: Training) -> Pieces | None:
        """A fused kernel of the host stands for ours; its chunked loss, of an ordinary run, has all logits."""
        key, ordinary = fused_loss_of(self.setting.cfg), not training.second_set
        if key is None or (ordinary and key == "chunked_cross_entropy"):
            return None
        return Pieces.of(self.config.vocab_size, self.setting.micro_batch * self.setting.length)

    def _passes(self, training: Training) -> PassBytes:
        setting = self.setting
        one = Pass(
            batch=setting.micro_batch,
            length=setting.length,
            autocast=None if setting.precision == "fp32" else TYPES[setting.precision],
            checkpointing=setting.checkpointing,
            plain_loss=not training.second_set,
            pieces=self._pieces(training),
        )
        model, by_name = copy.deepcopy(self.model), self._dtypes(training.float32)
        dtypes = {parameter: by_name[name] for name, parameter in model.named_parameters()}
        for name, parameter in model.named_parameters():
            active = training.active is None or name in training.active
            parameter.requires_grad_(parameter.requires_grad and active)
        try:
            return measure(model, one, self.config.vocab_size, dtypes.__getitem__)
        except (RuntimeError, NotImplementedError) as error:
            self.rough = type(error).__name__
            return rule_of_thumb(one, self.config.hidden_size, len(self.blocks), self.config.vocab_size)


def from_model(
    model: nn.Module, cfg: Mapping[str, Any], *, layout: Layout | None = None, inner_on_cpu: bool | None = None
) -> Estimate:
    """State (no activations) of a real model that is about to train, with its parameters as they stand.

    Args:
        model: With `requires_grad` as the optimizer was made for it; sharded ones give their full shapes.
        cfg: The host's config or any mapping like it: `optimizer`, `optim_args`, `scalebio`.
        inner_on_cpu: As resolved for this machine; None: as on a GPU.
    """
    block = ScaleBiOSettings.model_validate(with_lisa_keys(cfg))
    setting = Setting(cfg, Path(), block, layout or Layout(), "bf16")
    try:
        path, blocks = find_blocks(model)
    except ValueError:  # a model without blocks trains as any other, but for LISA
        path, blocks = "no blocks", nn.ModuleList()
    parameters = models.parameters_at_hand(model, path)
    on_cpu = block.inner_rests_on_cpu(gpu=True) if inner_on_cpu is None else inner_on_cpu
    active = largest_draw(parameters, block)
    ours = Training(setting.optimizer, inner_on_cpu=on_cpu, active=active, momentum=setting.momentum)
    run, alone = (Run(state_bytes(parameters, setting.layout, one)) for one in (ours, without_inner(ours)))
    title = f"{type(model).__name__}, {len(blocks)} blocks"
    return Estimate(setting, title, parameters, ours, run, alone, None if active is None else alone)


def without_inner(training: Training) -> Training:
    return replace(training, second_set=False, inner_on_cpu=False)


def largest_draw(parameters: Sequence[Parameter], block: ScaleBiOSettings) -> frozenset[str] | None:
    """Names that train in the draw of layers that takes most; of equal blocks the lowest, whose backward is longest.

    Raises:
        ValueError: More active layers than there are.
    """
    if block.lisa is None or block.apply:
        return None
    sizes: dict[int, int] = {}
    for parameter in parameters:
        if parameter.block is not None:
            sizes[parameter.block] = sizes.get(parameter.block, 0) + parameter.trains * parameter.elements
    if block.lisa.active_layers > len(sizes):
        raise ValueError(
            f"lisa.active_layers must be at most {len(sizes)} (the layers of the model), "
            f"got {block.lisa.active_layers}; lower it"
        )
    drawn: set[int | None] = {*sorted(sizes, key=lambda index: (-sizes[index], index))[: block.lisa.active_layers]}
    if block.lisa.train_embeddings:
        drawn.add(None)
    return frozenset(parameter.name for parameter in parameters if parameter.trains and parameter.block in drawn)
