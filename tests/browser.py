"""A headless browser for the tests of pages; where there is none, they are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@dataclass
class Visit:
    """A page in the browser, and what happened in it.

    Attributes:
        page: Playwright's page.
        requests: addresses that it asked for, without files and data in the page.
        errors: errors and warnings on its console, and exceptions of its scripts.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start headless Chromium."""
    reason = "no browser: install chromium (Debian's package) and playwright (the test extra)"
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip(reason)
    sync_api = pytest.importorskip("playwright.sync_api", reason=reason)
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Return a function that opens an address; its options are `Browser.new_context`'s."""
    contexts = []

    def open_address(address: str, **options: Any) -> Visit:
        contexts.append(browser.new_context(**options))
        visit = Visit(contexts[-1].new_page())
        page = visit.page
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith(("file:", "data:"))
                else visit.requests.append(request.url)
            ),
        )
        page.on(
            "console",
            lambda line: (
                visit.errors.append(line.text) if line.type in ("error", "warning") else None
            ),
        )
        page.on("pageerror", lambda error: visit.errors.append(str(error)))
        page.goto(address)
        return visit

    yield open_address
    for context in contexts:
        context.close()
