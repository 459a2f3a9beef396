"""Every unsupported config is refused with the key and the remedy, all problems at once, and a good one is not."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from scalebio_plugin.config.refusals import problems_of

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


def config(*changes: dict[str, Any], scalebio: dict[str, Any] | None = None) -> dict[str, Any]:
    """The good config with other keys, and other keys inside its block."""
    merged = copy.deepcopy(GOOD)
    for change in changes:
        merged.update(change)
    if scalebio:
        merged["scalebio"].update(scalebio)
    return merged


def only_problem(broken: dict[str, Any]) -> str:
    problems = problems_of(broken)
    assert len(problems) == 1, problems
    return problems[0]


# ---- what is fine


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
        config(scalebio={"lisa": {"active_layers": 2}}),
        config(scalebio={"penalty": 3.0, "estimator": "symmetric"}),
        config(scalebio={"estimator": "symmetric"}),
        config(scalebio={"mixture_init": {A: 0.2, B: 0.3, C: 0.5}}),
        config(scalebio={"mixture_init": "proportional"}),
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


def test_the_config_is_left_as_it_is():
    given = config(scalebio={"bounds": {A: [0.1, 0.5]}, "mixture_init": {A: 1.0}})
    before = copy.deepcopy(given)
    problems_of(given)
    assert given == before


# ---- keys of the host

REMOVED_KEYS: dict[str, Any] = {
    "rl": "dpo",
    "reward_model": True,
    "process_reward_model": True,
    "streaming": True,
    "pretraining_dataset": [{"path": "x"}],
    "processor_type": "AutoProcessor",
    "is_multimodal": True,
    "skip_prepare_dataset": True,
    "trainer_cls": "my.Trainer",
    "relora": True,
    "relora_steps": 100,
    "orpo_alpha": 0.1,
    "use_eaft": True,
    "use_dft": True,
    "balance_labels": True,
    "label_smoothing_factor": 0.1,
    "auto_find_batch_size": True,
    "qat": {"weight_dtype": "int8"},
    "fp8": True,
    "bfloat16": True,
    "float16": True,
    "liger_fused_linear_cross_entropy": True,
    "cut_cross_entropy": True,
    "chunked_cross_entropy": True,
    "unsloth_cross_entropy_loss": True,
    "context_parallel_size": 2,
    "sequence_parallel_degree": 4,
    "tensor_parallel_size": 2,
    "expert_parallel_size": 2,
}


@pytest.mark.parametrize(("key", "value"), REMOVED_KEYS.items())
def test_a_key_of_the_host_that_cannot_go_with_it_is_refused(key, value):
    problem = only_problem(config({key: value}))
    assert problem.startswith(f"{key}: {value!r} ")
    assert f"remove {key} or scalebio" in problem


@pytest.mark.parametrize("key", REMOVED_KEYS)
@pytest.mark.parametrize("value", [None, False, 0, [], {}, ""], ids=repr)
def test_a_key_that_is_off_is_fine(key, value):
    assert problems_of(config({key: value})) == []


@pytest.mark.parametrize(
    ("optimizer", "reason"),
    {
        "lomo": "during the backward pass",
        "adalomo": "during the backward pass",
        "galore_adamw_layerwise": "during the backward pass",
        "galore_adamw_8bit_layerwise": "during the backward pass",
        "galore_adafactor_layerwise": "during the backward pass",
        "apollo_adamw_layerwise": "during the backward pass",
        "polora": "outside the parameters",
        "grokadamw": "no checkpoint",
        "q_galore_adamw8bit": "has not been tried",
        "flash_adamw": "a checkpoint of the inner parameters cannot hold",
        "flash_adam": "a checkpoint of the inner parameters cannot hold",
        "flash_sgd": "a checkpoint of the inner parameters cannot hold",
        "flash_sgdw": "a checkpoint of the inner parameters cannot hold",
        "flash_lion": "a checkpoint of the inner parameters cannot hold",
    }.items(),
)
def test_an_optimizer_whose_state_cannot_be_exchanged_is_refused(optimizer, reason):
    problem = only_problem(config({"optimizer": optimizer}))
    assert problem.startswith(f"optimizer: {optimizer} ")
    assert reason in problem
    assert "use adamw_torch" in problem


NOT_WITH_LISA = [
    "schedule_free_adamw",
    "schedule_free_radam",
    "schedule_free_sgd",
    "optimi_adamw",
    "stable_adamw",
    "dion",
    "adopt_adamw",
    "muon",
    "apollo_adamw",
    "paged_adamw_8bit",
    "paged_lion_32bit",
]


@pytest.mark.parametrize("optimizer", NOT_WITH_LISA)
def test_an_optimizer_that_cannot_train_a_layer_anew_is_refused_with_lisa(optimizer):
    problem = only_problem(config({"optimizer": optimizer}, scalebio={"lisa": {"active_layers": 1}}))
    assert problem.startswith(f"optimizer: {optimizer} ")
    assert "use adamw_torch, or remove scalebio.lisa" in problem


FSDP2 = {"fsdp_version": 2, "fsdp_config": {"reshard_after_forward": True}}
ZERO = {"deepspeed": {"zero_optimization": {"stage": 3}}}


@pytest.mark.parametrize(
    ("engine", "optimizer"),
    [
        *((FSDP2, name) for name in ("paged_adamw_8bit", "lion_8bit", "rmsprop_bnb_32bit", "ademamix", "adafactor")),
        *((engine, name) for engine in (FSDP2, ZERO) for name in ("galore_adamw", "apollo_adamw", "dion")),
        *((ZERO, name) for name in ("adagrad", "ao_adamw_fp8", "sinkgd")),
    ],
)
def test_an_optimizer_that_cannot_step_an_engines_tensors_is_refused(engine, optimizer):
    problem = only_problem(config({"optimizer": optimizer, **engine}))
    assert problem.startswith(f"optimizer: {optimizer} ")
    assert "use adamw_torch" in problem


@pytest.mark.parametrize(
    ("engine", "optimizer"),
    [
        *((FSDP2, name) for name in ("muon", "sgd", "rmsprop", "lion_pytorch")),
        *((ZERO, name) for name in ("paged_adamw_8bit", "lion_8bit", "adafactor", "adamw_torch_4bit")),
    ],
)
def test_other_optimizers_are_fine_on_sharded_engines(engine, optimizer):
    assert problems_of(config({"optimizer": optimizer, **engine})) == []


@pytest.mark.parametrize(
    "optimizer",
    ["adamw_torch_8bit", "adamw_torch_4bit", "ao_adamw_fp8", "schedule_free_adamw", "sinkgd", "adagrad"],
)
def test_an_optimizer_that_fsdp2_cannot_save_or_restore_is_refused_where_it_would_be(optimizer):
    problem = only_problem(config({"optimizer": optimizer, **FSDP2}))
    assert problem.startswith(f"optimizer: {optimizer}: ")
    assert "save_only_model: true" in problem
    for saves_none in ({"save_only_model": True}, {"save_strategy": "no"}):
        assert problems_of(config({"optimizer": optimizer, **FSDP2, **saves_none})) == []


def test_dion_is_refused_on_several_ranks(monkeypatch):
    assert problems_of(config({"optimizer": "dion"})) == []
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert only_problem(config({"optimizer": "dion"})).startswith("optimizer: dion ")


@pytest.mark.parametrize(
    "optimizer",
    ["adamw_torch_fused", "adamw_torch_8bit", "adamw_8bit", "lion_8bit", "sgd", "sinkgd", "came_pytorch", "adafactor"],
)
def test_other_optimizers_are_fine_with_lisa(optimizer):
    assert problems_of(config({"optimizer": optimizer}, scalebio={"lisa": {"active_layers": 1}})) == []


@pytest.mark.parametrize(
    "optimizer", ["adamw_torch_fused", "adamw_8bit", "sgd", "galore_adamw", "ao_adamw_fp8", None, *NOT_WITH_LISA]
)
def test_other_optimizers_are_fine(optimizer):
    assert problems_of(config({"optimizer": optimizer})) == []


@pytest.mark.parametrize(
    "plugin",
    [
        "axolotl.integrations.kd.KDPlugin",
        "axolotl.integrations.diffusion.DiffusionPlugin",
        "axolotl.integrations.grokfast.GrokfastPlugin",
        "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin",
    ],
)
def test_a_plugin_that_replaces_the_loss_is_refused(plugin):
    problem = only_problem(config({"plugins": [plugin, "scalebio"]}))
    assert problem.startswith(f"plugins: {plugin} ")
    assert "remove it or scalebio" in problem


LISA = pytest.mark.parametrize("lisa", [{"active_layers": 2}, {}], ids=["a block", "all defaults"])


@LISA
@pytest.mark.parametrize("key", ["layer_offloading", "activation_offloading"])
def test_offloading_and_layer_sampling_are_refused_together(key, lisa):
    problem = only_problem(config({key: True}, scalebio={"lisa": lisa}))
    assert problem.startswith(f"{key}: ")
    assert f"remove {key} or scalebio.lisa" in problem


@LISA
@pytest.mark.parametrize("key", ["lisa_n_layers", "lisa_step_interval"])
def test_two_kinds_of_layer_sampling_are_refused_together(key, lisa):
    problem = only_problem(config({key: 4}, scalebio={"lisa": lisa}))
    assert key in problem
    assert "keep scalebio.lisa" in problem


@LISA
def test_layer_sampling_and_unfrozen_parameters_are_refused_together(lisa):
    problem = only_problem(config({"unfrozen_parameters": ["head"]}, scalebio={"lisa": lisa}))
    assert "unfrozen_parameters" in problem
    assert "keep one" in problem


# ---- engines


@pytest.mark.parametrize("ranks", ["", "1", "2", "8"])
def test_any_number_of_processes_is_fine(monkeypatch, ranks):
    monkeypatch.setenv("WORLD_SIZE", ranks)
    assert problems_of(config()) == []


@pytest.mark.parametrize(
    "keys",
    [{"fsdp_version": 2, "fsdp_config": {"offload_params": False}}, {"fsdp_config": {"fsdp_version": 2}}],
    ids=["beside", "inside"],
)
def test_fsdp2_is_fine(keys):
    assert problems_of(config(keys, scalebio={"lisa": {"active_layers": 1}})) == []


@pytest.mark.parametrize(
    "keys",
    [
        {"fsdp": ["full_shard"]},
        {"fsdp_version": 1, "fsdp_config": {"offload_params": False}},
        {"fsdp_config": {"fsdp_version": 1}},
    ],
    ids=["list", "beside", "inside"],
)
def test_fsdp1_is_refused(keys):
    assert "use fsdp_version: 2" in only_problem(config(keys))


def test_compiling_is_refused_on_several_processes(monkeypatch):
    assert problems_of(config({"torch_compile": True})) == []
    assert "remove torch_compile" in only_problem(config({"torch_compile": True, "fsdp_config": {"fsdp_version": 2}}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "remove torch_compile" in only_problem(config({"torch_compile": True}))


def test_fp16_is_refused_with_fsdp2():
    assert "use bf16: true" in only_problem(config({"fsdp_config": {"fsdp_version": 2}, "fp16": True, "bf16": False}))


def deepspeed(tmp_path, settings, *changes, **block):
    """The config with this DeepSpeed JSON."""
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(settings))
    return config({"deepspeed": str(path)}, *changes, scalebio=block)


AUTO = {"bf16": {"enabled": "auto"}, "fp16": {"enabled": "auto"}, "gradient_clipping": "auto"}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_zero_stage_is_fine(tmp_path, stage):
    assert problems_of(deepspeed(tmp_path, {**AUTO, "zero_optimization": {"stage": stage}})) == []


@pytest.mark.parametrize(
    "settings",
    [
        AUTO,
        {"zero_optimization": {"stage": 0}},
        {"zero_optimization": {"stage": 2}, "fp16": {"enabled": True}},
        {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}},
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
def test_what_deepspeed_must_not_do_is_refused(tmp_path, settings):
    problem = only_problem(deepspeed(tmp_path, settings))
    assert problem.startswith("deepspeed: ")


def test_fp16_is_refused_with_deepspeed(tmp_path):
    settings = {**AUTO, "zero_optimization": {"stage": 2}}
    assert "use bf16: true" in only_problem(deepspeed(tmp_path, settings, {"fp16": True, "bf16": False}))


def test_lisa_is_refused_with_deepspeed(tmp_path):
    problem = only_problem(deepspeed(tmp_path, {"zero_optimization": {"stage": 2}}, lisa={"active_layers": 1}))
    assert "flat tensors" in problem


def test_an_8_bit_base_with_zero_3_needs_half_precision(tmp_path):
    lora = {"adapter": "lora", "lora_r": 8, "load_in_8bit": True}
    settings = {**AUTO, "zero_optimization": {"stage": 3}}
    assert "use bf16: true" in only_problem(deepspeed(tmp_path, settings, {**lora, "bf16": False}))
    assert problems_of(deepspeed(tmp_path, settings, {**lora, "bf16": "auto"})) == []
    assert problems_of(deepspeed(tmp_path, {**AUTO, "zero_optimization": {"stage": 2}}, {**lora, "bf16": False})) == []


def test_a_deepspeed_file_that_cannot_be_read_is_refused():
    assert "no_such.json" in only_problem(config({"deepspeed": "no_such.json"}))


# ---- the order of the rows

ONE_LENGTH = {"group_by_length": True}
ONE_SOURCE = {"curriculum_sampling": True, "shuffle_merged_datasets": False}


@pytest.mark.parametrize(
    ("keys", "remedy"),
    [
        (ONE_LENGTH, "use sample_packing: true"),
        ({**ONE_LENGTH, "sample_packing": False}, "use sample_packing: true"),
        (ONE_SOURCE, "remove one of the two"),
        ({**ONE_SOURCE, "shuffle_merged_datasets": None}, "remove one of the two"),
        ({**ONE_SOURCE, "shuffle_before_merging_datasets": True}, "remove one of the two"),
        ({**ONE_SOURCE, "sample_packing": True, "sample_packing_sequentially": True}, "remove one of the two"),
    ],
    ids=str,
)
def test_batches_that_are_not_drawn_from_all_sources_are_refused_while_learning(keys, remedy, tmp_path):
    problem = only_problem(config(keys))
    assert problem.startswith(next(iter(keys)))
    assert remedy in problem
    (tmp_path / "mixture.json").write_text("{}")
    assert problems_of(config(keys, {"scalebio": {"apply": str(tmp_path / "mixture.json")}})) == []


def test_validation_data_of_the_last_source_alone_are_refused():
    keys = {"val_set_size": 0.1, "shuffle_merged_datasets": False}
    assert only_problem(config(keys, {"scalebio": {}})).startswith("val_set_size: ")
    assert problems_of(config(keys)) == []


IN_ANY_ORDER = [
    {"curriculum_sampling": True},
    {"shuffle_merged_datasets": False},
    {"shuffle_before_merging_datasets": True, "shuffle_merged_datasets": False},
    {**ONE_LENGTH, "sample_packing": True},
    {"sample_packing": True, "sample_packing_sequentially": True},
    {"sample_packing": True, "sample_packing_group_size": 50},
    {"sample_packing": True, "sample_packing_sequentially": True, "curriculum_sampling": True},
    {"batch_flattening": "auto"},
]


@pytest.mark.parametrize("keys", IN_ANY_ORDER, ids=str)
def test_other_orders_are_fine(keys):
    assert problems_of(config(keys)) == []


# ---- datasets and names


@pytest.mark.parametrize("datasets", [None, [], [{"path": "data/a.jsonl"}]], ids=["none", "empty", "one"])
def test_a_mixture_of_one_is_refused(datasets):
    problem = only_problem(config({"datasets": datasets}))
    assert problem.startswith("datasets: must list at least two sources")
    assert f"got {len(datasets or [])}; add one" in problem


NAMES: dict[str, tuple[dict[str, Any], str, str]] = {
    "too few names": ({"names": ["x", "y"]}, "scalebio.names", "one name per entry of datasets: (3), got 2"),
    "too many names": ({"names": ["x", "y", "z", "q"]}, "scalebio.names", "(3), got 4"),
    "a repeated name": ({"names": ["x", "y", "x"]}, "scalebio.names", "rename"),
    "an empty name": ({"names": ["x", "y", ""]}, "scalebio.names", "rename"),
    "a bound for nobody": ({"bounds": {"typo": [0, 1]}}, "scalebio.bounds", "the sources are ['a', 'b', 'org/c']"),
    "a group of nobody": ({"groups": {"g": [A, "typo"]}}, "scalebio.groups", "['typo']; the sources are"),
    "a weight for nobody": (
        {"mixture_init": {A: 0.5, B: 0.2, C: 0.2, "typo": 0.1}},
        "scalebio.mixture_init",
        "['typo']; the sources are",
    ),
    "a group called like a source": ({"groups": {A: [B, C]}}, "scalebio.groups", "rename the groups"),
    "overlapping groups": (
        {"groups": {"g": [A, B], "h": [B, C]}},
        "scalebio.groups",
        "['b'] stand in several groups; a source belongs to one at most",
    ),
}


@pytest.mark.parametrize(("block", "key", "remedy"), NAMES.values(), ids=NAMES.keys())
def test_names_that_do_not_fit_are_refused(block, key, remedy):
    problem = only_problem(config(scalebio=block))
    assert problem.startswith(key)
    assert remedy in problem


def test_given_names_are_those_that_bounds_may_use():
    problem = only_problem(config(scalebio={"names": ["x", "y", "z"], "bounds": {A: [0, 1]}}))
    assert "['a']; the sources are ['x', 'y', 'z']" in problem


# ---- weights and bounds

SIMPLEX: dict[str, tuple[dict[str, Any], str, str]] = {
    "a source without a weight": (
        {"mixture_init": {A: 0.5, B: 0.5}},
        "scalebio.mixture_init",
        "['org/c'] have none; add",
    ),
    "weights above one": ({"mixture_init": {A: 0.5, B: 0.5, C: 0.5}}, "scalebio.mixture_init", "got 1.5; rescale"),
    "weights below one": ({"mixture_init": {A: 0.1, B: 0.1, C: 0.1}}, "scalebio.mixture_init", "got 0.3; rescale"),
    "a weight of zero": ({"mixture_init": {A: 0.0, B: 0.5, C: 0.5}}, "scalebio.mixture_init", "use a small one"),
    "bounds the wrong way round": ({"bounds": {A: [0.5, 0.2]}}, "scalebio.bounds.a", "exchange them"),
    "floors above one": ({"bounds": {A: [0.6, 1], B: [0.6, 1]}}, "scalebio.bounds", "from 1.2 to 3, never 1; widen"),
    "caps below one": (
        {"bounds": {A: [0, 0.3], B: [0, 0.3], C: [0, 0.3]}},
        "scalebio.bounds",
        "0 to 0.9, never 1; widen",
    ),
    "a group its members cannot fill": (
        {"bounds": {A: [0, 0.1], B: [0, 0.1], "g": [0.5, 1]}, "groups": {"g": [A, B]}},
        "scalebio.bounds.g",
        "widen",
    ),
    "a group its members overfill": (
        {"bounds": {A: [0.3, 1], B: [0.3, 1], "g": [0, 0.5]}, "groups": {"g": [A, B]}},
        "scalebio.bounds.g",
        "widen",
    ),
    "floors above one in a group without a bound": (
        {"bounds": {A: [0.6, 1], B: [0.6, 1]}, "groups": {"g": [A, B]}},
        "scalebio.bounds",
        "widen",
    ),
    "a group cap and a source's cap below one": (
        {"bounds": {C: [0, 0.5], "g": [0, 0.3]}, "groups": {"g": [A, B]}},
        "scalebio.bounds",
        "never 1; widen",
    ),
    "a group floor and a source's floor above one": (
        {"bounds": {C: [0.5, 1], "g": [0.7, 1]}, "groups": {"g": [A, B]}},
        "scalebio.bounds",
        "never 1; widen",
    ),
    "a weight of zero beside a bound of another": (
        {"mixture_init": {A: 0.5, B: 0.5, C: 0.0}, "bounds": {A: [0, 0.9]}},
        "scalebio.mixture_init",
        "use a small one",
    ),
    "a zero start that a cap would have to raise": (
        {"mixture_init": {A: 0.6, B: 0.4, C: 0.0}, "bounds": {A: [0, 0.3], B: [0, 0.3]}},
        "scalebio.mixture_init",
        "use a small one",
    ),
}


@pytest.mark.parametrize(("block", "key", "remedy"), SIMPLEX.values(), ids=SIMPLEX.keys())
def test_weights_and_bounds_that_cannot_be_met_are_refused(block, key, remedy):
    problem = only_problem(config(scalebio=block))
    assert problem.startswith(key)
    assert remedy in problem


# ---- validation data and numbers


@pytest.mark.parametrize("absent", [None, 0, 0.0])
def test_no_validation_data_at_all_is_refused(absent):
    problem = only_problem(config({"val_set_size": absent, "scalebio": {}}))
    assert "add scalebio.validation_datasets" in problem
    assert "test_datasets" in problem
    assert "val_set_size" in problem


VALIDATION: dict[str, tuple[Any, str]] = {
    "empty": ([], "is empty; list at least one dataset, or remove the key"),
    "no path": ([{"type": "alpaca"}], "has no path; write it as an entry of datasets:"),
    "a bare string": (["data/v.jsonl"], "'data/v.jsonl' has no path; write it as an entry of datasets:"),
    "weight 0": ([{"path": "v", "weight": 0}], "weight must be above 0, got 0"),
    "negative weight": ([{"path": "v", "weight": -1.0}], "weight must be above 0, got -1.0"),
    "weight not a number": ([{"path": "v", "weight": "much"}], "weight must be above 0, got 'much'"),
    "infinite weight": ([{"path": "v", "weight": float("inf")}], "weight must be above 0, got inf"),
    "weight nan": ([{"path": "v", "weight": float("nan")}], "weight must be above 0, got nan"),
}


@pytest.mark.parametrize(("entries", "remedy"), VALIDATION.values(), ids=VALIDATION.keys())
def test_validation_data_that_cannot_be_are_refused(entries, remedy):
    problem = only_problem(config(scalebio={"validation_datasets": entries}))
    assert problem.startswith("scalebio.validation_datasets")
    assert remedy in problem


@pytest.mark.parametrize("penalty", [0.5, 1.0, 2.9, 2])
def test_symmetric_with_a_small_penalty_is_refused(penalty):
    problem = only_problem(config(scalebio={"estimator": "symmetric", "penalty": penalty}))
    assert problem.startswith("scalebio.penalty must be at least 3")
    assert f"got {penalty}" in problem


# ---- apply


@pytest.fixture
def mixture(tmp_path: Path) -> str:
    path = tmp_path / "mixture.json"
    path.write_text("{}")
    return str(path)


@pytest.mark.parametrize("more", [{}, {"max_repeats": 2.0}, {"names": ["x", "y", "z"]}, {"extensions": ["my.module"]}])
def test_apply_needs_a_file_and_no_validation_data(mixture, more):
    assert problems_of(config({"scalebio": {"apply": mixture, **more}})) == []


@pytest.mark.parametrize(
    "idle",
    [
        {"penalty": 100.0},
        {"validation_datasets": [{"path": "v"}]},
        {"lisa": {"active_layers": 2}},
        {"mixture_init": "proportional", "warmup_steps": 3},
    ],
    ids=str,
)
def test_apply_with_keys_that_would_do_nothing_is_refused(mixture, idle):
    problem = only_problem(config({"scalebio": {"apply": mixture, **idle}}))
    assert problem.startswith("scalebio.apply")
    assert str(sorted(idle)) in problem
    assert "remove them" in problem


def test_apply_of_a_file_that_is_not_there_is_refused(tmp_path):
    problem = only_problem(config({"scalebio": {"apply": str(tmp_path / "no.json")}}))
    assert problem.startswith("scalebio.apply: no file")
    assert "give the path of a mixture.json" in problem


def test_apply_of_a_folder_is_refused(tmp_path):
    assert "no file" in only_problem(config({"scalebio": {"apply": str(tmp_path)}}))


# ---- all at once


def test_all_problems_come_together():
    broken = config(
        {"fsdp_config": {"fsdp_version": 1}},
        {"datasets": [{"path": "a"}], "rl": "dpo", "fp8": True, "optimizer": "lomo"},
        {"val_set_size": 0, "lisa_n_layers": 2},
        {
            "scalebio": {
                "estimator": "symmetric",
                "penalty": 1.0,
                "bounds": {"typo": [0, 1]},
                "lisa": {"active_layers": 1},
            }
        },
    )
    problems = problems_of(broken)
    for part in (
        "datasets:",
        "rl:",
        "fp8:",
        "optimizer:",
        "fsdp:",
        "scalebio.bounds",
        "validation data",
        "scalebio.penalty",
        "scalebio.lisa",
    ):
        assert sum(part in problem for problem in problems) >= 1, part
    assert len(problems) == 9
    assert len(set(problems)) == 9


@pytest.mark.parametrize("block", [["penalty"], "on", 3, True], ids=repr)
def test_a_block_that_is_none_is_refused(block):
    problem = only_problem(config({"scalebio": block}))
    assert problem.startswith(f"scalebio: must be a block of keys, got {block!r}; see ")
