"""What a bug report holds, ready to paste: versions, the config, and the end of a log."""

from __future__ import annotations

import platform
import re
import subprocess
from collections import deque
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from .words import printable_lines

_PACKAGES = ("axolotl", "transformers", "accelerate", "torch", "peft", "bitsandbytes", "deepspeed", "datasets")
_LINES = 40  # of the log
_LOST = "<left out>"
_SHOWN = {  # keys whose texts say what is run
    *("adapter", "attn_implementation", "bf16", "chat_template", "chat_template_strategy", "device", "ds_type"),
    *("estimator", "eval_strategy", "excess_length_strategy", "extensions", "final_state_dict_type", "fp16"),
    *("gradient_checkpointing", "learning_rate", "lora_modules_to_save", "lora_target_modules", "loss_unit"),
    *("lr_scheduler", "mixture_init", "mixture_update", "model_type", "optim_args", "optimizer", "plugins"),
    *("save_strategy", "split", "state_dict_type", "tokenizer_type", "torch_dtype", "train_on_eos"),
    *("transformer_layer_cls_to_wrap", "type", "unfrozen_parameters"),
}
_BY_NAME = ("bounds", "groups", "mixture_init", "split_by", "weights")  # blocks whose keys are names of a user's
_TOKEN = (
    r"\b(?:hf_|gh[a-z]_|sk-)[\w-]{16,}|\b[0-9a-f]{40}\b|(?m:(?<=^wandb: ).+)"
    r"|[\w.+-]+@(?:[\w-]+\.)+[A-Za-z]{2,}\b"  # an e-mail address
    r"|(?i:(?<=bearer )\S+|(?<=key=)\S+|(?<=token=)\S+|(?<=password=)\S+)"
)
_SECRET = re.compile(  # what stands at a key that names a secret or an account
    r"""(?ix) (?P<key> (?<![\w-])
        (?: ["']? (?!(?:bos|eos|pad|unk|sep|cls|mask)_)
            (?: [\w-]*(?:key|token|password|passphrase|secret|credentials?)
              | (?:hub|wandb|comet|mlflow|swanlab|trackio)_\w+ | push_dataset_to_hub | user_?name | login | e-?mail
            ) ["']? \s*[:=]\s*
        | --[\w-]*(?:key|token|password) [ ]
        ))
        (?! (?:null|none|true|false)\b | <left\ out> ) (?: "[^"\n]*" | '[^'\n]*' | [^\s,;)}\]]+ )
    | (?P<login> logged\ in\ as:?\ ) .+ """
)
_START = r"(?:[A-Za-z]:|[~$%][\w{}%]*|\.{1,2}|\\)?[/\\]"
_CODE = r"[/\\](?:site-packages|scalebio_plugin)[/\\]"
_PATH = (
    rf"(?P<quote>[\"']){_START}[^\"'\n]*?(?P<quoted>{_CODE}[^\"'\n]*)?(?P=quote)"  # may hold spaces
    r"|(?<![\w+.-])[A-Za-z][\w+.-]*://[^\s\"'<>|,;()\]]+"
    rf"|(?<![\w.<]){_START}[^\s\"'<>|,;()]*?(?P<code>{_CODE}[^\s\"'<>|,;():]*)?(?=[\s\"'<>|,;():]|$)"
)


def bug_report(version: str, config: Mapping[str, Any] | None = None, log: Path | None = None) -> str:
    """Markdown, of scalebio's version, an Axolotl config, and what a run printed."""
    parts = [("Versions", "text", "\n".join([f"scalebio {version}", *_versions()]))]
    if config is not None:
        shown = yaml.safe_dump(shown_config(config), sort_keys=False, allow_unicode=True, width=120)
        parts.append(("Config", "yaml", shown.rstrip()))
    if log is not None:
        parts.append(("End of the log", "text", _end_of(log)))
    return "\n\n".join(f"### {title}\n\n{_fenced(kind, text)}" for title, kind, text in parts)


def _fenced(kind: str, text: str) -> str:
    """As a block of code that no line of it ends."""
    fence = "~" * max(3, 1 + max(map(len, re.findall("~+", text)), default=0))
    return f"{fence}{kind}\n{text}\n{fence}"


def _versions() -> list[str]:
    installed = [f"{name} {version}" for name in _PACKAGES if (version := _version(name))]
    python = f"Python {platform.python_version()} on {platform.platform()}"
    return [*installed, python, *(_gpus() or ["no GPU that nvidia-smi sees"])]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def shown_config(value: Any, key: str = "") -> Any:
    """A config without what may be a secret, an account or a path: of its texts those alone that name no such thing."""
    if isinstance(value, Mapping) and key in _BY_NAME:
        return {f"{_LOST} {number}": shown_config(of, key) for number, of in enumerate(value.values(), 1)}
    if isinstance(value, Mapping):
        return {name: shown_config(of, str(name)) for name, of in value.items()}
    if isinstance(value, list):
        return [shown_config(of, key) for of in value]
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str):
        return _LOST if key.endswith(("key", "token", "password")) else value
    on_hub = re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", value) and not Path(value).suffix and not Path(value).exists()
    return value if key in _SHOWN or (key in ("base_model", "path") and on_hub) else _LOST


def _end_of(log: Path) -> str:
    with log.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        last = [line.rstrip().rsplit("\r", 1)[-1] for line in deque(lines, _LINES)]  # of a progress bar what one saw
    return shown_text(printable_lines(re.sub(r"\x1b\[[\d;]*m", "", "\n".join(last))))


def shown_text(text: str) -> str:
    """A log without absolute paths (of installed code the place in it stays), addresses, secrets and accounts."""
    text = re.sub(_TOKEN, _LOST, text.replace(str(Path.home()), "~"))
    text = _SECRET.sub(lambda found: (found["key"] or found["login"]) + _LOST, text)
    return re.sub(_PATH, _without_path, text)


def _without_path(found: re.Match[str]) -> str:
    quote = found["quote"] or ""
    return f"{quote}<path>{found['quoted'] or found['code'] or ''}{quote}"
