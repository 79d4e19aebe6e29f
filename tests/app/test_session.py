"""What a visitor of the page does, without any page, on models whose right answers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fakes import fake_models, list_drawn, pick_colour
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


def test_work_is_cancelled_before_the_next_class(tmp_path: Path) -> None:
    session = Session(fake_models(), tmp_path)

    def cancel_at_second(share: float, text: str) -> None:
        if text == f"references of {NAMES[1]}":
            session.cancel()

    with pytest.raises(CancelledError):
        session.segment(make_scene()[0], ", ".join(NAMES), cancel_at_second)
    assert list_drawn(session.models) == list(NAMES[:2])
    session.segment(make_scene()[0], ", ".join(NAMES))
    assert list_drawn(session.models) == list(NAMES), "what was drawn is kept"


def test_large_images_are_made_smaller() -> None:
    assert limit_size(np.zeros((30, 2 * LARGEST, 3), np.uint8)).shape == (15, LARGEST, 3)
    assert limit_size(np.zeros((30, 40, 3), np.uint8)).shape == (30, 40, 3)
