"""Configs and logs as they can be shown to anybody: without secrets, names of accounts and local paths."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SECRET = (  # keys; `pad_token` and the like say what a tokenizer does
    r"(?:\w*(?<!bos_)(?<!eos_)(?<!pad_)(?<!unk_)(?:token|key|secret|password|authorization)"
    r"|push_dataset_to_hub|(?:wandb|comet|mlflow|trackio|swanlab|hub)_\w+)"
)
_PATH_KEY = r"\w*_(?:dir|path|files?)"
_ROOT = r"(?:[a-z][\w+.-]{,20}://|[~$%][\w{}%]{,60}[/\\]|\.{1,2}[/\\]|[a-z]:[/\\]|\\\\(?=\w)|/(?=[\w.~]))"
_FILE = r"[^\s:]+\.(?:jsonl?|parquet|arrow|csv|tsv|txt|md|ya?ml|py|jinja|bin|pt|safetensors|gz|zip|zst)"
_VALUE = r"""(?:"[^"\n]*"|'[^'\n]*'|[^\s,;}&]+)"""


def _paths(start: str, end: str) -> tuple[str, str]:
    """Pattern and replacement. Of installed code the place in it stays: it says where an error was, no more."""
    code = rf"[/\\](?:site-packages|scalebio_plugin)[/\\][^{end}]*"
    return rf"(?i){start}[^{end}]*?({code})?(?![^{end}])", r"<path>\1"


_IN_TEXT = (
    (r"(?m)^(wandb: ).+", r"\1<removed>"),
    (rf"(?i)(\b{_SECRET}[\"']?\s*[=:]\s*|--(?:\w+-)*{_SECRET}\s+|\bbearer\s+)(?:bearer\s+)?{_VALUE}", r"\1<removed>"),
    (r"\b(?:hf_|gh[a-z]_|AKIA)[A-Za-z0-9]{16,}|\bsk-[\w-]{16,}|\b[0-9a-f]{40}\b", "<removed>"),
    _paths(rf"(?<=[\"']){_ROOT}", r"\n\"'"),  # in quotes it may hold spaces
    (r"(?i)\b[a-z][\w+.-]{,20}://[^\s\"'<>()]+", "<path>"),
    _paths(rf"(?:(?<![\w./\\<-])(?<!<path>){_ROOT}|/(?:home|users|root)/)", r"\s\"'<>|,;:()\[\]{}"),
)


def shown_config(value: Any, key: str = "") -> Any:
    """What a config holds at `key`, at any depth, with `<removed>` and `<path>` in place of what is not to be shown."""
    secret = bool(re.fullmatch(_SECRET, key, re.IGNORECASE))
    if isinstance(value, Mapping):
        return {shown_config(name): shown_config(of, key if secret else str(name)) for name, of in value.items()}
    if isinstance(value, list):
        return [shown_config(of, key) for of in value]
    if secret and (isinstance(value, str) or len(str(value)) > 8):  # shorter ones are switches and numbers
        return "<removed>"
    if not isinstance(value, str):
        return value
    starts = re.match(rf"{_ROOT}|{_FILE}$", value, re.IGNORECASE)
    if starts or re.fullmatch(_PATH_KEY, key, re.IGNORECASE) or ("/" in value and os.path.exists(value)):
        return "<path>"
    return shown_text(value)


def shown_text(text: str) -> str:
    """A log, or a part of one, with the same put in its place."""
    home = str(Path.home())
    text = text.replace(home, "~") if len(home) > 1 else text  # it may hold a space
    for pattern, replacement in _IN_TEXT:
        text = re.sub(pattern, replacement, text)
    return text
