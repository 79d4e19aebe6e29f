"""PASCAL VOC 2012 and PASCAL Context, in the layout of mmsegmentation's users."""

from __future__ import annotations

from pathlib import Path

from rimjax.datasets.dataset import Dataset, below, lines, pairs

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
"""The 20 classes of PASCAL VOC in label order."""

CONTEXT = (
    *("aeroplane", "bag", "bed", "bedclothes", "bench", "bicycle", "bird", "boat", "book", "bottle"),
    *("building", "bus", "cabinet", "car", "cat", "ceiling", "chair", "cloth", "computer", "cow"),
    *("cup", "curtain", "dog", "door", "fence", "floor", "flower", "food", "grass", "ground"),
    *("horse", "keyboard", "light", "motorbike", "mountain", "mouse", "person", "plate", "platform", "pottedplant"),
    *("road", "rock", "sheep", "shelves", "sidewalk", "sign", "sky", "snow", "sofa", "table"),
    *("track", "train", "tree", "truck", "tvmonitor", "wall", "water", "window", "wood"),
)
"""The 59 most frequent classes of PASCAL Context in label order: by the alphabet, as mmsegmentation's converter numbers them. The list
on the data set's own page, and mmsegmentation's of old, has VOC's classes first: not the order of the PNGs."""

ALIASES = {
    "diningtable": "dining table",  # two words run together: no tokenizer knows the name as a word
    "pottedplant": "potted plant",  # likewise
    "tvmonitor": "tv monitor",  # likewise
}
"""Only names that are no words get others. Synonyms (boat -> ship) would be a word list tuned on the benchmark."""


def voc(root: Path) -> Dataset:
    """PASCAL VOC 2012, `val`: 20 classes and the background."""
    layout = "--data to hold VOCdevkit/VOC2012 with JPEGImages, SegmentationClass and ImageSets/Segmentation/val.txt"
    base = below(root, "VOCdevkit/VOC2012", "VOC2012", ".")
    split = base / "ImageSets/Segmentation/val.txt"
    items = pairs(
        split, lines(split, layout), lambda one: base / f"JPEGImages/{one}.jpg", lambda one: base / f"SegmentationClass/{one}.png"
    )
    return Dataset("voc", VOC, items, ALIASES, published_size=1449)


def context(root: Path) -> Dataset:
    """PASCAL Context, `val`: 59 classes and the background."""
    return _context("context", root, background=True)


def context59(root: Path) -> Dataset:
    """PASCAL Context, `val`, without the background: its pixels are ignored, and no region may be named so."""
    return _context("context59", root, background=False)


def _context(name: str, root: Path, background: bool) -> Dataset:
    layout = "--data to hold VOCdevkit/VOC2010 with JPEGImages, SegmentationClassContext and ImageSets/SegmentationContext/val.txt"
    base = below(root, "VOCdevkit/VOC2010", "VOC2010", ".")
    split = base / "ImageSets/SegmentationContext/val.txt"
    files = (lambda one: base / f"JPEGImages/{one}.jpg", lambda one: base / f"SegmentationClassContext/{one}.png")
    items = pairs(split, lines(split, layout), *files, background)
    aliases = {key: value for key, value in ALIASES.items() if key in CONTEXT}
    return Dataset(name, CONTEXT, items, aliases, background, published_size=5105)
