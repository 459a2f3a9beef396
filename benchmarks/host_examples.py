"""The host's own examples, as their users would take them up: a second dataset, a validation split, the plugin.

    python -m benchmarks.host_examples --checkout AXOLOTL --refusals
    python -m benchmarks.host_examples --checkout AXOLOTL [--only PATTERN] [--limit N] [--out host_examples.jsonl]

The first line says which of them the plugin refuses, and runs nothing.

AXOLOTL is a checkout of the host's repository. Of each supervised text example a tiny Llama and tiny rows in the
example's own format take the place of model and data, what needs CUDA is off (OFF, CPU), four steps are learned, and
`next.yml` is run for two. What fails is run once more without the plugin, to see whether it is the host that fails.
A line a finished example goes to --out; those that stand there are not run again.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import gc
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from scalebio_plugin.config.fused_loss import fused_loss_of

SECONDS = 180  # an example may take
ROWS = 128
NOT_SUPERVISED = (
    *("rl", "reward_model", "process_reward_model"),
    *("pretraining_dataset", "streaming", "processor_type", "is_multimodal"),
)
# By the beginning of a key's name, what is taken out, and why.
OFF = {
    # The model is another.
    **dict.fromkeys(("base_model_", "model_type", "revision_of_model", "trust_remote_code"), "names code of the model"),
    **dict.fromkeys(("tokenizer_", "processor_", "is_"), "names the tokenizer of the model"),
    **dict.fromkeys(("unfrozen_parameters", "lora_target_", "gptq"), "names layers of the model"),
    **dict.fromkeys(("lora_model_dir", "resume_from_checkpoint", "auto_resume"), "goes on from other files"),
    "llama4_": "is of another architecture",
    # The data are others.
    **dict.fromkeys(("dataset_prepared_path", "push_dataset_to_hub", "hub_"), "is a place of somebody else's"),
    **dict.fromkeys(("total_num_tokens", "sample_packing_eff_est"), "counts other rows"),
    # It takes CUDA, a kernel of its own, or several GPUs.
    **dict.fromkeys(("flash_", "xformers_", "sage_", "attn_implementation", "sdp_"), "is a CUDA kernel; none is named"),
    **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "fused_attn"), "is a CUDA kernel"),
    **dict.fromkeys(("use_kernels", "use_scattermoe", "use_sonicmoe", "liger_"), "is a CUDA kernel"),
    **dict.fromkeys(("nvfp4", "use_onebitllms", "llmcompressor"), "is a base quantised for CUDA"),
    "peft": "is LoftQ, which quantises on a GPU",
    "cut_cross_entropy": "is a CUDA kernel; a CPU has chunked_cross_entropy in its place, see `made_small`",
    "activation_offloading": "moves activations from a GPU",
    **dict.fromkeys(("bf16", "fp16", "tf32"), "is of a GPU; float32 is used"),
    **dict.fromkeys(("fsdp", "deepspeed", "dp_", "context_pa", "tensor_pa", "ddp_"), "takes several processes"),
    **dict.fromkeys(("torch_compile", "experimental_skip"), "takes longer than all of the steps on a CPU"),
    "max_memory": "counts GPUs",
    # It sends something somewhere.
    **dict.fromkeys(("wandb_", "use_wandb", "use_swanlab", "swanlab", "use_otel", "otel_", "mlflow_"), "reports"),
    # It sets the length of the run, which is four steps.
    **dict.fromkeys(("batch_size", "max_steps", "early_stopping_patience", "warmup_steps"), "is of a longer run"),
}
CPU: dict[str, Any] = {
    "bf16": False,
    "fp16": False,
    "tf32": False,
    "dataset_num_proc": 1,  # of a few rows
    **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel"), False),  # on by default with LoRA
}
PLUGINS = (
    "integrations."  # the host's: kernels (CUDA), Liger (triton), reporters, quantisers with packages of their own
)


def text_examples(checkout: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and config of every supervised text example."""
    folder = checkout / "examples"
    for path in sorted([*folder.rglob("*.yml"), *folder.rglob("*.yaml")]):
        config = yaml.safe_load(path.read_text())
        if isinstance(config, dict) and config.get("datasets") and not any(config.get(key) for key in NOT_SUPERVISED):
            yield str(path.relative_to(folder)), config


def taken_up(config: dict[str, Any]) -> dict[str, Any]:
    """The example with what the plugin needs: a second dataset, validation data, the line in `plugins:`."""
    entries = config["datasets"]
    if len(entries) == 1:
        entries = [*entries, {**entries[0], "path": "another"}]
    split = {} if config.get("test_datasets") else {"val_set_size": config.get("val_set_size") or 0.1}
    return {**config, "datasets": entries, **split, "plugins": [*(config.get("plugins") or []), "scalebio"]}


def made_small(config: dict[str, Any]) -> dict[str, Any]:
    """With the tiny model and rows, on a CPU, for a few steps."""
    kept = {key: value for key, value in config.items() if not key.startswith(tuple(OFF))}
    small = {
        **kept,
        **CPU,
        "base_model": "model",
        "datasets": [_entry(entry, f"{i}.jsonl") for i, entry in enumerate(config["datasets"])],
        "dataset_prepared_path": "prepared",
        "plugins": [name for name in config["plugins"] if PLUGINS not in str(name)],
        "output_dir": "out",
        "sequence_len": 256,
        "micro_batch_size": min(2, int(config.get("micro_batch_size") or 1)),
        "gradient_accumulation_steps": min(2, int(config.get("gradient_accumulation_steps") or 1)),
        "max_steps": 4,
    }
    if isinstance(config.get("gradient_checkpointing"), str):
        small["gradient_checkpointing"] = True  # offloaded it wants a GPU to offload from
    if fused_loss_of(config):
        small["chunked_cross_entropy"] = True
    if config.get("adapter"):
        small["lora_target_linear"] = True
    if config.get("test_datasets"):
        small["test_datasets"] = [_entry(entry, "test.jsonl") for entry in config["test_datasets"]]
    else:
        small["val_set_size"] = 0.2  # of a few rows: so many that they fill a packed batch
    return small


def _entry(entry: dict[str, Any], path: str) -> dict[str, Any]:
    dropped = ("path", "data_files", "name", "revision", "ds_type", "split", "shards", "trust_remote_code")
    return {"path": path, "split": "train", **{key: value for key, value in entry.items() if key not in dropped}}


def rows_for(entry: dict[str, Any], rows: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Alpaca rows in the format of a dataset's entry."""
    kind = str(entry.get("type"))
    if kind == "chat_template":
        names = {"role": "role", "content": "content", **(entry.get("message_property_mappings") or {})}
        human, machine = ("human", "gpt") if names["role"] == "from" else ("user", "assistant")
        field = entry.get("field_messages") or "messages"

        def turn(role: str, content: str) -> dict[str, str]:
            return {names["role"]: role, names["content"]: content}

        return [
            {field: [turn(human, f"{row['instruction']} {row['input']}"), turn(machine, row["output"])]} for row in rows
        ]
    shapes: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
        "alpaca": lambda row: row,
        "completion": lambda row: {str(entry.get("field") or "text"): " ".join(row.values())},
        "jeopardy": lambda row: {"category": row["input"], "question": row["instruction"], "answer": row["output"]},
    }
    return [shapes[kind.split(":")[0]](row) for row in rows]


def make_inputs(folder: Path, config: dict[str, Any]) -> None:
    """A tiny Llama whose tokenizer knows the tokens that the example names, and rows for every entry."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from scalebio_plugin.quickstart import planted

    planted.build_model(folder / "model", hidden=64, layers=max(2, config.get("lisa_n_layers") or 0), heads=2)
    tokens = [*(config.get("special_tokens") or {}).values(), *_ends_of_turn(config)]
    if isinstance(config.get("tokens"), dict):
        tokens += config["tokens"].values()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    tokenizer.add_tokens(sorted({token for token in tokens if isinstance(token, str)}), special_tokens=True)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rng = random.Random(0)
    for entry in [*config["datasets"], *(config.get("test_datasets") or [])]:
        makers = (planted.clean_row, planted.offtopic_row)
        rows = [makers[i % 2](question, rng) for i, question in enumerate(rng.sample(planted.QUESTIONS, ROWS))]
        text = "".join(json.dumps(row) + "\n" for row in rows_for(entry, rows))
        (folder / entry["path"]).write_text(text)


def _ends_of_turn(config: dict[str, Any]) -> list[str]:
    return [*(config.get("eot_tokens") or []), "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"]


def train(config: dict[str, Any]) -> Any:
    """As `axolotl train` does, in this process; the finished trainer's state."""
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets
    from axolotl.integrations.base import PluginManager
    from axolotl.train import train as host_train

    with open("config.yml", "w") as file:
        yaml.safe_dump(config, file, sort_keys=False)
    if PluginManager._instance is not None:
        PluginManager._instance.plugins.clear()
    PluginManager._cfg = None
    cfg = load_cfg("config.yml")
    manager = PluginManager.get_instance()
    meta = (manager.load_datasets(cfg, preprocess=False) if cfg.plugins else None) or load_datasets(cfg=cfg)
    return host_train(cfg=cfg, dataset_meta=meta)[2].state


def learn_and_apply(config: dict[str, Any]) -> None:
    """Raises if a run does not reach its end, or leaves no mixture."""
    state = train(config)
    if state.global_step != 4:
        raise RuntimeError(f"learning ended after {state.global_step} steps of 4")
    if not Path("out/scalebio/mixture.json").exists():
        raise RuntimeError("no mixture.json was left")
    applied = yaml.safe_load(Path("out/scalebio/next.yml").read_text())
    state = train({**applied, "max_steps": 2})
    if state.global_step != 2:
        raise RuntimeError(f"next.yml ended after {state.global_step} steps of 2")


def without_the_plugin(config: dict[str, Any]) -> None:
    stock = {key: value for key, value in config.items() if key != "scalebio"}
    train({**stock, "plugins": [name for name in config["plugins"] if name != "scalebio"], "output_dir": "stock"})


def forked(task: Callable[[], None], folder: Path, log: Path) -> str | None:
    """Run `task` in a process of its own, in `folder`; None if it went well, else its error in a line."""
    error = folder / "error.txt"
    error.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        _run_child(task, folder, log, error)
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            said = error.read_text() if error.exists() else None
            return said if said or status == 0 else f"the process ended with status {status}"
        time.sleep(0.2)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return f"took longer than {SECONDS} s"


def _run_child(task: Callable[[], None], folder: Path, log: Path, error: Path) -> None:
    os.setsid()
    out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.chdir(folder)
    try:
        task()
    except BaseException as raised:
        import traceback

        traceback.print_exc()
        error.write_text(f"{type(raised).__name__}: {_end_of(str(raised))}")
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(0)  # threads of the host's reporting would be waited for


def _end_of(message: str) -> str:
    """The last line that says something; of pydantic's, with the key before it."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and "errors.pydantic.dev" not in line]
    return ": ".join(lines[-2:] if "validation error" in message else lines[-1:])


def try_out(name: str, config: dict[str, Any], log: Path) -> dict[str, Any]:
    """One line of the results."""
    from scalebio_plugin.config.refusals import problems_of

    raw = taken_up(config)
    refusals = problems_of(raw)
    if refusals:
        return {"example": name, "result": "refused", "why": "; ".join(line.split(":")[0] for line in refusals)}
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="host_examples_"))
    small = made_small(raw)
    found: dict[str, Any] = {"example": name, "result": "runs"}
    log.parent.mkdir(parents=True, exist_ok=True)

    def with_the_plugin() -> None:
        make_inputs(folder, small)
        learn_and_apply(small)

    failed = forked(with_the_plugin, folder, log)
    if failed:
        host_too = forked(lambda: without_the_plugin(small), folder, log.with_suffix(".host.log"))
        found |= {"result": "the host fails too" if host_too else "fails", "why": failed, "host": host_too}
    shutil.rmtree(folder, ignore_errors=True)
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def warm_up() -> None:
    """What every child would do again: imports, the packing that is compiled, garbage that only looks like some."""
    for module in ("axolotl.train", "axolotl.cli.config", "axolotl.core.builders", "scalebio_plugin.training.trainer"):
        importlib.import_module(module)
    import numpy
    from axolotl.utils.samplers.multipack import pack_parallel

    pack_parallel(numpy.full(8, 60), bin_capacity=256, group_size=8, bin_size=8, num_processes=1)
    gc.collect()
    gc.freeze()


def refusals(checkout: Path) -> str:
    """How many are accepted, and what keeps the others out: in how many examples, and in how many alone."""
    from scalebio_plugin.config.refusals import problems_of

    os.chdir(checkout)  # where the DeepSpeed JSONs are that they name
    found = [{line.split(":")[0] for line in problems_of(taken_up(config))} for _, config in text_examples(Path())]
    every = Counter(rule for rules in found for rule in rules)
    alone = Counter(rule for rules in found if len(rules) == 1 for rule in rules)
    head = [f"{len(found)} examples, {sum(not rules for rules in found)} accepted", ""]
    lines = [f"| `{rule}` | {count} | {alone[rule]} |" for rule, count in every.most_common()]
    return "\n".join([*head, "| rule | examples | alone |", "|---|---|---|", *lines])


def table(results: list[dict[str, Any]]) -> str:
    counts = Counter(result["result"] for result in results)
    head = [f"{len(results)} examples: " + ", ".join(f"{count} {what}" for what, count in counts.most_common())]
    lines = [
        f"| {result['example']} | {result['result']} | {str(result.get('why', '')).replace('|', chr(92) + '|')[:160]} |"
        for result in sorted(results, key=lambda result: (result["result"], result["example"]))
    ]
    return "\n".join([*head, "", "| example | result | why |", "|---|---|---|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--refusals", action="store_true", help="run nothing")
    parser.add_argument("--only", default="*", help="shell pattern of names below examples/")
    parser.add_argument("--limit", type=int, help="examples to run now, at most (refused ones do not count)")
    parser.add_argument("--out", type=Path, default=Path("host_examples.jsonl"))
    parser.add_argument("--logs", type=Path, default=Path("host_examples_logs"))
    arguments = parser.parse_args()
    if arguments.refusals:
        print(refusals(arguments.checkout))
        return
    os.environ |= {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "WANDB_MODE": "offline",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    warm_up()
    known = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done, ran = {result["example"] for result in known}, 0
    logs = arguments.logs.resolve()
    for name, config in text_examples(arguments.checkout):
        if name in done or not fnmatch.fnmatch(name, arguments.only):
            continue
        if arguments.limit is not None and ran >= arguments.limit:
            break
        result = try_out(name, config, logs / f"{name.replace('/', '-')}.log")
        ran += result["result"] != "refused"
        known.append(result)
        with arguments.out.open("a") as file:
            file.write(json.dumps(result) + "\n")
        if result["result"] != "refused":
            print(f"{result['result']:8} {name}  {result.get('why', '')}", flush=True)
    text = table(known)
    arguments.out.with_suffix(".table.md").write_text(text + "\n")
    print("\n" + text)


if __name__ == "__main__":
    main()
