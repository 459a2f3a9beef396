"""Memory and time of a step with a large vocabulary: losses from logits, and from inside the head piece by piece.

    python -m benchmarks.fused_loss [--steps 3] [--out fused_loss.json]

Every run is the real host in a process of its own, one thread, float32: LoRA on a small Llama of random weights with
Llama 3's 128,256 words, 16 packed rows of 128 tokens a step, of which once the answers alone are targets (the host's
default), once every token. The peak is what the process had resident at most, imports included; a step's seconds are
CPU time, the median without the first.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.cost import BILEVEL, LORA, PLAIN, make_inputs, run

VOCABULARY = 128_256
CHUNKED = {"chunked_cross_entropy": True}
ALL_TOKENS = {"train_on_inputs": True}  # every position is a target
RUNS: dict[str, tuple[dict[str, Any], ...]] = {
    "plain host": (PLAIN, LORA),
    "plain host, chunked_cross_entropy": (PLAIN, LORA, CHUNKED),
    "scalebio, from logits": (BILEVEL, LORA),
    "scalebio, chunked_cross_entropy": (BILEVEL, LORA, CHUNKED),
}


def widen(model: Path) -> None:
    """More words than the tokenizer has."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model)
    loaded.resize_token_embeddings(VOCABULARY, mean_resizing=False)
    loaded.save_pretrained(model)


def measure(folder: Path, steps: int) -> dict[str, dict[str, float]]:
    found = {}
    for targets, keys in {"answers": {}, "all tokens": ALL_TOKENS}.items():
        for name, changes in RUNS.items():
            timed = run(folder, steps, *changes, keys)
            seconds = statistics.median(timed["seconds"][1:])
            found[f"{name}; targets: {targets}"] = {"peak_gib": timed["peak"] / 2**30, "step_seconds": seconds}
            print(f"{timed['peak'] / 2**30:6.2f} GiB  {seconds:6.1f} s a step  {name}; targets: {targets}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("fused_loss.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, hidden=128, layers=4, vocabulary=VOCABULARY)
        widen(folder / "model")
        arguments.out.write_text(json.dumps(measure(folder, arguments.steps), indent=2) + "\n")


if __name__ == "__main__":
    main()
