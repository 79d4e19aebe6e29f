"""References from a COCO annotation file: each instance is one, with its mask or box."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from rimjax.datasets.coco import MOST_PIXELS, drop_outlines, import_pycocotools
from rimjax.datasets.names import clean_name, is_background, is_no_class
from rimjax.files import parse_json
from rimjax.references.photographs import read_upright_size
from rimjax.references.reference import Box, Reference, ReferenceWarning


@dataclass(frozen=True, eq=False)
class RunLengths:
    """A mask that is kept as COCO's compressed run lengths; `numpy.asarray` decodes it.

    Attributes:
        encoded: pycocotools' {"size": [H, W], "counts": ...}.
    """

    encoded: Mapping[str, Any]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Bool[np.ndarray, "H W"]:
        mask = import_pycocotools().decode(self.encoded).astype(bool)
        return mask if dtype is None else mask.astype(dtype)


@dataclass(frozen=True)
class _Instance:
    """An annotation: its category's name, its picture, and what it is or why it is no reference.

    Attributes:
        size: height and width of the picture, by the file.
    """

    name: str
    image: Path
    size: tuple[int, int]
    mask: RunLengths | None
    box: Box | None
    problem: str | None

    @property
    def covers_something(self) -> bool:
        return self.mask is not None or self.box is not None

    def make_reference(self) -> Reference:
        return Reference(self.image, mask=self.mask, box=None if self.mask else self.box)


def read_coco_references(
    path: str | Path, classes: Iterable[str] | None = None
) -> dict[str, list[Reference]]:
    """Read references from a COCO annotation file; needs pycocotools.

    Each instance of a category is a reference: its polygons or run lengths are its mask; without
    them its bbox is a box prompt. Crowds, instances without either, and masks of nothing or of the
    whole picture are left out with a `ReferenceWarning`, and so are categories whose names mean the
    background or no class. What else is annotated in a reference's picture, crowds and categories
    left out included, is no background.

    Args:
        path: the file; images are relative to it.
        classes: the categories wanted, ignoring case; default: all that have instances.

    Returns:
        Class names (as in `classes`) to references; pass it to `build_bank` as `references`.

    Raises:
        FileNotFoundError: the file or an image of a reference isn't there.
        ValueError: it isn't a COCO annotation file, has none of the categories wanted, none of
            their instances can be used, or a picture has another size than the file says.
        ImportError: the `pipeline` extra is missing.
    """
    path = Path(path)
    names, instances = _read(path)
    wanted = {name.lower(): name for name in names}
    if classes is not None:
        given = [clean_name(name) for name in classes]
        wanted = {name.lower(): name for name in given}
        if unknown := [name for name in given if name.lower() not in {n.lower() for n in names}]:
            raise ValueError(
                f"{path}: must have each of the classes as a category, got none for "
                f"{', '.join(unknown)}; its categories are {', '.join(names)}"
            )
    references: dict[str, list[Reference]] = {name: [] for name in wanted.values()}
    pictures: dict[Path, list[_Instance]] = {}
    for instance in instances:
        pictures.setdefault(instance.image, []).append(instance)
    for together in pictures.values():
        usable = [i for i in together if not i.problem and i.name.lower() in wanted]
        rest = [i for i in together if i not in usable and i.covers_something]
        others = tuple(instance.make_reference() for instance in rest)
        for instance in usable:
            reference = replace(instance.make_reference(), others=others)
            references[wanted[instance.name.lower()]].append(reference)
    _report(path, [i for i in instances if i.name.lower() in wanted])
    if classes is None:
        references = {name: listed for name, listed in references.items() if listed}
    if empty := [name for name, listed in references.items() if not listed]:
        raise ValueError(
            f"{path}: must have an instance of each class, got none that can be used for "
            f"{', '.join(empty)}; leave it out or annotate one"
        )
    if not references:
        raise ValueError(f"{path}: holds no instance that can be used as a reference")
    used = {Path(str(each.image)) for listed in references.values() for each in listed}
    for image, together in pictures.items():
        if image in used:
            _check_picture(path, image, together[0].size)
    return references


def _check_picture(path: Path, image: Path, size: tuple[int, int]) -> None:
    """Check that a picture is there and as large as the file says, which outlines depend on."""
    if not image.is_file():
        raise FileNotFoundError(f"{path}: names {image}: no such image file")
    found = read_upright_size(image) or size
    if found != size:
        raise ValueError(
            f"{path}: width and height must be the size of {image} (turned upright), "
            f"{found[1]}x{found[0]}, got {size[1]}x{size[0]}; annotate this picture, or scale it "
            "to that size"
        )


def list_coco_categories(path: str | Path) -> list[str]:
    """Return the names of a COCO annotation file's categories that may be classes.

    Raises:
        FileNotFoundError, ValueError: as `read_coco_references`.
    """
    return _read(Path(path))[0]


def _read(path: Path) -> tuple[list[str], list[_Instance]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such COCO annotation file")
    import_pycocotools()
    try:
        return _read_instances(path)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a COCO annotation file ({error!r})") from error


def _read_instances(path: Path) -> tuple[list[str], list[_Instance]]:
    """Return the names of the categories that may be classes, and their annotations."""
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: not a COCO annotation file ({error})") from error
    names = {entry["id"]: clean_name(entry["name"]) for entry in content["categories"]}
    if len(names) < len(content["categories"]):
        raise ValueError(f"{path}: ids of categories must differ, got one twice; rename them")
    counts = Counter(name.lower() for name in names.values())
    if repeated := [name for name in names.values() if counts[name.lower()] > 1]:
        raise ValueError(
            f"{path}: names of categories must differ (ignoring case), got "
            f"{', '.join(map(repr, repeated))}; rename or merge them"
        )
    images = {entry["id"]: entry for entry in content["images"]}
    twice = Counter(entry["id"] for entry in content["images"]).most_common(1)
    if len(images) < len(content["images"]):
        raise ValueError(
            f"{path}: ids of images must differ, got {twice[0][0]!r} twice; renumber them"
        )
    instances = []
    for thing in content["annotations"]:
        if thing["category_id"] not in names or thing["image_id"] not in images:
            raise ValueError(
                f"{path}: annotation {thing.get('id')} must be of a category and an image of the "
                f"file, got ids {thing['category_id']} and {thing['image_id']}; add them"
            )
        name, entry = names[thing["category_id"]], images[thing["image_id"]]
        if not (is_background(name) or is_no_class(name)):
            instances.append(_read_instance(path, name, entry, thing))
    kept = [name for name in names.values() if not (is_background(name) or is_no_class(name))]
    return kept, instances


def _read_instance(
    path: Path, name: str, entry: Mapping[str, Any], thing: dict[str, Any]
) -> _Instance:
    image, size = path.parent / entry["file_name"], (entry["height"], entry["width"])
    if not all(type(side) is int and side > 0 for side in size) or size[0] * size[1] > MOST_PIXELS:
        raise ValueError(
            f"{path}: height and width of {entry['file_name']} must be positive integers, got "
            f"{size}"
        )
    drop_outlines(thing)
    tools, mask, problem = import_pycocotools(), None, None
    if outlines := thing["segmentation"]:
        try:
            if isinstance(outlines, list):
                encoded = tools.merge(tools.frPyObjects(outlines, *size))
            else:
                encoded = _check_runs(outlines, size)
            area = int(tools.area(encoded))
        except Exception as error:  # pycocotools raises any exception on malformed outlines
            raise ValueError(
                f"{path}: annotation {thing.get('id')} has a malformed segmentation ({error!r})"
            ) from error
        mask = RunLengths(encoded) if area else None
        problem = "fills the picture" if area == size[0] * size[1] else None
    box = _read_box(thing.get("bbox"), size)
    if thing.get("iscrowd"):
        problem = "is a crowd"
    elif mask is None and box is None:
        problem = "has no outline or box"
    return _Instance(name, image, size, mask, box, problem)


def _check_runs(encoded: Mapping[str, Any], size: tuple[int, int]) -> Mapping[str, Any]:
    """Return run lengths as pycocotools takes them; raise ValueError unless they fill the picture.

    pycocotools would show what happens to be in memory where they fill less.
    """
    counts = encoded["counts"]
    runs: list[int] = list(counts) if isinstance(counts, list) else []
    value = shift = 0
    for letter in "" if isinstance(counts, list) else str(counts):  # 5 bits each, lowest first
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << (shift - 4)  # its sign
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    if tuple(encoded["size"]) != size or min(runs) < 0 or sum(runs) != size[0] * size[1] or shift:
        raise ValueError("its runs don't fill the picture")
    if isinstance(counts, list):
        return import_pycocotools().frPyObjects(dict(encoded), *size)
    return {"size": list(size), "counts": counts}


def _read_box(bbox: Any, size: tuple[int, int]) -> Box | None:
    """Return an annotation's box within the picture; None if it has none of any size."""
    if not bbox:
        return None
    x, y, width, height = (float(number) for number in bbox)
    x0, x1 = (min(max(edge, 0.0), float(size[1])) for edge in (x, x + width))
    y0, y1 = (min(max(edge, 0.0), float(size[0])) for edge in (y, y + height))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _report(path: Path, instances: Iterable[_Instance]) -> None:
    """Warn, in a line, of annotations that are no references."""
    problems = Counter(instance.problem for instance in instances if instance.problem)
    if problems:
        counts = ", ".join(f"{count} {problem}" for problem, count in sorted(problems.items()))
        total = sum(problems.values())
        warnings.warn(
            f"{path}: {total} annotations are left out as references: {counts}",
            ReferenceWarning,
            stacklevel=3,
        )
