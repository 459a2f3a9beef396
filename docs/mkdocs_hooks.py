"""Hooks of mkdocs.yml. Pages link to files of the repository as a code host shows them, by paths from where they stand.

Of those that lie outside of docs/, and of code, the site has a page, too: Markdown as it is, other text as a listing. A
link to what is not there is left as it is, so that `mkdocs build --strict` fails on it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?!\w+:|#|/)([^)#\s]+)")  # its path, where it is a relative one
OF_THE_ROOT = ["CHANGELOG.md", "CONTRIBUTING.md"]  # in the navigation, whoever links to them
AS_THEY_ARE = {".png", ".svg", ".css"}
LANGUAGES = {".py": "python", ".yml": "yaml", ".json": "json", ".sh": "bash", ".toml": "toml"}


def site_path(path: str) -> str:
    """Where the site has a file of the repository, both as paths from their roots."""
    if path == "README.md":  # which index.md stands for
        return "index.md"
    path = path.removeprefix("docs/")
    folder, name = posixpath.split(path)
    if name == "README.md":
        return posixpath.join(folder, "index.md")
    return path if Path(name).suffix in {".md", *AS_THEY_ARE} else f"{path}.md"


def links_of(path: str) -> Iterator[str]:
    """The files of the repository that a Markdown file links to."""
    for link in LINK.findall((ROOT / path).read_text("utf-8")):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
        if (ROOT / target).is_file():
            yield target


def linked() -> list[str]:
    """Files that the pages of docs/ lead to, from page to page, and that mkdocs does not find there by itself."""
    waiting = [path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")] + OF_THE_ROOT
    found = set(waiting)
    while waiting:
        for target in set(links_of(waiting.pop())) - found:
            found.add(target)
            waiting += [target] if target.endswith(".md") else []
    code = tuple(LANGUAGES)
    return sorted(path for path in found - {"README.md"} if not path.startswith("docs/") or path.endswith(code))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in linked():
        if path.endswith(".md"):
            files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
        else:
            files.append(File.generated(config, site_path(path), content=_listing(path)))
    return files


def _listing(path: str) -> str:
    language = LANGUAGES.get(Path(path).suffix, "text")
    return f"# {path}\n\n`````{language}\n{(ROOT / path).read_text('utf-8')}`````\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = page.file.src_uri
    of_the_repository = {site_path(path): path for path in linked()}
    path = of_the_repository.get(here, f"docs/{here}")
    if not path.endswith(".md"):
        return markdown

    def rewritten(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[1]))
        if not (ROOT / target).is_file():
            return match[1]
        return posixpath.relpath(site_path(target), posixpath.dirname(here) or ".")

    return LINK.sub(rewritten, markdown)
