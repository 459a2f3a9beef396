"""The `scalebio:` block: described, strict, in range, and able to read its own output."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from scalebio_plugin.config.block import InnerArgs, LearnArgs, LisaArgs, PriorArgs, ScaleBiOArgs, ScaleBiOSettings


class Host(ScaleBiOArgs):
    """The host's config model, as far as matters: the block merged in, the other keys kept."""

    model_config = ConfigDict(extra="allow")


class Entry(BaseModel):
    """An entry of `datasets:` that the host has parsed already."""

    path: str
    type: str | None = None


GOOD: dict[str, Any] = {
    "datasets": [{"path": "data/a.jsonl"}, {"path": "data/b.jsonl"}],
    "scalebio": {"validation_datasets": [{"path": "data/validation.jsonl"}]},
}
FULL: dict[str, Any] = {
    "validation_datasets": [{"path": "v.jsonl", "type": "alpaca", "weight": 2.0}, {"path": "w.jsonl"}],
    "validation_batch_size": 4,
    "objective": "worst",
    "penalty": 100.0,
    "estimator": "symmetric",
    "mixture_update": "adam",
    "mixture_learning_rate": 0.01,
    "mixture_init": {"a": 0.25, "b": 0.75},
    "bounds": {"a": [0.1, 0.5], "g": [0.5, 0.9]},
    "groups": {"g": ["b"]},
    "prior": {"weights": {"a": 0.5, "b": 0.5}, "strength": 0.2},
    "warmup_steps": 3,
    "learn": {"steps": 20},
    "update_interval": 2,
    "probe_interval": 5,
    "inner": {"device": "cpu"},
    "keep": "model",
    "loss_unit": "sequence",
    "lisa": {"active_layers": 1, "interval": 5, "train_embeddings": True},
    "names": ["a", "b"],
    "split_by": {"a": "source"},
    "min_rows": 50,
    "held_out_rows": 8,
    "sampling": "mixture",
    "max_repeats": 2.0,
    "on_leak": "drop",
    "on_mismatch": "warn",
    "on_divergence": "error",
    "extensions": ["my.module:Hooks"],
}


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def config(**block: Any) -> dict[str, Any]:
    good = copy.deepcopy(GOOD)
    good["scalebio"].update(block)
    return good


def error_of(given: dict[str, Any]) -> str:
    with pytest.raises(ValidationError) as caught:
        Host.model_validate(given)
    return str(caught.value)


# ---- the block


def test_all_keys_are_optional():
    settings = ScaleBiOSettings()
    assert settings.penalty == 10.0
    assert settings.loss_unit == "token"
    assert settings.mixture_init == "proportional"
    assert settings.sampling == "mixture"
    assert settings.objective == "mean"
    assert settings.mixture_update == "evidence"
    assert settings.lisa is None
    assert settings.prior is None
    assert settings.apply is None


@pytest.mark.parametrize("absent", [{}, {"scalebio": None}, {"scalebio": {}}], ids=str)
def test_an_absent_or_empty_block_is_the_defaults(absent):
    given = {"datasets": GOOD["datasets"], "val_set_size": 0.1, **absent}
    assert Host.model_validate(given).scalebio == ScaleBiOSettings()


def test_every_key_can_be_given():
    settings = ScaleBiOSettings.model_validate(FULL)
    assert set(FULL) | {"apply"} == set(ScaleBiOSettings.model_fields)
    assert settings.bounds == {"a": (0.1, 0.5), "g": (0.5, 0.9)}
    assert settings.lisa == LisaArgs(active_layers=1, interval=5, train_embeddings=True)


def leaves(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, Any]]:
    nested = {"prior": PriorArgs, "learn": LearnArgs, "inner": InnerArgs, "lisa": LisaArgs}
    for name, field in model.model_fields.items():
        yield f"{path}{name}", field
        if name in nested and not path:
            yield from leaves(nested[name], f"{name}.")


@pytest.mark.parametrize(("name", "field"), leaves(ScaleBiOSettings), ids=lambda v: v if isinstance(v, str) else "")
def test_every_leaf_is_described(name, field):
    assert field.description, name
    assert field.description[-1] == "."
    assert not field.is_required()


def test_off_is_off_as_yaml_reads_it():
    assert ScaleBiOSettings(on_leak=False).on_leak == ScaleBiOSettings(on_leak="off").on_leak == "off"
    assert "scalebio.on_leak" in error_of(config(on_leak=True))


@pytest.mark.parametrize(
    ("on_leak", "learns", "applies"),
    [("warn", True, False), ("drop", True, True), ("error", True, True), ("off", False, False)],
)
def test_who_looks_for_leaks(on_leak, learns, applies):
    assert ScaleBiOSettings(on_leak=on_leak).looks_for_leaks is learns
    assert ScaleBiOSettings(on_leak=on_leak, apply="mixture.json").looks_for_leaks is applies


@pytest.mark.parametrize("model", [ScaleBiOSettings, PriorArgs, LearnArgs, InnerArgs, LisaArgs])
def test_a_block_cannot_be_changed(model):
    with pytest.raises(ValidationError, match="frozen"):
        setattr(model(), next(iter(model.model_fields)), None)


@pytest.mark.parametrize(
    ("block", "where"),
    [
        ({"penalti": 10}, "scalebio.penalti"),
        ({"learn": {"frction": 0.5}}, "scalebio.learn.frction"),
        ({"inner": {"devise": "cpu"}}, "scalebio.inner.devise"),
        ({"lisa": {"layers": 2}}, "scalebio.lisa.layers"),
        ({"prior": {"strenght": 0.1}}, "scalebio.prior.strenght"),
        ({"enabled": True}, "scalebio.enabled"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_an_unknown_key_is_an_error_that_names_it(block, where):
    assert where in error_of(config(**block))


OUT_OF_RANGE: list[tuple[str, Any]] = [
    *[("penalty", value) for value in (0, -1.0, float("nan"), "strong", None)],
    *[("mixture_learning_rate", value) for value in (-0.1, float("inf"), float("nan"))],
    *[("warmup_steps", value) for value in (-1, 1.5)],
    *[("update_interval", value) for value in (0, -1, 2.5)],
    *[("probe_interval", value) for value in (-1, 2.5)],
    *[("validation_batch_size", value) for value in (0, -4)],
    *[("max_repeats", value) for value in (0.5, 1.5, 0, float("inf"), float("nan"))],
    *[("estimator", value) for value in ("backward", "", True)],
    *[("loss_unit", value) for value in ("tokens", "sample")],
    *[("mixture_init", value) for value in ("even", 0.5, [0.5, 0.5])],
    *[("inner", value) for value in ({"device": "cuda"}, {"device": None}, "cpu")],
    *[("prior", {"strength": value}) for value in (0, -0.1, float("inf"), float("nan"), None)],
    *[("prior", value) for value in ({"weights": "even"}, {"weights": {"a": 1.5, "b": -0.5}}, True, 0.1)],
    *[("lisa", value) for value in ({"active_layers": 0}, {"interval": 0}, {"active_layers": -1}, True, 2)],
    *[("learn", value) for value in ({"fraction": 0.0}, {"fraction": 1.1}, {"fraction": -0.5}, {"steps": 0}, 0.5)],
    *[("extensions", value) for value in ("my.module", [1])],
    ("mixture_update", 3),
]
WRONG_KIND: list[tuple[str, Any]] = [  # the rules that look across the config see it before its types are checked
    *[("bounds", value) for value in (0.5, [0.1, 0.5], {"a": 0.5}, {"a": None}, {"a": [0.1]}, {"a": [0.1, 0.2, 0.3]})],
    *[("bounds", value) for value in ({"a": ["low", 0.5]}, {"a": [None, 0.5]}, {"a": {"min": 0.1}}, {"a": [-0.1, 2]})],
    *[("groups", value) for value in (["a", "b"], {"g": "a"}, {"g": 3}, {"g": None}, {"g": [["a"]]})],
    *[("mixture_init", value) for value in ({"a": "much", "b": 0.5}, {"a": None, "b": 1.0}, {"a": -1.0, "b": 2.0})],
    *[("names", value) for value in ("ab", 3, [1, 2], ["a", None], {"a": "b"})],
    *[("validation_datasets", value) for value in ("v.jsonl", {"path": "v.jsonl"}, 3, [3], [None])],
    ("apply", 3),
    ("penalty", [10]),
]


@pytest.mark.parametrize(("key", "value"), [*OUT_OF_RANGE, *WRONG_KIND])
def test_a_value_that_cannot_be_is_an_error_that_names_its_key_and_no_crash(key, value):
    assert f"scalebio.{key}" in error_of(config(**{key: value}))


@pytest.mark.parametrize("penalty", [0.1, 1, 10.0, 1e6, float("inf"), "10"])
def test_the_pull_is_one_over_the_penalty(penalty):
    settings = ScaleBiOSettings(penalty=penalty)
    assert settings.pull == 1 / float(penalty)


# ---- the part that learns


@pytest.mark.parametrize(
    ("learn", "steps", "last"),
    [
        ({}, 100, 100),
        ({"fraction": 1.0}, 7, 7),
        ({"fraction": 0.5}, 100, 50),
        ({"fraction": 0.25}, 10, 2),
        ({"fraction": 0.001}, 100, 1),
        ({"steps": 30}, 100, 30),
        ({"steps": 100}, 100, 100),
        ({"steps": 300}, 100, 100),
        ({"steps": 1}, 1, 1),
    ],
)
def test_learning_ends_after_the_fraction_or_the_steps(learn, steps, last):
    assert LearnArgs(**learn).last(steps) == last


def test_a_fraction_and_a_number_of_steps_are_refused_together():
    message = error_of(config(learn={"fraction": 0.5, "steps": 10}))
    assert "give one of learn.fraction, learn.steps; remove the others" in message


# ---- the whole config


def test_problems_of_the_config_come_in_one_error():
    message = error_of(
        {"datasets": [{"path": "a"}], "rl": "dpo", "deepspeed": "x.json", "scalebio": {"bounds": {"typo": [0, 1]}}}
    )
    assert "scalebio cannot run this config:" in message
    for part in ("  - datasets:", "  - rl:", "  - deepspeed:", "  - scalebio.bounds", "  - no validation data"):
        assert part in message


def test_entries_that_the_host_has_parsed_already_are_read_too():
    given = {**config(), "datasets": [Entry(path="a.jsonl"), Entry(path="b.jsonl", type="alpaca")]}
    given["scalebio"]["bounds"] = {"a": [0.1, 0.9]}
    assert Host.model_validate(given).scalebio.bounds == {"a": (0.1, 0.9)}
    assert "['typo']" in error_of({**given, "scalebio": {**given["scalebio"], "bounds": {"typo": [0, 1]}}})


@pytest.mark.parametrize("mode", ["python", "json"])
@pytest.mark.parametrize("exclude_none", [True, False])
@pytest.mark.parametrize(
    "given",
    [
        *(config(**block) for block in ({}, {"lisa": {}}, {"learn": {"fraction": 0.5}})),
        {**config(**FULL), "val_set_size": 0.1},
        *(config(**block) for block in ({"mixture_init": "proportional"}, {"penalty": float("inf")})),
        {**GOOD, "scalebio": {"apply": __file__, "max_repeats": 2.0}},
    ],
    ids=lambda given: str(given["scalebio"])[:80],
)
def test_the_output_can_be_read_again_whole_and_the_block_alone(given, mode, exclude_none):
    """Ray validates a second time, on the worker, what the first time gave (exclude_none: as the host does)."""
    once = Host.model_validate(given)
    output = once.model_dump(mode=mode, exclude_none=exclude_none)
    again = Host.model_validate(output)
    assert again.scalebio == once.scalebio == ScaleBiOSettings.model_validate(output["scalebio"])
    assert again.model_dump() == once.model_dump()


def test_what_is_no_mapping_is_left_to_pydantic():
    with pytest.raises(ValidationError):
        Host.model_validate(["datasets"])
