"""Values of a checkpoint that another version wrote: read, or refused in a line before anything is loaded."""

from __future__ import annotations

import copy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from axolotl.utils.dict import DictDefault

from scalebio_plugin.algorithm import AdamState, Evidence, EvidentState, ExponentiatedState, GapBaseline, Moments
from scalebio_plugin.algorithm.moments import LAGS, STRETCHES
from scalebio_plugin.algorithm.saved import OtherFormat, restored
from scalebio_plugin.data.step_plan import DrawState
from scalebio_plugin.training import checkpoint
from scalebio_plugin.training.checkpoint import InnerPart, MixturePart, Place
from scalebio_plugin.training.early import checkpoint_to_go_on_from
from scalebio_plugin.training.manifest import write_manifest
from scalebio_plugin.training.mixture_run import states_of

FIELDS_OF_VERSION = {
    1: {
        Moments: "count sum_S square_S product_LS lately_LS open_KS stretch_KS stretch_square_KS",
        Evidence: "spread_S size_S scale_S standard peak_S recent younger per_nat_S",
        EvidentState: "moved_S owed_S used_S largest_S left_S lowest_S shared_S given_S barred_S",
        AdamState: "step first_S second_S",
        ExponentiatedState: "step mean_square",
        GapBaseline: "gap_S units_S",
        DrawState: "position_S limit_S left waiting waiting_q",
    }
}
STATES: dict[type[Any], dict[str, Any]] = {
    Moments: asdict(Moments.zeros(2)),
    Evidence: asdict(Evidence.zeros(2)),
    EvidentState: vars(EvidentState.zeros(2)),
    AdamState: vars(AdamState.zeros(2)),
    ExponentiatedState: vars(ExponentiatedState()),
    GapBaseline: vars(GapBaseline.zeros(2)),
    DrawState: DrawState.start(2).plain(),
}
READ: dict[type[Any], Any] = {
    **{kind: lambda saved, kind=kind: restored(kind, saved) for kind in STATES},
    Evidence: Evidence.of,
    EvidentState: EvidentState.of,
    DrawState: DrawState.of_plain,
}
LATER = {Evidence: {"per_nat_S"}, EvidentState: set(STATES[EvidentState]) - {"moved_S"}}  # earlier versions had none
each_state = pytest.mark.parametrize("kind", STATES, ids=lambda kind: kind.__name__)


def test_who_changes_what_is_saved_raises_the_version_or_reads_the_old_one_and_says_so_here() -> None:
    pinned = FIELDS_OF_VERSION[checkpoint.VERSION]
    assert {kind: " ".join(field.name for field in fields(kind)) for kind in pinned} == pinned
    assert (LAGS, STRETCHES) == (32, 11)  # sizes of what is saved


@pytest.mark.parametrize("kind", [*STATES, MixturePart, InnerPart, Place], ids=lambda kind: kind.__name__)
def test_what_is_saved_is_a_value(kind: type[Any]) -> None:
    assert kind.__dataclass_params__.frozen


@each_state
def test_a_state_comes_back(kind: type[Any]) -> None:
    again = READ[kind](STATES[kind])
    assert isinstance(again, kind)
    assert str(again) == str(READ[kind](copy.deepcopy(STATES[kind])))


@each_state
def test_a_state_of_other_fields_is_refused_by_their_names(kind: type[Any]) -> None:
    with pytest.raises(OtherFormat, match=rf"^{kind.__name__} has product_S, so another version .* start a new output"):
        READ[kind]({**STATES[kind], "product_S": torch.zeros(2)})
    for name in STATES[kind].keys() - LATER.get(kind, set()):
        lacking = {key: value for key, value in STATES[kind].items() if key != name}
        with pytest.raises(OtherFormat, match=rf"^{kind.__name__} lacks {name}"):
            READ[kind](lacking)
    for name in LATER.get(kind, set()):
        READ[kind]({key: value for key, value in STATES[kind].items() if key != name})


def run() -> dict[str, Any]:
    """As `MixtureRun.state_dict` gives it."""
    plain = ("names", "logits", "rule", "rule_state", "pending_gap", "pending_steps", "first", "recent_from")
    states = {"baseline": STATES[GapBaseline], "evidence": copy.deepcopy(STATES[Evidence])}
    return dict.fromkeys((*plain, "younger_from", "objective", "learn_until")) | states


def with_moments_of_an_earlier_version() -> dict[str, Any]:
    """The product of neighbours alone, and the last value, in place of 32 lags."""
    saved = run()
    for moments in (saved["evidence"][name] for name in ("standard", "recent", "younger")):
        del moments["product_LS"], moments["lately_LS"]
        moments |= {"product_S": torch.zeros(2), "last_S": torch.zeros(2)}
    return saved


@pytest.mark.parametrize("key", sorted(run().keys() - {"evidence"}))
def test_a_run_that_lacks_a_value_is_refused_by_its_name(key: str) -> None:
    saved = run()
    states_of(saved)
    del saved[key]
    with pytest.raises(OtherFormat, match=f"^the state of the mixture lacks {key}, so another version"):
        states_of(saved)


@pytest.mark.parametrize("key", ["resume_from_checkpoint", "auto_resume_from_checkpoints"])
def test_a_checkpoint_of_another_format_is_refused_before_anything_is_loaded(tmp_path: Path, key: str) -> None:
    folder = tmp_path / "checkpoint-2"
    cfg = DictDefault({"output_dir": str(tmp_path), key: str(folder) if key.startswith("resume") else True})
    for saved in (run(), with_moments_of_an_earlier_version()):
        checkpoint.write_mixture(str(folder), MixturePart(saved, []))
        checkpoint.write_inner(str(folder), InnerPart(None, (0, 0), None, {}), Place(0, 1, sharded=False))
        write_manifest(str(folder), 2, 1)
        if saved["evidence"]["recent"].keys() == STATES[Moments].keys():
            checkpoint_to_go_on_from(cfg)
    with pytest.raises(ValueError, match="another format") as refused:
        checkpoint_to_go_on_from(cfg)
    assert str(refused.value) == (
        f"scalebio: {folder} has another format: Moments has last_S, product_S and lacks lately_LS, product_LS, so "
        "another version of the plugin wrote it; resume with the version that wrote it, or start a new output_dir"
    )


def test_files_of_a_checkpoint_that_lack_a_value_are_refused(tmp_path: Path) -> None:
    place = checkpoint.Place(0, 1, sharded=False)
    checkpoint.write_mixture(str(tmp_path), MixturePart(run(), []))
    checkpoint._save({"version": checkpoint.VERSION, "inner": None}, str(tmp_path), place.inner)
    write_manifest(str(tmp_path), 2, 1)
    with pytest.raises(ValueError, match=r"has another format: inner lacks model, record, rest, so another version"):
        checkpoint.read_inner(str(tmp_path), place)
