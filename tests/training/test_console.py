"""Our lines of the log begin a line where the host's progress bars stand, on a terminal and in a file."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from axolotl.utils.tee import _StreamTee
from tqdm import tqdm

from scalebio_plugin.training.console import own_line

PROGRAM = """
import sys
from scalebio_plugin.training.console import own_line
from tqdm.auto import tqdm  # what the host's trainer draws with

with own_line():
    print("before any bar", flush=True)
bar = tqdm(total=3, ncols=40, mininterval=0, file=sys.stderr)
for step in range(3):
    bar.update()
    with own_line():
        print(f"after step {step}\\nsource  weight", flush=True)
bar.close()
"""


def shown(text: str) -> list[str]:
    """The lines that a terminal shows: what follows a carriage return is written over what was there."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        screen = ""
        for part in line.split("\r"):
            screen = part + screen[len(part) :]
        lines.append(screen.rstrip())
    return lines


def in_a_file(folder: Path) -> str:
    with (folder / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", PROGRAM], stdout=log, stderr=log, check=True)
    return (folder / "log").read_text()


def on_a_terminal(folder: Path) -> str:
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=follower, stderr=follower)
    os.close(follower)
    text = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # Linux says so that nobody writes any more
            break
        if not part:
            break
        text += part
    os.close(leader)
    assert process.wait() == 0
    return text.decode()


@pytest.mark.parametrize("where", [in_a_file, on_a_terminal])
def test_a_table_begins_a_line(where, tmp_path: Path) -> None:
    lines = shown(where(tmp_path))
    assert lines[0] == "before any bar"
    for step in range(3):
        assert lines[lines.index(f"after step {step}") + 1] == "source  weight"
    assert any("3/3" in line for line in lines), "the bar is gone"


def test_in_a_file_it_is_found_at_the_start_of_a_line(tmp_path: Path) -> None:
    assert in_a_file(tmp_path).count("\nafter step ") == 3


@pytest.mark.parametrize("kept_by", [lambda file: file, _StreamTee], ids=["itself", "the host's debug log"])
def test_a_bar_left_behind_on_a_file_that_was_closed_ends_no_run(kept_by, capsys: pytest.CaptureFixture[str]) -> None:
    closed, open_one = io.StringIO(), io.StringIO()
    bars = [tqdm(total=3, file=kept_by(closed)), tqdm(total=3, file=open_one)]
    closed.close()
    with own_line():
        print("a table")
    assert capsys.readouterr().out == "a table\n"
    assert open_one.getvalue().endswith("\n")
    bars[1].close()
