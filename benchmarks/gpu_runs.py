"""The models and the host configs that benchmarks/gpu.py runs."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, Any]] = {
    "Llama-3.2-1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "Llama-3-8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
}
SMALL, LARGE = SHAPES
SHARED = {"num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "rope_theta": 500000.0}
TINY = {  # of a dry run
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 2048,
}
SHARD = 4e9  # bytes of a file of weights, about

RUN: dict[str, Any] = {
    "dataset_num_proc": 1,
    "dataloader_num_workers": 0,
    "val_set_size": 0,
    "sequence_len": 2048,
    "sample_packing": True,
    "pad_to_sequence_len": True,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "gradient_checkpointing": True,
    "num_epochs": 5,
    "optimizer": "adamw_torch_fused",
    "lr_scheduler": "constant",
    "learning_rate": 1e-4,
    "logging_steps": 1000,
    "bf16": True,
    "attn_implementation": "sdpa",
    "save_strategy": "no",
    "output_dir": "out",
    "seed": 1,
}
ON_CPU: dict[str, Any] = {"bf16": False, "fp16": False, "tf32": False, "sequence_len": 512}
LORA: dict[str, Any] = {
    "adapter": "lora",
    "lora_r": 16,
    "lora_alpha": 32,
    "lora_dropout": 0.0,
    "lora_target_linear": True,
}
QLORA: dict[str, Any] = {**LORA, "adapter": "qlora", "load_in_4bit": True}
KERNELS_OFF = dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False)
HOST_LISA: dict[str, Any] = {"lisa_n_layers": 2, "lisa_step_interval": 5, "lisa_layers_attribute": "model.layers"}
OUR_LISA: dict[str, Any] = {"lisa": {"active_layers": 2, "interval": 5}}
FP16: dict[str, Any] = {"bf16": False, "fp16": True}
ON_GPU: dict[str, Any] = {"inner": {"device": "model"}}
LIGER: dict[str, Any] = {
    **LORA,
    "plugins": ["axolotl.integrations.liger.LigerPlugin"],
    **dict.fromkeys(("liger_rope", "liger_rms_norm", "liger_glu_activation"), True),
}
ALL_TOKENS: dict[str, Any] = {**LORA, "train_on_inputs": True}  # every position needs the head
CHUNKED: dict[str, Any] = {**ALL_TOKENS, "chunked_cross_entropy": True}
FUSED: dict[str, Any] = {
    **ALL_TOKENS,
    "plugins": ["axolotl.integrations.liger.LigerPlugin"],
    "liger_fused_linear_cross_entropy": True,
}
SHORT: dict[str, Any] = {"sequence_len": 512}
# The fused attention of a packed run need not add up its gradients in a fixed order on CUDA.
EXACT: dict[str, Any] = {**SHORT, "attn_implementation": "eager"}


@dataclass(frozen=True)
class Planned:
    """A run. `block`: its `scalebio:` keys, None for the plain host. `seconds`: what it may be expected to take."""

    name: str
    shape: str
    way: str
    keys: dict[str, Any] = field(default_factory=dict)
    block: dict[str, Any] | None = None
    steps: int = 11
    seconds: float = 25.0

    @property
    def adapter(self) -> bool:
        return "adapter" in self.keys


def _pair(shape: str, way: str, keys: dict[str, Any], bilevel: float, plain: float) -> list[Planned]:
    """Bilevel first: should it need other kernels, the plain run takes those, too."""
    short = shape[-2:]
    return [
        Planned(f"{short} {way}, bilevel", shape, way, keys, {}, seconds=bilevel),
        Planned(f"{short} {way}, plain", shape, way, keys, seconds=plain),
    ]


def right_or_wrong() -> list[Planned]:
    """Runs whose time does not count. Twelve steps of LISA: layers change twice."""
    infinite, each_step = {"penalty": math.inf}, {"logging_steps": 1}
    return [
        Planned("LoRA, no pull", SMALL, "LoRA", {**LORA, **EXACT}, infinite, 6),
        Planned("LISA, no pull", SMALL, "LISA", EXACT, {**OUR_LISA, **infinite}, 12),
        Planned("LISA, u in CPU memory", SMALL, "LISA", EXACT, OUR_LISA, 12),
        Planned("LISA, u on the GPU", SMALL, "LISA", EXACT, {**OUR_LISA, **ON_GPU}, 12),
        Planned("LoRA, once", SMALL, "LoRA", {**LORA, **SHORT}, {}, 6),
        Planned("LoRA, again", SMALL, "LoRA", {**LORA, **SHORT}, {}, 6),
        Planned("LoRA, fused attention, no pull", SMALL, "LoRA", {**LORA, **SHORT}, infinite, 6),
        Planned("LoRA, fp16", SMALL, "LoRA", {**LORA, **SHORT, **FP16, **each_step}, {}, 8),
    ]


def in_turn() -> list[Planned]:
    """Runs whose time and memory count, the most telling first. Their seconds are what they took on an H200, about."""
    return [
        *_pair(LARGE, "QLoRA", QLORA, 95.0, 62.0),
        *_pair(LARGE, "LoRA", LORA, 83.0, 55.0),
        Planned("8B LISA, bilevel", LARGE, "LISA", {}, OUR_LISA, seconds=72.0),
        *_pair(SMALL, "LoRA", LORA, 50.0, 40.0),
        Planned("1B LISA, bilevel", SMALL, "LISA", {}, OUR_LISA, seconds=60.0),
        Planned("1B LISA, bilevel, on the GPU", SMALL, "LISA, u on the GPU", {}, {**OUR_LISA, **ON_GPU}, seconds=45.0),
        *_pair(SMALL, "QLoRA", QLORA, 60.0, 45.0),
        Planned("1B LISA, plain", SMALL, "LISA", HOST_LISA, seconds=40.0),
        *_pair(SMALL, "LoRA with Liger", LIGER, 50.0, 40.0),
        *_pair(SMALL, "LoRA, all tokens", ALL_TOKENS, 50.0, 40.0),
        *_pair(SMALL, "LoRA, all tokens, chunked", CHUNKED, 50.0, 40.0),
        *_pair(SMALL, "LoRA, all tokens, Liger's fused loss", FUSED, 50.0, 40.0),
    ]


def config_of(planned: Planned, work: Path, prepared: str, *, kernels: bool, dry: bool) -> dict[str, Any]:
    """The host config of a run."""
    data = work / "data"
    entries = [{"path": str(data / f"{name}.jsonl"), "type": "alpaca"} for name in ("clean", "wrong", "offtopic")]
    config = {**RUN, "base_model": str(work / planned.shape), "datasets": entries, "max_steps": planned.steps}
    config |= {"dataset_prepared_path": str(work / prepared), **planned.keys}
    if dry:
        config |= {**ON_CPU, **{key: False for key in planned.keys if key.startswith("liger_")}}
    config |= KERNELS_OFF if planned.adapter and (dry or not kernels) else {}
    config["plugins"] = [*planned.keys.get("plugins", []), "gpu_timer.MeasurePlugin"]
    if planned.block is not None:
        validation = [{"path": str(data / "validation.jsonl"), "type": "alpaca"}]
        config["plugins"] = ["scalebio_plugin.ScaleBiOPlugin", *config["plugins"]]
        config["scalebio"] = {"validation_datasets": validation, **planned.block}
    return config


def config_at(folder: Path, shape: str, dry: bool) -> Any:
    """Write the model's config and its tokenizer, which has fewer tokens than the model."""
    from transformers import LlamaConfig

    from scalebio_plugin.quickstart.planted import build_tokenizer

    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 8192
    config = LlamaConfig(
        **(SHARED | SHAPES[shape] | (TINY if dry else {})),
        max_position_embeddings=8192,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return config


def make_checkpoint(folder: Path) -> None:
    """Random bf16 weights for the config in `folder`, made on the GPU where there is one."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    files: dict[str, str] = {}
    shard: dict[str, torch.Tensor] = {}

    def flush() -> None:
        file = f"model-{len(set(files.values())):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        files.update(dict.fromkeys(shard, file))
        shard.clear()

    for name, parameter in model.named_parameters():  # a tied head is there once
        value = (
            torch.ones(parameter.shape) if parameter.dim() == 1 else torch.randn(parameter.shape, device=device) * 0.02
        )
        shard[name] = value.to(torch.bfloat16).cpu()
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD:
            flush()
    flush()
    index = {"metadata": {"total_size": sum(2 * p.numel() for p in model.parameters())}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def roomy(wished: Path, other: Path, bytes_needed: float) -> Path:
    """The wished folder, or the other one where that has too little room."""
    for folder in (wished, other):
        folder.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(folder).free > bytes_needed:
            return folder
    return wished
