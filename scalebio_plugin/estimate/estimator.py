"""An estimate of a run from its config, before anything is downloaded."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..algorithm.lisa import find_blocks
from ..config.block import ScaleBiOSettings
from . import model as models
from .cost import Schedule
from .memory import state_bytes
from .optimizers import is_known
from .passes import Pass, PassBytes, measure, rough
from .records import Engine, Kind, StateBytes, Training, Weight
from .setting import Setting, read

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
ALLOWANCE = 1.0 * 2**30  # CUDA context, cuBLAS workspaces and the allocator's rounding: a round number, not measured


@dataclass(frozen=True)
class Run:
    """Memory of one way to run a config.

    Attributes:
        state: Weights and what hangs on them. passes: Activations and logits; None where only state was counted.
    """

    state: StateBytes
    passes: PassBytes | None = None

    @property
    def peak(self) -> float:
        """Bytes on one GPU, the allowance included where passes were counted."""
        if self.passes is None:
            return self.state.peak(0.0)
        return self.state.peak(self.passes.total) + ALLOWANCE


@dataclass(frozen=True)
class Estimate:
    """What `scalebio estimate` says.

    Attributes:
        model: Class, number of blocks and where the shapes are from.
        method: What trains, in words.
        run, ordinary: With the plugin, and the same config without `scalebio`.
        lisa_alone: With LISA, but one parameter set; None without LISA.
        schedule: Of the passes; None where the config applies a mixture.
        notes: What the reader has to know.
    """

    model: str
    method: str
    engine: Engine
    total: int
    trained: int
    active: int
    run: Run
    ordinary: Run
    lisa_alone: Run | None
    schedule: Schedule | None
    batch: str = ""
    notes: tuple[str, ...] = ()


def estimate(path: Path, gpus: int = 1, model_config: Path | None = None) -> Estimate:
    """The estimate of the config at `path` on `gpus` GPUs; no weights, no data, nothing fetched but a config.json.

    Raises:
        FileNotFoundError, ValueError: The config, or what it names, is wrong or missing.
    """
    return of_setting(read(path, gpus), model_config)


def of_setting(setting: Setting, model_config: Path | None = None) -> Estimate:
    for noisy in ("transformers", "peft"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    trust = bool(setting.cfg.get("trust_remote_code"))
    config, origin = models.config_of(
        str(setting.cfg["base_model"]), setting.folder, model_config, trust_remote_code=trust
    )
    for key, value in (setting.cfg.get("overrides_of_model_config") or {}).items():
        setattr(config, key, value)
    attention = "eager" if setting.cfg.get("attn_implementation") == "eager" else "sdpa"
    model = models.choose_what_trains(models.build(config, attention), setting.cfg)
    return _Counting(setting, model, config, origin).estimate()


class _Counting:
    """The steps from a model on the meta device to an estimate, with what they share."""

    def __init__(self, setting: Setting, model: nn.Module, config: Any, origin: str) -> None:
        self.setting, self.model, self.config, self.origin = setting, model, config, origin
        fsdp = setting.engine.kind is Kind.FSDP2
        self.types = models.stored_types(model, setting.cfg, TYPES[setting.precision], fsdp=fsdp)
        self.weights = models.weights_of(model, setting.cfg, self.types)
        self.active = largest_draw(self.weights, setting.block)
        self.notes: list[str] = []

    def plain(self) -> Training:
        """The same config without `scalebio`."""
        setting = self.setting
        return Training(
            setting.optimizer,
            float32=False,
            second_set=False,
            momentum=setting.momentum,
            accumulates=setting.accumulation > 1,
        )

    def ours(self) -> Training:
        setting = self.setting
        return replace(
            self.plain(),
            float32=True,
            second_set=True,
            inner_on_cpu=setting.inner_on_cpu,
            active=self.active,
            accumulates=setting.accumulation > 1,
            both_gradients=setting.precision == "fp16" and setting.engine.kind in (Kind.ONE, Kind.DDP),
        )

    def estimate(self) -> Estimate:
        setting, ours = self.setting, self.ours()
        trained = [weight for weight in self.weights if ours.ever_trains(weight)]
        ordinary = self._run(self.plain())
        run = ordinary if setting.block.apply else self._run(ours, like=ordinary)
        lisa_alone = None
        if self.active is not None:
            lisa_alone = Run(self._state(replace(ours, second_set=False, inner_on_cpu=False)), run.passes)
        path, blocks = find_blocks(self.model)
        kind = type(self.model.get_base_model() if setting.cfg.get("adapter") else self.model)  # type: ignore[operator]
        return Estimate(
            model=f"{setting.cfg['base_model']}: {kind.__name__}, {len(blocks)} blocks ({self.origin})",
            method=method_of(setting),
            engine=setting.engine,
            total=sum(weight.elements for weight in self.weights),
            trained=sum(weight.elements for weight in trained),
            active=sum(weight.elements for weight in trained if ours.is_active(weight)),
            run=run,
            ordinary=ordinary,
            lisa_alone=lisa_alone,
            schedule=None if setting.block.apply else setting.schedule,
            batch=_batch(setting),
            notes=(*self.notes, *_notes(setting)),
        )

    def _state(self, training: Training) -> StateBytes:
        return state_bytes(self.weights, self.setting.engine, training)

    def _run(self, training: Training, like: Run | None = None) -> Run:
        """Memory of one way to run; passes that would come out the same are taken over from `like`."""
        state = self._state(training)
        same = training.active is None and self._dtypes(True) == self._dtypes(False)
        if like is not None and same:
            return Run(state, like.passes)
        return Run(state, self._passes(training))

    def _dtypes(self, float32: bool) -> dict[str, torch.dtype]:
        """Precision of every parameter in the module while a pass runs; sharded engines gather in the run's own."""
        gathers = self.setting.engine.kind in (Kind.FSDP2, Kind.DEEPSPEED)
        half = TYPES[self.setting.precision]
        return {
            weight.name: half
            if weight.quantised or (gathers and weight.trains)
            else torch.float32
            if weight.trains and float32
            else self.types[weight.name]
            for weight in self.weights
        }

    def _passes(self, training: Training) -> PassBytes:
        setting = self.setting
        one = Pass(
            batch=setting.micro_batch,
            length=setting.length,
            autocast=None if setting.precision == "fp32" else TYPES[setting.precision],
            checkpointing=bool(setting.cfg.get("gradient_checkpointing")),
            plain_loss=not training.second_set,
        )
        model = copy.deepcopy(self.model)
        by_name = self._dtypes(training.float32)
        dtypes: dict[nn.Parameter, torch.dtype] = {}
        for name, parameter in model.named_parameters():
            dtypes[parameter] = by_name[name]
            parameter.requires_grad_(parameter.requires_grad and _is_active(name, training))
        try:
            return measure(model, one, self.config.vocab_size, lambda parameter: dtypes[parameter])
        except (RuntimeError, NotImplementedError) as error:
            self.notes.append(
                f"activations: rough, by rule of thumb ({type(error).__name__}: the model's code needs real data)"
            )
            _, blocks = find_blocks(self.model)
            return rough(one, self.config.hidden_size, len(blocks), self.config.vocab_size)


def _is_active(name: str, training: Training) -> bool:
    return training.active is None or name in training.active


def largest_draw(weights: Sequence[Weight], block: ScaleBiOSettings) -> frozenset[str] | None:
    """Names that train in the draw of layers that takes most; of equal blocks the lowest, whose backward is longest.

    Raises:
        ValueError: More active layers than there are.
    """
    if block.lisa is None or block.apply:
        return None
    sizes: dict[int, int] = {}
    for weight in weights:
        if weight.block is not None:
            sizes[weight.block] = sizes.get(weight.block, 0) + weight.trains * weight.elements
    if block.lisa.active_layers > len(sizes):
        raise ValueError(
            f"lisa.active_layers must be at most {len(sizes)} (the layers of the model), "
            f"got {block.lisa.active_layers}; lower it"
        )
    drawn = set(sorted(sizes, key=lambda index: (-sizes[index], index))[: block.lisa.active_layers])
    if block.lisa.train_embeddings:
        return frozenset(w.name for w in weights if w.trains and (w.block is None or w.block in drawn))
    return frozenset(w.name for w in weights if w.trains and w.block in drawn)


def method_of(setting: Setting) -> str:
    cfg, lisa = setting.cfg, setting.block.lisa
    if cfg.get("adapter"):
        bits = " on 4 bits" if cfg.get("load_in_4bit") else " on 8 bits" if cfg.get("load_in_8bit") else ""
        return f"{'QLoRA' if cfg['adapter'] == 'qlora' else 'LoRA'} r={cfg.get('lora_r')}{bits}"
    if lisa is not None and not setting.block.apply:
        return f"LISA, {lisa.active_layers} blocks at a time{' and what is outside' if lisa.train_embeddings else ''}"
    return "some parameters" if cfg.get("unfrozen_parameters") else "all parameters"


def _batch(setting: Setting) -> str:
    checkpointing = "gradient checkpointing" if setting.cfg.get("gradient_checkpointing") else "no checkpointing"
    return f"{setting.micro_batch} x {setting.length} tokens a pass, {setting.precision}, {checkpointing}"


def _notes(setting: Setting) -> list[str]:
    cfg, notes = setting.cfg, []
    if not is_known(setting.optimizer):
        notes.append(f"optimizer {setting.optimizer} is not known here: counted as AdamW, 8 bytes a parameter")
    if setting.optimizer.startswith("paged"):
        notes.append("a paged optimizer's states may move to CPU memory; here they are counted on the GPU")
    if cfg.get("load_in_8bit"):
        notes.append("activations: rough for an 8-bit base, whose kernels keep int8 copies of inputs")
    if cfg.get("activation_offloading") or cfg.get("layer_offloading"):
        notes.append("activation_offloading and layer_offloading are not counted: less on the GPU, more on the CPU")
    if setting.block.validation_batch_size is not None and cfg.get("sample_packing"):
        notes.append("validation_batch_size counts sequences, several to a packed row: its compute is an upper bound")
    if setting.block.lisa is not None and not cfg.get("gradient_checkpointing"):
        notes.append("LISA without gradient_checkpointing: the lowest layers drawn, whose backward is longest")
    return notes
