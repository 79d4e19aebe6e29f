"""Tiny data sets in the layouts that mmsegmentation's users have: patches of the classes' colours, which the fakes know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from fakes import pick_colour
from PIL import Image

VOC_IDS = ("2007_000033", "2007_000042", "2007_000061")
CONTEXT_IDS = ("2008_000002", "2008_000003")
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0] + [
    int(value) for value in np.random.default_rng(0).integers(0, 256, 252 * 3)
]


COCO_CATEGORIES = {
    1: "person",
    11: "fire hydrant",
    13: "stop sign",
    25: "giraffe",
    27: "backpack",
    44: "bottle",
    46: "wine glass",
}
COCO_CATEGORIES |= {
    65: "bed",
    67: "dining table",
    70: "toilet",
    72: "tv",
    73: "laptop",
    82: "refrigerator",
    84: "book",
    90: "toothbrush",
}
"""Some of COCO's category ids, among them the neighbours of every gap."""


def patches(
    size: tuple[int, int], words: Sequence[str], labels: Sequence[int], ground: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """An image of grey with a patch of each word's colour, and its labels; patches lie on JPEG's 8x8 blocks, so that they stay plain."""
    image, truth = np.full((*size, 3), 128, np.uint8), np.full(size, ground, np.uint8)
    for place, (word, label) in enumerate(zip(words, labels, strict=True)):
        where = np.s_[8:32, 8 + 32 * place : 32 + 32 * place]
        image[where], truth[where] = pick_colour(word), label
    return image, truth


def write(image: np.ndarray, truth: np.ndarray, picture: Path, labels: Path, palette: bool) -> None:
    """A JPEG and an indexed or grey PNG."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    labels.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(picture, quality=100, subsampling=0)
    drawn = Image.fromarray(truth)
    if palette:
        drawn.putpalette(PALETTE)
    drawn.save(labels)


def voc(root: Path) -> Path:
    """VOCdevkit/VOC2012: palette PNGs, every patch in a border of 255, as VOC's are. Holds tvmonitor and person, aeroplane, diningtable."""
    base = root / "VOCdevkit/VOC2012"
    drawn = [
        (("tv monitor", "person"), (20, 15)),
        (("aeroplane",), (1,)),
        (("dining table",), (11,)),
    ]
    for one, (words, labels) in zip(VOC_IDS, drawn, strict=True):
        image, truth = patches((40 + 8 * len(words), 80), words, labels)
        inside = truth > 0
        border = (
            np.roll(inside, 1, 0)
            | np.roll(inside, -1, 0)
            | np.roll(inside, 1, 1)
            | np.roll(inside, -1, 1)
        )
        truth[border & ~inside] = 255
        write(
            image,
            truth,
            base / f"JPEGImages/{one}.jpg",
            base / f"SegmentationClass/{one}.png",
            palette=True,
        )
    split = base / "ImageSets/Segmentation/val.txt"
    split.parent.mkdir(parents=True)
    split.write_text("".join(f"{one}\n" for one in VOC_IDS))
    return root


def context(root: Path) -> Path:
    """VOCdevkit/VOC2010 as mmsegmentation's converter leaves it: grey PNGs. The first holds a tvmonitor and a window, 55 and 58 there."""
    base = root / "VOCdevkit/VOC2010"
    for one, (words, labels) in zip(
        CONTEXT_IDS,
        [(("tv monitor", "window"), (55, 58)), (("sky", "wood"), (47, 59))],
        strict=True,
    ):
        image, truth = patches((40, 80), words, labels)
        write(
            image,
            truth,
            base / f"JPEGImages/{one}.jpg",
            base / f"SegmentationClassContext/{one}.png",
            palette=False,
        )
    split = base / "ImageSets/SegmentationContext/val.txt"
    split.parent.mkdir(parents=True)
    split.write_text("".join(f"{one}\n" for one in CONTEXT_IDS))
    return root


STUFF = {
    "000000000139": (("person", "tv"), (0, 71)),  # COCO-Stuff's values: category ids less one
    "000000000285": (("bear", "grass"), (22, 123)),  # grass is stuff
    "000000000632": (("toothbrush",), (89,)),
}
OBJECTS = {"000000000139": (1, 63), "000000000285": (22, 0), "000000000632": (80,)}
"""The same patches' labels in COCO Object."""


def coco_stuff(root: Path) -> Path:
    """coco_stuff164k with the raw pixel maps, and mmsegmentation's own _labelTrainIds beside them; ground is stuff, with 255 above it."""
    base = root / "coco_stuff164k"
    for one, (words, labels) in STUFF.items():
        image, truth = patches((40, 80), words, labels, ground=156)
        truth[:4] = 255
        write(
            image,
            truth,
            base / f"images/val2017/{one}.jpg",
            base / f"annotations/val2017/{one}.png",
            palette=False,
        )
        Image.fromarray(truth).save(base / f"annotations/val2017/{one}_labelTrainIds.png")
    return root


def label_file(name: str, data: Path, one: str) -> Path:
    """Where a data set's labels of an image are."""
    places = {
        "voc": "VOCdevkit/VOC2012/SegmentationClass/{}.png",
        "coco-object": "coco_stuff164k/annotations/val2017/{}_instanceTrainIds.png",
    }
    return data / places.get(name, "VOCdevkit/VOC2010/SegmentationClassContext/{}.png").format(one)


LAYOUTS: Mapping[str, Callable[[Path], Path]] = {
    "voc": voc,
    "context": context,
    "context59": context,
    "coco-object": coco_stuff,
}
