"""`rimjax app` in a browser, for real on mini: an example, clicks, bad uploads, photographs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Visit
from fakes import fake_models
from PIL import Image
from scenes import NAMES

from rimjax.app.session import Session
from rimjax.datasets import load

pytest.importorskip("gradio", reason='no Gradio: pip install -e ".[app]"')

ROOT = Path(__file__).parents[2]
WAIT = 120_000
"""Milliseconds; the first drawing compiles."""
SHOWN = 384
"""Width of the overlay of a scene, as it is drawn."""
FINISHED = re.compile(r"\d+ regions? in|Everything is background, in")
MARKUP = "<img src=x onerror=alert(1)> a*b_c*"
"""A class that must be shown as it is written."""


NOTED = """
import sys

log = open(sys.argv.pop(1), "w", buffering=1)

def note(event, args):
    if event == "socket.connect" and isinstance(args[1], tuple):
        print(args[1][0], file=log)
    elif event == "socket.getaddrinfo":
        print(args[0], file=log)

sys.addaudithook(note)
from rimjax.__main__ import main
main()
"""
"""Runs the command line, and notes each host that it connects to or looks up."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The running app's folder: its cache, and its temporary and working folders."""
    return tmp_path_factory.mktemp("app")


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """The address of a running app; it must leave no file behind, and speak to no other host."""
    for name in ("tmp", "here"):
        (folder / name).mkdir()
    words = ["app", "--images", "2", "--cache-dir", str(folder / "cache")]
    process = subprocess.Popen(
        [sys.executable, "-c", NOTED, str(folder / "hosts"), *words],
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder / "here",
        env={**os.environ, "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    found = next(filter(None, (re.match(r"open (http\S+)", line) for line in process.stdout)))
    yield found[1]
    uploads = [path for path in (folder / "tmp").rglob("*") if path.is_file()]
    assert uploads, "the test looks where files are kept"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert not [*(folder / "tmp").iterdir(), *(folder / "here").iterdir()]
    assert set((folder / "hosts").read_text().split()) <= {"127.0.0.1", "localhost", "::1"}


@pytest.fixture(params=[1280, 390], ids=["desktop", "phone"])
def width(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def page(address: str, width: int, visit: Callable[..., Visit]) -> Iterator[Any]:
    """The app's page, open, without any request to another address."""
    visited = visit(address, viewport={"width": width, "height": 1000})
    visited.page.set_default_timeout(WAIT)
    visited.page.wait_for_selector("#segment")
    dialogs: list[str] = []
    visited.page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    yield visited.page
    assert not dialogs, "a name was run as a script"
    assert all(request.startswith((address, "blob:")) for request in visited.requests)


def name_classes(page: Any, names: str) -> None:
    page.fill("#classes textarea, #classes input", names)


def wait_for_picture(page: Any, part: str) -> Any:
    """Wait until a part of the page has its picture, and return it."""
    page.wait_for_selector(f"{part} img")
    page.wait_for_function(f"document.querySelector('{part} img').naturalWidth > 0")
    return page.locator(f"{part} img")


def choose_example(page: Any, number: int) -> None:
    page.locator("#examples button").nth(number).click()
    page.wait_for_selector(f"#image img[src*='scene-{number}']")


def click_in(page: Any, part: str, x: float, y: float, side: float) -> None:
    """Click on a place (x, y) of a picture that is `side` wide, whatever width it is shown at."""
    picture = wait_for_picture(page, part)
    scale = picture.bounding_box()["width"] / side
    picture.click(position={"x": x * scale, "y": y * scale})


def test_a_clicked_region_is_explained(page: Any, width: int) -> None:
    name_classes(page, "t-shirt, trouser, bag")
    page.locator("#examples button").first.click()
    page.wait_for_selector("#image img")
    page.click("#segment")
    page.get_by_text(FINISHED).wait_for()
    click_in(page, "#overlay", 4, 4, SHOWN)
    wait_for_picture(page, "#explanation")
    heading = page.locator("#why h3").inner_text()
    assert re.fullmatch(r"background, region \d+", heading)
    assert "Its agents, the nearest first, with their cosines: background (" in page.inner_text(
        "#why"
    )
    rows = page.inner_text("#scores")
    assert all(name in rows for name in ("background", "t-shirt", "trouser", "bag"))
    before = page.get_attribute("#overlay img", "src")
    page.locator("#opacity input[type=number]").fill("1")
    page.wait_for_function(
        "before => document.querySelector('#overlay img').src != before", arg=before
    )
    click_in(page, "#overlay", 20, SHOWN + 12, SHOWN)
    page.get_by_text("above the legend").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("width", [1280], indirect=True)
def test_a_bad_upload_is_refused_in_the_page(page: Any, tmp_path: Path) -> None:
    page.click("#segment")
    page.locator("#message").get_by_text("Choose an image first").wait_for()
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    page.set_input_files("#image input[type=file]", broken)
    page.wait_for_selector("#image img")
    page.click("#segment")
    page.locator("#message").get_by_text("broken.png").wait_for()
    page.reload()
    name_classes(page, "street")
    page.locator("#examples button").first.click()
    page.wait_for_selector("#image img")
    page.click("#segment")
    page.locator("#message").get_by_text("street").wait_for()
    page.reload()
    huge = tmp_path / "huge.png"
    huge.write_bytes(bytes(21 << 20))
    page.set_input_files("#image input[type=file]", huge)
    page.get_by_text("20.0 MB").first.wait_for()
    assert not page.locator("#image img").count()


@pytest.mark.parametrize("width", [1280], indirect=True)
def test_long_work_shows_its_progress_and_is_cancelled(page: Any) -> None:
    name_classes(page, "pullover, dress, coat, sandal")
    page.locator("#examples button").first.click()
    page.wait_for_selector("#image img")
    page.click("#segment")
    page.get_by_text("references of").first.wait_for()
    page.click("#cancel")
    page.locator("#message").get_by_text("Cancelling: it stops before the next").wait_for()
    page.locator("#message").get_by_text("Cancelled").wait_for()
    assert not page.locator("#overlay img").count()


@pytest.mark.parametrize("width", [1280], indirect=True)
def test_a_photograph_with_a_clicked_point_is_a_reference(page: Any, tmp_path: Path) -> None:
    item = load("fashion-scenes").items[3]
    image, truth = item.read()
    path = tmp_path / "mine.png"
    Image.fromarray(image).save(path)
    page.get_by_text("References from photographs of your own").click()
    page.set_input_files("#photograph input[type=file]", path)
    wait_for_picture(page, "#marked")
    thing = np.argwhere(truth == truth[truth > 0][0])
    y, x = thing[len(thing) // 2].tolist()
    before = page.get_attribute("#marked img", "src")
    page.click("#add")
    page.get_by_text("Name the class").wait_for()
    click_in(page, "#marked", x, y, image.shape[1])
    page.wait_for_function(
        "before => document.querySelector('#marked img').src != before", arg=before
    )
    page.fill("#own-class textarea, #own-class input", MARKUP)
    page.click("#add")
    page.get_by_text("1 photograph.").wait_for()
    shown = wait_for_picture(page, "#gallery").bounding_box()
    assert shown["height"] <= 180, "it is seen whole"
    page.click("#add")
    page.locator("#own-message").get_by_text(f"already as '{MARKUP}'").wait_for()
    name_classes(page, "")
    page.set_input_files("#image input[type=file]", path)
    page.wait_for_selector("#image img")
    page.click("#segment")
    page.get_by_text(FINISHED).wait_for()
    page.wait_for_selector("#regions table")
    rows = page.inner_text("#regions")
    assert MARKUP in rows and "Confidence: share of" in rows
    numbers = re.findall(r"region \d+", rows)
    click_in(page, "#overlay", x, y, image.shape[1])
    heading = page.locator("#why h3").inner_text()
    assert heading.startswith(f"{MARKUP}, region ") and heading.split(", ")[-1] in numbers


@pytest.mark.parametrize("width", [1280], indirect=True)
def test_uploads_are_read_alike_before_and_after_an_example(page: Any, tmp_path: Path) -> None:
    image = load("fashion-scenes").items[0].image()
    alpha = np.full((*image.shape[:2], 1), 255, np.uint8)
    alpha[:, : image.shape[1] // 2] = 0
    clear, broken = tmp_path / "clear.png", tmp_path / "broken.png"
    Image.fromarray(np.concatenate([image, alpha], axis=2)).save(clear)
    broken.write_bytes(b"no picture")
    name_classes(page, "t-shirt, trouser, bag")

    def segment(path: Path) -> str:
        page.set_input_files("#image input[type=file]", path)
        page.wait_for_selector(f"#image img[src*='{path.name}']")
        page.click("#segment")
        page.locator("#message").get_by_text(re.compile(rf"{FINISHED.pattern}|broken")).wait_for()
        return page.inner_text("#regions")

    def remove() -> None:
        page.locator("#image button[aria-label='Remove Image']").click()
        page.wait_for_selector("#image input[type=file]", state="attached")

    before = segment(clear)
    assert before
    choose_example(page, 0)
    remove()
    segment(broken)
    page.locator("#message").get_by_text("broken.png: not an image").wait_for()
    remove()
    assert segment(clear) == before


@pytest.mark.parametrize("width", [1280], indirect=True)
def test_files_that_were_not_uploaded_are_refused(page: Any, address: str, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9), "red").save(path := tmp_path / "secret.png")
    upload = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
    call = f"{address}gradio_api/call/show_photograph"
    answer = page.request.post(call, data={"data": [upload]}).json()
    events = page.request.get(f"{call}/{answer['event_id']}").text()
    assert "event: error" in events and "event: complete" not in events


@pytest.mark.parametrize("width", [1280], indirect=True)
def test_results_go_with_the_image_that_they_are_of(page: Any) -> None:
    name_classes(page, "t-shirt, trouser, bag")
    choose_example(page, 0)
    page.click("#segment")
    page.get_by_text(FINISHED).wait_for()
    click_in(page, "#overlay", 4, 4, SHOWN)
    page.wait_for_selector("#why h3")
    choose_example(page, 1)
    page.get_by_text("The segmentation appears here").wait_for()
    assert not page.locator("#overlay img").count() and not page.inner_text("#why")
    page.locator("#opacity input[type=number]").fill("1")
    page.wait_for_timeout(1000)
    assert not page.locator("#overlay img").count() and not page.inner_text("#regions")


@pytest.mark.parametrize("width", [1280], indirect=True)
def test_class_names_in_errors_are_text(page: Any) -> None:
    name_classes(page, MARKUP)
    choose_example(page, 0)
    page.click("#segment")
    page.locator("#message").get_by_text(MARKUP).wait_for()
    assert not page.locator("#message img").count()


def test_a_picture_of_background_alone_is_called_that(tmp_path: Path) -> None:
    from rimjax.app import answers  # which imports Gradio

    image = np.full((40, 60, 3), 128, np.uint8)
    image[5:30, 5:30] = 140
    Image.fromarray(image).save(path := tmp_path / "empty.png")
    models = fake_models()
    strict = replace(models.segmentation, min_score=0.9, unknown="background")
    session = Session(replace(models, segmentation=strict), tmp_path)
    upload = {"path": str(path)}
    text, overlay, regions, *_ = answers.segment(session, upload, ", ".join(NAMES), 0.5)
    assert text.startswith("Everything is background, in ") and not regions
    assert overlay is not None


def test_a_taken_port_is_named(address: str) -> None:
    from rimjax.app.page import build_page, launch  # which import Gradio

    port = int(address.rstrip("/").rpartition(":")[2])
    page = build_page(lambda: Session(fake_models()), "", [])
    with pytest.raises(OSError, match=rf"^port must be free, got {port}, which is taken"):
        launch(page, "127.0.0.1", port)


@pytest.mark.parametrize("width", [1280], indirect=True)
def test_leaving_stops_the_work_and_queued_work_is_cancelled(
    page: Any, address: str, folder: Path, visit: Callable[..., Visit]
) -> None:
    other = visit(address).page
    for each, names in ((page, "shirt, sneaker, bag, dress, coat, ankle boot"), (other, "t-shirt")):
        each.set_default_timeout(WAIT)
        name_classes(each, names)
        choose_example(each, 0)
    page.click("#segment")
    page.get_by_text("references of").first.wait_for()
    other.click("#segment")
    other.locator("#message").get_by_text("Segmenting").wait_for()
    other.click("#cancel")
    other.locator("#message").get_by_text("Cancelling").wait_for()
    page.reload()
    other.locator("#message").get_by_text("Cancelled").wait_for()
    other.click("#segment")
    other.get_by_text(FINISHED).wait_for()
    assert not list((folder / "cache" / "references").glob("ankle-boot-*")), "it went on"
