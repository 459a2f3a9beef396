"""Losses from inside the output head are those of the logits, with their gradients, whatever the model and its head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    HyperCLOVAXConfig,
    LlamaConfig,
    MixtralConfig,
    MptConfig,
    Qwen2Config,
    RecurrentGemmaConfig,
)

from scalebio_plugin.algorithm.bilevel import IGNORED
from scalebio_plugin.algorithm.pieces import Pieces
from scalebio_plugin.training.head_losses import FromLogits, InHead

VOCABULARY = 97
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
KV: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
SSM = {"mamba_d_ssm": 32, "mamba_n_heads": 2, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
CONFIGS: dict[str, Any] = {
    "llama": LlamaConfig(**KV),
    "llama-tied": LlamaConfig(**KV, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**KV, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**KV, head_dim=16, final_logit_softcapping=0.5),  # of logits this small
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2),
    "gpt-neox": GPTNeoXConfig(**SIZES),
    "granite": GraniteConfig(**KV, logits_scaling=8.0),
    "cohere": CohereConfig(**KV, logit_scale=0.0625),
    "mpt": MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=2),  # its logit_scale is None
    "falcon-h1": FalconH1Config(**KV, **SSM, lm_head_multiplier=0.3),
    "recurrent-gemma": RecurrentGemmaConfig(
        **SIZES, logits_soft_cap=0.5, block_types=["recurrent", "attention"], lru_width=32
    ),
    "mixtral": MixtralConfig(**KV, num_local_experts=4, num_experts_per_tok=2, output_router_logits=True),
}
PIECES = Pieces(5)
IN_HEAD = InHead("chunked_cross_entropy", PIECES)


def model_of(config: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (2, 12))
    labels = ids[:, 1:].clone()
    labels[0, :4] = labels[1, 9:] = IGNORED
    return ids, labels


def losses_and_gradients(model: nn.Module, ways: FromLogits | InHead) -> tuple[Tensor, dict[str, Tensor]]:
    """Of a pass, and of the losses by weights of either sign."""
    ids, labels = batch()
    model.zero_grad()
    with ways.within(model, labels) as losses_of:
        losses = losses_of(model(input_ids=ids))
        (losses * torch.linspace(-1, 2, losses.numel()).view_as(losses)).sum().backward()
    named = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return losses.detach(), {name: gradient.clone() for name, gradient in named.items()}


def assert_same(model: nn.Module, *, within: float = 1e-5) -> None:
    (theirs, wanted), (ours, given) = (losses_and_gradients(model, ways) for ways in (FromLogits(), IN_HEAD))
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=within, atol=within)
    assert given.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for name in wanted:
        torch.testing.assert_close(given[name], wanted[name], rtol=within, atol=within * largest, msg=name)


def look_at(model: nn.Module) -> tuple[Tensor, torch.dtype]:
    ids, labels = batch()
    with torch.no_grad(), IN_HEAD.look(model, labels) as losses_of:
        return losses_of(model(input_ids=ids))


@pytest.mark.parametrize("name", CONFIGS)
def test_they_are_those_of_the_logits(name: str) -> None:
    model = model_of(CONFIGS[name])
    assert_same(model)
    losses, dtype = look_at(model)
    torch.testing.assert_close(losses, losses_and_gradients(model, FromLogits())[0], rtol=1e-5, atol=1e-6)
    assert dtype == torch.float32


ON_THE_HEAD: dict[str, dict[str, Any]] = {
    "beside": {"target_modules": ["q_proj"]},
    "on": {"target_modules": ["q_proj", "lm_head"]},
    "dora": {"target_modules": ["q_proj", "lm_head"], "use_dora": True},
    "saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "saved-with-embeddings": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6]},
}


UNTIED = [(adapter, False) for adapter in ON_THE_HEAD]
TIED = [("beside", True), ("tokens", True)]  # the others would train a head that is the embeddings


@pytest.mark.parametrize(("adapter", "tied"), [*UNTIED, *TIED])
def test_adapters_on_the_head_take_part(adapter: str, tied: bool) -> None:
    base = model_of(LlamaConfig(**KV, tie_word_embeddings=tied))
    model = get_peft_model(base, LoraConfig(r=4, init_lora_weights=False, **ON_THE_HEAD[adapter]))
    assert_same(model)
    look_at(model)


def test_bf16_agrees_to_its_rounding() -> None:
    model = model_of(CONFIGS["gemma2"], torch.bfloat16)
    assert_same(model, within=1e-2)
    assert look_at(model)[1] == torch.bfloat16


def test_autocast_is_that_of_the_pass() -> None:
    model = model_of(CONFIGS["llama"])
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(model, within=1e-2)
        assert look_at(model)[1] == torch.bfloat16


def test_no_logits_of_the_batch_exist() -> None:
    """Neither forward nor kept for the backward pass: no tensor has the words of all positions."""
    model, (ids, labels) = model_of(CONFIGS["gemma2"]), batch()
    largest, weight = [], (32, VOCABULARY)  # the head's own, transposed

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.shape[-1:] == (VOCABULARY,) and out.shape[-2:] != weight:
                largest.append(out.shape[:-1].numel())
            return out

    with IN_HEAD.within(model, labels) as losses_of, Watch():
        losses_of(model(input_ids=ids)).sum().backward()
    assert 1 <= max(largest) <= PIECES.most


def test_the_head_is_as_it_was_once_a_pass_is_over() -> None:
    model, (ids, labels) = model_of(CONFIGS["llama"]), batch()
    before = model(input_ids=ids).logits
    with pytest.raises(RuntimeError, match="stop"), IN_HEAD.within(model, labels):
        raise RuntimeError("stop")
    assert "forward" not in model.lm_head.__dict__
    own = model.lm_head.forward = lambda hidden: nn.Linear.forward(model.lm_head, hidden)
    losses_and_gradients(model, IN_HEAD)
    assert model.lm_head.forward is own
    assert torch.equal(model(input_ids=ids).logits, before)


# ---- what is refused, by name


def changed(of: Callable[[Any, Tensor], Any]) -> nn.Module:
    """A Llama whose forward does something else with its hidden states, (B, T, H)."""
    base = type(model_of(CONFIGS["llama"]))

    class Changed(base):  # type: ignore[valid-type, misc]
        def forward(self, input_ids: Tensor) -> dict[str, Any]:
            return {"logits": of(self, self.model(input_ids=input_ids).last_hidden_state)}

    return Changed(CONFIGS["llama"]).train()


UNKNOWN: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "shifted": (lambda model, hidden: model.lm_head(hidden) + 1.0, "makes of its logits what the plugin does not know"),
    "narrow": (lambda model, hidden: model.lm_head(hidden)[..., 1:], "makes of its logits"),
    "no logits": (lambda model, hidden: (model.lm_head(hidden), None)[1], "makes of its logits"),
    "twice": (lambda model, hidden: model.lm_head(hidden) + model.lm_head(hidden), "calls its output head"),
    "flat": (lambda model, hidden: model.lm_head(hidden.flatten(0, 1)), r"calls its output head with \[\(24, 32\)\]"),
    "past it": (lambda model, hidden: hidden @ model.lm_head.weight.T, r"calls its output head with \[\]"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_a_head_that_is_not_understood_is_refused(kind: str) -> None:
    of, what = UNKNOWN[kind]
    with pytest.raises(ValueError, match=f"chunked_cross_entropy asks for losses without logits, but Changed {what}"):
        look_at(changed(of))


def test_a_scale_of_another_meaning_is_refused() -> None:
    """Granite divides by the key that HyperCLOVA X multiplies with."""
    with pytest.raises(ValueError, match="HyperCLOVAXForCausalLM makes of its logits what the plugin does not know"):
        look_at(model_of(HyperCLOVAXConfig(**KV, logits_scaling=0.125)))


def test_a_model_without_a_head_is_refused() -> None:
    model = model_of(CONFIGS["llama"])
    model.get_output_embeddings = lambda: None
    with pytest.raises(ValueError, match="LlamaForCausalLM has no output head"):
        look_at(model)
