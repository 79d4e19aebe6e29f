"""COCO Object: the 80 things of COCO on val2017, and the two ways to make its label PNGs."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rimjax.datasets.dataset import Dataset, below, pairs, read_labels

THINGS = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
"""COCO's 80 things in label order; all are words as they stand, so none needs an alias."""

UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
"""Category ids below 91 that COCO never gave to a thing it labels."""

CATEGORIES = tuple(one for one in range(1, 91) if one not in UNUSED)
"""COCO's category id of each of `THINGS`; COCO-Stuff's pixel maps hold the id less one, and 255 where nothing is labelled."""

SUFFIX = "_instanceTrainIds.png"


def label_folder(root: Path) -> Path:
    """Where the label PNGs of val2017 are, below what `--data` names."""
    return below(root, "coco_stuff164k", "coco", ".") / "annotations/val2017"


def image_folder(root: Path) -> Path:
    """Where the images of val2017 are; FileNotFoundError if they aren't."""
    images = label_folder(root).parent.parent / "images/val2017"
    if not images.is_dir():
        raise FileNotFoundError(f"{images}: no such folder; expected --data to hold coco_stuff164k/{{images,annotations}}/val2017")
    return images


def coco_object(root: Path) -> Dataset:
    """COCO Object on val2017: 80 things and the background, which is everything else."""
    labels = label_folder(root)
    images = image_folder(root)
    if not any(labels.glob(f"*{SUFFIX}")):
        raise FileNotFoundError(f"{labels}/*{SUFFIX}: no such files; `rimjax convert-coco --data {root}` makes them")
    ids = sorted(path.stem for path in images.glob("*.jpg"))
    items = pairs(f"{images}/*.jpg", ids, lambda one: images / f"{one}.jpg", lambda one: labels / f"{one}{SUFFIX}")
    return Dataset("coco-object", THINGS, items, published_size=5000)


def from_stuff(labels: np.ndarray) -> np.ndarray:
    """COCO-Stuff's pixel map as COCO Object's labels: things become 1 to 80, everything else, 255 included, 0. uint8[H, W] both."""
    table = np.zeros(256, np.uint8)
    table[np.array(CATEGORIES) - 1] = np.arange(1, 81)
    return table[labels]


def stuff_maps(folder: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Image id -> what reads its COCO Object labels from COCO-Stuff 164k's pixel maps in a folder; FileNotFoundError if it has none."""
    maps = {path.stem: path for path in sorted(folder.glob("*.png")) if "TrainIds" not in path.name}
    if not maps:
        raise FileNotFoundError(f"{folder}/*.png: no pixel maps of COCO-Stuff 164k there; or name COCO's JSON with --instances")
    return {one: lambda path=path: from_stuff(read_labels(path)) for one, path in maps.items()}


def outline_maps(instances: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Image id -> what draws its COCO Object labels from the outlines in COCO's instance JSON, the smaller thing on top. Needs pycocotools.

    COCO-Stuff's pixel maps may differ from these where things overlap.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no instance JSON, or has categories that COCO hasn't; or, when an image is drawn, one of its outlines is none.
        ImportError: the `coco` extra is missing.
    """
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise ImportError(f'--instances needs pycocotools ({error}): pip install "rimjax[coco]"') from error

    if not instances.is_file():
        raise FileNotFoundError(f"{instances}: no such file; COCO calls it annotations/instances_val2017.json")
    with redirect_stdout(io.StringIO()):  # it prints how long it took
        try:
            index = COCO(str(instances))
            images = {
                Path(one["file_name"]).stem: (int(one["id"]), (int(one["height"]), int(one["width"]))) for one in index.dataset["images"]
            }
            things: Sequence[Mapping[str, Any]] = index.dataset["annotations"]
            unknown = sorted({int(thing["category_id"]) for thing in things} - set(CATEGORIES))
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"{instances}: not an instance JSON of COCO's ({error!r})") from error
    if unknown:
        raise ValueError(f"{instances}: category ids {unknown[:5]} are none of COCO's 80 things")

    def draw(name: str) -> np.ndarray:
        identity, size = images[name]
        drawn = np.zeros(size, np.uint8)
        try:
            for thing in sorted(index.loadAnns(index.getAnnIds(imgIds=[identity])), key=lambda thing: -thing["area"]):
                drawn[index.annToMask(thing) > 0] = 1 + CATEGORIES.index(thing["category_id"])
        except Exception as error:  # pycocotools raises whatever Python does
            raise ValueError(f"{instances}: can't draw the outlines of {name} ({error!r})") from error
        return drawn

    return {name: partial(draw, name) for name in images}
