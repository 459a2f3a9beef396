"""What a bug report holds, ready to paste: versions, the config, and the end of a log."""

from __future__ import annotations

import platform
import re
import subprocess
from collections import deque
from importlib import metadata
from pathlib import Path

import yaml

from .without_secrets import shown_config, shown_text

_PACKAGES = ("axolotl", "transformers", "accelerate", "torch", "peft", "bitsandbytes", "deepspeed", "datasets")
_LINES = 40  # of the log


def bug_report(version: str, config: Path | None = None, log: Path | None = None) -> str:
    """Markdown, of scalebio's version, an Axolotl config, and what a run printed.

    Raises:
        FileNotFoundError: One of the files is not there.
        ValueError: The config is none.
    """
    for path in (config, log):
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"no file {path}; give an Axolotl config, and with --log what a run printed")
    parts = [("Versions", "text", "\n".join([f"scalebio {version}", *_versions()]))]
    if config is not None:
        parts.append(("Config", "yaml", _config(config)))
    if log is not None:
        parts.append(("End of the log", "text", _end_of(log)))
    return "\n\n".join(f"### {title}\n\n~~~{kind}\n{text}\n~~~" for title, kind, text in parts)


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


def _config(path: Path) -> str:
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is no Axolotl config: it must be a block of keys")
    return yaml.safe_dump(shown_config(found), sort_keys=False, allow_unicode=True, width=120).rstrip()


def _end_of(log: Path) -> str:
    with log.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        last = [line.rstrip().rsplit("\r", 1)[-1] for line in deque(lines, _LINES)]  # of a progress bar what one saw
    return shown_text(re.sub(r"\x1b\[[\d;]*m", "", "\n".join(last)))
