"""`rimjax app` in a browser, for real on mini: an example, a click, bad uploads, own photographs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Visit
from PIL import Image

from rimjax.datasets import load

pytest.importorskip("gradio", reason='no Gradio: pip install -e ".[app]"')

WAIT = 120_000
"""Milliseconds; these machines are shared."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running app; at the end it must leave no file behind."""
    folder = tmp_path_factory.mktemp("app")
    (folder / "tmp").mkdir()
    command = [sys.executable, "-m", "rimjax", "app", "--images", "2"]
    process = subprocess.Popen(
        [*command, "--cache-dir", str(folder / "cache")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
    )
    assert process.stdout is not None
    found = next(filter(None, (re.match(r"open (http\S+)", line) for line in process.stdout)))
    yield found[1]
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not list((folder / "tmp").iterdir()), "uploads are removed"


@pytest.fixture
def page(address: str, visit: Callable[..., Visit]) -> Iterator[Any]:
    """The app's page, open, without any request to another address."""
    visited = visit(address, viewport={"width": 1280, "height": 1000})
    visited.page.set_default_timeout(WAIT)
    visited.page.wait_for_selector("#segment")
    yield visited.page
    assert all(request.startswith((address, "blob:")) for request in visited.requests)


def segment_example(page: Any) -> None:
    page.fill("#classes textarea, #classes input", "t-shirt, trouser, bag")
    page.locator("#examples button").first.click()
    page.wait_for_selector("#image img")
    page.click("#segment")
    page.get_by_text(re.compile(r"\d+ regions in")).wait_for()
    page.wait_for_selector("#overlay img")


def test_a_clicked_region_is_explained(page: Any) -> None:
    segment_example(page)
    assert page.locator("#regions td").count() >= 5
    page.wait_for_function("document.querySelector('#overlay img').naturalWidth > 0")
    page.locator("#overlay img").click(position={"x": 5, "y": 5})
    page.wait_for_selector("#explanation img")
    page.get_by_text("its agents, the nearest first").wait_for()
    assert "background" in page.inner_text("#why")
    assert page.locator("#scores td").all_inner_texts()[::2][:1] == ["background"]


def test_a_bad_upload_is_refused_in_the_page(page: Any, tmp_path: Path) -> None:
    page.click("#segment")
    page.locator("#message").get_by_text("Choose an image first").wait_for()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.set_input_files("#image input[type=file]", broken)
    page.wait_for_selector("#image img")
    page.click("#segment")
    page.locator("#message").get_by_text("broken.png").wait_for()
    page.fill("#classes textarea, #classes input", "street")
    page.locator("#examples button").first.click()
    page.wait_for_timeout(500)
    page.click("#segment")
    page.locator("#message").get_by_text("street").wait_for()
    huge = tmp_path / "huge.png"
    huge.write_bytes(bytes(21 << 20))
    page.locator("#image").get_by_label("Clear").or_(page.locator("#image button")).first.click()
    page.set_input_files("#image input[type=file]", huge)
    page.get_by_text(re.compile("size", re.I)).first.wait_for()


def test_a_photograph_with_a_clicked_point_is_a_reference(page: Any, tmp_path: Path) -> None:
    item = load("fashion-scenes").items[3]
    image, truth = item.read()
    path = tmp_path / "mine.png"
    Image.fromarray(image).save(path)
    page.get_by_text("References from photographs of your own").click()
    page.set_input_files("#photograph input[type=file]", path)
    page.wait_for_selector("#marked img")
    page.wait_for_function("document.querySelector('#marked img').naturalWidth > 0")
    y, x = np.argwhere(truth == truth[truth > 0][0]).mean(0)
    shown = page.locator("#marked img").bounding_box()
    assert shown is not None
    at = {"x": x / 128 * shown["width"], "y": y / 128 * shown["height"]}
    before = page.get_attribute("#marked img", "src")
    page.locator("#marked img").click(position=at)
    page.wait_for_function(
        "before => document.querySelector('#marked img').src != before", arg=before
    )
    page.fill("#own-class textarea, #own-class input", "my thing")
    page.click("#add")
    page.get_by_text("1 photographs").wait_for()
    page.fill("#classes textarea, #classes input", "")
    page.set_input_files("#image input[type=file]", path)
    page.wait_for_selector("#image img")
    page.click("#segment")
    page.get_by_text(re.compile(r"\d+ regions in")).wait_for()
    assert "my thing" in page.locator("#regions td").all_inner_texts()
