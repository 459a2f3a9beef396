"""The whole way, each command as its user types it, and the page that shows it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from scalebio_plugin.report.mixture_file import read_mixture
from tests.runs import walkthrough
from tests.runs.walkthrough import CONFIG, PAGE, STEPS

TEXT = PAGE.read_text("utf-8")


def test_the_page_has_the_config_and_the_commands_that_are_run() -> None:
    assert TEXT.split("```yaml\n")[1].split("```")[0] == CONFIG
    assert walkthrough.commands_of(TEXT) == [step.command for step in STEPS]
    assert all(step.said in TEXT for step in STEPS)


def test_the_page_shows_that_it_went_well() -> None:
    assert "Traceback" not in TEXT
    assert "/tmp" not in TEXT
    assert "config.yml: nothing is wrong with it" in TEXT
    assert TEXT.count("\nverdict: ") == 2  # at the end of the run, and shown again


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path, forked_python: Path) -> None:
    """With half of the page's model in width. The first training is started by processes as its user's are, which take
    longer than it; what else there is by forks.
    """
    walkthrough.prepare(tmp_path, hidden=32, heads=2)
    real = {"axolotl train config.yml": Path(sys.executable)}
    outputs = [walkthrough.run(step, tmp_path, real.get(step.command, forked_python)) for step in STEPS]
    shown = ["\n".join(walkthrough.excerpt(step, output)) for step, output in zip(STEPS, outputs, strict=True)]
    begun, checked, estimated, trained, table, report, compared, beside, applied, ordinary = shown

    assert "\n+  - scalebio" in begun
    assert checked == "config.yml: nothing is wrong with it"
    assert "8 GiB      fits" in estimated
    assert trained.partition("\n")[2].startswith(table)
    assert table.splitlines()[1].split()[0] == "clean"
    weights = read_mixture(tmp_path / "out/scalebio/mixture.json")["weights"]
    assert weights["clean"] > 0.5 > 2 * max(weights["wrong"], weights["offtopic"])
    assert report == "out/scalebio/report.html"
    assert set(json.loads((tmp_path / "config-compare/compare.json").read_text())["arms"]) == {
        *("run", "learned", "proportional")
    }
    assert "one seed says nothing of another" in compared
    assert beside.splitlines()[0].split() == ["source", "out", "config-compare/run-42"]

    old, new = (yaml.safe_load((tmp_path / name).read_text()) for name in ("config.yml", "config.apply.yml"))
    assert new == {**old, "output_dir": "out-applied", "scalebio": {"apply": "out/scalebio/mixture.json"}}
    assert applied.endswith("the run: axolotl train config.apply.yml")
    assert [line.split(":")[0].strip() for line in ordinary.splitlines()[1:]] == ["clean", "wrong", "offtopic"]
    assert (tmp_path / "out-applied/model.safetensors").is_file()
    assert list(walkthrough.page(outputs))[:4] == TEXT.splitlines()[:4]
