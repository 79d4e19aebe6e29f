"""The colours of classes."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import ImageColor

from rimjax.types import UNKNOWN

_COLOURS = (  # as different as colour names are
    *("#e6194b", "#3cb44b", "#ffe119", "#0082c8", "#f58230", "#911eb4", "#46f0f0", "#fabed4"),
    *("#aa6e28", "#d2f53c", "#f032e6", "#008080", "#800000", "#dcbeff", "#808000"),
)


def pick_colours(count: int) -> UInt8[np.ndarray, "C 3"]:
    """Return distinct colours, dark grey first for the background.

    From the 17th colour on, only neighbours differ clearly.
    """
    colours = [ImageColor.getrgb(name) for name in ("#404040", *_COLOURS)]
    hues = [index * 0.381966 % 1 for index in range(count - len(colours))]
    bright = [
        colorsys.hsv_to_rgb(hue, 0.85 if index % 2 else 0.6, 1.0 if index % 3 else 0.8)
        for index, hue in enumerate(hues)
    ]
    more = np.round(np.reshape(bright, (-1, 3)) * 255)
    return np.concatenate([colours, more])[:count].astype(np.uint8)


def colour_names(names: Sequence[str]) -> UInt8[np.ndarray, "C 3"]:
    """Return `pick_colours` for a segmentation's names; a last name "unknown" is light grey."""
    colours = pick_colours(len(names))
    if names[-1] == UNKNOWN:
        colours[-1] = ImageColor.getrgb("#d0d0d0")
    return colours


def colour_labels(labels: np.ndarray, names: int | Sequence[str]) -> UInt8[np.ndarray, "H W 3"]:
    """Colour a label map; labels beyond the classes (255: ignored) are white.

    Args:
        labels: [H, W].
        names: a segmentation's names, or C, their number.
    """
    colours = pick_colours(names) if isinstance(names, int) else colour_names(names)
    colours = np.concatenate([colours, np.full((1, 3), 255, np.uint8)])
    return colours[np.minimum(labels, len(colours) - 1)]
