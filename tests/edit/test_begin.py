"""`scalebio init`: the plugin and a block are added to a config, and nothing else of it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from scalebio_plugin.cli import main
from scalebio_plugin.edit.begin import begun
from tests import host

from .configs import EXAMPLE, FLOW, MARKS, PLUGINS, SHAPES

FILE = "config.yml"


def begin(text: str, **asked: Any) -> str:
    if text == EXAMPLE:
        asked = {"split_by": "source", **asked}
    return begun(text, yaml.safe_load(text), **asked)


def init(folder: Path, text: str, *arguments: str) -> int:
    (folder / FILE).write_bytes(text.encode())
    return main(["init", str(folder / FILE), *arguments])


def is_left_of(old: str, new: str) -> bool:
    """Whether nothing but new characters parts the two: every old one is there, in the old order."""
    rest = iter(new)
    return all(letter in rest for letter in old)


@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES)
def test_what_was_there_stays_byte_by_byte(text: str) -> None:
    new = begin(text)
    assert is_left_of(text, new)
    gone = set(text.splitlines()) - set(new.splitlines())
    assert gone == {line for line in text.splitlines() if line.startswith("plugins:") and "# ours" in line}
    assert new.count("\r\n") == (new.count("\n") if "\r\n" in text else 0)
    assert new.endswith(("\n", "\r\n"))


@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES)
def test_it_parses_to_the_old_config_with_the_plugin_and_a_block(text: str) -> None:
    old, new = yaml.safe_load(text), yaml.safe_load(begin(text))
    assert new.pop("plugins") == [*(old.pop("plugins", None) or []), "scalebio"]
    block = {"split_by": "source"} if text == EXAMPLE else {}
    assert new.pop("scalebio") == {**block, "learn": {"fraction": 1.0}}
    assert list(new.items()) == list(old.items())


@pytest.mark.host_contract
@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES)
def test_check_accepts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert init(tmp_path, text, *(["--split-by", "source"] if text == EXAMPLE else [])) == 0
    host.forget_plugins()
    capsys.readouterr()
    status = main(["check", str(tmp_path / FILE)])
    assert (status, capsys.readouterr().out.splitlines()[-1]) == (0, f"{tmp_path / FILE}: nothing is wrong with it")


def test_plugins_that_are_merged_from_elsewhere_are_kept() -> None:
    text = "common: &common\n  plugins: [one.Plugin]\n<<: *common\n" + MARKS.removeprefix("---\n")
    assert yaml.safe_load(begin(text))["plugins"] == ["one.Plugin", "scalebio"]
    assert is_left_of(text, begin(text))


def test_a_plugin_that_is_listed_is_not_listed_twice() -> None:
    text = FLOW.replace("tests.host.ProbePlugin", "scalebio_plugin.ScaleBiOPlugin")
    assert yaml.safe_load(begin(text))["plugins"] == ["scalebio_plugin.ScaleBiOPlugin"]


@pytest.mark.parametrize(
    "text",
    [
        "names: &names [one.Plugin]\nplugins: *names\n" + MARKS.removeprefix("---\n"),  # both would change
        '{"datasets": [{"path": "a"}, {"path": "b"}], "val_set_size": 0.1}',
        "plugins: {one.Plugin: }\n" + MARKS.removeprefix("---\n"),
        "  datasets: [{path: a}, {path: b}]\n  val_set_size: 0.1\n",
    ],
    ids=["an alias", "JSON", "a block of plugins", "all keys indented"],
)
def test_what_cannot_be_edited_is_said_with_what_to_add(text: str) -> None:
    with pytest.raises(ValueError, match=r"by hand, and\n\nscalebio:  # learns"):
        begin(text)


class TestValidationData:
    def test_that_of_the_host_is_taken_and_it_is_said_what_that_means(self) -> None:
        assert "# val_set_size steers the mixture, and eval_loss is then no longer held out." in begin(PLUGINS)
        assert "# test_datasets steers the mixture" in begin(FLOW)

    def test_rows_of_its_own_are_read_as_the_datasets_are(self) -> None:
        mapped = PLUGINS.replace("  - path: tatsu-lab/alpaca\n    type: alpaca\n", "")
        block = yaml.safe_load(begin(mapped, validation=["org/valid"], split_by="source"))["scalebio"]
        form = {key: value for key, value in yaml.safe_load(mapped)["datasets"][0].items() if key != "split"}
        assert block["validation_datasets"] == [{**form, "path": "org/valid"}]

    def test_a_type_may_be_given(self, tmp_path: Path) -> None:
        (tmp_path / "v.jsonl").touch()
        paths = [str(tmp_path / "v.jsonl"), "org/ünïcode: # no comment"]
        block = yaml.safe_load(begin(PLUGINS, validation=paths, kind="alpaca"))["scalebio"]
        assert block["validation_datasets"] == [{"path": path, "type": "alpaca"} for path in paths]

    def test_entries_of_several_forms_tell_none(self) -> None:
        with pytest.raises(ValueError, match="several forms; say which by --type"):
            begin(PLUGINS, validation=["org/valid"])

    def test_a_file_that_is_not_there_is_an_error(self) -> None:
        with pytest.raises(FileNotFoundError, match=r"no file valid\.jsonl"):
            begin(PLUGINS, validation=["valid.jsonl"], kind="alpaca")


class TestAtTheCommandLine:
    def test_the_difference_is_printed_and_written(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / FILE).touch(mode=0o640)
        assert init(tmp_path, PLUGINS) == 0
        lines = capsys.readouterr().out.splitlines()
        assert "+- scalebio" in lines
        assert lines[-1].startswith(f"written to {tmp_path / FILE}; ")
        assert (tmp_path / FILE).read_text() == begin(PLUGINS)
        assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o640

    def test_a_file_beside_it_stays(self, tmp_path: Path) -> None:
        (tmp_path / FILE).write_text(FLOW)
        mine = tmp_path / f"{FILE}.tmp"
        mine.write_text("mine")
        assert main(["init", str(tmp_path / FILE), "--split-by", "source"]) == 0
        assert mine.read_text() == "mine"
        assert sorted(path.name for path in tmp_path.iterdir()) == [FILE, mine.name]

    def test_a_dry_run_prints_alone(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert init(tmp_path, PLUGINS, "--dry-run") == 0
        assert "written" not in capsys.readouterr().out
        assert (tmp_path / FILE).read_text() == PLUGINS

    def test_another_file_is_written_once(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        other = tmp_path / "learn.yml"
        assert init(tmp_path, PLUGINS, "--output", str(other)) == 0
        assert (tmp_path / FILE).read_text() == PLUGINS
        assert other.read_text() == begin(PLUGINS)
        assert init(tmp_path, PLUGINS, "--output", str(other)) == 2
        assert "is there already" in capsys.readouterr().err

    def test_a_folder_that_is_not_there_is_named(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert init(tmp_path, PLUGINS, "--output", str(tmp_path / "nodir" / "x.yml")) == 2
        assert f"--output: there is no folder {tmp_path / 'nodir'}; make it" in capsys.readouterr().err

    def test_a_link_stays_one(self, tmp_path: Path) -> None:
        (tmp_path / "real.yml").write_text(PLUGINS)
        (tmp_path / FILE).symlink_to("real.yml")
        assert main(["init", str(tmp_path / FILE)]) == 0
        assert (tmp_path / FILE).is_symlink()
        assert (tmp_path / "real.yml").read_text() == begin(PLUGINS)

    def test_a_block_that_is_there_is_left_alone(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert init(tmp_path, PLUGINS + "scalebio:\n") == 2
        assert capsys.readouterr().err.startswith("scalebio: there is a scalebio: block already")
        assert (tmp_path / FILE).read_text() == PLUGINS + "scalebio:\n"

    def test_all_that_nobody_can_guess_is_asked_for_at_once(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        without = EXAMPLE.replace("val_set_size: 0.05\n", "") + "rl: dpo\n"
        assert init(tmp_path, without) == 2
        head, *problems = capsys.readouterr().err.splitlines()
        assert head == "scalebio cannot run this config:"
        assert [word for line in problems for word in ("--split-by", "--validation", "rl:") if word in line] == [
            "--split-by",
            "--validation",
            "rl:",
        ]
        assert len(problems) == 3
        assert (tmp_path / FILE).read_text() == without

    def test_names_that_move_a_cursor_are_spelt_out(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        named = ["--validation", "org/\x1b[2J", "--type", "x"]
        assert init(tmp_path, PLUGINS + "seed: 1  # \u202e\n", *named) == 0
        out = capsys.readouterr().out
        assert "\n seed: 1  # \\u202e\n" in out
        assert not {"\x1b", "\u202e"} & set(out)
