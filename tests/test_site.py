"""The site builds without a warning, its links lead somewhere, and it fetches nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]


class References(HTMLParser):
    """A page's anchors, its links, and what a browser loads with it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.append(values["href"])
        elif "src" in values:
            self.loaded.append(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, env=os.environ, timeout=120
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_every_link_leads_to_a_page_and_an_anchor(site: Path) -> None:
    pages = {page: References(page) for page in site.rglob("*.html") if page.name != "404.html"}
    assert len(pages) > 20
    for page, references in pages.items():
        for link in [*references.links, *references.loaded]:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = page.parent / unquote(parts.path) if parts.path else page
            target = (target / "index.html" if target.is_dir() else target).resolve()
            assert target.is_file(), f"{page.relative_to(site)} links to {link}"
            if parts.fragment and target in pages and not parts.fragment.startswith("__"):
                anchors = pages[target].anchors
                assert unquote(parts.fragment) in anchors, f"{page.relative_to(site)}: {link}"


def test_pages_load_nothing_from_the_net(site: Path) -> None:
    for page in site.rglob("*.html"):
        outside = [path for path in References(page).loaded if urlsplit(path).netloc]
        assert not outside, f"{page.relative_to(site)} loads {outside}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", sheet.read_text()), sheet


def test_the_api_reference_has_every_public_name(site: Path) -> None:
    import rimjax

    anchors = References(site / "api/rimjax/index.html").anchors
    evaluation = References(site / "api/evaluation/index.html").anchors
    named = {anchor.rpartition(".")[2] for anchor in anchors | evaluation}
    assert set(dir(rimjax)) - {"match"} <= named | {"draw"}
    assert "rimjax.match.match" in References(site / "api/match/index.html").anchors
