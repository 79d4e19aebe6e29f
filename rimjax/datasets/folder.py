"""Any folder of images and label PNGs as a data set."""

from __future__ import annotations

from pathlib import Path

from rimjax.datasets.dataset import IGNORED, Dataset, first_existing, pair_files, read_lines
from rimjax.datasets.names import clean_name, is_background, is_heading, is_no_class
from rimjax.types import BACKGROUND

LAYOUT = "a folder with images/NAME.jpg (or .jpeg, .png), labels/NAME.png and names.txt"
IMAGES, LABELS = ("images", "JPEGImages"), ("labels", "SegmentationClass")
NAMES = ("names.txt", "class_names.txt")
"""The names of that layout's parts, and what LabelMe's VOC export calls them."""
SUFFIXES = (".jpg", ".jpeg", ".png")


def open_folder(root: Path) -> Dataset:
    """Open a folder of images and labels.

    Args:
        root: holds `images/NAME.jpg` (or .jpeg, .png), `labels/NAME.png` (0 the background, i the
            class on line i, 255 ignored) and `names.txt`: a class per line, as `name` or `name:
            words for the prompt`. A first line "background", however it is spelled, stands for
            label 0. Only blank lines at the end are ignored. LabelMe's VOC export is read as it is:
            `JPEGImages`, `SegmentationClass` and `class_names.txt`, in which "__ignore__" may stand
            above the background.

    Raises:
        FileNotFoundError: a part of the layout is missing.
        ValueError: names are missing or repeated or mark pixels without a label, a line seems to be
            no class, or there is no image.
    """
    names = next((root / name for name in NAMES if (root / name).is_file()), root / NAMES[0])
    lines = [clean_name(line) for line in read_lines(names, LAYOUT)]
    while lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line:
            raise ValueError(
                f"{names}: must hold no blank line before its last class, got one on line "
                f"{number}; take it out, and see that i is the class on line i"
            )
        if line.startswith("#"):
            raise ValueError(
                f"{names}: must hold no comment, got {line!r} on line {number}; take it out, and "
                "see that i is the class on line i"
            )
    if names.name == NAMES[1] and len(lines) > 1 and is_no_class(lines[0]):
        lines = lines[1:] if is_background(lines[1]) else lines
    if lines and is_background(lines[0]):
        lines = lines[1:]
    split = [[part.strip() for part in line.partition(":")[::2]] for line in lines]
    if unlabelled := [name for name, _ in split if is_no_class(name)]:
        raise ValueError(
            f"{names}: must hold no {unlabelled[0]!r}, because ignored pixels have label {IGNORED} "
            "and no line; take that line out, and see that label 1 is the first class"
        )
    classes = tuple(name for name, _ in split)
    lowered = {(words or name).lower() for name, words in split}
    unique = len(set(classes)) == len(classes) == len(lowered)
    if any(map(is_background, (*classes, *lowered))):
        raise ValueError(
            f"{names}: must hold {BACKGROUND!r} at most as its first line, alone and without words "
            f"for a prompt, got {list(classes)[:5]}; it is label 0, and i is the class on line i"
        )
    if classes and is_heading(classes[0]):
        raise ValueError(
            f"{names}: must begin with {BACKGROUND!r} or a class, got {lines[0]!r}; write "
            f"{BACKGROUND!r} alone for label 0, or take a heading out, or call the class otherwise"
        )
    if not classes or not all(classes) or not unique or len(classes) >= IGNORED:
        raise ValueError(
            f"{names}: must hold 1 to {IGNORED - 1} different class names, a name per line, "
            f"{BACKGROUND!r} at most on the first, got {list(classes)[:5]}"
        )
    folder, labels = first_existing(root, *IMAGES), first_existing(root, *LABELS)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected {LAYOUT}")
    images = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    files = {path.stem: path for path in images}
    items = pair_files(
        folder,
        [path.stem for path in images],
        lambda name: files[name],
        lambda name: labels / f"{name}.png",
    )
    return Dataset(
        root.resolve().name, classes, items, {name: words for name, words in split if words}
    )
