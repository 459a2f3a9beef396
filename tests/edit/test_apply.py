"""`scalebio apply`: the ordinary run on a mixture, from a config as its user wrote it."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml

from scalebio_plugin.cli import main
from scalebio_plugin.edit import apply
from scalebio_plugin.edit.begin import begun
from scalebio_plugin.report.mixture_file import mixture_document, write_mixture
from scalebio_plugin.report.next_config import applied_config
from scalebio_plugin.report.summary import SourceSummary
from tests import host
from tests.report.histories import facts

from .configs import FLOW, MARKS, PLUGINS, SHAPES

# Of long and of short rows: 10 and 5 target tokens.
TOKENS, ROWS = {"a": 1000, "b": 500}, {"a": 100, "b": 100}
BLOCK = """\
scalebio:   # as it was
  # what the mixture is tuned for
  validation_datasets:
    - {path: v.jsonl, type: alpaca}
  penalty: 20.0   # measured

  names: [x, "y"]   # short ones
  learn: {fraction: 0.5}
  # held_out_rows: 3
# of the host
"""


def document(weights: dict[str, float]) -> dict[str, Any]:
    """A mixture of two sources."""
    summaries = {name: SourceSummary(of, of, 1.0, 1.0, 0.0, None) for name, of in weights.items()}
    counts = [dict(zip(weights, of.values(), strict=True)) for of in (TOKENS, ROWS)]
    return mixture_document(summaries, facts(*counts), "converged")


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    path = tmp_path / "run" / "scalebio" / "mixture.json"
    path.parent.mkdir(parents=True)
    write_mixture(path, document({"a": 0.8, "b": 0.2}))
    return path


def is_subset(lines: list[str], of: list[str]) -> bool:
    rest = iter(of)
    return all(line in rest for line in lines)


@pytest.mark.parametrize("learns", [False, True], ids=["as it was", "after init"])
@pytest.mark.parametrize("text", SHAPES.values(), ids=SHAPES)
def test_it_parses_to_the_config_of_the_next_run(text: str, learns: bool) -> None:
    config = yaml.safe_load(text)
    if learns:
        text = begun(text, config, split_by="source")
        config = yaml.safe_load(text)
    new = apply.applied(text, config, "run/mixture.json")
    expected = applied_config(config, "run/mixture.json", config["output_dir"])
    plugins = [*(config.get("plugins") or []), *([] if learns else ["scalebio"])]
    assert yaml.safe_load(new) == {**expected, "plugins": plugins}
    comments = [line for line in text.splitlines() if line.startswith("#")]
    assert is_subset(comments, new.splitlines())
    assert new.count("\r\n") == (new.count("\n") if "\r\n" in text else 0)


def test_of_the_block_what_is_kept_keeps_its_lines() -> None:
    text = PLUGINS.replace("micro_batch_size", BLOCK + "resume_from_checkpoint: out/c\nmicro_batch_size")
    new = apply.applied(text, yaml.safe_load(text), "m.json")
    block = "scalebio:  # no learning: rows are drawn by the weights of this file\n  apply: m.json\n"
    kept = '  names: [x, "y"]   # short ones\n# of the host\nmicro_batch_size: 1\n'
    assert block + kept in new
    assert "resume" not in new
    again = apply.applied(new, yaml.safe_load(new), "other.json")
    assert again == new.replace("m.json", "other.json").replace("out-applied", "out-applied-applied")


def test_the_comment_beside_the_output_folder_stays() -> None:
    assert "\noutput_dir:   out-applied     # here\n" in apply.applied(FLOW, yaml.safe_load(FLOW), "m.json")


def test_what_an_alias_goes_through_is_written_anew() -> None:
    """The entry is written in the block that goes, and named below."""
    text = (
        MARKS.removesuffix("...\n")
        + "scalebio:\n  validation_datasets: &v\n  - {path: v, type: alpaca}\ntest_datasets: *v\n"
    )
    new = apply.applied(text, yaml.safe_load(text), "m.json")
    assert new.startswith("# Written anew, without the comments")
    assert yaml.safe_load(new)["test_datasets"] == [{"path": "v", "type": "alpaca"}]


class TestSources:
    @pytest.mark.parametrize(
        ("change", "learned"),
        [
            ({}, ["a", "b"]),
            ({"names": ["x", "y"]}, ["x", "y"]),
            ({"split_by": {"b": "column"}}, ["a", "b/one", "b/two"]),
            ({"split_by": "column"}, ["a/1", "b/other"]),
        ],
        ids=str,
    )
    def test_the_same_ones_fit(self, change: dict[str, Any], learned: list[str]) -> None:
        config = {**yaml.safe_load(MARKS), "scalebio": change}
        apply.refuse_unfit(config, {"weights": dict.fromkeys(learned, 0.1)}, "m.json")

    @pytest.mark.parametrize(
        ("change", "learned", "said"),
        [
            ({}, ["a", "c"], r"m\.json .* has \['c'\] that are missing here, and lacks \['b'\]"),
            ({"names": ["x", "y"]}, ["a", "b"], r"has \['a', 'b'\] .* lacks \['x', 'y'\]"),
            ({"split_by": {"b": "column"}}, ["a", "c/one"], r"has \['c/one'\] .* lacks \['b'\]"),
        ],
        ids=str,
    )
    def test_other_ones_are_refused_by_the_names_of_both(
        self, change: dict[str, Any], learned: list[str], said: str
    ) -> None:
        config = {**yaml.safe_load(MARKS), "scalebio": change}
        with pytest.raises(ValueError, match=said):
            apply.refuse_unfit(config, {"weights": dict.fromkeys(learned, 0.1)}, "m.json")

    def test_of_a_single_entry_that_is_split_the_rows_tell(self) -> None:
        config = {"datasets": [{"path": "a"}], "scalebio": {"split_by": "column"}}
        apply.refuse_unfit(config, {"weights": {"one": 0.5, "two": 0.5}}, "m.json")


class TestAsWeights:
    @pytest.fixture(autouse=True)
    def _on_a_host_that_has_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(metadata, "version", lambda name: "0.21.0")

    @pytest.mark.parametrize("text", [text for text in SHAPES.values() if "b.jsonl" in text])
    def test_each_entry_has_the_part_of_its_rows_to_keep(self, text: str) -> None:
        """Of 0.8 and 0.2, at 10 and 5 tokens a row, two rows of `a` go with one of `b`."""
        learning = begun(text, yaml.safe_load(text))
        new = apply.as_weights(learning, yaml.safe_load(learning), document({"a": 0.8, "b": 0.2}))
        found, old = yaml.safe_load(new), yaml.safe_load(text)
        assert [entry.pop("weight") for entry in found["datasets"]] == [1.0, 0.5]
        others = [name for name in old.pop("plugins", None) or [] if name != "scalebio"]
        assert (found.pop("plugins", None) or []) == others
        assert found == {**old, "output_dir": f"{old['output_dir']}-applied"}
        assert is_subset([line for line in text.splitlines() if line.startswith("#")], new.splitlines())

    def test_a_part_that_was_taken_before_is_taken_of(self) -> None:
        text = PLUGINS.replace("    split:", "    weight: 0.5  # half\n    split:")
        learned = document({"cgato/SlimOrcaDedupCleaned": 0.8, "tatsu-lab/alpaca": 0.2})
        new = apply.as_weights(text, yaml.safe_load(text), learned)
        assert [entry["weight"] for entry in yaml.safe_load(new)["datasets"]] == [0.5, 0.5]
        assert "    weight: 0.5  # half\n" in new
        assert "  - path: tatsu-lab/alpaca\n    weight: 0.5\n    type: alpaca\n" in new
        assert "- tests.host.ProbePlugin  # the first\n# and none after it\n" in new
        learning = begun(text, yaml.safe_load(text))
        assert apply.as_weights(learning, yaml.safe_load(learning), learned) == new + "\n"  # the line above the block

    @pytest.mark.parametrize(
        "learned",
        [document({"a": 1.0, "b": 0.0}), {"weights": {"a": 0.8, "b": 0.2}}],
        ids=["a weight of 0", "no counts"],
    )
    def test_what_cannot_be_said_so_is_refused(self, learned: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="leave --as-weights out"):
            apply.as_weights(MARKS, yaml.safe_load(MARKS), learned)

    def test_a_host_without_them_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(metadata, "version", lambda name: "0.19.0")
        with pytest.raises(ValueError, match=r"0\.19 has no datasets\[\]\.weight"):
            apply.as_weights(MARKS, yaml.safe_load(MARKS), document({"a": 0.8, "b": 0.2}))


UNEDITABLE = {
    "an alias of what is replaced": "output_dir: &out ./x\ndataset_prepared_path: *out\n",
    "an alias into the block": "scalebio:\n  validation_datasets: &val [{path: v}]\ntest_datasets: *val\n",
    "in a line": '{"output_dir": "out", "plugins": ["scalebio"], %s}',
    "all indented": "  output_dir: out\n  plugins: [one.Plugin]\n  %s\n",
    "indented with a list below": "  output_dir: out\n  plugins:\n  - one.Plugin\n  - scalebio\n  %s\n",
}
ENTRIES = '"datasets": [{"path": "a"}, {"path": "b"}]'


@pytest.mark.parametrize("as_weights", [False, True])
@pytest.mark.parametrize("text", UNEDITABLE.values(), ids=UNEDITABLE)
def test_what_cannot_be_edited_is_still_written(text: str, as_weights: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "0.20.0")
    text = text % ENTRIES if "%s" in text else f"{text}{ENTRIES}\n"
    config = yaml.safe_load(text)
    plugins = [name for name in config.get("plugins") or [] if name != "scalebio"]
    expected = applied_config(config, "run/mixture.json", config.get("output_dir", "./model-out"))
    if as_weights:
        new = apply.as_weights(text, config, document({"a": 0.8, "b": 0.2}))
        expected = {key: of for key, of in expected.items() if key not in ("scalebio", "plugins")}
        expected |= {"plugins": plugins} if plugins else {}
        expected["datasets"] = [{"path": "a", "weight": 1.0}, {"path": "b", "weight": 0.5}]
    else:
        new = apply.applied(text, config, "run/mixture.json")
        expected["plugins"] = (
            config.get("plugins") if "scalebio" in str(config.get("plugins")) else [*plugins, "scalebio"]
        )
    assert yaml.safe_load(new) == expected


class TestAtTheCommandLine:
    @pytest.mark.host_contract
    def test_a_config_is_written_beside_the_other_that_check_accepts(
        self, tmp_path: Path, mixture: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "config.yml").write_text(FLOW)
        assert main(["apply", str(tmp_path / "config.yml"), str(tmp_path / "run")]) == 0
        other = tmp_path / "config.apply.yml"
        lines = capsys.readouterr().out.splitlines()
        assert [line.split() for line in lines[:3]] == [
            ["source", "weight", "rows", "drawn", "keep"],
            ["a", "0.8000", "66.7%", "1.33", "1"],
            ["b", "0.2000", "33.3%", "0.67", "0.5"],
        ]
        assert lines[-1] == f"written to {other}; the run: axolotl train {other}"
        assert yaml.safe_load(other.read_text())["scalebio"] == {"apply": str(mixture)}
        host.forget_plugins()
        assert main(["check", str(other)]) == 0
        assert (tmp_path / "config.yml").read_text() == FLOW

    def test_a_file_that_is_there_is_not_written_over(
        self, tmp_path: Path, mixture: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "config.yml").write_text(FLOW)
        (tmp_path / "mine.yml").write_text("mine")
        command = ["apply", str(tmp_path / "config.yml"), str(mixture), "--output", str(tmp_path / "mine.yml")]
        assert main(command) == 2
        assert "mine.yml is there already" in capsys.readouterr().err
        assert (tmp_path / "mine.yml").read_text() == "mine"

    @pytest.mark.parametrize(
        ("block", "said"),
        [("max_repeats: 4x", "scalebio.max_repeats"), ("names: [2021, 2022]", "scalebio.names must be texts")],
    )
    def test_what_cannot_be_is_refused_before_anything_is_written(
        self, tmp_path: Path, mixture: Path, capsys: pytest.CaptureFixture[str], block: str, said: str
    ) -> None:
        (tmp_path / "config.yml").write_text(f"{FLOW}\nscalebio: {{{block}}}\n")
        assert main(["apply", str(tmp_path / "config.yml"), str(mixture)]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "config.apply.yml").exists()

    def test_a_number_in_quotes_is_one(self, tmp_path: Path, mixture: Path) -> None:
        (tmp_path / "config.yml").write_text(f'{FLOW}\nscalebio: {{max_repeats: "4"}}\n')
        assert main(["apply", str(tmp_path / "config.yml"), str(mixture)]) == 0


def test_what_max_repeats_holds_back_and_what_lisa_takes_is_said() -> None:
    learned = document({"a": 0.8, "b": 0.2})
    said = list(apply.explained(learned, {"max_repeats": 1, "lisa": {"active_layers": 2}}))
    assert "1.33 *" in said[0]
    assert "         * but 1 times at most (max_repeats); the others share the rest" in said
    assert said[-1].startswith("LISA stays behind")
    assert not any("*" in line or "LISA" in line for line in apply.explained(learned, {}))


def test_weights_alone_are_told_as_weights_alone() -> None:
    table, meaning = apply.explained({"weights": {"a\x1b": 0.25, "b": 0.75}}, {})
    assert table.splitlines() == ["source  weight", "b       0.7500", "a\\x1b   0.2500"]
    assert meaning.startswith("weight ")
