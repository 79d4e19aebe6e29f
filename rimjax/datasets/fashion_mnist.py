"""Fashion-MNIST: photographs of clothing on black (MIT licence), and how an item is cut out."""

from __future__ import annotations

import gzip
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

CLASSES = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
"""Class names in label order; a scene's label map holds 1 + index, and 0 for the ground."""

DEBIAN_ROOT = Path("/usr/share/datasets/fashion-mnist")


def read_idx(
    split: str, root: str | Path = DEBIAN_ROOT
) -> tuple[UInt8[np.ndarray, "n 28 28"], UInt8[np.ndarray, " n"]]:
    """Read Fashion-MNIST's photographs and class indices from its four idx.gz files.

    Args:
        split: "train" (60,000) or "test" (10,000).
        root: folder of the files; Debian's package `dataset-fashion-mnist` fills the default.

    Returns:
        uint8[n, 28, 28] photographs on black and uint8[n] class indices.

    Raises:
        FileNotFoundError: a file is missing; the message says how to get it.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    arrays = []
    for kind, offset in (("images-idx3", 16), ("labels-idx1", 8)):
        path = Path(root) / f"{prefix}-{kind}-ubyte.gz"
        if not path.exists():
            raise FileNotFoundError(
                f"{path} is missing: install Debian's package dataset-fashion-mnist, or name "
                "a folder with Fashion-MNIST's four idx.gz files"
            )
        arrays.append(np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=offset))
    return arrays[0].reshape(-1, 28, 28), arrays[1]


def cut_out(photo: UInt8[np.ndarray, "28 28"]) -> Bool[np.ndarray, "28 28"]:
    """Cut out an item by its photograph's intensity: threshold, fill holes, drop specks.

    The mask is never empty.
    """
    bright = photo > 12
    if not bright.any():
        bright = photo >= photo.max()
    parts, count = ndimage.label(ndimage.binary_fill_holes(bright), structure=np.ones((3, 3)))  # pyright: ignore[reportGeneralTypeIssues]
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    sizes[0] = 0
    return (sizes >= 0.05 * sizes.sum())[parts] & (parts > 0)


@cache
def load_shipped_items() -> tuple[np.ndarray, np.ndarray]:
    """Load the benchmark's test-split photographs and class indices from the package."""
    with (
        resources.files("rimjax.datasets").joinpath("fashion_items.npz").open("rb") as file,
        np.load(file) as arrays,
    ):
        return arrays["photos"], arrays["classes"]
