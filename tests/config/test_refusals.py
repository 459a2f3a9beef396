"""Every unsupported config is refused with the key and the remedy, all problems at once, and a good one is not."""

from __future__ import annotations

import copy
import json
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from scalebio_plugin.config.fused_loss import fused_loss_of
from scalebio_plugin.config.raw import refuse_shapes
from scalebio_plugin.config.refusals import problems_of
from tests import host

GOOD: dict[str, Any] = {
    "base_model": "org/model",
    "plugins": ["scalebio"],
    "datasets": [{"path": "data/a.jsonl", "type": "alpaca"}, {"path": "data/b.jsonl"}, {"path": "org/c"}],
    "scalebio": {"validation_datasets": [{"path": "data/validation.jsonl", "type": "alpaca"}]},
    "val_set_size": 0,
    "optimizer": "adamw_torch",
    "micro_batch_size": 4,
    "learning_rate": 1e-4,
    "bf16": True,
}
A, B, C = "a", "b", "org/c"
WITH_LISA = {"scalebio": {**GOOD["scalebio"], "lisa": {"active_layers": 1}}}
FSDP2 = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}
ZERO = {"deepspeed": {"zero_optimization": {"stage": 3}}}
FP16 = {"fp16": True, "bf16": False}


def config(*changes: dict[str, Any], scalebio: dict[str, Any] | None = None) -> dict[str, Any]:
    """The good config with other keys, and other keys inside its block."""
    merged = copy.deepcopy(GOOD)
    for change in changes:
        merged.update(change)
    if scalebio:
        merged["scalebio"].update(scalebio)
    return merged


def refused(broken: dict[str, Any], key: str, *parts: str) -> None:
    """There is one problem; it begins with the key and holds these parts: the value, the remedy."""
    (problem,) = problems_of(broken)
    assert problem.startswith(key)
    assert [part for part in parts if part not in problem] == []


@pytest.fixture
def mixture(tmp_path: Path) -> str:
    path = tmp_path / "mixture.json"
    path.write_text("{}")
    return str(path)


# ---- what is fine

NOT_WITH_LISA = [
    *("schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd", "optimi_adamw", "stable_adamw", "dion"),
    *("adopt_adamw", "muon", "apollo_adamw", "paged_adamw_8bit", "paged_lion_32bit"),
]
FINE_ALONE = ("adamw_torch_fused", "adamw_8bit", "sgd", "galore_adamw", "ao_adamw_fp8", None, *NOT_WITH_LISA)
FINE_WITH_LISA = (
    *("adamw_torch_fused", "adamw_torch_8bit", "adamw_8bit", "lion_8bit", "sgd", "sinkgd", "came_pytorch", "adafactor"),
)
IN_ANY_ORDER = [
    {"curriculum_sampling": True},
    {"shuffle_merged_datasets": False},
    {"shuffle_before_merging_datasets": True, "shuffle_merged_datasets": False},
    {"group_by_length": True, "sample_packing": True},
    {"sample_packing": True, "sample_packing_sequentially": True},
    {"sample_packing": True, "sample_packing_group_size": 50},
    {"sample_packing": True, "sample_packing_sequentially": True, "curriculum_sampling": True},
    {"batch_flattening": "auto"},
]


@pytest.mark.parametrize(
    "fine",
    [
        config(),
        config({"adapter": "lora", "lora_r": 8, "load_in_8bit": True}),
        config({"adapter": "qlora", "load_in_4bit": True}),
        config({"sample_packing": True, "gradient_checkpointing": True}),
        config({"plugins": ["axolotl.integrations.liger.LigerPlugin", "scalebio"], "liger_rope": True}),
        config({"context_parallel_size": 1, "tensor_parallel_size": 1, "fsdp": [], "deepspeed": None, "rl": None}),
        config({"lisa_n_layers": 2}),
        config({"unfrozen_parameters": ["lm_head"]}),
        config({"layer_offloading": True}),
        config({"torch_compile": True}),
        *map(config, IN_ANY_ORDER),
        *(config({"optimizer": name}) for name in FINE_ALONE),
        *(config({"optimizer": name, **WITH_LISA}) for name in FINE_WITH_LISA),
        *(config({"optimizer": name, **FSDP2}) for name in ("muon", "sgd", "rmsprop", "lion_pytorch")),
        *(config({"optimizer": name, **FSDP2}) for name in ("adamw_torch_8bit", "adamw_torch_4bit", "ao_adamw_fp8")),
        *(config({"optimizer": name, **FSDP2}) for name in ("schedule_free_adamw", "sinkgd", "adagrad")),
        *(config({"optimizer": name, **ZERO}) for name in ("paged_adamw_8bit", "lion_8bit")),
        *(config({"optimizer": name, **ZERO}) for name in ("adafactor", "adamw_torch_4bit")),
        config({"fsdp_version": 2, "fsdp_config": {"offload_params": False}, **WITH_LISA}),
        config({"fsdp_config": {"fsdp_version": 2}, **WITH_LISA}),
        config(scalebio={"lisa": {"active_layers": 2}}),
        config(scalebio={"penalty": 3.0, "estimator": "symmetric"}),
        config(scalebio={"estimator": "symmetric"}),
        config(scalebio={"mixture_init": {A: 0.2, B: 0.3, C: 0.5}}),
        config(scalebio={"mixture_init": "proportional"}),
        config(scalebio={"prior": {}}),
        config(scalebio={"prior": {"strength": 2.0}}),
        config(scalebio={"prior": {"weights": {A: 0.2, B: 0.3, C: 0.5}}}),
        config(scalebio={"names": ["x", "y", "z"], "bounds": {"x": [0.1, 0.5]}}),
        config(scalebio={"bounds": {A: [0.0, 0.5], "rest": [0.2, 0.9]}, "groups": {"rest": [B, C]}}),
        config(scalebio={"bounds": {A: [0.0, 0.0]}}),
        config(scalebio={"mixture_init": {A: 0.5, B: 0.5, C: 0.0}, "bounds": {C: [0.0, 0.0]}}),
        config(scalebio={"bounds": {A: [0.2, 0.2], B: [0.3, 0.3], C: [0.5, 0.5]}}),
        config(scalebio={"validation_datasets": [{"path": "v", "weight": 2}, {"path": "w", "weight": 0.5}]}),
        config({"val_set_size": 0.05}, {"scalebio": {}}),
        config({"test_datasets": [{"path": "t"}]}, {"scalebio": {}}),
        config({"val_set_size": 100}, {"scalebio": None}),
        {key: value for key, value in config({"val_set_size": 0.1}).items() if key != "scalebio"},
    ],
    ids=lambda c: str({k: v for k, v in c.items() if GOOD.get(k) != v})[:60],
)
def test_a_config_that_can_be_run_has_no_problems(fine):
    assert problems_of(fine) == []


@pytest.mark.parametrize("ranks", ["", "1", "2", "8"])
def test_any_number_of_processes_is_fine(monkeypatch, ranks):
    monkeypatch.setenv("WORLD_SIZE", ranks)
    assert problems_of(config()) == []


def test_the_config_is_left_as_it_is():
    given = config(scalebio={"bounds": {A: [0.1, 0.5]}, "mixture_init": {A: 1.0}})
    before = copy.deepcopy(given)
    problems_of(given)
    assert given == before


# ---- keys of the host

REMOVED_KEYS: dict[str, Any] = {
    **dict.fromkeys(("reward_model", "process_reward_model", "streaming", "is_multimodal", "relora", "fp8"), True),
    **dict.fromkeys(("use_eaft", "use_dft", "balance_labels", "auto_find_batch_size"), True),
    **dict.fromkeys(("liger_use_token_scaling", "unsloth_cross_entropy_loss", "skip_prepare_dataset"), True),
    **dict.fromkeys(("context_parallel_size", "tensor_parallel_size", "expert_parallel_size"), 2),
    **{"rl": "dpo", "pretraining_dataset": [{"path": "x"}], "processor_type": "AutoProcessor", "relora_steps": 100},
    **{"trainer_cls": "my.Trainer", "orpo_alpha": 0.1, "label_smoothing_factor": 0.1},
    "sequence_parallel_degree": 4,
}


@pytest.mark.parametrize(("key", "value"), REMOVED_KEYS.items())
def test_a_key_of_the_host_that_cannot_go_with_it_is_refused(key, value):
    refused(config({key: value}), f"{key}: {value!r} ", f"remove {key} or scalebio")


@pytest.mark.parametrize("key", REMOVED_KEYS)
@pytest.mark.parametrize("value", [None, False, 0, [], {}, ""], ids=repr)
def test_a_key_that_is_off_is_fine(key, value):
    assert problems_of(config({key: value})) == []


@pytest.mark.parametrize(
    "plugin", ["kd.KD", "diffusion.Diffusion", "grokfast.Grokfast", "llm_compressor.LLMCompressorPlugin"]
)
def test_a_plugin_that_replaces_the_loss_is_refused(plugin):
    plugin = f"axolotl.integrations.{plugin}Plugin"
    refused(config({"plugins": [plugin, "scalebio"]}), f"plugins: {plugin} ", "remove it or scalebio")


# ---- fused losses

CUT = {"plugins": ["axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin", "scalebio"]}
FUSED = {
    "cut_cross_entropy": CUT,
    "liger_fused_linear_cross_entropy": {"liger_fused_linear_cross_entropy": True},
    "chunked_cross_entropy": {"chunked_cross_entropy": True},
}
HALF = {"learn": {"fraction": 0.5}}


@pytest.mark.parametrize("key", FUSED)
@pytest.mark.parametrize("more", [{}, {"adapter": "qlora"}, FSDP2, ZERO], ids=["full", "qlora", "fsdp2", "zero"])
def test_a_fused_loss_is_fine(key, more):
    assert fused_loss_of(config(FUSED[key], more)) == key
    assert problems_of(config(FUSED[key], more)) == []
    if more or key != "cut_cross_entropy":
        assert problems_of(config(FUSED[key], more, scalebio=HALF)) == []


def test_cut_cross_entropy_after_learning_is_refused_where_what_trains_is_in_float32():
    refused(config(CUT, scalebio=HALF), "cut_cross_entropy: ", "remove scalebio.learn", "an adapter")
    assert problems_of(config(CUT, scalebio={"learn": {"fraction": 1.0}})) == []


@pytest.mark.parametrize("key", FUSED)
def test_a_fused_loss_in_a_compiled_model_is_refused(key):
    refused(config(FUSED[key], {"torch_compile": True}), "torch_compile: ", key, "remove one of the two")


@pytest.mark.parametrize("off", [{}, {**CUT, "cut_cross_entropy": False}, {"liger_cross_entropy": True}])
def test_no_loss_is_fused_where_no_key_asks_for_it(off):
    assert fused_loss_of(config(off)) is None
    assert problems_of(config(off, {"torch_compile": True})) == []


# ---- optimizers

LAYERWISE = ("galore_adamw", "galore_adamw_8bit", "galore_adafactor", "apollo_adamw")
UNFIT = [  # optimizer, where, why
    *((name, {}, "during the backward pass") for name in ("lomo", "adalomo", *(f"{n}_layerwise" for n in LAYERWISE))),
    *((f"flash_{name}", {}, "that a checkpoint of the inner") for name in ("adamw", "adam", "sgd", "sgdw", "lion")),
    *(("polora", {}, "outside the"), ("grokadamw", {}, "no checkpoint"), ("q_galore_adamw8bit", {}, "not been tried")),
    *((name, WITH_LISA, "use adamw_torch, or remove scalebio.lisa") for name in NOT_WITH_LISA),
    *((name, FSDP2, "not the shards") for name in ("paged_adamw_8bit", "lion_8bit", "rmsprop_bnb_32bit", "ademamix")),
    *(("adafactor", FSDP2, "not the shards"), ("dion", FSDP2, "fails as it makes its state")),
    *((name, engine, "not been tried") for name in ("galore_adamw", "apollo_adamw") for engine in (FSDP2, ZERO)),
    *((name, ZERO, "flat tensors of ZeRO") for name in ("adagrad", "ao_adamw_fp8", "sinkgd", "dion")),
]


@pytest.mark.parametrize(("optimizer", "where", "why"), UNFIT)
def test_an_optimizer_that_cannot_step_two_sets_there_is_refused(optimizer, where, why):
    broken = config({"optimizer": optimizer, **where})
    refused(broken, f"optimizer: {optimizer} ", why, "use adamw_torch")


def test_dion_is_refused_on_several_ranks(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(config({"optimizer": "dion"}), "optimizer: dion ")


# ---- layer sampling


@pytest.mark.parametrize("lisa", [{"active_layers": 2}, {}], ids=["a block", "all defaults"])
@pytest.mark.parametrize(
    ("key", "value", "start", "remedy"),
    [
        *((key, True, f"{key}: ", f"{key} or scalebio.lisa") for key in ("layer_offloading", "activation_offloading")),
        *((key, 4, key, "keep scalebio.lisa") for key in ("lisa_n_layers", "lisa_step_interval")),
        ("unfrozen_parameters", ["head"], "scalebio.lisa and unfrozen_parameters", "keep one"),
    ],
)
def test_what_does_not_go_with_layer_sampling_is_refused(key, value, start, remedy, lisa):
    refused(config({key: value}, scalebio={"lisa": lisa}), start, remedy)


# ---- engines


FSDP1 = pytest.mark.parametrize(
    "keys",
    [
        {"fsdp": ["full_shard"]},
        {"fsdp_version": 1, "fsdp_config": {"offload_params": False}},
        {"fsdp_config": {"fsdp_version": 1}},
    ],
    ids=["list", "beside", "inside"],
)


@FSDP1
def test_fsdp1_is_refused_where_the_host_has_it(keys, monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "0.19.0")
    refused(config(keys), "fsdp: ", "use fsdp_version: 2")
    refused(config({"fsdp": ["full_shard"], **FSDP2}), "fsdp: ", "remove it, fsdp_config is enough")
    monkeypatch.setattr(metadata, "version", lambda name: "0.21.0")
    assert [problem for problem in problems_of(config(keys)) if problem.startswith("fsdp")] == []


@pytest.mark.host_contract
@pytest.mark.skipif(metadata.version("axolotl").startswith("0.19."), reason="has FSDP1")
@FSDP1
def test_later_hosts_refuse_fsdp1_themselves(keys):
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    host.forget_plugins()  # it asks those of an earlier test too
    plain = {key: value for key, value in config(keys).items() if key not in ("plugins", "scalebio")}
    with pytest.raises(ValueError, match="FSDP1"):
        validate_config(DictDefault({**plain, "gradient_accumulation_steps": 1, "bf16": False}))


def test_compiling_is_refused_on_several_processes(monkeypatch):
    refused(config({"torch_compile": True, **FSDP2}), "torch_compile: ", "remove torch_compile")
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(config({"torch_compile": True}), "torch_compile: ", "remove torch_compile")


def test_held_out_rows_need_an_evaluation():
    held_out = config(scalebio={"held_out_rows": 8})
    refused(held_out, "scalebio.held_out_rows: 8", "test_datasets or val_set_size", "remove held_out_rows")
    for evaluated in ({"val_set_size": 0.1}, {"test_datasets": [{"path": "data/test.jsonl", "type": "alpaca"}]}):
        assert problems_of(config(evaluated, scalebio={"held_out_rows": 8})) == []


def test_the_worst_of_one_validation_set_is_refused():
    one = GOOD["scalebio"]["validation_datasets"]
    refused(config(scalebio={"objective": "worst"}), "scalebio.objective: worst", "several", "remove objective")
    another = [*one, {"path": "data/other.jsonl", "type": "alpaca"}]
    assert problems_of(config(scalebio={"objective": "worst", "validation_datasets": another})) == []


def test_fp16_is_refused_on_sharded_engines():
    zero2 = {"fp16": {"enabled": "auto"}, "zero_optimization": {"stage": 2}}
    for engine in (FSDP2, {"deepspeed": zero2}):
        refused(config({**engine, **FP16}), "fp16: ", "use bf16: true")


def test_float16_is_refused_on_sharded_engines():
    for engine in (FSDP2, ZERO):
        refused(config({**engine, "float16": True}), "float16: ", "use bf16: true")
        assert problems_of(config({**engine, "bfloat16": True})) == []
    for fine in ("float16", "bfloat16"):
        assert problems_of(config({fine: True, "bf16": False})) == []


AUTO = {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}, "gradient_clipping": "auto"}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_zero_stage_is_fine(tmp_path, stage):
    (tmp_path / "ds.json").write_text(json.dumps({**AUTO, "zero_optimization": {"stage": stage}}))
    assert problems_of(config({"deepspeed": str(tmp_path / "ds.json")})) == []


@pytest.mark.parametrize(
    "settings",
    [
        AUTO,
        {"zero_optimization": {"stage": 0}},
        {"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}},
        {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme"}}},
        {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
        {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}},
        {"zero_optimization": {"stage": 3, "mics_shard_size": 4}},
        {"zero_optimization": {"stage": 3, "zero_quantized_gradients": True}},
        {"zero_optimization": {"stage": 1}, "bf16": {"enabled": "auto"}, "data_types": {"grad_accum_dtype": "fp32"}},
        {"zero_optimization": {"stage": 1}, "pipeline": {"stages": 2}},
        {"zero_optimization": {"stage": 2}, "sequence_parallel_size": 2},
    ],
    ids=json.dumps,
)
def test_what_deepspeed_must_not_do_is_refused(settings):
    refused(config({"deepspeed": settings}), "deepspeed: ")


@pytest.mark.parametrize("offloads", [{"offload_optimizer": {"device": "cpu"}}, {"cpu_offload": True}], ids=str)
@pytest.mark.parametrize(("installed", "fine"), [("0.18.9", False), ("0.19.0", True), ("0.19.8+cu130", True)])
def test_zero_2_with_an_offloaded_optimizer_needs_a_deepspeed_that_adds_up(monkeypatch, offloads, installed, fine):
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: installed if name == "deepspeed" else version(name))
    offloaded = config({"deepspeed": {"zero_optimization": {"stage": 2, **offloads}}})
    if fine:
        assert problems_of(offloaded) == []
    else:
        refused(offloaded, "deepspeed: stage 2 with offload_optimizer", installed, "use stage 1 or 3")
    assert problems_of(config({"deepspeed": {"zero_optimization": {"stage": 1, **offloads}}})) == []


def test_lisa_is_refused_with_deepspeed():
    refused(config({**ZERO, **WITH_LISA}), "scalebio.lisa: ", "flat tensors")


def test_probes_are_refused_with_deepspeed_and_none_is_fine():
    refused(config(ZERO, scalebio={"probe_interval": 5}), "scalebio.probe_interval: 5", "set it to 0", "FSDP2")
    assert problems_of(config(ZERO, scalebio={"probe_interval": 0})) == []
    assert problems_of(config(scalebio={"probe_interval": 5})) == []


def test_an_8_bit_base_with_zero_3_needs_half_precision():
    lora = {"adapter": "lora", "lora_r": 8, "load_in_8bit": True, "bf16": False}
    zero2, zero3 = ({"deepspeed": {**AUTO, "zero_optimization": {"stage": stage}}} for stage in (2, 3))
    refused(config({**zero3, **lora}), "load_in_8bit: ", "use bf16: true")
    for fine in ({**zero3, **lora, "bf16": "auto"}, {**zero3, **lora, "bfloat16": True}, {**zero2, **lora}):
        assert problems_of(config(fine)) == []


def test_a_deepspeed_file_that_cannot_be_read_is_refused():
    refused(config({"deepspeed": "no_such.json"}), "deepspeed: ", "no_such.json")


# ---- the order of the rows

ONE_SOURCE = {"curriculum_sampling": True, "shuffle_merged_datasets": False}


@pytest.mark.parametrize(
    ("keys", "remedy"),
    [
        ({"group_by_length": True}, "use sample_packing: true"),
        ({"group_by_length": True, "sample_packing": False}, "use sample_packing: true"),
        (ONE_SOURCE, "remove one of the two"),
        ({**ONE_SOURCE, "shuffle_merged_datasets": None}, "remove one of the two"),
        ({**ONE_SOURCE, "shuffle_before_merging_datasets": True}, "remove one of the two"),
        ({**ONE_SOURCE, "sample_packing": True, "sample_packing_sequentially": True}, "remove one of the two"),
    ],
    ids=str,
)
def test_batches_that_are_not_drawn_from_all_sources_are_refused_while_learning(keys, remedy, mixture):
    block = config({})["scalebio"]
    refused(config(keys, {"scalebio": {**block, "sampling": "host"}}), next(iter(keys)), remedy)
    assert problems_of(config(keys, {"scalebio": {"apply": mixture}})) == []
    assert problems_of(config(keys)) == []


def test_validation_data_of_the_last_source_alone_are_refused():
    keys = {"val_set_size": 0.1, "shuffle_merged_datasets": False}
    refused(config(keys, {"scalebio": {}}), "val_set_size: ")
    assert problems_of(config(keys)) == []


# ---- datasets, and the block


@pytest.mark.parametrize(
    ("datasets", "block"),
    [(None, {}), ([], {}), ([], {"split_by": "source"}), ([{"path": "data/a.jsonl"}], {})],
    ids=["none", "empty", "empty, split", "one"],
)
def test_a_mixture_of_one_is_refused(datasets, block):
    start = f"datasets: must list at least two sources to weigh against each other, got {len(datasets or [])}; add one"
    refused(config({"datasets": datasets}, scalebio=block), start, "`scalebio.split_by: <column>`")


@pytest.mark.parametrize("block", [["penalty"], "on", 3, True], ids=repr)
def test_a_block_that_is_none_is_refused(block):
    with pytest.raises(ValueError, match=rf"- scalebio: must be a block of keys, got {re.escape(repr(block))}; see "):
        refuse_shapes(config({"scalebio": block}))


NAMES: dict[str, tuple[dict[str, Any], str]] = {
    "too few names": ({"names": ["x", "y"]}, "one name per entry of datasets: (3), got 2"),
    "too many names": ({"names": ["x", "y", "z", "q"]}, "(3), got 4"),
    "a repeated name": ({"names": ["x", "y", "x"]}, "rename"),
    "an empty name": ({"names": ["x", "y", ""]}, "rename"),
    "a name without end": ({"names": ["x", "y", "z" * 10_001]}, "at most 10000 characters each, ['zzz"),
    "a bound for nobody": ({"bounds": {"typo": [0, 1]}}, "the sources are ['a', 'b', 'org/c']"),
    "a bound for a path": (
        {"bounds": {A: [0, 1]}, "names": [*"xyz"]},
        "['a']; the sources are ['x', 'y', 'z']",
    ),
    "a group of nobody": ({"groups": {"g": [A, "typo"]}}, "['typo']; the sources are"),
    "a prior for nobody": ({"prior": {"weights": {A: 0.5, B: 0.2, C: 0.2, "typo": 0.1}}}, "['typo']; the sources are"),
    "a weight for nobody": ({"mixture_init": {A: 0.5, B: 0.2, C: 0.2, "typo": 0.1}}, "['typo']; the sources are"),
    "a group called like a source": ({"groups": {A: [B, C]}}, "rename the groups"),
    "overlapping groups": (
        {"groups": {"g": [A, B], "h": [B, C]}},
        "['b'] stand in several groups; a source belongs to one at most",
    ),
}


@pytest.mark.parametrize(("block", "remedy"), NAMES.values(), ids=NAMES.keys())
def test_names_that_do_not_fit_are_refused(block, remedy):
    refused(config(scalebio=block), f"scalebio.{next(iter(block))}", remedy)


WEIGHTS: dict[str, tuple[dict[str, float], dict[str, list[float]], str]] = {  # weights, bounds
    "a source without one": ({A: 0.5, B: 0.5}, {}, "['org/c'] have none; add"),
    "above one": ({A: 0.5, B: 0.5, C: 0.5}, {}, "got 1.5; rescale"),
    "below one": ({A: 0.1, B: 0.1, C: 0.1}, {}, "got 0.3; rescale"),
    "a zero": ({A: 0.0, B: 0.5, C: 0.5}, {}, "use a small one"),
    "a zero beside a bound of another": ({A: 0.5, B: 0.5, C: 0.0}, {A: [0, 0.9]}, "use a small one"),
    "a zero that caps would have to raise": ({A: 0.6, B: 0.4, C: 0.0}, {A: [0, 0.3], B: [0, 0.3]}, "use a small one"),
}


@pytest.mark.parametrize(("weights", "bounds", "remedy"), WEIGHTS.values(), ids=WEIGHTS.keys())
def test_weights_that_cannot_be_met_are_refused(weights, bounds, remedy):
    refused(config(scalebio={"mixture_init": weights, "bounds": bounds}), "scalebio.mixture_init", remedy)


PRIORS: dict[str, tuple[dict[str, float], dict[str, list[float]], str]] = {  # weights, bounds
    "a source without one": ({A: 0.5, B: 0.5}, {}, "must give every source a weight, ['org/c'] have none; add"),
    "above one": ({A: 0.5, B: 0.5, C: 0.5}, {}, "must sum to 1, got 1.5; rescale"),
    "a zero": ({A: 0.0, B: 0.5, C: 0.5}, {}, "must be above 0, those of ['a'] are not; use small ones"),
    "a zero of a source held there": ({A: 0.0, B: 0.5, C: 0.5}, {A: [0, 0]}, "must be above 0, those of ['a']"),
}


@pytest.mark.parametrize(("weights", "bounds", "remedy"), PRIORS.values(), ids=PRIORS.keys())
def test_a_prior_that_cannot_be_is_refused(weights, bounds, remedy):
    refused(config(scalebio={"prior": {"weights": weights}, "bounds": bounds}), "scalebio.prior.weights ", remedy)


def test_weights_and_prior_are_both_told():
    broken = config(scalebio={"mixture_init": {A: 1.0}, "prior": {"weights": {A: 0.5, B: 0.5}}})
    assert [problem.split()[0] for problem in problems_of(broken)] == [
        "scalebio.mixture_init",
        "scalebio.prior.weights",
    ]


G = {"g": [A, B]}
BOUNDS: dict[str, tuple[dict[str, list[float]], dict[str, list[str]], str, str]] = {  # bounds, groups, whose, remedy
    "the wrong way round": ({A: [0.5, 0.2]}, {}, ".a", "exchange them"),
    "floors above one": ({A: [0.6, 1], B: [0.6, 1]}, {}, "", "from 1.2 to 3, never 1; widen"),
    "caps below one": ({A: [0, 0.3], B: [0, 0.3], C: [0, 0.3]}, {}, "", "0 to 0.9, never 1; widen"),
    "a group its members cannot fill": ({A: [0, 0.1], B: [0, 0.1], "g": [0.5, 1]}, G, ".g", "widen"),
    "a group its members overfill": ({A: [0.3, 1], B: [0.3, 1], "g": [0, 0.5]}, G, ".g", "widen"),
    "floors above one in a group without a bound": ({A: [0.6, 1], B: [0.6, 1]}, G, "", "widen"),
    "a group's cap and a source's below one": ({C: [0, 0.5], "g": [0, 0.3]}, G, "", "never 1; widen"),
    "a group's floor and a source's above one": ({C: [0.5, 1], "g": [0.7, 1]}, G, "", "never 1; widen"),
}


@pytest.mark.parametrize(("bounds", "groups", "whose", "remedy"), BOUNDS.values(), ids=BOUNDS.keys())
def test_bounds_that_cannot_be_met_are_refused(bounds, groups, whose, remedy):
    refused(config(scalebio={"bounds": bounds, "groups": groups}), f"scalebio.bounds{whose}", remedy)


# ---- validation data and numbers


@pytest.mark.parametrize("absent", [None, 0, 0.0])
def test_no_validation_data_at_all_is_refused(absent):
    parts = ("add scalebio.validation_datasets", "test_datasets", "val_set_size")
    refused(config({"val_set_size": absent, "scalebio": {}}), "no validation data", *parts)


VALIDATION: dict[str, tuple[list[Any], str]] = {
    "empty": ([], "is empty; list at least one dataset, or remove the key"),
    **{
        f"weight {weight}": ([{"path": "v", "weight": weight}], f"weight must be above 0, got {weight!r}")
        for weight in (0, -1.0, "much", float("inf"), float("nan"))
    },
}


@pytest.mark.parametrize(("entries", "remedy"), VALIDATION.values(), ids=VALIDATION.keys())
def test_validation_data_that_cannot_be_are_refused(entries, remedy):
    refused(config(scalebio={"validation_datasets": entries}), "scalebio.validation_datasets", remedy)


@pytest.mark.parametrize(
    ("entry", "remedy"),
    [
        ({"type": "alpaca"}, "must have a path; add `path:`"),
        ("data/v.jsonl", "must be an entry of keys, got 'data/v.jsonl'; write it as `- path: ...`"),
    ],
)
def test_validation_data_without_a_path_are_refused(entry, remedy):
    broken = config(scalebio={"validation_datasets": [entry]})
    with pytest.raises(ValueError, match=re.escape(f"- scalebio.validation_datasets[0]: {remedy}")):
        refuse_shapes(broken)


def test_validation_data_that_the_host_makes_need_no_path():
    made = config(scalebio={"validation_datasets": [{"type": "_synthetic"}]})
    refuse_shapes(made)
    assert problems_of(made) == []


@pytest.mark.parametrize("penalty", [0.5, 1.0, 2.9, 2])
def test_symmetric_with_a_small_penalty_is_refused(penalty):
    broken = config(scalebio={"estimator": "symmetric", "penalty": penalty})
    refused(broken, "scalebio.penalty must be at least 3", f"got {penalty}")


# ---- which set is kept

FULL_STATE = {"state_dict_type": "FULL_STATE_DICT"}
SHARDED_STATE = {"state_dict_type": "SHARDED_STATE_DICT"}
UNKEPT: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "best model": ({"load_best_model_at_end": True}, {}, ("load_best_model_at_end: ", "holds w", "remove ")),
    "best checkpoint": (
        {"save_strategy": "best"},
        {},
        ("save_strategy: best: ", "holds w", "remove save_strategy: best"),
    ),
    "early stopping": ({"early_stopping_patience": 3}, {}, ("early_stopping_patience: ", "holds w", "remove ")),
    "symmetric": ({}, {"estimator": "symmetric"}, ("scalebio.keep: ", "pushed away", "use estimator forward")),
    "no state dict": (FSDP2, {}, ("fsdp_config: ", "no state_dict_type", "final_state_dict_type: FULL_STATE_DICT")),
    "sharded": (
        {"fsdp_version": 2, "fsdp_config": SHARDED_STATE},
        {},
        ("fsdp_config: ", "with SHARDED_STATE_DICT", "final_state_dict_type: FULL_STATE_DICT"),
    ),
}


@pytest.mark.parametrize(("keys", "block", "parts"), UNKEPT.values(), ids=UNKEPT.keys())
def test_what_would_not_leave_the_inner_parameters_is_refused(keys, block, parts):
    refused(config(keys, scalebio={**block, "keep": "inner"}), *parts)
    for kept in ({}, {"keep": "model"}):
        assert problems_of(config(keys, scalebio={**block, **kept})) == []


def test_best_model_and_early_stopping_are_one_problem():
    keys = {"load_best_model_at_end": True, "early_stopping_patience": 3}
    refused(config(keys, scalebio={"keep": "inner"}), "load_best_model_at_end, early_stopping_patience: ")


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"load_best_model_at_end": False},
        ZERO,
        {"fsdp_version": 2, "fsdp_config": FULL_STATE},
        {"fsdp_version": 2, "fsdp_config": {f"fsdp_{key}": value for key, value in FULL_STATE.items()}},
        {"fsdp_version": 2, "fsdp_config": {**SHARDED_STATE, "final_state_dict_type": "FULL_STATE_DICT"}},
        {"fsdp_version": 2, "fsdp_config": SHARDED_STATE, "adapter": "lora"},
    ],
    ids=str,
)
def test_the_inner_parameters_may_be_kept(keys):
    assert problems_of(config(keys, scalebio={"keep": "inner"})) == []


# ---- apply


@pytest.mark.parametrize(
    "more",
    [
        *({}, {"max_repeats": 2.0}, {"names": ["x", "y", "z"]}, {"extensions": ["my.module"]}),
        *({"on_leak": "warn"}, {"on_leak": "drop"}, {"on_leak": "drop", "validation_datasets": [{"path": "v"}]}),
    ],
    ids=str,
)
def test_apply_needs_a_file_and_no_validation_data(mixture, more):
    assert problems_of(config({"scalebio": {"apply": mixture, **more}})) == []


@pytest.mark.parametrize(
    "idle",
    [
        {"penalty": 100.0},
        {"validation_datasets": [{"path": "v"}]},
        {"lisa": {"active_layers": 2}},
        {"mixture_init": "proportional", "warmup_steps": 3},
        {"keep": "inner"},
    ],
    ids=str,
)
def test_apply_with_keys_that_would_do_nothing_is_refused(mixture, idle):
    refused(config({"scalebio": {"apply": mixture, **idle}}), "scalebio.apply", str(sorted(idle)), "remove them")


@pytest.mark.parametrize("name", ["no.json", ""], ids=["none", "a folder"])
def test_apply_of_what_is_no_file_is_refused(tmp_path, name):
    broken = config({"scalebio": {"apply": str(tmp_path / name)}})
    refused(broken, "scalebio.apply: no file", "give the path of a mixture.json")


# ---- all at once


def test_all_problems_come_together(monkeypatch):
    monkeypatch.setattr(metadata, "version", lambda name: "0.19.0")  # which has FSDP1
    block = {"estimator": "symmetric", "penalty": 1.0, "bounds": {"typo": [0, 1]}, "lisa": {"active_layers": 1}}
    broken = config(
        {"fsdp_config": {"fsdp_version": 1}, "datasets": [{"path": "a"}], "rl": "dpo", "fp8": True},
        {"optimizer": "lomo", "val_set_size": 0, "lisa_n_layers": 2, "scalebio": block},
    )
    problems = problems_of(broken)
    parts = ("datasets:", "rl:", "fp8:", "optimizer:", "fsdp:", "scalebio.bounds", "validation data")
    for part in (*parts, "scalebio.penalty", "scalebio.lisa"):
        assert any(part in problem for problem in problems), part
    assert len(problems) == len(set(problems)) == 9
