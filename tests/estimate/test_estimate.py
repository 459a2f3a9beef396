"""`scalebio estimate`: what it counts is what is there, tensor by tensor and at the peak of a real pass."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from scalebio_plugin import cli
from scalebio_plugin.algorithm.bilevel import targets_of, token_losses, weighted_loss
from scalebio_plugin.algorithm.inner import InnerParameters
from scalebio_plugin.algorithm.lisa import LayerPlan
from scalebio_plugin.engines.transfer import BUFFERS, CHUNK
from scalebio_plugin.estimate import cost, model, optimizers, passes, records, setting
from scalebio_plugin.estimate.at_hand import from_model
from scalebio_plugin.estimate.estimator import estimate, of_setting
from scalebio_plugin.estimate.lines import lines_of, summary_line
from scalebio_plugin.estimate.memory import state_bytes
from scalebio_plugin.estimate.records import Engine, Kind, Training, Weight
from scalebio_plugin.training.prepare_model import freeze_outside_blocks
from tests import host

EXAMPLES = sorted((Path(__file__).parents[2] / "example_configs").glob("*.yml"))
VOCABULARY = 2048
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {
        **{"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4},
        **{"intermediate_size": 688, "vocab_size": VOCABULARY, "max_position_embeddings": 256},
    },
    "gpt2": {
        **{"n_embd": 256, "n_layer": 8, "n_head": 8, "vocab_size": VOCABULARY, "n_positions": 256},
        **{"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    },
    "gpt_neox": {
        **{"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 1024},
        **{"vocab_size": VOCABULARY, "max_position_embeddings": 256},
    },
    "gemma2": {
        **{"hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4},
        **{"head_dim": 32, "intermediate_size": 688, "vocab_size": VOCABULARY, "max_position_embeddings": 256},
    },
}
LORA = {"adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}


def config_of(kind: str) -> Any:
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[kind].from_dict({"model_type": kind, **SHAPES[kind]})


def on_meta(kind: str, cfg: dict[str, Any]) -> nn.Module:
    return model.choose_what_trains(model.build(config_of(kind), "sdpa"), cfg)


def real(kind: str, cfg: dict[str, Any]) -> nn.Module:
    """The same modules with memory, random weights in float32."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_config(config_of(kind), attn_implementation="sdpa")
    if not cfg:
        return plain
    from peft import LoraConfig, get_peft_model

    targets = sorted(model.linear_names(plain)) or ["c_attn", "c_proj", "c_fc"]
    return get_peft_model(plain, LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM"))


def lora(kind: str) -> dict[str, Any]:
    return LORA if kind != "gpt2" else {**LORA, "lora_target_modules": ["c_attn", "c_proj", "c_fc"]}


# ---- state


def bytes_of(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


def one_step(module: nn.Module, optimizer: torch.optim.Optimizer, inner: InnerParameters) -> int:
    """u's and w's step. Returns the bytes of the gradients that were there at a time."""
    ids = torch.randint(VOCABULARY, (1, 16))

    def backward() -> int:
        module(input_ids=ids, labels=ids).loss.backward()
        return bytes_of(parameter.grad for parameter in module.parameters())

    with inner.in_place():
        at_a_time = backward()
        inner.step()
    at_a_time = max(at_a_time, backward())
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return at_a_time


def drawn_layers(module: nn.Module, trainable: dict[str, nn.Parameter], settings: dict[str, Any]) -> list[set[str]]:
    """One draw without LISA; else every pair of neighbours, so that u has held every layer in the end."""
    if "lisa" not in settings:
        return [set(trainable)]
    plan = LayerPlan.of(module, trainable)
    pairs = [(first, first + 1) for first in range(0, len(plan.blocks), 2)]
    return [plan.active(pair, train_others=settings["lisa"]["train_embeddings"]) for pair in pairs]


@pytest.mark.parametrize(
    ("adapter", "block"),
    [
        ({}, {}),
        (LORA, {}),
        ({}, {"lisa": {"active_layers": 2, "train_embeddings": False}}),
        ({}, {"lisa": {"active_layers": 2, "train_embeddings": True}}),
    ],
    ids=["full", "lora", "lisa", "lisa with embeddings"],
)
def test_state_counted_tensor_by_tensor_is_the_formula(adapter: dict[str, Any], block: dict[str, Any]) -> None:
    module = real("llama", adapter)
    if block and not block["lisa"]["train_embeddings"]:
        freeze_outside_blocks(module)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    cfg = {"optimizer": "adamw_torch", "scalebio": block, **adapter}
    found = from_model(module, cfg, inner_on_cpu=False).run.state
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-4)
    inner = InnerParameters(trainable, optimizer)
    gradients = 0
    for active in drawn_layers(module, trainable, block):
        for name, parameter in trainable.items():
            parameter.requires_grad_(name in active)
        inner.forget(set(trainable) - active)
        inner.follow(active)
        gradients = one_step(module, optimizer, inner)
    counted = {
        "frozen": bytes_of(p for name, p in module.named_parameters() if name not in trainable),
        "trained": bytes_of(trainable.values()),
        "gradients": gradients,
        "optimizer": sum(bytes_of(state.values()) for state in optimizer.state.values()),
        "inner_values": bytes_of(inner.values.values()),
        "inner_optimizer": sum(bytes_of(state.values()) for state in inner.states.values()),
    }
    for name, amount in counted.items():
        assert getattr(found, name).gpu == pytest.approx(amount, rel=0.02), name


def test_from_the_config_or_from_the_model_the_state_is_the_same(tmp_path: Path) -> None:
    module = real("llama", LORA)
    cfg = {"optimizer": "adamw_torch", "bf16": False, "fp16": False, **LORA}
    one = of_setting(setting.setting_of({**cfg, **_rows(tmp_path)}, tmp_path, 1))
    assert one.run.state == from_model(module, cfg).run.state
    assert (one.total, one.trained) == (sum(p.numel() for p in module.parameters()), one.active)


def _rows(folder: Path, kind: str = "llama") -> dict[str, Any]:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text(json.dumps({"model_type": kind, **SHAPES[kind]}))
    return {"base_model": "model", "sequence_len": 64, "micro_batch_size": 2}


def test_keys_left_out_count_as_the_hosts_defaults(tmp_path: Path) -> None:
    from axolotl.utils.schemas.config import AxolotlInputConfig

    fields = AxolotlInputConfig.model_fields
    defaults = {key: fields[key].default for key in ("sequence_len", "micro_batch_size", "gradient_accumulation_steps")}
    short = {"base_model": _rows(tmp_path)["base_model"], "sample_packing": True}
    found, spelt = (of_setting(setting.setting_of(cfg, tmp_path, 1)) for cfg in (short, {**short, **defaults}))
    assert found == spelt
    assert found.run.peak > 0


@pytest.mark.parametrize("accumulation", [1, 3, 4, 10])
@pytest.mark.parametrize("gpus", [1, 2])
def test_validation_rows_are_a_quarter_or_a_micro_batch(tmp_path: Path, accumulation: int, gpus: int) -> None:
    cfg = {**_rows(tmp_path), "gradient_accumulation_steps": accumulation, "sample_packing": True}
    rows = 2 * accumulation * gpus
    wanted = max(2 * gpus, math.ceil(rows / 4)) / rows
    assert setting.setting_of(cfg, tmp_path, gpus).validation_share == pytest.approx(wanted)


class TestOptimizers:
    SHAPES = [(64, 256), (4096,), (7,)]

    @pytest.mark.parametrize(
        ("name", "kind", "options"),
        [
            ("adamw_torch", torch.optim.AdamW, {}),
            ("sgd", torch.optim.SGD, {}),
            ("adagrad", torch.optim.Adagrad, {}),
            ("rmsprop", torch.optim.RMSprop, {}),
        ],
    )
    def test_torch(self, name: str, kind: Any, options: dict[str, Any]) -> None:
        self._same(name, kind([torch.nn.Parameter(torch.ones(shape)) for shape in self.SHAPES], lr=1e-3, **options))

    def test_adafactor(self) -> None:
        from transformers.optimization import Adafactor

        self._same("adafactor", Adafactor([torch.nn.Parameter(torch.ones(shape)) for shape in self.SHAPES]))

    def test_eight_bits(self) -> None:
        from bitsandbytes.optim import AdamW8bit, Lion8bit

        for name, kind in (("adamw_bnb_8bit", AdamW8bit), ("lion_8bit", Lion8bit)):
            parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in self.SHAPES]
            optimizer = kind(parameters, lr=1e-3)
            for index, parameter in enumerate(parameters):
                optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
            own = {key for state in optimizer.state.values() for key in state if not key.startswith("qmap")}
            counted = sum(bytes_of(state.get(key) for key in own) for state in optimizer.state.values())
            assert sum(optimizers.state_of(name, shape) for shape in self.SHAPES) == counted, name

    def _same(self, name: str, optimizer: torch.optim.Optimizer) -> None:
        parameters = optimizer.param_groups[0]["params"]
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        for parameter in parameters:
            of_tensors = [value for value in optimizer.state[parameter].values() if isinstance(value, torch.Tensor)]
            counted = bytes_of(value for value in of_tensors if value.dim() > 0 or parameter.numel() == 1)
            assert optimizers.state_of(name, tuple(parameter.shape)) == counted

    def test_an_unknown_one_is_counted_as_adamw(self) -> None:
        assert not optimizers.is_known("tomorrow")
        assert optimizers.state_of("tomorrow", (3, 5)) == 8 * 15
        assert optimizers.state_of("sgd", (3, 5), momentum=True) == 4 * 15

    def test_the_state_of_embeddings_stays_in_float32_with_bitsandbytes(self) -> None:
        assert optimizers.state_of("adamw_bnb_8bit", (100, 100), embedding=True) == 8 * 10_000
        assert optimizers.state_of("adamw_torch_8bit", (100, 100), embedding=True) < 2.1 * 10_000

    def test_muon_keeps_one_state_for_the_matrices_of_blocks_alone(self) -> None:
        assert optimizers.state_of("muon", (3, 5)) == 4 * 15
        assert optimizers.state_of("muon", (3, 5), in_block=False) == 8 * 15


def test_four_bits_are_those_of_bitsandbytes() -> None:
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(688, 256)
    packed, constants = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    counted = packed.nbytes + constants.absmax.nbytes + constants.state2.absmax.nbytes
    assert model._packed(weight.shape, True, None) == counted
    assert counted * 8 / weight.numel() == pytest.approx(4.127, abs=1e-3)


# ---- engines, by arithmetic

WEIGHTS = [
    Weight("embed", (1000, 10), 20_000.0, True),
    Weight("block.0", (100, 10), 2_000.0, True, block=0),
    Weight("block.1", (100, 10), 2_000.0, True, block=1),
    Weight("base", (100, 10), 2_000.0, False, block=1),
]
TRAINED = 12_000


def of(kind: Kind, training: Training | None = None, **engine: Any) -> records.StateBytes:
    return state_bytes(WEIGHTS, Engine(kind, **engine), training or Training())


class TestEngines:
    def test_one_process_holds_all_of_both_sets(self) -> None:
        state = of(Kind.ONE)
        assert (state.trained.gpu, state.gradients.gpu, state.optimizer.gpu) == (48_000, 48_000, 96_000)
        assert (state.inner_values.gpu, state.inner_optimizer.gpu) == (48_000, 96_000)
        assert state.frozen.gpu == 2_000
        assert state.buckets.gpu == state.exchange.gpu == 0

    def test_the_host_alone_trains_in_the_precision_it_loaded(self) -> None:
        state = of(Kind.ONE, Training(float32=False, second_set=False))
        assert (state.trained.gpu, state.gradients.gpu, state.optimizer.gpu) == (24_000, 24_000, 48_000)
        assert state.inner_values.gpu == state.inner_optimizer.gpu == 0

    def test_ddp_adds_a_copy_of_the_gradients_and_lisa_none(self) -> None:
        assert of(Kind.DDP, world=4).buckets.gpu == 48_000
        assert of(Kind.DDP, Training(active=frozenset({"block.0"})), world=4).buckets.gpu == 0

    def test_fsdp2_shares_everything_and_gathers_units(self) -> None:
        state = of(Kind.FSDP2, Training(accumulates=False), world=4)
        whole = of(Kind.ONE)
        for part in ("frozen", "trained", "gradients", "optimizer", "inner_values", "inner_optimizer"):
            assert getattr(state, part).gpu == getattr(whole, part).gpu / 4, part
        block, root = 2 * 2_000, 20_000  # block 1: what trains and what is frozen, in two bytes
        gradients = root + 2_000 + root  # whole, and the largest unit's reduction buffer
        assert state.gathered.gpu == 2 * block + root + gradients
        assert state.exchange.gpu == 10_000

    def test_replicas_hold_all_of_it_each(self) -> None:
        whole, state = of(Kind.ONE), of(Kind.FSDP2, world=4, replicas=2)
        assert (state.trained.gpu, state.optimizer.gpu) == (whole.trained.gpu / 2, whole.optimizer.gpu / 2)
        with pytest.raises(ValueError, match="dp_replicate_size: 2 must divide the GPUs, got 1"):
            setting.engine_of({"fsdp_config": {"x": 1}, "dp_replicate_size": 2}, Path(), 1, 2.0)

    def test_offloaded_shards_are_exchanged_in_cpu_memory(self) -> None:
        state = of(Kind.FSDP2, Training(inner_on_cpu=True), world=4, offload_weights=True)
        assert state.exchange.gpu == state.buckets.gpu == 0

    def test_fsdp2_keeps_whole_gradients_while_passes_accumulate(self) -> None:
        assert of(Kind.FSDP2, world=4).gathered.gpu - of(
            Kind.FSDP2, Training(accumulates=False), world=4
        ).gathered.gpu == pytest.approx(2_000)

    @pytest.mark.parametrize(
        ("stage", "trained", "gradients", "states"),
        [(1, 2 + 4 / 4, 2, 8 / 4), (2, 2 + 4 / 4, 2 / 4, 8 / 4), (3, 2 / 4 + 4 / 4, 2 / 4, 8 / 4)],
    )
    def test_zero_shares_by_stage(self, stage: int, trained: float, gradients: float, states: float) -> None:
        state = of(Kind.DEEPSPEED, world=4, stage=stage)
        assert state.trained.gpu == state.inner_values.gpu == trained * TRAINED
        assert state.gradients.gpu == gradients * TRAINED
        assert state.optimizer.gpu == state.inner_optimizer.gpu == states * TRAINED
        assert state.frozen.gpu == (500 if stage == 3 else 2_000)

    def test_offloading_moves_bytes_and_loses_none(self) -> None:
        here, there = (
            of(Kind.DEEPSPEED, world=2, stage=3),
            of(Kind.DEEPSPEED, world=2, stage=3, offload_optimizer=True, offload_weights=True),
        )
        for part in ("frozen", "trained", "optimizer", "inner_values", "inner_optimizer"):
            assert getattr(there, part) == records.Bytes(cpu=getattr(here, part).gpu), part

    def test_lisa_holds_states_for_what_is_active_and_values_in_cpu_memory(self) -> None:
        state = of(Kind.ONE, Training(active=frozenset({"block.0"}), inner_on_cpu=True))
        assert (state.frozen.gpu, state.trained.gpu) == (2_000 + 20_000, 8_000)  # the embeddings never train
        assert (state.gradients.gpu, state.optimizer.gpu, state.inner_optimizer.gpu) == (4_000, 8_000, 8_000)
        assert state.inner_values == records.Bytes(0.0, 8_000)  # of the blocks; the embeddings never train
        assert (state.exchange.gpu, state.buckets.gpu) == (0, BUFFERS * CHUNK)

    def test_fp16_holds_both_gradients(self) -> None:
        assert of(Kind.ONE, Training(both_gradients=True)).gradients.gpu == 2 * 48_000

    def test_the_peak_is_the_worst_moment(self) -> None:
        state = of(Kind.ONE, Training("adamw_torch"))
        assert state.step.gpu == 48_000  # torch steps all tensors at once, with their square roots beside them
        assert state.peak(0.0) == state.peak(48_000) == state.held.gpu + 48_000
        assert state.peak(50_000) == state.held.gpu + 50_000
        assert of(Kind.ONE).step.gpu == 0


# ---- activations


def spent(module: nn.Module, one: passes.Pass) -> int:
    """Peak of what torch's allocator gave in a pass, by its profiler; parameters and gradients were there before."""
    from torch.profiler import ProfilerActivity, profile

    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    ids = torch.zeros(one.batch, one.length, dtype=torch.long)
    sequence = torch.arange(one.batch)[:, None].expand_as(ids)
    targets = targets_of(ids, torch.zeros_like(ids), sequence, per_sequence=False)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        with torch.autocast("cpu", torch.bfloat16, enabled=one.autocast is not None):
            logits = module(input_ids=ids, use_cache=False).logits
        losses = token_losses(logits.float(), targets.labels)
        del logits
        weighted_loss(losses, targets, torch.ones(1, dtype=torch.float64), targets.units.sum()).backward()
    now = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["all kept", "checkpointing"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    "kind",
    ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt2", "gpt_neox", "gemma2"))],
)
def test_a_pass_takes_what_was_counted_without_memory(
    kind: str, adapter: bool, checkpointing: bool, half: bool
) -> None:
    cfg = lora(kind) if adapter else {}
    one = passes.Pass(4, 256, torch.bfloat16 if half else None, checkpointing)
    base = torch.bfloat16 if half else torch.float32
    counted = passes.measure(
        on_meta(kind, cfg), one, VOCABULARY, lambda parameter: torch.float32 if parameter.requires_grad else base
    )
    module = real(kind, cfg).train()
    for parameter in module.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(base)
    if checkpointing:
        module.gradient_checkpointing_enable()
        module.enable_input_require_grads()
    assert counted.total == pytest.approx(spent(module, one), rel=0.15)
    assert not counted.rough


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_what_is_kept_for_backward_is_what_autograd_saves(adapter: bool) -> None:
    cfg = LORA if adapter else {}
    one = passes.Pass(2, 128, None)
    counted = passes.measure(on_meta("llama", cfg), one, VOCABULARY, lambda parameter: torch.float32)
    module = real("llama", cfg).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.zeros(2, 128, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = module(input_ids=ids, use_cache=False).logits
        losses = token_losses(logits, ids[:, 1:])
        del logits
    assert losses.requires_grad
    assert counted.kept == pytest.approx(sum(saved.values()), rel=0.15)


def test_logits_grow_with_the_vocabulary_and_activations_do_not() -> None:
    small, large = (
        passes.measure(_of_vocabulary(size), passes.Pass(1, 256, None), size, lambda p: torch.float32)
        for size in (30_000, 60_000)
    )
    assert large.logits == pytest.approx(2 * small.logits, rel=1e-6)
    assert large.logits == pytest.approx(256 * 60_000 * 12, rel=0.01)  # probabilities, and two gradients of them
    assert large.activations == pytest.approx(small.activations, rel=0.01)


def _of_vocabulary(size: int) -> nn.Module:
    config = config_of("llama")
    config.vocab_size, config.num_hidden_layers = size, 2
    return model.build(config, "sdpa")


def test_frozen_layers_below_lisas_keep_nothing() -> None:
    kept = []
    for layer in (0, 7):
        module = on_meta("llama", {})
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(f"layers.{layer}." in name)
        kept.append(passes.measure(module, passes.Pass(2, 128, None), VOCABULARY, lambda p: torch.float32).kept)
    assert kept[1] < kept[0] / 3


def test_measuring_leaves_torch_as_it_was() -> None:
    before = nn.functional.scaled_dot_product_attention, nn.functional.dropout, nn.functional.layer_norm
    passes.measure(on_meta("llama", {}), passes.Pass(1, 8), VOCABULARY, lambda p: torch.float32)
    assert (nn.functional.scaled_dot_product_attention, nn.functional.dropout, nn.functional.layer_norm) == before


# ---- compute


@pytest.mark.parametrize(
    ("schedule", "learning", "whole"),
    [
        (cost.Schedule(0.25), 2.25, 2.25),
        (cost.Schedule(0.25, symmetric=True), 2.5, 2.5),
        (cost.Schedule(0.25, fraction=0.5), 2.25, 1.625),
        (cost.Schedule(0.3, pulls=False), 2.1, 2.1),
        (cost.Schedule(0.25, steps=10), 2.25, None),
        (cost.Schedule(0.25, steps=10, max_steps=100), 2.25, 1.125),
        (cost.Schedule(0.25, warmup=20, max_steps=100), 2.25, 2.0),
        (cost.Schedule(0.25, warmup=20, fraction=0.5, max_steps=100), 2.25, 1.5),
        (cost.Schedule(0.25, warmup=20), 2.25, None),
    ],
)
def test_passes_per_step(schedule: cost.Schedule, learning: float, whole: float | None) -> None:
    assert cost.while_learning(schedule) == pytest.approx(learning)
    assert cost.whole_run(schedule) == (None if whole is None else pytest.approx(whole))


# ---- models and configs

PARAMETERS = {
    "openai-community/gpt2": 124_439_808,
    "NousResearch/Meta-Llama-3-8B": 8_030_261_248,
    "EleutherAI/gpt-neox-20b": 20_554_567_680,
    "01-ai/Yi-34B": 34_388_917_248,
    "google/gemma-2-9b": 9_241_705_984,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_known_shapes_give_the_published_number_of_parameters(name: str) -> None:
    config, origin = model.config_of(name, Path(), None)
    assert origin == "known shapes"
    assert sum(p.numel() for p in model.build(config, "sdpa").parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_names_a_known_model(path: Path) -> None:
    base = yaml.safe_load(path.read_text())["base_model"]
    assert base in model.known_models() or path.stem == "quickstart"


def test_a_given_config_goes_before_a_folder_and_a_folder_before_the_known(tmp_path: Path) -> None:
    name = "openai-community/gpt2"
    assert model.config_of(name, tmp_path, None)[1] == "known shapes"
    folder = tmp_path / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 3}))
    assert model.config_of(name, tmp_path, None)[0].n_layer == 3
    (tmp_path / "mine.json").write_text(json.dumps({"model_type": "gpt2", "n_layer": 5}))
    assert model.config_of(name, tmp_path, tmp_path / "mine.json")[0].n_layer == 5


@pytest.mark.host_contract
@pytest.mark.parametrize("kind", SHAPES)
def test_adapters_are_those_that_the_host_makes(kind: str) -> None:
    from axolotl.loaders.adapter import find_all_linear_names, load_lora
    from axolotl.loaders.utils import get_linear_embedding_layers
    from axolotl.utils.dict import DictDefault

    plain = model.build(config_of(kind), "sdpa")
    assert list(model.embedding_names(plain)) == get_linear_embedding_layers(kind)
    assert model.linear_names(plain) == set(find_all_linear_names(plain))
    ours = on_meta(kind, lora(kind))
    hosts, _ = load_lora(plain, DictDefault({**lora(kind), "lora_dropout": 0.0}))
    assert _trained(ours) == _trained(hosts)


def _trained(module: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in module.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("cfg", "name", "expected"),
    [
        ({}, "model.layers.0.mlp.up_proj.weight", torch.bfloat16),
        ({}, "model.norm.weight", torch.float32),
        ({}, "lm_head.weight", torch.float32),
        ({"attn_implementation": "flash_attention_2"}, "lm_head.weight", torch.bfloat16),
        ({"attn_implementation": "sdpa"}, "model.embed_tokens.weight", torch.float32),
        (LORA, "base_model.model.lm_head.weight", torch.bfloat16),
        (LORA, "base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight", torch.float32),
    ],
)
def test_the_host_holds_embeddings_and_norms_in_float32(cfg: dict[str, Any], name: str, expected: torch.dtype) -> None:
    types = model.stored_types(on_meta("llama", cfg), cfg, torch.bfloat16, fsdp=False)
    assert types[name] == expected


@pytest.mark.slow
@pytest.mark.host_contract
@pytest.mark.parametrize("adapter", [{}, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_the_hosts_loader_gives_these_types(tmp_path: Path, kind: str, adapter: dict[str, Any]) -> None:
    from axolotl.loaders import ModelLoader
    from axolotl.utils.dict import DictDefault
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    vocabulary = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=vocabulary, bos_token="a", eos_token="b", pad_token="b")
    folder = str(tmp_path)
    real(kind, {}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    cfg = {"attn_implementation": "sdpa", "gradient_checkpointing": False, "sequence_len": 64, **adapter}
    loaded = {
        **{"base_model": folder, "base_model_config": folder, "model_config_type": kind, "device_map": {"": "cpu"}},
        **{"torch_dtype": torch.bfloat16, "bf16": True, "device": "cpu", "attn_needs_dtype_cast": False},
        **{"tensor_parallel_size": 1, "context_parallel_size": 1, "micro_batch_size": 1, "lora_dropout": 0.0},
    }
    host.forget_plugins()  # ours would lift what trains to float32
    hosts, _ = ModelLoader(DictDefault({**cfg, **loaded}), tokenizer).load()
    ours = model.stored_types(on_meta(kind, adapter), cfg, torch.bfloat16, fsdp=False)
    assert {name: parameter.dtype for name, parameter in hosts.named_parameters()} == ours


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        ({}, "bf16"),
        ({"bf16": "auto"}, "bf16"),
        ({"bf16": "auto", "fp16": True}, "fp16"),
        ({"bf16": False, "fp16": True}, "fp16"),
        ({"bf16": False}, "fp32"),
        ({"bf16": True}, "bf16"),
    ],
)
def test_precision_is_resolved_as_the_host_does_on_a_gpu(cfg: dict[str, Any], expected: str) -> None:
    assert setting.precision_of(cfg) == expected


def test_engines_are_read_from_the_config(tmp_path: Path) -> None:
    def kind(cfg: dict[str, Any], gpus: int) -> tuple[Kind, int]:
        engine = setting.engine_of(cfg, tmp_path, gpus, 2.0)
        return engine.kind, engine.stage

    zero = {"zero_optimization": {"stage": 2, "overlap_comm": True, "offload_optimizer": {"device": "cpu"}}}
    (tmp_path / "zero2.json").write_text(json.dumps(zero))
    assert kind({}, 1) == (Kind.ONE, 0)
    assert kind({}, 2) == (Kind.DDP, 0)
    assert kind({"fsdp_version": 2, "fsdp_config": {"offload_params": True}}, 2) == (Kind.FSDP2, 0)
    assert kind({"deepspeed": "zero2.json"}, 2) == (Kind.DEEPSPEED, 2)
    engine = setting.engine_of({"deepspeed": "zero2.json"}, tmp_path, 2, 2.0)
    assert (engine.offload_optimizer, engine.offload_weights, engine.buckets) == (True, False, 2)
    with pytest.raises(FileNotFoundError, match=r"zero9\.json"):
        setting.engine_of({"deepspeed": "zero9.json"}, tmp_path, 2, 2.0)


# ---- the command


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(_raw(tmp_path)))
    return path


def _raw(folder: Path) -> dict[str, Any]:
    return {
        **_rows(folder),
        "plugins": ["scalebio"],
        "datasets": [{"path": "a", "type": "alpaca"}, {"path": "b", "type": "alpaca"}],
        "val_set_size": 0.1,
        "gradient_accumulation_steps": 8,
        "bf16": True,
    }


def test_it_says_that_it_fits(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", str(config), "--gpu-memory", "8"]) == 0
    printed = capsys.readouterr().out
    assert "LlamaForCausalLM, 8 blocks" in printed
    assert "2.25 times" in printed
    assert "8 GiB      fits" in printed
    for row in ("gradients", "optimizer states", "inner parameters", "inner optimizer states", "peak", "logits"):
        assert row in printed


@pytest.mark.parametrize("plugins", [None, [], ["axolotl.integrations.liger.LigerPlugin"]], ids=str)
def test_it_says_that_the_plugin_is_off(
    config: Path, capsys: pytest.CaptureFixture[str], plugins: list[str] | None
) -> None:
    cli.main(["estimate", str(config), "--gpu-memory", "8"])
    numbers = capsys.readouterr().out
    assert "is off" not in numbers
    config.write_text(yaml.safe_dump({**_raw(config.parent), "plugins": plugins}))
    assert cli.main(["estimate", str(config), "--gpu-memory", "8"]) == 0
    first, _, rest = capsys.readouterr().out.partition("\n\n")
    assert "scalebio is off" in first
    assert "add `plugins: [scalebio]`" in first
    assert rest == numbers


@pytest.mark.parametrize("name", ["scalebio", "scalebio_plugin.ScaleBiOPlugin", "scalebio_plugin:ScaleBiOPlugin"])
def test_every_name_of_the_plugin_turns_it_on(config: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    config.write_text(yaml.safe_dump({**_raw(config.parent), "plugins": [name]}))
    cli.main(["estimate", str(config), "--gpu-memory", "8"])
    assert "is off" not in capsys.readouterr().out


def test_it_says_that_it_does_not_fit(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", str(config), "--gpu-memory", "1"]) == 1
    assert "does NOT fit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model": None}, "needs base_model"),
        ({"base_model": "no/such-model"}, "--model-config FILE"),
        ({"scalebio": {"penaltyy": 1.0}}, "penaltyy"),
        ({"deepspeed": "nowhere.json"}, "nowhere.json"),
        ({"scalebio": {"lisa": {"active_layers": 9}}}, "at most 8"),
        ({"adapter": "llama-adapter"}, "lora, qlora and none can"),
        ({"datasets": [{"path": "a"}]}, "at least two sources"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_config_is_status_2(
    config: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    config.write_text(yaml.safe_dump({**_raw(config.parent), **change}))
    assert cli.main(["estimate", str(config)]) == 2
    assert message in capsys.readouterr().err


def test_a_missing_config_is_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["estimate", str(tmp_path / "none.yml")]) == 2
    assert "no file" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--gpus", "0"], ["--gpu-memory", "-1"], []], ids=" ".join)
def test_a_wrong_use_is_an_error(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["estimate", *(["config.yml"] if arguments else []), *arguments])


def test_applying_a_mixture_costs_what_the_ordinary_run_costs(tmp_path: Path) -> None:
    found = of_setting(setting.setting_of({**_raw(tmp_path), "scalebio": {"apply": "mixture.json"}}, tmp_path, 1))
    assert found.run == found.ordinary
    assert any("ordinary run: no bilevel step" in line for line in lines_of(found, 8.0))


def test_adapters_add_the_inner_set_and_nothing_else(tmp_path: Path) -> None:
    found = of_setting(setting.setting_of({**_raw(tmp_path), **LORA}, tmp_path, 1))
    extra = found.run.peak - found.ordinary.peak
    assert extra == pytest.approx(12 * found.trained)
    assert found.run.state.gradients == found.ordinary.state.gradients


def test_a_model_whose_code_needs_data_is_estimated_roughly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def needs_data(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("data-dependent")

    monkeypatch.setattr("scalebio_plugin.estimate.estimator.measure", needs_data)
    found = of_setting(setting.setting_of(_raw(tmp_path), tmp_path, 1))
    assert found.run.passes is not None
    assert found.run.passes.rough
    assert any("activations: rough" in note for note in found.notes)


def test_unknown_optimizers_and_paged_ones_are_told(tmp_path: Path) -> None:
    for name, told in (("tomorrow", "counted as AdamW"), ("paged_adamw_8bit", "may move to CPU memory")):
        found = of_setting(setting.setting_of({**_raw(tmp_path), "optimizer": name}, tmp_path, 1))
        assert any(told in note for note in found.notes)


@pytest.mark.parametrize("block", [{}, {"lisa": {"active_layers": 2}}], ids=["full", "lisa"])
def test_the_summary_is_a_few_lines(block: dict[str, Any]) -> None:
    found = from_model(real("llama", {}), {"optimizer": "adamw_torch", "scalebio": block})
    lines = summary_line(found, on_gpu=True)
    assert 3 <= len(lines) <= 6
    assert lines[0].startswith("scalebio: ")
    assert lines[0].endswith("; one process, 1 GPU)")
    assert any("CPU memory" in line for line in lines) == bool(block)


@pytest.mark.parametrize("device", ["model", "cpu"])
def test_the_summary_of_a_machine_without_gpu_says_so_and_shows_no_zeros(device: str) -> None:
    block = {"inner": {"device": device}}
    found = from_model(real("llama", {}), {"optimizer": "adamw_torch", "scalebio": block})
    text = "\n".join(summary_line(found, on_gpu=False))
    assert "one process on the CPU)" in text
    assert "GPU" not in text
    assert " 0.00" not in text
    held = found.run.state.held
    assert f"together {(held.gpu + held.cpu) / 2**20:.2f}, " in text
    assert "MiB per process" in text


# ---- the promises of the README


@pytest.mark.slow
def test_yi_34b_fits_where_the_readme_says() -> None:
    (lisa,) = [path for path in EXAMPLES if path.stem == "yi-34b-lisa"]
    cfg = {**yaml.safe_load(lisa.read_text()), "fsdp_version": 2, "fsdp_config": {"offload_params": False}}
    sharded = of_setting(setting.setting_of(cfg, lisa.parent, 8))
    assert sharded.run.peak < 48 * records.GIB < sharded.ordinary.peak
    qlora = {
        **{"base_model": "01-ai/Yi-34B", "sequence_len": 1024, "micro_batch_size": 1, "bf16": True},
        **{"adapter": "qlora", "load_in_4bit": True, "lora_r": 16, "lora_target_linear": True},
        **{"gradient_checkpointing": True, "gradient_accumulation_steps": 16},
    }
    assert of_setting(setting.setting_of(qlora, lisa.parent, 1)).run.peak < 48 * records.GIB


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in EXAMPLES if path.stem != "quickstart"], ids=lambda path: path.stem)
def test_every_example_can_be_estimated(path: Path) -> None:
    found = estimate(path)
    assert found.run.passes is not None
    assert not found.run.passes.rough
    assert math.isfinite(found.run.peak)


def test_the_model_is_left_as_it_was() -> None:
    module = real("llama", {})
    before = copy.deepcopy(module.state_dict())
    from_model(module, {"scalebio": {"lisa": {"active_layers": 2}}})
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())
