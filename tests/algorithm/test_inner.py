"""One module with two parameter sets is two modules: values, gradients, optimizer state and the groups' entries."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from scalebio_plugin.algorithm.inner import InnerParameters, own_entries, restored_state
from tests.engines.simulated import WHEN, simulated_transfer

PULL = 0.3


class Tied(nn.Module):
    """Embedding, two layers, and a head that is the embedding."""

    def __init__(self, vocabulary: int = 13, width: int = 8):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.first = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.second = nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens)
        hidden = hidden + torch.tanh(self.first(self.norm(hidden)))
        return self.head(self.second(hidden))


class CountingSGD(torch.optim.Optimizer):
    """Keeps its step count in the group, as Prodigy keeps its distance there."""

    def __init__(self, params: Any, lr: float):
        super().__init__(params, {"lr": lr, "k": 0, "seen": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            group["k"] += 1
            group["seen"] += sum(float(p.grad.abs().sum()) for p in group["params"] if p.grad is not None)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=group["lr"] / group["k"] / (1 + group["seen"]))


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "sgd momentum": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95)),
    "adamw amsgrad": lambda groups: torch.optim.AdamW(groups, lr=0.01, amsgrad=True, foreach=False),
    "adamw fused": lambda groups: torch.optim.AdamW(groups, lr=0.01, fused=True),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.05),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.5, centered=True),
    "adafactor": lambda groups: torch.optim.Adafactor(groups, lr=0.01),
    "counting": lambda groups: CountingSGD(groups, lr=0.5),
}
OPTIMIZER = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
DEVICES = {"beside the model": None, "cpu": torch.device("cpu"), "a device of another name": torch.device("cpu", 0)}
DEVICE = pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES.keys())


def built(seed: int = 0) -> Tied:
    torch.manual_seed(seed)
    return Tied()


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Two, as the host makes them: with and without weight decay."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def loss_of(model: nn.Module, seed: int) -> Tensor:
    """Of the batch of a seed."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(13, (4, 6), generator=generator)
    return functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def pulled_loss(model: nn.Module, step: int, pull: float) -> Tensor:
    """L2 + pull · L1 of a step; w's."""
    loss = loss_of(model, step)
    return loss + pull * loss_of(model, 1000 + step) if pull else loss


class Ours:
    """One module and its inner parameters."""

    def __init__(self, make: Callable, device: torch.device | None = None, model: nn.Module | None = None):
        self.model = built() if model is None else model
        self.optimizer = make(groups_of(self.model))
        self.inner = InnerParameters(dict(self.model.named_parameters()), self.optimizer, device)

    @classmethod
    def after(cls, steps: int, make: Callable = OPTIMIZERS["adam"], device: torch.device | None = None) -> Ours:
        """Both sets, after so many steps."""
        ours = cls(make, device)
        ours.follow()
        for step in range(steps):
            ours.step(step)
        return ours

    def follow(self) -> None:
        self.inner.follow(name for name, parameter in self.model.named_parameters() if parameter.requires_grad)

    def inner_step(self, step: int) -> None:
        with self.inner.in_place():
            loss_of(self.model, step).backward()
            self.optimizer.step()
            for name in self.inner.values:
                self.inner.parameters[name].grad = None

    def step(self, step: int, pull: float = PULL) -> None:
        """w's gradients first, then the whole of u's step, then w's."""
        pulled_loss(self.model, step, pull).backward()
        self.inner_step(step)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def w(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}

    def u(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.inner.values.items()}


class Apart:
    """A module of its own with an optimizer of its own."""

    def __init__(self, make: Callable, pull: float):
        self.model = built()
        self.optimizer = make(groups_of(self.model))
        self.pull = pull

    def step(self, step: int) -> None:
        pulled_loss(self.model, step, self.pull).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def values(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.model.named_parameters()}


def plain(value: Any) -> Any:
    """A deep copy in which tensors have become (dtype, bytes), so that == compares bit for bit."""
    if isinstance(value, Tensor):
        return str(value.dtype), value.detach().cpu().contiguous().view(-1).numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(member) for key, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(member) for member in value]
    return copy.deepcopy(value)


def everything(ours: Ours) -> dict[str, Any]:
    """All that the exchange may touch, of both sets."""
    named = ours.inner.parameters
    return plain(
        {
            "values": {name: parameter.data for name, parameter in named.items()},
            "gradients": {name: parameter.grad for name, parameter in named.items()},
            "states": {name: dict(ours.optimizer.state.get(parameter, {})) for name, parameter in named.items()},
            "groups": [{k: v for k, v in g.items() if k != "params"} for g in ours.optimizer.param_groups],
            "u": ours.inner.values,
            "u gradients": ours.inner.gradients,
            "u states": ours.inner.states,
            "u groups": ours.inner.groups,
        }
    )


def of_w(ours: Ours) -> dict[str, Any]:
    return {key: value for key, value in everything(ours).items() if not key.startswith("u")}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in one order, so that equal computations are equal bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ---- the exchange


@OPTIMIZER
@DEVICE
def test_exchanging_twice_is_the_identity(make, device):
    ours = Ours.after(2, make, device)
    loss_of(ours.model, 7).backward()
    before = everything(ours)
    ours.inner.exchange()
    assert everything(ours) != before
    ours.inner.exchange()
    assert everything(ours) == before


@OPTIMIZER
def test_exchanging_swaps_every_part(make):
    ours = Ours.after(2, make)
    loss_of(ours.model, 7).backward()
    before = everything(ours)
    ours.inner.exchange()
    after = everything(ours)
    for one, other in (("values", "u"), ("gradients", "u gradients")):
        assert (after[one], after[other]) == (before[other], before[one])
    for name in before["u"]:
        assert after["states"][name] == before["u states"].get(name, {})
        assert after["u states"].get(name, {}) == before["states"][name]
    assert all(gradient is None for gradient in after["gradients"].values())


def test_the_module_keeps_its_parameters_and_the_optimizer_its_groups():
    ours = Ours.after(0)
    parameters, in_groups = list(ours.model.parameters()), [list(g["params"]) for g in ours.optimizer.param_groups]
    ours.step(0)
    with ours.inner.in_place():
        assert all(a is b for a, b in zip(ours.model.parameters(), parameters, strict=True))
    for group, before in zip(ours.optimizer.param_groups, in_groups, strict=True):
        assert all(a is b for a, b in zip(group["params"], before, strict=True))


@OPTIMIZER
@DEVICE
@pytest.mark.parametrize("pull", [0.0, PULL])
def test_both_sets_are_two_separate_trainings(make, device, pull):
    """u without the pull, w with it, each with its own module and optimizer: the same bits after each of five steps."""
    ours, alone, pulled = Ours.after(0, make, device), Apart(make, 0.0), Apart(make, pull)
    for step in range(5):
        ours.step(step, pull)
        alone.step(step)
        pulled.step(step)
        assert_same(ours.u(), alone.values())
        assert_same(ours.w(), pulled.values())


@OPTIMIZER
@DEVICE
def test_a_step_of_u_leaves_w_as_it_is(make, device):
    ours = Ours.after(1, make, device)
    loss_of(ours.model, 5).backward()
    before, u = of_w(ours), ours.u()
    ours.inner_step(1)
    assert of_w(ours) == before
    assert any(not torch.equal(ours.inner.values[name], u[name]) for name in u)


@OPTIMIZER
def test_its_step_is_the_optimizers_and_leaves_no_gradient(make):
    ours, literally = Ours.after(1, make), Ours.after(1, make)
    with ours.inner.in_place():
        loss_of(ours.model, 1).backward()
        ours.inner.step()
        assert all(parameter.grad is None for parameter in ours.model.parameters())
    literally.inner_step(1)
    assert everything(ours) == everything(literally)


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8),
    "linear": lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 8),
    "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=9),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("name", ["sgd momentum", "adam", "adamw"])
def test_both_sets_follow_the_hosts_schedule(name, schedule):
    """Also what a schedule moves besides the learning rate: one cycle moves the momentum."""
    ours = Ours(OPTIMIZERS[name])
    alone, pulled = Apart(OPTIMIZERS[name], 0.0), Apart(OPTIMIZERS[name], PULL)
    schedules = [schedule(runner.optimizer) for runner in (ours, alone, pulled)]
    ours.inner = InnerParameters(dict(ours.model.named_parameters()), ours.optimizer)  # as in a run: after the schedule
    ours.follow()
    for step in range(8):
        ours.step(step)
        alone.step(step)
        pulled.step(step)
        for runner_schedule in schedules:
            runner_schedule.step()
    assert_same(ours.w(), pulled.values())
    assert_same(ours.u(), alone.values())


def test_tied_weights_stay_tied_and_are_held_once():
    ours = Ours.after(1)
    assert sorted(ours.inner.values) == sorted(dict(ours.model.named_parameters()))
    assert "head.weight" not in ours.inner.values
    with ours.inner.in_place():
        assert ours.model.head.weight is ours.model.embedding.weight
        twin = Tied()
        twin.load_state_dict(ours.model.state_dict())
    tokens = torch.arange(13).view(1, -1)
    with ours.inner.in_place():
        assert torch.equal(ours.model(tokens), twin(tokens))
    assert not torch.equal(ours.model(tokens), twin(tokens))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_w_is_back_after_an_error_in_the_pass_of_u(error):
    ours = Ours.after(1, OPTIMIZERS["adamw"])
    loss_of(ours.model, 5).backward()
    before = of_w(ours)
    with pytest.raises(error), ours.inner.in_place():  # noqa: PT012 - what is interrupted is a whole pass
        loss_of(ours.model, 6).backward()
        ours.optimizer.step()
        raise error("in the middle")
    assert of_w(ours) == before


def test_parameters_that_u_does_not_hold_are_shared():
    ours = Ours(OPTIMIZERS["adam"])
    ours.model.first.requires_grad_(False)
    ours.follow()
    assert not any(name.startswith("first.") for name in ours.inner.values)
    before = plain(ours.model.first.state_dict())
    ours.step(0)
    with ours.inner.in_place():
        assert plain(ours.model.first.state_dict()) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_values_keep_their_type(dtype):
    ours = Ours(OPTIMIZERS["adam"], torch.device("cpu", 0), built().to(dtype))
    ours.follow()
    for step in range(2):
        ours.step(step)
    assert {value.dtype for value in ours.inner.values.values()} == {dtype}
    assert {parameter.dtype for parameter in ours.model.parameters()} == {dtype}


def test_beside_the_model_nothing_is_copied():
    ours = Ours.after(1)

    def places() -> list[dict[str, int]]:
        return [{n: v.data_ptr() for n, v in held.items()} for held in (ours.inner.parameters, ours.inner.values)]

    before = places()
    ours.inner.exchange()
    assert places() == before[::-1]


def test_values_rest_where_they_are_told_to():
    ours = Ours(OPTIMIZERS["adam"], torch.device("meta"))
    ours.follow()
    assert {value.device.type for value in ours.inner.values.values()} == {"meta"}


# ---- u takes over


@OPTIMIZER
@DEVICE
def test_u_takes_over_with_all_it_has_and_w_is_gone(make, device):
    ours = Ours.after(3, make, device)
    loss_of(ours.model, 7).backward()
    before, groups = everything(ours), plain([own_entries(group) for group in ours.optimizer.param_groups])
    ours.inner.take_over()
    after = everything(ours)
    assert after["values"] == before["u"] != before["values"]
    held = {name: state for name, state in before["u states"].items() if state}
    assert {name: state for name, state in after["states"].items() if state} == held
    assert set(after["gradients"].values()) == {None}
    mine = plain([own_entries(group) for group in ours.optimizer.param_groups])
    assert mine == before["u groups"]
    assert (mine == groups) == (make is not OPTIMIZERS["counting"])
    assert not any(after[kind] for kind in ("u", "u gradients", "u states", "u groups"))


@OPTIMIZER
@DEVICE
def test_it_trains_on_as_a_set_that_never_felt_the_pull(make, device):
    ours, alone = Ours.after(3, make, device), Apart(make, 0.0)
    ours.inner.take_over()
    for step in range(3, 6):
        loss_of(ours.model, step).backward()
        ours.optimizer.step()
        ours.optimizer.zero_grad()
    for step in range(6):
        alone.step(step)
    assert_same(ours.w(), alone.values())


@pytest.mark.parametrize("when", WHEN)
def test_what_is_still_on_its_way_arrives_before_it_takes_over(when):
    """With an accelerator whose copies run late, or at random."""
    plainly, late = Ours.after(2), Ours(OPTIMIZERS["adam"])
    late.inner.arriving.transfer = simulated_transfer(when)
    late.follow()
    for step in range(2):
        late.step(step)
    for ours in (plainly, late):
        ours.inner.take_over()
    assert_same(late.w(), plainly.w())
    assert not late.inner.arriving


# ---- the start of u, and what is dropped


@OPTIMIZER
@DEVICE
def test_after_a_warmup_u_starts_as_the_copy_of_w(make, device):
    """Value and optimizer state: without a pull nothing tells them apart afterwards."""
    ours, alone = Ours(make, device), Apart(make, 0.0)
    for step in range(3):
        alone.step(step)
        loss_of(ours.model, step).backward()
        ours.optimizer.step()
        ours.optimizer.zero_grad()
    ours.inner = InnerParameters(dict(ours.model.named_parameters()), ours.optimizer, device)
    ours.follow()
    assert_same(ours.u(), ours.w())
    for step in range(3, 6):
        ours.step(step)
        alone.step(step)
    assert_same(ours.u(), alone.values())


def test_the_copy_shares_no_memory_with_w():
    ours = Ours.after(1)
    later = InnerParameters(dict(ours.model.named_parameters()), ours.optimizer)
    later.follow(later.parameters)
    before = plain((later.values, later.states))
    loss_of(ours.model, 1).backward()
    ours.optimizer.step()
    assert plain((later.values, later.states)) == before


def test_following_again_does_not_overwrite_u():
    ours = Ours.after(1)
    before = everything(ours)
    ours.follow()
    assert everything(ours) == before


def test_the_second_set_grows_with_what_trains():
    ours = Ours(OPTIMIZERS["adam"])
    ours.inner.follow(["first.weight"])
    assert list(ours.inner.values) == ["first.weight"]
    ours.inner.follow(["first.weight", "second.weight"])
    assert sorted(ours.inner.values) == ["first.weight", "second.weight"]


@OPTIMIZER
def test_forgotten_parameters_lose_state_and_gradient_in_both_sets_but_keep_their_values(make):
    ours = Ours.after(1, make)
    loss_of(ours.model, 5).backward()
    w, u = ours.w(), ours.u()
    names = ["first.weight", "first.bias"]
    ours.inner.forget(names)
    for name in names:
        parameter = ours.inner.parameters[name]
        assert parameter not in ours.optimizer.state
        assert parameter.grad is None
        assert name not in ours.inner.states
        assert ours.inner.gradients[name] is None
    kept = ours.inner.parameters["second.weight"]
    assert kept.grad is not None
    assert (kept in ours.optimizer.state) == ("second.weight" in ours.inner.states)
    assert_same(ours.w(), w)
    assert_same(ours.u(), u)


@OPTIMIZER
def test_forgotten_parameters_train_again_as_if_for_the_first_time(make):
    """LISA freezes a layer and draws it again later, with any of the host's optimizers."""
    ours = Ours.after(1, make)
    names = ["first.weight", "first.bias"]
    ours.inner.forget(names)
    before = ours.w(), ours.u()
    ours.step(1)
    for name in names:
        assert not torch.equal(ours.w()[name], before[0][name])
        assert not torch.equal(ours.u()[name], before[1][name])
        state = ours.optimizer.state.get(ours.inner.parameters[name], {})
        assert float(state.get("step", 1)) == 1.0


def test_forgetting_what_u_never_held_is_no_error():
    ours = Ours(OPTIMIZERS["adam"])
    ours.inner.forget(["first.weight"])
    assert ours.inner.values == {}


# ---- checkpoints


@OPTIMIZER
@DEVICE
def test_a_restored_run_ends_with_the_same_bits(make, device):
    whole = Ours.after(3, make, device)
    saved = copy.deepcopy((whole.model.state_dict(), whole.optimizer.state_dict(), whole.inner.state_dict()))

    resumed = Ours(make, device, built(seed=9))
    resumed.model.load_state_dict(saved[0])
    resumed.optimizer.load_state_dict(saved[1])
    resumed.inner.load_state_dict(saved[2])
    resumed.follow()
    for step in range(3, 6):
        whole.step(step)
        resumed.step(step)
    assert everything(resumed) == everything(whole)


@OPTIMIZER
@pytest.mark.parametrize("loaded", [False, True])
def test_what_was_saved_does_not_change_later_nor_once_it_was_loaded(make, loaded):
    ours = Ours.after(1, make)
    saved = ours.inner.state_dict()
    before = plain(saved)
    if loaded:
        ours.inner.load_state_dict(saved)
    ours.step(1)
    assert plain(saved) == before


@pytest.mark.parametrize(("key", "place"), [("fused", "meta"), ("capturable", "meta"), ("foreach", "cpu")])
def test_a_count_of_steps_is_restored_where_the_optimizer_keeps_it(key, place):
    """Of parameters that are not on the CPU."""
    parameter = nn.Parameter(torch.zeros(2, device="meta"))
    optimizer = torch.optim.Adam([parameter])
    optimizer.param_groups[0][key] = True
    restored = restored_state({"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}, parameter, optimizer)
    assert {name: value.device.type for name, value in restored.items()} == {"step": place, "exp_avg": "meta"}


def test_parameters_that_do_not_train_here_are_refused_by_name():
    ours = Ours.after(0)
    saved = ours.inner.state_dict()
    saved["values"]["lora.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"'lora\.weight'.*resume with"):
        ours.inner.load_state_dict(saved)


def test_a_smaller_set_is_restored_as_it_was():
    """Of a LISA run: what had never trained is not in the checkpoint and starts as a copy of w when it does."""
    ours = Ours(OPTIMIZERS["adam"])
    ours.inner.follow(["first.weight"])
    saved = ours.inner.state_dict()
    ours.follow()
    ours.inner.load_state_dict(saved)
    assert list(ours.inner.values) == ["first.weight"]
