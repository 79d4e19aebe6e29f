"""Any folder of images and label PNGs as a data set."""

from __future__ import annotations

from pathlib import Path

from rimjax.datasets.dataset import IGNORED, Dataset, lines, pairs
from rimjax.types import BACKGROUND

LAYOUT = "a folder with images/NAME.jpg (or .jpeg, .png), labels/NAME.png and names.txt"
SUFFIXES = (".jpg", ".jpeg", ".png")


def folder(root: Path) -> Dataset:
    """A data set of one's own.

    Args:
        root: holds `images/NAME.jpg` (or .jpeg, .png), `labels/NAME.png` (0 the background, i the class on line i, 255 ignored) and
            `names.txt`: a class a line, `name` or `name: words for the prompt`. A first line "background" stands for label 0.

    Raises:
        FileNotFoundError: a part of the layout is missing.
        ValueError: names repeat or are none, or there is no image.
    """
    named = lines(root / "names.txt", LAYOUT)
    if named and named[0].lower() == BACKGROUND:
        named = named[1:]
    split = [[part.strip() for part in line.partition(":")[::2]] for line in named]
    classes = tuple(name for name, _ in split)
    if not all(classes) or not classes or len(set(classes)) < len(classes) or len(classes) >= IGNORED:
        raise ValueError(f"{root / 'names.txt'}: expected 1 to {IGNORED - 1} class names that differ, one a line, got {list(classes)[:5]}")
    if not (root / "images").is_dir():
        raise FileNotFoundError(f"{root / 'images'}: no such folder; expected {LAYOUT}")
    images = {path: path.stem for path in sorted((root / "images").iterdir()) if path.suffix.lower() in SUFFIXES}
    files = {stem: path for path, stem in images.items()}
    items = pairs(root / "images", images.values(), lambda one: files.get(one, root), lambda one: root / f"labels/{one}.png")
    return Dataset(root.resolve().name, classes, items, {name: words for name, words in split if words})
