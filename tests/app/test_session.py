"""What a visitor of the page does, without any page, on models whose right answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes import fake_models, list_drawn, pick_colour
from PIL import Image
from scenes import NAMES, make_scene

from rimjax.app.session import LARGEST, CancelledError, Session, limit_size
from rimjax.show import draw


def test_a_click_explains_the_region_below_it(tmp_path: Path) -> None:
    session = Session(fake_models(), tmp_path)
    image, truth = make_scene()
    done: list[tuple[float, str]] = []
    seg = session.segment(image, ", ".join(NAMES), lambda *step: done.append(step))
    np.testing.assert_array_equal(seg.labels, truth)
    assert [text for _, text in done] == [
        *(f"references of {name}" for name in NAMES),
        "segmenting",
    ]
    shown = session.draw_overlay(0.5)
    assert shown is not None
    factor = draw.find_factor(image)
    for label, name in enumerate(NAMES, 1):
        y, x = (np.argwhere(truth == label)[0] * factor).tolist()
        explained, picture = session.explain((x, y))
        assert explained.name == name and explained.neighbours[0].name == name
        assert picture.width > 800
    with pytest.raises(ValueError, match="above the legend"):
        session.explain((0, shown.height - 1))
    assert list_drawn(session.models) == list(NAMES)
    session.segment(image, ", ".join(NAMES))
    assert list_drawn(session.models) == list(NAMES), "the bank is kept"


def test_photographs_are_references_of_their_own(tmp_path: Path) -> None:
    session = Session(fake_models(), tmp_path)
    photograph = np.full((32, 32, 3), 128, np.uint8)
    photograph[8:24, 8:24] = pick_colour("mug")
    session.add_photograph("my mug", photograph, (12.0, 12.0))
    image = np.full((32, 32, 3), 128, np.uint8)
    image[4:20, 10:30] = pick_colour("mug")
    seg = session.segment(image, "leaf")
    assert seg.names == ("background", "leaf", "my mug")
    assert seg.labels[5, 12] == 2 and seg.labels[0, 0] == 0
    (picture, name) = session.draw_photographs()[0]
    assert name == "my mug" and picture.getpixel((12, 12)) == (255, 0, 0)
    session.clear_photographs()
    photograph[8:24, 8:24] = pick_colour("sky")
    session.add_photograph("my mug", photograph, (12.0, 12.0))
    image[image[..., 0] != 128] = pick_colour("sky")
    session.segment(image, "leaf")
    nearest = session.explain((144, 120))[0].neighbours[0]
    assert nearest.name == "my mug"
    colour = np.median(nearest.image[nearest.mask], axis=0)
    np.testing.assert_array_equal(colour, pick_colour("sky"), "the new photograph's colour")
    session.clear_photographs()
    with pytest.raises(ValueError, match="Name a class, or add a photograph"):
        session.segment(image, " , ")


def test_bad_input_is_a_sentence(tmp_path: Path) -> None:
    session = Session(fake_models(), tmp_path)
    image = make_scene()[0]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    calls = [
        (lambda: session.segment(None, "leaf"), "Choose an image first"),
        (lambda: session.segment(broken, "leaf"), "broken.png"),
        (lambda: session.segment(image, "leaf, leaf"), "leaf"),
        (lambda: session.explain((0, 0)), "Segment an image first"),
        (lambda: session.add_photograph("mug", None, (1.0, 1.0)), "Choose a photograph first"),
        (lambda: session.add_photograph(" ", image, (1.0, 1.0)), "Name the class"),
        (lambda: session.add_photograph("mug", image, None), "Click on the object"),
        (lambda: session.add_photograph("mug", image, (99.0, 1.0)), "Click on the object"),
    ]
    for call, words in calls:
        with pytest.raises(ValueError, match=words):
            call()
    assert session.draw_overlay(0.5) is None and not session.photographs
    session.add_photograph("mug", image, (1.0, 1.0))
    with pytest.raises(ValueError, match="already as 'mug'"):
        session.add_photograph("cup", image.copy(), (1.0, 1.0))
    session.add_photograph("mug", image, (2.0, 1.0))
    assert len(session.photographs) == 2


def test_work_is_cancelled_before_the_next_class(tmp_path: Path) -> None:
    session = Session(fake_models(), tmp_path)

    def cancel_at_second(share: float, text: str) -> None:
        if text == f"references of {NAMES[1]}":
            session.cancel()

    with pytest.raises(CancelledError):
        session.segment(make_scene()[0], ", ".join(NAMES), cancel_at_second)
    assert list_drawn(session.models) == list(NAMES[:2])
    session.start()
    session.segment(make_scene()[0], ", ".join(NAMES))
    assert list_drawn(session.models) == list(NAMES), "what was drawn is kept"


def test_work_is_cancelled_before_it_begins(tmp_path: Path) -> None:
    session = Session(fake_models(), tmp_path)
    assert not session.cancel(), "there is nothing to cancel"
    session.start()
    assert session.cancel()
    with pytest.raises(CancelledError):
        session.segment(make_scene()[0], "leaf")
    assert not list_drawn(session.models) and not session.cancel()


def test_new_work_leaves_the_old_cancelled(tmp_path: Path) -> None:
    session = Session(fake_models(), tmp_path)

    def start_again(share: float, text: str) -> None:
        session.cancel()
        session.start()

    session.start()
    with pytest.raises(CancelledError):
        session.segment(make_scene()[0], ", ".join(NAMES), start_again)
    assert list_drawn(session.models) == [NAMES[0]]
    assert session.cancel(), "the new work waits"


@pytest.mark.parametrize("changed", ["added", "cleared"])
def test_photographs_changed_while_work_runs_count_later(tmp_path: Path, changed: str) -> None:
    session = Session(fake_models(), tmp_path)
    photograph = np.full((32, 32, 3), 128, np.uint8)
    photograph[8:24, 8:24] = pick_colour("mug")
    if changed == "cleared":
        session.add_photograph("my mug", photograph, (12.0, 12.0))

    def change(share: float, text: str) -> None:
        if text == "references of leaf" and changed == "added":
            session.add_photograph("my mug", photograph, (12.0, 12.0))
        elif text == "references of leaf":
            session.clear_photographs()

    image = make_scene()[0]
    now, then = ("leaf",), ("leaf", "my mug")
    before, after = (now, then) if changed == "added" else (then, now)
    assert session.segment(image, "leaf", change).names[1:] == before
    assert session.segment(image, "leaf").names[1:] == after


def test_nothing_is_shown_of_an_earlier_image(tmp_path: Path) -> None:
    session = Session(fake_models(), tmp_path)
    for path in (paths := [tmp_path / "one.png", tmp_path / "two.png"]):
        Image.fromarray(make_scene()[0]).save(path)
    one, two = map(str, paths)
    session.start(one)
    session.segment(one, "leaf")
    assert not session.choose(one) and session.draw_overlay(0.5) is not None
    with pytest.raises(ValueError, match="unknowable"):
        session.segment(one, "unknowable")
    assert session.draw_overlay(0.5) is None
    session.segment(one, "leaf")
    assert session.choose(two) and session.draw_overlay(0.5) is None
    with pytest.raises(ValueError, match="Segment an image first"):
        session.explain((0, 0))
    session.start(two)
    with pytest.raises(CancelledError):
        session.segment(two, "leaf", lambda share, text: session.choose(one))


@pytest.mark.parametrize("side", [9_000, 14_000])  # Pillow itself opens the second no more
def test_pictures_of_too_many_pixels_are_refused_undecoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (side, side)).save(path)
    path.write_bytes(path.read_bytes()[:60])  # decoding would fail
    session = Session(fake_models(), tmp_path)
    with pytest.raises(ValueError, match=r"huge\.png: has more than 64 million pixels"):
        session.segment(path, "leaf")
    with pytest.raises(ValueError, match="64 million"):
        session.add_photograph("mug", path, (1.0, 1.0))


def test_large_images_are_made_smaller() -> None:
    assert limit_size(np.zeros((30, 2 * LARGEST, 3), np.uint8)).shape == (15, LARGEST, 3)
    assert limit_size(np.zeros((30, 40, 3), np.uint8)).shape == (30, 40, 3)
