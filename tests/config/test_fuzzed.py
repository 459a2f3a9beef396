"""Configs with anything in the block and in `datasets:` are taken, or refused in one message that a person can read."""

from __future__ import annotations

import copy
import traceback
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scalebio_plugin.config.block import ScaleBiOSettings
from scalebio_plugin.config.raw import refuse_shapes
from scalebio_plugin.config.refusals import problems_of
from scalebio_plugin.errors import said_by
from scalebio_plugin.estimate.setting import setting_of
from tests import host
from tests.config.test_refusals import GOOD

RIGHT: dict[str, list[Any]] = {
    "validation_datasets": [[{"path": "v.jsonl", "type": "alpaca"}, {"path": "w.jsonl", "weight": 2}]],
    "penalty": [10.0, 1, float("inf")],
    "bounds": [{"a": [0.1, 0.5]}, {"g": [0, 1]}],
    "groups": [{"g": ["a", "b"]}],
    "mixture_init": ["uniform", {"a": 0.2, "b": 0.3, "org/c": 0.5}],
    "prior": [{"strength": 0.1}, {"weights": {"a": 0.2, "b": 0.3, "org/c": 0.5}}],
    "learn": [{"fraction": 0.5}, {"steps": 3}, {"until": "converged", "at_most": 0.5}],
    "inner": [{"device": "cpu"}],
    "lisa": [{"active_layers": 1}, {}],
    "names": [["x", "y", "z"]],
    "split_by": ["source", {"a": "source"}],
    "apply": ["mixture.json"],
    "keep": ["inner"],
}
ENTRIES = [{**GOOD["datasets"][0], "shards": 2, "shards_idx": 0}, *GOOD["datasets"][1:]]
SCALARS = st.one_of(
    *(st.none(), st.booleans(), st.integers(-2, 3), st.floats(), st.text(max_size=4)),
    st.sampled_from([10**400, -(10**20), 1e308, "a", "org/c", "uniform", "1e-3", "\x1b[2J", "_synthetic"]),
)
INNER = [*ScaleBiOSettings.model_fields, "a", "g", "path", "type", "fraction", "weights", "device", "shards", "field"]
KEYS = st.one_of(st.sampled_from(INNER), st.integers(0, 2), st.none(), st.booleans(), st.text(max_size=2))
ANY = st.recursive(
    SCALARS, lambda of: st.one_of(st.lists(of, max_size=2), st.dictionaries(KEYS, of, max_size=2)), max_leaves=4
)
BLOCKS = st.one_of(
    ANY,
    *[
        st.fixed_dictionaries(
            {}, optional={key: st.sampled_from(RIGHT.get(key, [None])) | ANY for key in ScaleBiOSettings.model_fields}
        ),
        st.dictionaries(st.sampled_from(list(RIGHT)) | KEYS, ANY, max_size=2).map(
            lambda of: {**GOOD["scalebio"], **of}
        ),
    ],
)
ENTRY = st.one_of(
    ANY,
    st.dictionaries(st.sampled_from(["path", "name", "split", "message_property_mappings", "roles", "weight"]), ANY),
    st.tuples(st.sampled_from(ENTRIES), st.dictionaries(KEYS, ANY, max_size=2)).map(lambda of: {**of[0], **of[1]}),
)
LISTS = st.one_of(ANY, st.just(ENTRIES), st.lists(ENTRY, max_size=3))
BESIDE = st.dictionaries(
    st.sampled_from(
        ["val_set_size", "test_datasets", "deepspeed", "fsdp_config", "lisa_n_layers", "optimizer", "seed"]
    ),
    ANY,
    max_size=1,
)
CONFIGS = st.tuples(BLOCKS, LISTS, BESIDE).map(
    lambda of: {**GOOD, "num_epochs": 1, "scalebio": of[0], "datasets": of[1], **of[2]}
)
FUZZ = settings(deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def _fast() -> None:
    host._hasten()


def assert_one_message(error: Exception) -> None:
    """It is a ValueError, whose words are for a person if the frame that raised it is of the plugin."""
    assert isinstance(error, ValueError), repr(error)
    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    assert said_by(error) is not None or "scalebio_plugin" not in Path(raised_in).parts, repr(error)


def taken_or_refused(config: dict[str, Any]) -> None:
    from axolotl.cli.config import prepare_plugins
    from axolotl.utils.config import validate_config
    from axolotl.utils.dict import DictDefault

    host.forget_plugins()
    cfg = DictDefault(copy.deepcopy(config))
    try:
        prepare_plugins(cfg)
        validated = validate_config(cfg)
    except Exception as error:
        assert_one_message(error)
    else:
        assert validated["scalebio"] is not None


def read_or_refused(config: dict[str, Any]) -> None:
    """As `scalebio estimate` does, which needs no host."""
    try:
        refuse_shapes(config)
        setting_of(config, Path(), 1)
        problems = problems_of(config)
    except (OSError, ValueError) as error:
        *_, last = traceback.extract_tb(error.__traceback__)
        assert str(error)  # noqa: PT017
        assert (last.line or "").startswith("raise "), f"no words of ours: {error!r}"  # noqa: PT017
    else:
        assert all(isinstance(problem, str) for problem in problems)


@settings(FUZZ, max_examples=200)
@given(CONFIGS)
def test_the_host_and_the_plugin_take_or_refuse_it(config: dict[str, Any]) -> None:
    taken_or_refused(config)


@settings(FUZZ, max_examples=150)
@given(CONFIGS)
def test_an_estimate_takes_or_refuses_it(config: dict[str, Any]) -> None:
    read_or_refused(config)


@pytest.mark.slow
@settings(FUZZ, max_examples=2000)
@given(CONFIGS)
def test_two_thousand_of_them(config: dict[str, Any]) -> None:
    taken_or_refused(config)
    read_or_refused(config)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scalebio": 5}, "scalebio: must be a block of keys, got 5"),
        ({"scalebio": [1, 2]}, "scalebio: must be a block of keys, got [1, 2]"),
        ({"scalebio": {None: 1}}, "scalebio: must be a block of keys, got {None: 1}"),
        ({"scalebio": {"lisa": None}}, "scalebio.lisa: is empty, so that all layers would train; write `lisa: {}`"),
        ({"datasets": 0.5}, "datasets: must be a list of entries, got 0.5"),
        ({"datasets": {"a": {"path": "a"}}}, "datasets: must be a list of entries, got {'a': {'path': 'a'}}"),
        ({"datasets": [None, {"path": "a"}]}, "datasets[0]: must be an entry of keys, got None"),
        ({"datasets": ["a.jsonl"]}, "datasets[0]: must be an entry of keys, got 'a.jsonl'; write it as `- path: ...`"),
        ({"datasets": [{"path": "a", 3: 4}]}, "datasets[0]: must be an entry of keys, got {'path': 'a', 3: 4}"),
        ({"datasets": [{"path": "a", "message_property_mappings": []}]}, "datasets[0].message_property_mappings: must"),
        ({"test_datasets": [[]]}, "test_datasets[0]: must be an entry of keys, got []"),
        (
            {"scalebio": {"validation_datasets": [7]}},
            "scalebio.validation_datasets[0]: must be an entry of keys, got 7",
        ),
        *(
            ({key: value}, f"{key}: is not read; write it inside the scalebio: block")
            for key, value in (("scalebio.penalty", 20), ("scalebio__penalty", 20), ("scalebio-penalty", 20))
        ),
        *(
            ({key: {"penalty": 20}}, f"{key}: is not read; write it inside the scalebio: block")
            for key in ("ScaleBiO", "SCALEBIO", "scale_bio", "Scale-BiO")
        ),
        ({"plugins": 3}, "plugins: must be a list of names, got 3"),
    ],
)
def test_what_is_no_block_and_no_list_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match="scalebio cannot run this config") as refused:
        refuse_shapes({**GOOD, **change})
    assert str(refused.value).splitlines()[1].startswith(f"  - {said}")
    assert len(str(refused.value).splitlines()) == 2


def test_all_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"scalebio: must(?s:.*)- datasets: must(?s:.*)- test_datasets: must"):
        refuse_shapes({"scalebio": 1, "datasets": "a", "test_datasets": 2})
