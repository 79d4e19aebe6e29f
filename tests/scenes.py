"""A scene of coloured patches that the fakes segment exactly."""

import struct

import numpy as np
from fakes import pick_colour

NAMES = ("apple", "plum", "leaf")


def make_scene() -> tuple[np.ndarray, np.ndarray]:
    """Return an image with a patch of each class, and its labels."""
    image, truth = np.full((40, 60, 3), 128, np.uint8), np.zeros((40, 60), np.uint8)
    for index, name in enumerate(NAMES):
        patch = np.s_[5:30, 3 + 19 * index : 18 + 19 * index]
        image[patch], truth[patch] = pick_colour(name), index + 1
    return image, truth


def as_exif(orientation: int, broken: bool = False) -> bytes:
    """Return an EXIF block; a broken one has an unsigned resolution of -1/0.

    Pillow can read that resolution, but not write it again.
    """
    entries = struct.pack(">HHIHH", 0x0112, 3, 1, orientation, 0)
    entries += struct.pack(">HHII", 0x011A, 10 if broken else 5, 1, 38)
    rational = struct.pack(">ii", *((-1, 0) if broken else (72, 1)))
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4) + rational
