"""The hooks are documented, answer by the built-ins, and give way to extensions; mistakes in those are named."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pluggy
import pytest
import torch

from scalebio_plugin.algorithm import lisa
from scalebio_plugin.algorithm.evidence import Evidence
from scalebio_plugin.hooks import defaults, spec
from scalebio_plugin.hooks.manager import build_manager, manager_of, refuse_unanswered, updated
from scalebio_plugin.hooks.spec import Observation, RunFacts, hookimpl

HOOKS = {name: value for name, value in vars(spec).items() if hasattr(value, "scalebio_spec")}


@pytest.fixture
def extension() -> Iterator[ModuleType]:
    """An importable module, `my_mixture`, to put hooks into."""
    module = ModuleType("my_mixture")
    sys.modules["my_mixture"] = module
    yield module
    del sys.modules["my_mixture"]


def observation() -> Observation:
    logits, gap, gradient = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen, _ = Evidence.zeros(3).plus(gap)
    return Observation(logits, logits.softmax(0), gap, gradient, learning_rate=0.1, step=1, evidence=seen)


def moved(manager: pluggy.PluginManager, rule: str, seen: Observation, state: Any = None) -> Any:
    return manager.hook.scalebio_update_mixture(rule=rule, observation=seen, state=state)


# ---- the specifications


def test_the_hooks_are_these():
    assert sorted(HOOKS) == [
        "scalebio_draw_layers",
        "scalebio_mixture_updated",
        "scalebio_run_ended",
        "scalebio_run_started",
        "scalebio_update_mixture",
    ]


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented_typed_and_drawn_in_the_step(name):
    assert len(inspect.getdoc(HOOKS[name]) or "") > 40
    assert name in spec.__doc__
    for argument in inspect.signature(HOOKS[name]).parameters.values():
        assert argument.annotation is not inspect.Parameter.empty


@pytest.mark.parametrize("record", [Observation, RunFacts])
def test_what_hooks_are_given_is_frozen_and_documents_its_fields(record):
    assert record.__dataclass_params__.frozen
    for field in record.__dataclass_fields__:
        assert field in record.__doc__


# ---- the built-ins


def test_the_built_ins_stand_last_in_line():
    hooks = [m for name, m in inspect.getmembers(defaults) if name in HOOKS]
    assert len(hooks) == 2
    assert all(hook.scalebio_impl["trylast"] for hook in hooks)


def test_layers_are_drawn_uniformly():
    manager = build_manager()
    for period in range(20):
        drawn = manager.hook.scalebio_draw_layers(layers=24, active=2, seed=42, period=period)
        assert drawn == lisa.draw_layers(24, 2, 42, period)


def test_managers_are_separate():
    one, other = build_manager(), build_manager()
    one.unregister(defaults)
    assert moved(one, "adam", observation()) is None
    assert moved(other, "adam", observation()) is not None


# ---- extensions


class Frozen:
    """An extension: its own rule, and every draw is the last layers."""

    @hookimpl
    def scalebio_update_mixture(self, rule, observation, state):
        return (observation.logits_S, {"calls": (state or {"calls": 0})["calls"] + 1}) if rule == "frozen" else None

    @hookimpl
    def scalebio_draw_layers(self, layers, active):
        return tuple(range(layers - active, layers))


class Usurper:
    """An extension that answers for a built-in rule."""

    @hookimpl
    def scalebio_update_mixture(self, rule, observation):
        return (observation.logits_S + 1, {}) if rule == "adam" else None


@pytest.mark.parametrize("form", ["a class", "an instance"])
def test_an_extension_answers_before_the_built_ins(extension, form):
    extension.hooks = Frozen if form == "a class" else Frozen()
    manager = build_manager(["my_mixture:hooks"])
    assert manager.hook.scalebio_draw_layers(layers=6, active=2, seed=0, period=0) == (4, 5)
    logits, state = moved(manager, "frozen", observation())
    assert torch.equal(logits, observation().logits_S)
    assert moved(manager, "frozen", observation(), state)[1] == {"calls": 2}
    assert moved(manager, "adam", observation())[1]["step"] == 1  # the others still answer


def test_an_extension_may_take_a_built_in_rule_over(extension):
    extension.Usurper = Usurper
    logits, _ = moved(build_manager(["my_mixture:Usurper"]), "adam", observation())
    assert torch.equal(logits, observation().logits_S + 1)


def test_a_module_is_an_extension_too(extension):
    @hookimpl
    def scalebio_draw_layers(layers, active, seed, period):
        return (0,)

    extension.scalebio_draw_layers = scalebio_draw_layers
    manager = build_manager(["my_mixture"])
    assert manager.hook.scalebio_draw_layers(layers=6, active=2, seed=0, period=0) == (0,)


def test_all_extensions_hear_of_events(extension):
    heard = []

    class Listener:
        @hookimpl
        def scalebio_mixture_updated(self, record):
            heard.append(("updated", record["step"]))

        @hookimpl
        def scalebio_run_started(self, run):
            heard.append(("started", run.steps))

        @hookimpl
        def scalebio_run_ended(self, document):
            heard.append(("ended", document["updates"]))

    extension.first, extension.second = Listener(), Listener()
    manager = build_manager(["my_mixture:first", "my_mixture:second"])
    manager.hook.scalebio_run_started(run=RunFacts(("a", "b"), (1, 2), (1, 1), {}, steps=9, seed=0))
    manager.hook.scalebio_mixture_updated(record={"step": 3})
    manager.hook.scalebio_run_ended(document={"updates": 9})
    assert heard == [("started", 9)] * 2 + [("updated", 3)] * 2 + [("ended", 9)] * 2


class MisspeltHook:
    @hookimpl
    def scalebio_update_mixtures(self, rule, observation, state):
        return None


class MisspeltArgument:
    @hookimpl
    def scalebio_update_mixture(self, rule, observations, state):
        return None


@pytest.mark.parametrize(
    ("misspelt", "named"),
    [
        (MisspeltHook, r"scalebio_update_mixtures.*listed in scalebio_plugin\.hooks\.spec"),
        (MisspeltArgument, r"(?s)scalebio_update_mixture.*observations"),
    ],
)
def test_what_is_misspelt_is_an_error_that_names_it(extension, misspelt, named):
    extension.Misspelt = misspelt
    with pytest.raises(ValueError, match=named):
        build_manager(["my_mixture:Misspelt"])


def test_an_extension_listed_twice_is_an_error_that_names_it(extension):
    extension.Frozen = Frozen
    with pytest.raises(ValueError, match="scalebio.extensions has my_mixture:Frozen twice; keep one"):
        build_manager(["my_mixture:Frozen", "my_mixture:Frozen"])


def test_an_extension_that_is_installed_may_be_listed_too(extension, monkeypatch):
    installed = lambda manager, group: manager.register(extension, name="mine") and 1  # noqa: E731
    monkeypatch.setattr(pluggy.PluginManager, "load_setuptools_entrypoints", installed)
    assert build_manager(["my_mixture"]).get_name(extension) == "mine"


@pytest.mark.parametrize("path", ["no_such_module", "no_such_module:Hooks", "my_mixture.sub:Hooks"])
def test_an_unknown_module_is_an_error_that_names_it(extension, path):
    with pytest.raises(ValueError, match=rf"scalebio\.extensions.*{path.split(':')[0]}.*(install|correct)"):
        build_manager([path])


def test_an_unknown_attribute_is_an_error_that_names_it(extension):
    with pytest.raises(ValueError, match=r"scalebio\.extensions.*'my_mixture'.*'Hookz'.*correct"):
        build_manager(["my_mixture:Hookz"])


@pytest.mark.parametrize("rule", ["sgd", "adamw", "Adam", ""])
def test_a_rule_nobody_answers_for_is_an_error_that_names_it(rule):
    with pytest.raises(
        ValueError, match=rf"mixture_update.*'{rule}'.*evidence, exponentiated_gradient and adam.*extensions"
    ):
        manager_of(rule, [])


def test_where_extensions_have_rules_they_are_asked_with_the_sources_that_there_are(extension):
    asked = []

    class Costs:
        """A rule for three sources alone, which does not go without gaps."""

        @hookimpl
        def scalebio_update_mixture(self, rule, observation):
            asked.append(len(observation.logits_S))
            if rule == "costs":
                return observation.logits_S - torch.ones(3) / observation.gap_S.abs().max().item(), {}
            return None

    extension.Costs = Costs
    manager = manager_of("costs", ["my_mixture:Costs"])
    assert asked == []
    refuse_unanswered(manager, "costs", 3)
    with pytest.raises(ValueError, match="no rule 'cost'"):
        refuse_unanswered(manager, "cost", 3)
    assert asked == [3, 3]
    refuse_unanswered(manager, "evidence", 3)
    assert asked == [3, 3], "a built-in rule needs no question"


LOGITS = torch.zeros(3, dtype=torch.float64)
WRONG = {
    "logits alone": LOGITS,
    "no state": (LOGITS, None),
    "of another shape": (LOGITS[:, None], {}),
    "too few": (LOGITS[:2], {}),
    "not a number": (LOGITS / 0, {}),
    "a list": ([0.0, 0.0, 0.0], {}),
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG)
def test_what_is_no_answer_is_an_error_that_names_the_rule(extension, answer):
    class Wrong:
        @hookimpl
        def scalebio_update_mixture(self, rule):
            return answer

    extension.Wrong = Wrong
    manager = build_manager(["my_mixture:Wrong"])
    with pytest.raises(ValueError, match="rule 'mine' must return a tensor of 3 finite logits and its state, a dict"):
        updated(manager, "mine", observation(), None)


def test_logits_of_any_precision_with_a_gradient_are_an_answer(extension):
    class Learned:
        @hookimpl
        def scalebio_update_mixture(self, observation):
            return observation.logits_S.float().requires_grad_(), {}

    extension.Learned = Learned
    logits, _ = updated(build_manager(["my_mixture:Learned"]), "mine", observation(), None)
    assert (logits.dtype, logits.requires_grad) == (torch.float64, False)


@pytest.mark.parametrize("rule", ["adam", "evidence", "exponentiated_gradient", "frozen"])
def test_a_rule_somebody_answers_for_is_accepted(extension, rule):
    extension.Frozen = Frozen
    assert moved(manager_of(rule, ["my_mixture:Frozen"]), rule, observation()) is not None
