"""ZeRO stages 1, 2 and 3, two ranks on CPU: `zero_worker` runs what these tests assert on, many cases a launch."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scalebio_plugin.config.deepspeed import loses_offloaded_gradients
from tests.engines.launch import launch

# Looked for and not imported: that takes seconds, and the ranks alone need it.
pytestmark = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")

STAGES = (1, 2, 3)
# Whether stage 2 with offload_optimizer is refused.
LOSES = loses_offloaded_gradients()
QUICK = ("adamw_3", "uneven", "bf16", "error", "kept")
SETTINGS = ("overlap", "no_overlap", "scattered", "all_reduce", "small_buckets")
OFFLOAD = ("optimizer_offload", "optimizer_offload_1")
SLOW = {
    1: ("adamw_1", "sgd_1", "sgd_3", "cpu", "beside", "groups", *SETTINGS, "round_robin", *OFFLOAD),
    2: ("adamw_1", "sgd_1", "sgd_3", "cpu", "beside", "groups", *SETTINGS, "round_robin", *(() if LOSES else OFFLOAD)),
    3: (
        *("adamw_1", "sgd_1", "sgd_3", "cpu", "beside", "groups", *SETTINGS),
        *("sub_groups", "hpz", *OFFLOAD, "param_offload", "both_offload"),
    ),
}
MASTERS = {
    1: ("bf16_masters", "bf16_beside", "autocast", "bf16_offload"),
    2: ("bf16_masters", "bf16_beside", "autocast", "bf16_fp32_accumulation"),
    3: ("bf16_masters", "bf16_beside", "autocast", "bf16_fp32_accumulation", "bf16_offload"),
}
KEPT = {
    1: ("kept_groups", "kept_cpu", "kept_beside", "kept_bf16", "kept_offload"),
    2: ("kept_groups", "kept_cpu", "kept_beside", "kept_bf16"),
    3: ("kept_groups", "kept_cpu", "kept_beside", "kept_bf16", "kept_offload"),
}
RESUMED = ("resume", "resume_bf16")

Results = dict[int, dict[str, list[dict[str, Any]]]]  # by stage, case and rank


def launched(folder: Path, items: list[str]) -> Results:
    from tests.engines.zero_worker import run_items

    launch(run_items, folder, items, log=folder / "log.txt")
    results: Results = {stage: {} for stage in STAGES}
    for item in items:
        stage, case = item.split(":")
        paths = [folder / stage / f"{case}_{rank}.json" for rank in range(2)]
        results[int(stage)][case] = [json.loads(path.read_text()) for path in paths]
    return results


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return launched(tmp_path_factory.mktemp("quick"), [f"{stage}:{case}" for stage in STAGES for case in QUICK])


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("slow")
    return {
        stage: launched(folder, [f"{stage}:{case}" for case in (*SLOW[stage], *MASTERS[stage], *KEPT[stage])])[stage]
        for stage in STAGES
    }


@pytest.mark.slow
def test_stage_2_with_an_offloaded_optimizer_is_refused_as_long_as_it_loses_gradients(tmp_path: Path) -> None:
    for case, results in launched(tmp_path, [f"2:{case}" for case in OFFLOAD])[2].items():
        for rank in results:
            if LOSES:
                assert max(rank["w"]) > 1e-2, f"DeepSpeed adds up in {case}: accept it"
            else:
                assert max(*rank["w"], *rank["u"]) < 1e-5


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("resumed")
    launched(folder, [f"{stage}:{case}" for stage in STAGES for case in ("save", "save_bf16")])
    return launched(folder, [f"{stage}:{case}" for stage in STAGES for case in RESUMED])


def assert_two_copies(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert all(distance < 1e-5 for distance in (*rank["w"], *rank["u"]))
        assert min(rank["apart"]) > 1e-4  # the pull is felt: ten times the tolerance
        assert rank["moved"] > 1e-2
        assert rank["frozen"] == 0.0


def assert_masters(results: list[dict[str, Any]]) -> None:
    for rank in results:
        assert rank["equal"]
        assert rank["undisturbed"]
        assert rank["apart"] > 1e-2
        assert rank["moved"] > 1e-2


def assert_kept(results: list[dict[str, Any]], *, rounded: bool = False) -> None:
    for rank in results:
        assert [rank[kind] for kind in ("values", "masters", "states", "groups")] == [True] * 4
        assert rank["apart"] > 1e-4  # it was another set
        assert rank["left"] == 0
        assert rank["end"] < (5e-2 if rounded else 1e-5)


@pytest.mark.parametrize("stage", STAGES)
class TestQuick:
    @pytest.mark.parametrize("case", ["adamw_3", "uneven"])
    def test_every_step_equals_two_full_copies_on_the_global_batch(self, quick: Results, stage: int, case: str) -> None:
        assert_two_copies(quick[stage][case])

    def test_u_is_what_w_is_without_a_pull_bit_for_bit(self, quick: Results, stage: int) -> None:
        results = quick[stage]["bf16"]
        assert_masters(results)
        for rank in results:
            assert rank["dtype"] == "torch.float32"
            assert rank["rounding"] > 0  # the masters hold what bfloat16 cannot

    def test_u_takes_over_and_trains_on_as_a_copy_that_never_felt_the_pull(self, quick: Results, stage: int) -> None:
        assert_kept(quick[stage]["kept"])

    def test_an_error_inside_leaves_the_model_and_an_engine_that_steps(self, quick: Results, stage: int) -> None:
        for rank in quick[stage]["error"]:
            assert rank["same"]
            assert rank["steps"]
            inside, ranks, lisa = rank["caught"]
            assert inside == "inside"
            assert "number of GPUs" in ranks
            assert "remove the lisa: block" in lisa


@pytest.mark.slow
class TestSlow:
    @pytest.mark.parametrize(("stage", "case"), [(stage, case) for stage in STAGES for case in SLOW[stage]])
    def test_every_step_equals_two_full_copies(self, slow: Results, stage: int, case: str) -> None:
        assert_two_copies(slow[stage][case])

    @pytest.mark.parametrize(("stage", "case"), [(stage, case) for stage in STAGES for case in MASTERS[stage]])
    def test_u_is_what_w_is_without_a_pull_bit_for_bit(self, slow: Results, stage: int, case: str) -> None:
        assert_masters(slow[stage][case])

    @pytest.mark.parametrize(("stage", "case"), [(stage, case) for stage in STAGES for case in KEPT[stage]])
    def test_u_takes_over(self, slow: Results, stage: int, case: str) -> None:
        assert_kept(slow[stage][case], rounded=case == "kept_bf16")

    @pytest.mark.parametrize("case", RESUMED)
    @pytest.mark.parametrize("stage", STAGES)
    def test_a_resumed_run_ends_with_the_bits_of_one_in_one_go(self, resumed: Results, stage: int, case: str) -> None:
        for rank in resumed[stage][case]:
            assert rank == dict.fromkeys(("u", "w", "masters", "inner"), True)


def test_what_is_restored_rests_beside_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """On torch's meta device, in the place of a GPU."""
    import torch

    from scalebio_plugin.engines import zero

    def engine() -> Any:
        master, value = torch.nn.Parameter(torch.empty(8, device="meta")), torch.empty(8, device="meta")
        base = torch.optim.AdamW([master])
        base.state[master] = {"step": torch.tensor(3.0), "exp_avg": torch.empty(8, device="meta")}
        parts = {"single_partition_of_fp32_groups": [master], "bit16_groups_flat": [value]}
        optimizer = SimpleNamespace(optimizer=base, update_lp_params=lambda: None, **parts)
        return SimpleNamespace(optimizer=optimizer, zero_optimization_partition_weights=lambda: False)

    monkeypatch.setattr(zero, "_swap", lambda one, other: None)  # meta tensors have no contents
    restored = zero.ZeroInner(engine())
    states = [{"step": torch.tensor(3.0), "exp_avg": torch.zeros(8)}]
    restored.load_state_dict({"masters": [torch.zeros(8)], "states": states, "groups": [{"lr": 1e-3}]})
    assert {key: value.device.type for key, value in restored.states[0].items()} == {"step": "cpu", "exp_avg": "meta"}
