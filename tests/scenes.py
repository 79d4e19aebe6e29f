"""A scene of coloured patches that the fakes segment exactly."""

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
