"""Overlays: colours that are the classes' alone, and lines and letters that grow."""

from __future__ import annotations

import numpy as np
import pytest

from rimjax import Segmentation, draw

NAMES = ("background", "sneaker", "bag")


def make_segmentation(side: int) -> tuple[np.ndarray, Segmentation]:
    """Return a vivid image, and a sneaker and two bags that touch on it."""
    rng, unit = np.random.default_rng(0), side // 8
    image = rng.integers(0, 256, (8, 8, 3)).repeat(unit, 0).repeat(unit, 1).astype(np.uint8)
    owners = np.full((8, 8), -1, np.int32)
    owners[1:3, 1:6], owners[4:7, 1:4], owners[4:7, 4:7] = 0, 1, 2
    owners = owners.repeat(unit, 0).repeat(unit, 1)
    labels = np.array([1, 2, 2, 0], np.uint8)[owners]
    masks = np.stack([owners == region for region in range(3)])
    scores = np.full((3, 3), 0.5, np.float32)
    region_labels = np.array([1, 2, 2], np.int32)
    return image, Segmentation(labels, masks, region_labels, scores, NAMES, {}, owners)


@pytest.mark.parametrize("side", [128, 640])
def test_every_colour_is_a_class(side: int) -> None:
    image, seg = make_segmentation(side)
    picture = np.asarray(draw.overlay(image, seg)).astype(int)
    factor = picture.shape[1] // side
    labels = seg.labels.repeat(factor, 0).repeat(factor, 1)
    shown = picture[: len(labels)]
    assert (np.ptp(shown[labels == 0], axis=1) == 0).all(), "the background is grey"
    colours = draw.pick_colours(3).astype(int)
    for index in (1, 2):
        mine = shown[labels == index]
        grey = (mine - draw.OPACITY * colours[index]) / (1 - draw.OPACITY)
        tinted = (np.ptp(grey, axis=1) <= 5) | (mine == colours[index]).all(1)
        assert tinted.all(), "a class's colour over grey, or alone in its outline"
    solid = (shown == colours[2]).all(-1)
    middle, border = side // 2 * factor, slice(side // 2 * factor, side * 7 // 8 * factor)
    assert solid[border, middle].all(), "two bags that touch have a line between them"


def test_lines_and_letters_grow_with_the_picture() -> None:
    heights, lines = {}, {}
    for side in (384, 4000):
        image, seg = make_segmentation(side)
        picture = draw.overlay(image, seg)
        heights[side] = picture.height - side
        colour = draw.pick_colours(3)[1]
        row = np.asarray(picture)[side // 4, :side]
        lines[side] = int((row == colour).all(-1).sum())
    assert heights[384] < 40 and heights[4000] == pytest.approx(heights[384] * 4000 / 384, rel=0.2)
    assert lines[4000] == pytest.approx(lines[384] * 4000 / 384, rel=0.3)


def test_opacity_is_checked() -> None:
    image, seg = make_segmentation(64)
    for opacity in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="opacity must be from 0 to 1"):
            draw.overlay(image, seg, opacity)
    clear = np.asarray(draw.overlay(image, seg, 0)).astype(int)
    solid = np.asarray(draw.overlay(image, seg, 1)).astype(int)
    inside = np.s_[2 * 48 : 2 * 48 + 20, 2 * 48 : 4 * 48]
    assert (np.ptp(clear[inside], axis=-1) == 0).all()
    assert (solid[inside] == draw.pick_colours(3)[1]).all()


def test_a_narrow_picture_is_not_enlarged_without_end() -> None:
    labels = np.zeros((24, 3000), np.uint8)
    empty = np.zeros((0, 24, 3000), bool), np.zeros(0, np.int32), np.zeros((0, 3), np.float32)
    seg = Segmentation(labels, *empty, NAMES)
    assert draw.overlay(np.zeros((24, 3000, 3), np.uint8), seg).width == 3000
