"""PASCAL VOC 2012 and PASCAL Context, in mmsegmentation's layout."""

from __future__ import annotations

from pathlib import Path

from rimjax.datasets.dataset import Dataset, Item, first_existing, pair_files, read_lines

VOC = tuple(
    (
        "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, "
        "horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
    ).split(", ")
)
"""The 20 classes of PASCAL VOC in label order."""

CONTEXT = tuple(
    (
        "aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, "
        "bus, cabinet, car, cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, "
        "door, fence, floor, flower, food, grass, ground, horse, keyboard, light, motorbike, "
        "mountain, mouse, person, plate, platform, pottedplant, road, rock, sheep, shelves, "
        "sidewalk, sign, sky, snow, sofa, table, track, train, tree, truck, tvmonitor, wall, "
        "water, window, wood"
    ).split(", ")
)
"""The 59 most frequent classes of PASCAL Context in label order: alphabetical, as mmsegmentation's
converter numbers them. The list on the data set's own page, and mmsegmentation's old list, begin
with VOC's classes: that isn't the order of the PNGs."""

ALIASES = {
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "tvmonitor": "tv monitor",
}
"""Words for names that run two words together, which no tokenizer knows. Synonyms (boat -> ship)
would be a word list tuned on the benchmark."""


def open_voc(root: Path) -> Dataset:
    """Open PASCAL VOC 2012, `val`: 20 classes and the background."""
    items = _pair_items(root, "VOC2012", "SegmentationClass", "ImageSets/Segmentation/val.txt")
    return Dataset("voc", VOC, items, ALIASES, published_size=1449)


def open_context(root: Path) -> Dataset:
    """Open PASCAL Context, `val`: 59 classes and the background."""
    return _open_context("context", root, background=True)


def open_context59(root: Path) -> Dataset:
    """Open PASCAL Context, `val`, without the background: its pixels are ignored."""
    return _open_context("context59", root, background=False)


def _open_context(name: str, root: Path, background: bool) -> Dataset:
    split = "ImageSets/SegmentationContext/val.txt"
    items = _pair_items(root, "VOC2010", "SegmentationClassContext", split, background)
    aliases = {key: words for key, words in ALIASES.items() if key in CONTEXT}
    return Dataset(name, CONTEXT, items, aliases, background, published_size=5105)


def _pair_items(
    root: Path, year: str, labels: str, split: str, background: bool = True
) -> tuple[Item, ...]:
    layout = f"a folder with VOCdevkit/{year} and its JPEGImages, {labels} and {split}"
    base = first_existing(root, f"VOCdevkit/{year}", year, ".")
    return pair_files(
        base / split,
        filter(None, read_lines(base / split, layout)),
        lambda name: base / f"JPEGImages/{name}.jpg",
        lambda name: base / f"{labels}/{name}.png",
        background,
    )
