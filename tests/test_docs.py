"""What the pages say is so: links lead somewhere; configs, commands, messages and numbers are those of the code."""

from __future__ import annotations

import argparse
import ast
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from scalebio_plugin import cli
from scalebio_plugin.config.block import settings_of
from scalebio_plugin.config.refusals import problems_of
from scalebio_plugin.hooks import spec
from scalebio_plugin.report.tables import VERDICTS
from tests.report.histories import drifting_history, facts
from tests.test_example_configs import validated

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.name: path.read_text("utf-8") for path in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]}
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(name, *match) for name, text in PAGES.items() for match in FENCED.findall(text)]


def page(name: str) -> str:
    return PAGES[name]


# ---- the site


class _Loaded(HTMLParser):
    """What a browser fetches to show a page, where that is on another host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        url = values.get("src") or (values.get("href") if tag == "link" else None) or ""
        if re.match(r"(\w+:)?//", url):
            self.found.append(url)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_site_has_every_page_and_every_link_leads_somewhere(site: Path) -> None:
    built = {path.relative_to(site).as_posix() for path in site.rglob("*.html")}
    assert {path.with_suffix(".html").name for path in DOCS.glob("*.md")} <= built
    assert {"benchmarks/small_model.html", "scalebio_plugin/hooks/spec.py.html", "CHANGELOG.html"} <= built


def test_a_link_to_a_file_of_the_repository_is_one_to_its_page(site: Path) -> None:
    method = (site / "method.html").read_text("utf-8")
    assert 'href="benchmarks/small_model.html"' in method
    assert 'href="scalebio_plugin/hooks/spec.py.html"' in method
    assert "scalebio_update_mixture" in (site / "scalebio_plugin/hooks/spec.py.html").read_text("utf-8")


def test_nothing_is_fetched_from_another_host(site: Path) -> None:
    loaded = _Loaded()
    for path in site.rglob("*.html"):
        loaded.feed(path.read_text("utf-8"))
    assert loaded.found == []
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(\"?(\w+:)?//", path.read_text("utf-8")), path


# ---- configs


def _added(block: str) -> str:
    """A diff with its lines added."""
    return "\n".join(line[1:] for line in block.splitlines())


CONFIGS = [
    (name, _added(text) if language == "diff" else text)
    for name, language, text in BLOCKS
    if language in ("yaml", "diff") and "scalebio:" in text
]


def test_configs_are_found() -> None:
    assert {"README.md", "start.md", "validation.md", "weights.md", "two-phases.md", "hooks.md"} <= dict(CONFIGS).keys()
    assert WHOLE


@pytest.mark.parametrize(("name", "text"), CONFIGS)
def test_a_config_is_one_that_the_plugin_takes(
    name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what a snippet leaves out: entries, as many as it names, and validation data."""
    monkeypatch.chdir(tmp_path)
    given = yaml.safe_load(text)
    settings = settings_of(given)
    entries = [{"path": f"data/{i}.jsonl", "type": "alpaca"} for i in range(len(settings.names or "ab"))]
    if settings.apply is not None:
        Path(settings.apply).parent.mkdir(parents=True)
        Path(settings.apply).touch()
    elif settings.validation_datasets is None:
        given = {"val_set_size": 0.1, **given}
    assert problems_of({"datasets": entries, **given}) == []


WHOLE = [text for _, text in CONFIGS if "learning_rate:" in text]


@pytest.mark.parametrize("text", WHOLE)
def test_the_host_takes_every_key_of_a_whole_config(text: str) -> None:
    given = yaml.safe_load(text)
    assert set(given) - set(validated(yaml.safe_load(text))) == set()  # the host drops what it does not know


@pytest.mark.parametrize("text", [text for name, text in CONFIGS if name in ("README.md", "index.md", "start.md")])
def test_what_is_added_to_a_config_lists_the_plugin_or_splits_a_dataset(text: str) -> None:
    given = yaml.safe_load(text)
    assert given.get("plugins") == ["scalebio"] or "split_by" in given["scalebio"]


# ---- commands


def commands() -> Iterator[tuple[str, str]]:
    """Lines of fenced blocks, and spans of code with an argument."""
    for name, language, text in BLOCKS:
        if language in ("bash", ""):
            lines = (line.split(" #")[0].strip() for line in text.splitlines())
            yield from ((name, line) for line in lines if line.startswith("scalebio "))
    for name, text in PAGES.items():
        prose = re.sub(r"^>.*$", "", FENCED.sub("", text), flags=re.MULTILINE)  # without quoted messages
        yield from ((name, code) for code in re.findall(r"(?<!`)`(scalebio [^`\n]+)`(?!`)", prose))


COMMANDS = sorted(set(commands()))


def test_commands_are_found() -> None:
    said = {shlex.split(line)[1] for _, line in COMMANDS}
    assert {"check", "estimate", "show", "report", "compare", "report-bug"} <= said


class Taken(Exception):
    """A command line that was, before anything is done."""


@pytest.mark.parametrize(("name", "line"), COMMANDS)
def test_a_command_exists_with_its_options(name: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line)[1:]
    if len(words) == 1 or words[0].startswith("--"):  # a mention, or all that it does
        with pytest.raises(SystemExit, match="0"):
            cli.main(words if words[0].startswith("--") else [*words, "--help"])
        return
    parse = argparse.ArgumentParser.parse_args

    def and_stop(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        raise Taken(parse(self, *args, **kwargs))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", and_stop)
    with pytest.raises(Taken):
        cli.main(words)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `outputs/mine` is a run that learned, and config.yml a config."""
    from scalebio_plugin.report.history import append_history
    from scalebio_plugin.report.mixture_file import mixture_document, write_mixture
    from scalebio_plugin.report.summary import summarise

    here = tmp_path_factory.mktemp("docs")
    folder = here / "outputs/mine/scalebio"
    folder.mkdir(parents=True)
    history, names = drifting_history(3, 20)
    for record in history:
        append_history(folder / "history.jsonl", record)
    known = facts(dict.fromkeys(names, 900), steps=20)
    write_mixture(folder / "mixture.json", mixture_document(summarise(history, names), known, "still moving"))
    (here / "config.yml").write_text(next(text for name, text in CONFIGS if name == "start.md"))
    (here / "train.log").write_text("scalebio: learning the weights of\n")
    return here


LIGHT = sorted({line for _, line in COMMANDS if re.match(r"scalebio (show|report|report-bug) .", line)})


@pytest.mark.parametrize("line", LIGHT)
def test_what_needs_no_host_runs_as_it_stands(line: str, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder)
    assert cli.main([word.replace("<output_dir>", "outputs/mine") for word in shlex.split(line)[1:]]) == 0


def test_scripts_and_targets_are_there() -> None:
    paths = set(re.findall(r"(?:^|`)(?:bash|python) ([\w/.]+)", "\n".join(PAGES.values()), re.MULTILINE))
    assert "example_configs/quickstart.sh" in paths
    assert all((ROOT / path).is_file() for path in paths)


# ---- the reference


def test_the_reference_is_that_of_the_block() -> None:
    """Else: `python docs/reference.py`."""
    assert page("reference.md") == runpy.run_path(str(DOCS / "reference.py"))["page"]()


def test_the_reference_tells_types_in_words_of_yaml() -> None:
    rows = dict(re.findall(r"^\| `([\w.]+)`<br>(.*?) \| ", page("reference.md"), re.MULTILINE))
    assert rows["objective"] == "`mean`, `worst`<br>`mean`"
    assert rows["penalty"] == "number<br>`10`"
    assert rows["lisa.train_embeddings"] == "`true`, `false`<br>`false`"
    assert rows["split_by"] == "text or mapping<br>–"
    assert rows["validation_datasets"] == "list of entries<br>–"


# ---- messages


def _texts(node: ast.AST) -> str | None:
    """A text of the code, an ellipsis where a value comes in; None of what is no text."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(_texts(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _texts(node.left), _texts(node.right)
        return None if left is None and right is None else (left or "…") + (right or "…")
    return None


@cache
def said_by_the_package() -> list[str]:
    trees = (ast.parse(path.read_text("utf-8")) for path in (ROOT / "scalebio_plugin").rglob("*.py"))
    return [text for tree in trees for node in ast.walk(tree) if (text := _texts(node))]


QUOTED = re.compile(r"^> (?:``(.+)``|`(.+)`)$", re.MULTILINE)
MESSAGES = [(first or second) for first, second in QUOTED.findall(page("troubleshooting.md"))]
NOT_OURS = {"CUDA out of memory"}


def test_messages_are_found() -> None:
    assert len(MESSAGES) > 35
    assert len(re.findall(r"^>", page("troubleshooting.md"), re.MULTILINE)) == len(MESSAGES)


@pytest.mark.parametrize("message", sorted(set(MESSAGES) - NOT_OURS))
def test_a_quoted_message_stands_in_the_code(message: str) -> None:
    pattern = re.compile(".*?".join(re.escape(part) for part in message.split("…")), re.DOTALL)
    assert any(pattern.search(text) for text in said_by_the_package())


def test_every_verdict_is_explained() -> None:
    assert all(f"| `{verdict}` |" in page("report.md") for verdict in VERDICTS)


# ---- hooks


def test_every_hook_is_in_the_table() -> None:
    hooks = [name for name, value in vars(spec).items() if hasattr(value, "scalebio_spec")]
    assert len(hooks) >= 5
    assert all(f"| `{name}` |" in page("hooks.md") for name in hooks)


def test_the_page_shows_the_example_as_it_is() -> None:
    module = (DOCS / "example_hook/scalebio_cooling.py").read_text("utf-8")
    (shown,) = [text for name, language, text in BLOCKS if (name, language) == ("hooks.md", "python")]
    imported, rule = shown.split("\n\n\n", 1)
    assert imported in module
    assert rule in module
