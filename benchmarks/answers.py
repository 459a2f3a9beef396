"""The loss of a finished run on answers, computed without the host."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def loss_of_answers(model_directory: Path, rows: Iterable[tuple[str, str]]) -> float:
    """Mean cross entropy of the answers' tokens, end included, in nats; `rows`: (prompt, answer)."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(model_directory)
    model = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
    total, tokens = 0.0, 0
    for asked, answered in rows:
        prompt = tokenizer(asked)["input_ids"]
        answer = [*tokenizer(answered, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
        tokens += len(answer)
    return total / tokens
