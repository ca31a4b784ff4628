"""Hooks of MkDocs: pages and files from outside docs/, and a navigation that finds new pages by itself.

README.md, CHANGELOG.md and CONTRIBUTING.md become pages. A file outside docs/ to which a page links is copied into the
site, so that the site is whole without a repository's address.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
SHOWN = (".csv", ".json", ".png", ".svg", ".html")
"""What a browser shows as it is; any other file is copied as text."""
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s]+)(\))|(src=\")([^\"]+)(\")")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Replace each pattern of the navigation by the pages that it finds, named by their files."""
    named = {path for path in _paths(config.nav) if "*" not in path}
    config.nav = _expanded(config.nav, named)
    return config


def _paths(item: Any) -> Iterator[str]:
    if isinstance(item, str):
        yield item
    for child in item.values() if isinstance(item, dict) else item if isinstance(item, list) else ():
        yield from _paths(child)


def _expanded(item: Any, named: set[str]) -> Any:
    if isinstance(item, dict):
        return {title: _expanded(child, named) for title, child in item.items()}
    if not isinstance(item, list):
        return item
    items: list[Any] = []
    for child in item:
        if isinstance(child, str) and "*" in child:
            found = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob(child))
            items += [{Path(path).stem: path} for path in found if path not in named]
        else:
            items.append(_expanded(child, named))
    return items


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie at the root of the repository."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Mend links: those of root pages, and those that leave docs/. Code blocks are left alone."""
    source = PAGES.get(page.file.src_uri)
    here = ROOT if source else (DOCS / page.file.src_uri).parent
    in_site = (DOCS / page.file.src_uri).parent

    def mended(match: re.Match[str]) -> str:
        before, target, after = (part for part in match.groups() if part is not None)
        path, hash_, anchor = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        found = (here / path).resolve()
        uri = _in_site(found, config, files)
        return match[0] if uri is None else f"{before}{os.path.relpath(DOCS / uri, in_site)}{hash_}{anchor}{after}"

    return "".join(part if code else LINK.sub(mended, part) for code, part in _split_code(markdown))


def _split_code(markdown: str) -> Iterable[tuple[bool, str]]:
    """(whether it is a fenced block, text) in order."""
    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return [(part.startswith("```"), part) for part in parts]


def _in_site(found: Path, config: MkDocsConfig, files: Files) -> str | None:
    """Where the site has a file or folder of the repository; None leaves the link as it is, for MkDocs to judge."""
    if not found.exists() or not found.is_relative_to(ROOT):
        return None
    if found.is_relative_to(DOCS):
        return found.relative_to(DOCS).as_posix()
    name = found.relative_to(ROOT).as_posix()
    for page, source in PAGES.items():
        if name == source:
            return page
    return _listing(found, name, config, files) if found.is_dir() else _copy(found, name, config, files)


def _copy(found: Path, name: str, config: MkDocsConfig, files: Files) -> str:
    uri = f"files/{name}" if found.suffix in SHOWN else f"files/{name}.txt"
    if files.get_file_from_path(uri) is None:
        files.append(File.generated(config, uri, content=found.read_bytes(), inclusion=InclusionLevel.NOT_IN_NAV))
    return uri


def _listing(found: Path, name: str, config: MkDocsConfig, files: Files) -> str:
    """A text that lists a folder."""
    uri = f"files/{name}/files.txt"
    if files.get_file_from_path(uri) is None:
        listed = sorted(path.relative_to(found).as_posix() for path in found.rglob("*") if path.is_file())
        content = "\n".join(f"{name}/{path}" for path in listed if "__pycache__" not in path) + "\n"
        files.append(File.generated(config, uri, content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    return uri
