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
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("table", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    *("bag", "bed", "bench", "book", "building", "cabinet", "ceiling", "cloth", "computer", "cup"),
    *("door", "fence", "floor", "flower", "food", "grass", "ground", "keyboard", "light", "mountain"),
    *("mouse", "curtain", "platform", "sign", "plate", "road", "rock", "shelves", "sidewalk", "sky"),
    *("snow", "bedclothes", "track", "tree", "truck", "wall", "water", "window", "wood"),
)
"""The 59 most frequent classes of PASCAL Context in label order."""

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
    ids = lines(base / "ImageSets/Segmentation/val.txt", layout)
    items = pairs(ids, lambda one: base / f"JPEGImages/{one}.jpg", lambda one: base / f"SegmentationClass/{one}.png")
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
    ids = lines(base / "ImageSets/SegmentationContext/val.txt", layout)
    items = pairs(ids, lambda one: base / f"JPEGImages/{one}.jpg", lambda one: base / f"SegmentationClassContext/{one}.png", background)
    aliases = {key: value for key, value in ALIASES.items() if key in CONTEXT}
    return Dataset(name, CONTEXT, items, aliases, background, published_size=5105)
