"""COCO's files: annotations of a folder of images, results for COCOeval, ids of another file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rimjax.datasets.names import clean_name
from rimjax.files import atomic_file, parse_json
from rimjax.types import UNKNOWN

SOURCE = "rimjax"
"""Marks annotations, so that a list of them is known as a file that may be replaced."""


@dataclass(frozen=True)
class CocoIds:
    """The ids that a COCO file gives to images and categories.

    Attributes:
        path: the file.
        images: id and file name in the COCO file, by the image's file name without folders.
        categories: id by name, cleaned and in small letters.
    """

    path: Path
    images: Mapping[str, tuple[int, str]]
    categories: Mapping[str, int]

    def number_classes(self, names: Sequence[str]) -> dict[str, int]:
        """Return the category id of each class but the background.

        Raises:
            ValueError: the file lacks a class.
        """
        if missing := [name for name in names[1:] if name.lower() not in self.categories]:
            advice = "name classes as the file does"
            if missing[0] == UNKNOWN:
                advice = "add it to the file, or give --unknown background"
            raise ValueError(f"{self.path}: has no category {missing[0]!r}; {advice}")
        return {name: self.categories[name.lower()] for name in names[1:]}

    def find_image(self, image: Path) -> tuple[int, str]:
        """Return an image's id and its file name in the COCO file.

        Raises:
            ValueError: the file doesn't list it.
        """
        if image.name not in self.images:
            raise ValueError(f"{self.path}: lists no image {image.name!r}; segment its images only")
        return self.images[image.name]


def read_ids(path: Path) -> CocoIds:
    """Read the ids of a COCO file's images and categories.

    Raises:
        ValueError: it can't be read or isn't a COCO file, or names repeat.
    """
    try:
        content = parse_json(path.read_bytes())
        images = [
            (Path(entry["file_name"]).name, (int(entry["id"]), str(entry["file_name"])))
            for entry in content["images"]
        ]
        categories = [
            (clean_name(str(entry["name"])).lower(), int(entry["id"]))
            for entry in content["categories"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a COCO file ({error}); name an annotation file") from error
    for what, entries in (("images", images), ("categories", categories)):
        if repeated := [
            name for name, count in Counter(n for n, _ in entries).items() if count > 1
        ]:
            raise ValueError(
                f"{path}: two {what} are called {repeated[0]!r}, so ids can't be taken by name"
            )
    return CocoIds(path, dict(images), dict(categories))


def write_annotations(
    path: Path,
    results: Sequence[Mapping[str, Any]],
    origin: Mapping[str, Any],
    ids: CocoIds | None = None,
    results_only: bool = False,
) -> None:
    """Write the segments of images as a COCO annotation file, or as a list of COCO results.

    Args:
        path: the file.
        results: of each image "image" (its path), "size" (W, H) and "annotations", as
            `Segmentation.to_coco` gives them.
        origin: settings, weights and versions, with "names" of the classes; for "info".
        ids: image and category ids; default: 1, 2, ... in order.
        results_only: write the list of annotations that COCOeval takes, without images.

    Raises:
        ValueError: `ids` lacks an image or a class.
        OSError: the file can't be written; the message names it.
    """
    names = origin["names"][1:]
    categories = dict(zip(names, range(1, len(names) + 1), strict=True))
    if ids is not None:
        categories = ids.number_classes(origin["names"])
    images, annotations = [], []
    for number, result in enumerate(results, 1):
        image = Path(result["image"])
        image_id, file_name = number, os.path.relpath(image.absolute(), path.absolute().parent)
        if ids is not None:
            image_id, file_name = ids.find_image(image)
        width, height = result["size"]
        images.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        for annotation in result["annotations"]:
            category = categories[names[annotation["category_id"] - 1]]
            fields = {**annotation, "image_id": image_id, "category_id": category}
            annotations.append({"id": len(annotations) + 1, **fields, "source": SOURCE})
    content: Any = annotations
    if not results_only:
        content = {
            "info": {"description": "segmented by rimjax", **origin},
            "images": images,
            "categories": [{"id": index, "name": name} for name, index in categories.items()],
            "annotations": annotations,
            "versions": origin["versions"],
        }
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")
