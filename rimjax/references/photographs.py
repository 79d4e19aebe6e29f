"""Which photographs a class has: folders and patterns listed, masks beside them found."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from PIL import ExifTags, Image

from rimjax.references.object_masks import find_mask_beside
from rimjax.references.reference import Point, Reference

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Endings of the files that are taken for pictures in a folder."""


def list_photographs(place: str | os.PathLike) -> list[Path]:
    """List the photographs of a folder or pattern, sorted by name.

    Hidden files aren't listed, nor is `mug.png` beside `mug.jpg`, which is its mask.

    Args:
        place: a folder, or a pattern such as "mugs/*.jpg".

    Raises:
        ValueError: there is no photograph; the message names the place.
    """
    place = Path(os.fsdecode(place))
    if place.is_dir():
        found, what = list(place.iterdir()), "folder"
    else:
        found, what = [Path(name) for name in glob.glob(str(place), recursive=True)], "pattern"
    pictures = [path for path in found if path.suffix.lower() in SUFFIXES and path.is_file()]
    pictures = sorted(path for path in pictures if not path.name.startswith("."))
    if not pictures:
        raise ValueError(
            f"{place}: no picture in this {what} ({', '.join(SUFFIXES)}); name another"
        )
    return [path for path in pictures if not _is_mask(path)]


def _is_mask(path: Path) -> bool:
    if path.suffix.lower() != ".png":
        return False
    endings = [ending for ending in SUFFIXES if ending != ".png"]
    places = (path.with_suffix(each) for ending in endings for each in (ending, ending.upper()))
    return any(place.is_file() for place in places)


def read_upright_size(path: Path) -> tuple[int, int] | None:
    """Return a picture's height and width, turned upright, without decoding it; None if unreadable.

    Args:
        path: an existing file.
    """
    try:
        with Image.open(path) as file:
            width, height = file.size
            turned = file.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    except Exception:  # whoever decodes it says what is wrong
        return None
    return (width, height) if turned else (height, width)


def expand(entries: Iterable[Any], points: Sequence[Point] | None = None) -> list[Reference]:
    """Turn what is given for a class into references.

    A folder or pattern stands for its photographs. A file that comes again without a mask, point or
    box counts once, and not at all where it also comes with one.

    Args:
        entries: references, or pictures as of `read_image`.
        points: a point (x, y) for each entry.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a folder or pattern has no photograph, or `points` has another length, or meets
            an entry that isn't a plain picture.
    """
    entries = list(entries)
    if points is not None:
        entries = _add_points(entries, points)
    found: list[Reference] = []
    for entry in entries:
        if isinstance(entry, Reference):
            found.append(entry)
        elif _stands_for_many(entry):
            found += [Reference(path) for path in list_photographs(entry)]
        else:
            found.append(Reference(entry))
    seen = {identify(each) for each in found if _is_located(each)}
    kept: list[Reference] = []
    for each in found:
        repeated = _is_path(each.image) and identify(each) in seen
        if _is_located(each) or not repeated:
            kept.append(_find_files(each))
        seen.add(identify(each))
    return kept


def link(references: Mapping[str, Sequence[Reference]]) -> dict[str, list[Reference]]:
    """Make references in one picture, of whatever class, each other's `others`."""
    pictures: dict[object, list[Reference]] = {}
    for each in (each for group in references.values() for each in group):
        pictures.setdefault(identify(each), []).append(each)

    def find_others(each: Reference) -> tuple[Reference, ...]:
        return tuple(other for other in pictures[identify(each)] if other is not each)

    return {
        name: [replace(each, others=(*each.others, *find_others(each))) for each in group]
        for name, group in references.items()
    }


def _add_points(entries: Sequence[Any], points: Sequence[Point]) -> list[Reference]:
    if len(points) != len(entries):
        raise ValueError(
            f"points must hold one point for each of the {len(entries)} photographs, got "
            f"{len(points)}"
        )
    for entry in entries:
        if isinstance(entry, Reference) or _stands_for_many(entry):
            shown = "a Reference" if isinstance(entry, Reference) else str(entry)
            raise ValueError(
                f"points must be of photographs given one by one, got {shown}; use "
                "Reference(image, point=...)"
            )
    return [Reference(entry, point=point) for entry, point in zip(entries, points, strict=True)]


def _find_files(reference: Reference) -> Reference:
    """Check that the photograph is there, and take the mask beside it where nothing is given."""
    if not _is_path(reference.image):
        return reference
    path = os.fsdecode(reference.image)
    if len(path) < 200 and not os.path.exists(path):  # of longer names read_image says more
        raise FileNotFoundError(f"{path}: no such image file")
    if _is_located(reference):
        return reference
    return replace(reference, mask=find_mask_beside(Path(path)))


def _is_located(reference: Reference) -> bool:
    return reference.mask is not None or reference.has_prompt


def _is_path(image: Any) -> TypeGuard[str | os.PathLike]:
    return isinstance(image, str | os.PathLike)


def _stands_for_many(entry: Any) -> TypeGuard[str | os.PathLike]:
    """Return whether an entry is a folder, or a pattern that is no file's name itself."""
    if not _is_path(entry):
        return False
    name = os.fsdecode(entry)
    return os.path.isdir(name) or (glob.has_magic(name) and not os.path.exists(name))


def identify(reference: Reference) -> object:
    """Return what is equal for references in one picture."""
    image = reference.image
    return os.path.realpath(os.fsdecode(image)) if _is_path(image) else id(image)
