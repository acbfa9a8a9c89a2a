"""What mkdocs does not do by itself: pages made from the package, and patterns in the navigation."""

import fnmatch
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

FOLDER = Path(__file__).parent


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The pages stand beside the settings."""
    config.docs_dir = str(FOLDER)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made, and give every page its place in the navigation."""
    sys.path += [str(FOLDER), str(FOLDER.parent / "tests")]
    import generate

    for path, text in generate.pages().items():
        files.append(File.generated(config, path, content=text))
    pages = [file.src_uri for file in files.documentation_pages()]
    named = {entry for entry in _entries(config.nav) if "*" not in entry}
    free = [page for page in pages if page not in named]
    # Patterns with the longest beginning first, so that "*.md" gets what is left.
    patterns = sorted((entry for entry in _entries(config.nav) if "*" in entry), key=lambda entry: -entry.index("*"))
    matches: dict[str, list[str]] = {}
    for pattern in patterns:
        matches[pattern] = [page for page in free if fnmatch.fnmatchcase(page, pattern)]
        free = [page for page in free if page not in matches[pattern]]
    config.nav = _expand(config.nav, matches)
    return files


def _entries(nav: Any) -> Iterator[str]:
    """The pages and patterns of a navigation, which is made of lists, one-entry dicts and strings."""
    for entry in nav if isinstance(nav, list) else nav.values():
        yield from [entry] if isinstance(entry, str) else _entries(entry)


def _expand(nav: Any, matches: dict[str, list[str]]) -> Any:
    if isinstance(nav, dict):
        return {title: _expand(entry, matches) for title, entry in nav.items()}
    if isinstance(nav, list):
        return [
            page
            for entry in nav
            for page in (matches.get(entry, [entry]) if isinstance(entry, str) else [_expand(entry, matches)])
        ]
    return nav
