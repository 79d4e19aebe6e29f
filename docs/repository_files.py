"""MkDocs hook: put the repository's files that pages link to into the site, at their own paths.

Pages link to each other, and to files outside `docs/`, by the paths that work on GitHub. In the
site, `docs/` is the root and the rest of the repository lies beside its pages.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)(?=[)#\s])")
IN_SITE = {"README.md": "docs/index.md"}
"""Pages of the repository that have a counterpart in the site."""


def find_target(link: str, page: str) -> str:
    """Return the path in the repository of what a page of that path links to."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return IN_SITE.get(target, target)


def place_in_repository(src_uri: str) -> str:
    """Return the path in the repository of a page of the site."""
    return f"docs/{src_uri}" if (ROOT / "docs" / src_uri).exists() else src_uri


@event_priority(100)  # before the plugin that makes pages of notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what pages link to outside `docs/`, and what these link to in turn."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    waiting += [page for page in list_pages(config.nav) if files.get_file_from_path(page) is None]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        path = place_in_repository(page)
        if not path.startswith("docs/") and (ROOT / path).is_file():
            files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))
        if PurePosixPath(path).suffix != ".md" or not (ROOT / path).is_file():
            continue
        for link in LINK.findall((ROOT / path).read_text()):
            target = find_target(link, path)
            if not target.startswith(("docs/", "../")) and target not in seen:
                seen.add(target)
                waiting.append(target)
    return files


def list_pages(nav: object) -> list[str]:
    """Return the paths in a navigation, at any depth."""
    if isinstance(nav, str):
        return [nav]
    parts = nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ()
    return [path for part in parts for path in list_pages(part)]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between files of the site."""
    src_uri = page.file.src_uri
    path = place_in_repository(src_uri)

    def turn(match: re.Match[str]) -> str:
        target = find_target(match[1], path).removeprefix("docs/")
        return posixpath.relpath(target, posixpath.dirname(src_uri) or ".")

    return LINK.sub(turn, markdown)
