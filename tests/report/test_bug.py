"""`scalebio report-bug`: what is needed is there, what is nobody's business is not, wherever it stood."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from scalebio_plugin import __version__, cli
from scalebio_plugin.report import bug
from scalebio_plugin.report.bug import shown_config, shown_text

TOKEN = "hf_" + "aB3" * 11
LOST = "<left out>"
CONFIG = {  # and what of it is shown
    "base_model": ("NousResearch/Meta-Llama-3-8B", "NousResearch/Meta-Llama-3-8B"),
    "plugins": (["scalebio"], ["scalebio"]),
    "datasets": (
        [
            {"path": "tatsu-lab/alpaca", "type": "alpaca", "split": "train[:10%]"},
            {"path": "/home/jo/acme/mails.jsonl", "ds_type": "json", "data_files": ["acme/one.jsonl", "two"]},
            {"path": "acme/rows.jsonl", "type": {"system_prompt": "You read /srv/acme/mails."}},
            {"path": "s3://acme-bucket/rows"},
        ],
        [
            {"path": "tatsu-lab/alpaca", "type": "alpaca", "split": "train[:10%]"},
            {"path": LOST, "ds_type": "json", "data_files": [LOST, LOST]},
            {"path": LOST, "type": {"system_prompt": LOST}},
            {"path": LOST},
        ],
    ),
    "scalebio": (
        {"validation_datasets": [{"path": "~/acme/v", "weight": 2.0}], "penalty": 20.0, "lisa": {"active_layers": 2}},
        {"validation_datasets": [{"path": LOST, "weight": 2.0}], "penalty": 20.0, "lisa": {"active_layers": 2}},
    ),
    "output_dir": ("./acme/out", LOST),
    "hub_model_id": ("jo/acme", LOST),
    "hf_use_auth_token": (True, True),
    "wandb_project": ("acme", LOST),
    "api_key": (123456789, LOST),
    "env": ([{"HF_TOKEN": "acme", "note": f"use {TOKEN} here"}], [{"HF_TOKEN": LOST, "note": LOST}]),
    "optimizer": ("adamw_torch", "adamw_torch"),
    "seed": (42, 42),
    "resume_from_checkpoint": (None, None),
}
KEPT = {key: shown for key, (_, shown) in CONFIG.items()}
PATHS = [
    *("/home/jo/acme", "/acme", "~/acme", "~jo/acme/x", "./acme", "../acme/x", "$HOME/acme", "${ACME}/rows"),
    *(r"%USERPROFILE%\acme", r"C:\Users\jo\acme", "d:/acme/rows", r"\\server\acme"),
    *("file:///acme", "s3://acme/rows", "https://jo:acme@host/x"),
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    config, log = tmp_path / "config.yml", tmp_path / "log.txt"
    config.write_text("# acme\n" + yaml.safe_dump({key: written for key, (written, _) in CONFIG.items()}))
    log.write_bytes(b"".join(b"line %d of /home/jo/acme\n" % number for number in range(100)))
    return {"config": config, "log": log}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "around", ["{}", "{} two words", "see {}", "--dir={}", "ACME='{}'", "({})", "rows:{}", '["{}"]']
)
def test_a_path_is_gone_wherever_it_stands(path: str, around: str) -> None:
    text = around.format(path)
    shown = shown_text(text)
    assert "acme" not in shown.replace("ACME", "").lower()
    assert "jo" not in shown
    assert "<path>" in shown


@pytest.mark.parametrize("quote", "\"'")
@pytest.mark.parametrize("path", ["/home/jo/my acme/rows.jsonl", r"C:\Users\jo doe\acme x", "~/acme one/two acme"])
def test_a_path_with_a_space_is_gone_where_it_is_quoted(path: str, quote: str) -> None:
    around = f"open({quote}{{}}{quote}), then {quote}loss{quote}: 1"
    assert shown_text(around.format(path)) == around.format("<path>")


def test_of_installed_code_in_a_folder_with_a_space_the_place_stays() -> None:
    line = 'File "/home/jo doe/site-packages/torch/nn.py", line 12, in forward'
    assert shown_text(line) == 'File "<path>/site-packages/torch/nn.py", line 12, in forward'


def test_a_fence_in_the_log_ends_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("one\n~~~\n# two\n~~~~ \nthree\n")
    text = bug.bug_report("1", None, tmp_path / "log")
    assert text.endswith("### End of the log\n\n~~~~~text\none\n~~~\n# two\n~~~~\nthree\n~~~~~")


def test_a_path_that_is_there_is_one_whatever_it_looks_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert shown_config({"path": "acme/mails"}) == {"path": "acme/mails"}
    (tmp_path / "acme" / "mails").mkdir(parents=True)
    assert shown_config({"path": "acme/mails"}) == {"path": LOST}


def test_names_of_sources_are_gone_also_where_they_are_keys() -> None:
    block = {
        "names": ["acme", "jo"],
        "bounds": {"acme": [0.1, 0.5], "jo": [0.0, 0.2]},
        "groups": {"acme": ["jo"]},
        "split_by": {"acme": "jo"},
        "mixture_init": {"acme": 0.75, "jo": 0.25},
        "prior": {"weights": {"acme": 1.0}},
    }
    shown = shown_config({"scalebio": block})["scalebio"]
    assert "acme" not in str(shown)
    assert "jo" not in str(shown)
    assert list(shown["bounds"].values()) == [[0.1, 0.5], [0.0, 0.2]]
    assert list(shown["mixture_init"].values()) == [0.75, 0.25]
    assert shown_config({"split_by": "acme", "mixture_init": "uniform"}) == {
        "split_by": LOST,
        "mixture_init": "uniform",
    }


@pytest.mark.parametrize(
    "text",
    [
        f"token is {TOKEN}.",
        "WANDB_API_KEY=acme",
        "OPENAI_API_KEY: sk-proj-acme0123456789acme",
        "Authorization: Bearer acme",
        "using bearer acme",
        "sk-proj-acme0123456789acme",
        "key 0123456789abcdef0123456789abcdef01234567",
        "wandb: Currently logged in as: jo (acme)",
        '{"hub_token": "acme", "x": 1}',
        "{'hub_token': 'acme jo'}",
        "token: acme",
        "password: acme",
        "api_key: 'acme'",
        "aws_secret_access_key = acme",
        "hf auth login --token acme",
        "Logged in as jo (acme)",
        "hub_model_id: acme/x",
        '  "wandb_entity": "acme",',
        "push_dataset_to_hub: acme/rows",
        "ask jo.doe@acme.com, please",
    ],
)
def test_a_secret_in_a_text_is_gone(text: str) -> None:
    shown = shown_text(text)
    assert LOST in shown
    assert shown.count("out>") == 1
    assert not any(secret in shown for secret in ("acme", "jo", TOKEN, "0123456789abcdef"))


@pytest.mark.parametrize(
    "text",
    [
        "{'loss': 1.25, 'grad_norm': 0.5, 'epoch': 0.1}",
        " 3/100 [00:01<00:30, 1.2it/s] 5e-05 <s> </s> and/or n/a",
        "scalebio: learning the weights of tatsu-lab/alpaca, 120 target tokens (50.0%)",
        "KeyError: 'loss'",
        "torch.OutOfMemoryError: tried to allocate 2.00 GiB; see scalebio.inner.device",
        "tokens per second: 120",
        "'hf_use_auth_token': True, \"hub_token\": null, hub_model_id: None",
        "pad_token: <|end_of_text|>, eos_token_id: 2",
        "the key of the block; a token that is a target",
        "installed axolotl@0.21.0 @ main, 3.5 it@s",
    ],
)
def test_what_tells_something_stays(text: str) -> None:
    assert shown_text(text) == text


@pytest.mark.parametrize("root", ["/home/jo", "/opt/acme", "/home/jo doe", r"C:\Users\jo"])
def test_of_installed_code_the_place_stays(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/jo doe"))
    line = f'  File "{root}/.venv/lib/python3.11/site-packages/torch/nn/modules/module.py", line 12, in forward'
    assert shown_text(line) == '  File "<path>/site-packages/torch/nn/modules/module.py", line 12, in forward'
    line = f"{root}/checkout/scalebio_plugin/training/trainer.py:12: UserWarning"
    assert shown_text(line) == "<path>/scalebio_plugin/training/trainer.py:12: UserWarning"


def test_the_command_prints_versions_config_and_the_end_of_the_log(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report-bug", str(files["config"]), "--log", str(files["log"])]) == 0
    out, err = capsys.readouterr()
    versions, config, log = out.split("\n\n###")
    assert f"scalebio {__version__}\naxolotl " in versions
    assert "\nPython 3." in versions
    assert yaml.safe_load(config.split("~~~yaml")[1].split("~~~")[0]) == KEPT
    assert log.split("~~~text\n")[1].splitlines() == [*(f"line {n} of <path>" for n in range(60, 100)), "~~~"]
    assert "acme" not in out
    assert "read it before" in err


def test_it_works_without_a_config_and_imports_nothing_heavy() -> None:
    heavy = ("torch", "axolotl", "transformers", "numpy", "pydantic", "matplotlib")
    code = "import sys; from scalebio_plugin.cli import main; main(['report-bug'])"
    code += f"; print({set(heavy)} & set(sys.modules))"
    out = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert "### Versions" in out
    assert "### Config" not in out
    assert out.endswith("set()\n")


def test_a_progress_bar_is_shown_as_it_was_last(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(b"\x1b[31mfailed\x1b[0m\r\n" + b"\r 1%| 1/99" * 999 + b"\r 99%| 98/99\nend")
    assert bug.bug_report("1", log=log).split("~~~")[3] == "text\nfailed\n 99%| 98/99\nend\n"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (FileNotFoundError(), "no GPU"),
        (subprocess.TimeoutExpired("nvidia-smi", 10), "no GPU"),
        ("NVIDIA H200, 1 MiB\n", "H200"),
    ],
    ids=["none", "hangs", "one"],
)
def test_gpus_are_named_where_there_are_any(answer: Any, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: Any, **keys: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(arguments, 0, answer, "")

    monkeypatch.setattr(subprocess, "run", run)
    assert expected in bug.bug_report("1")


def test_a_log_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report-bug", "--log", "none.log"]) == 2
    assert capsys.readouterr() == ("", "scalebio: no file none.log; give what a run printed\n")
