"""COCO Object: COCO's 80 things on val2017, and two sources of its label PNGs."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from rimjax.datasets.dataset import Dataset, first_existing, pair_files, read_labels
from rimjax.datasets.names import clean_name

THINGS = tuple(
    (
        "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, "
        "fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, "
        "elephant, bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, "
        "skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, "
        "surfboard, tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, "
        "apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, "
        "couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote, keyboard, "
        "cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, "
        "scissors, teddy bear, hair drier, toothbrush"
    ).split(", ")
)
"""COCO's 80 things in label order; all are words, so no class needs an alias."""

UNUSED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
"""Category ids below 91 that COCO doesn't use."""

CATEGORIES = tuple(category for category in range(1, 91) if category not in UNUSED)
"""COCO's category id of each of `THINGS`. COCO-Stuff's pixel maps hold the id minus 1, and 255
where nothing is labelled."""

MOST_PIXELS = 178_956_970
"""Pillow reads no larger picture, and so no larger label map."""

SUFFIX = "_instanceTrainIds.png"


def locate_labels(root: Path) -> Path:
    """Return the folder of val2017's label PNGs below a data folder."""
    return first_existing(root, "coco_stuff164k", "coco", ".") / "annotations/val2017"


def locate_images(root: Path) -> Path:
    """Return the folder of val2017's images; raise FileNotFoundError if there is none."""
    images = locate_labels(root).parent.parent / "images/val2017"
    if not images.is_dir():
        layout = "a folder with coco_stuff164k/{images,annotations}/val2017"
        raise FileNotFoundError(f"{images}: no such folder; expected {layout}")
    return images


def open_coco_object(root: Path) -> Dataset:
    """Open COCO Object on val2017: 80 things, and the background, which is everything else."""
    labels, images = locate_labels(root), locate_images(root)
    if not any(labels.glob(f"*{SUFFIX}")):
        remedy = f"`rimjax convert-coco --data {root}` writes them"
        raise FileNotFoundError(f"{labels}/*{SUFFIX}: no such files; {remedy}")
    items = pair_files(
        f"{images}/*.jpg",
        sorted(path.stem for path in images.glob("*.jpg")),
        lambda name: images / f"{name}.jpg",
        lambda name: labels / f"{name}{SUFFIX}",
    )
    return Dataset("coco-object", THINGS, items, published_size=5000)


def convert_stuff(labels: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """Convert COCO-Stuff's pixel map: things become 1 to 80, everything else, 255 included, 0."""
    table = np.zeros(256, np.uint8)
    table[np.array(CATEGORIES) - 1] = np.arange(1, 81)
    return table[labels]


def list_stuff_maps(folder: Path) -> dict[str, Callable[[], np.ndarray]]:
    """Map image ids to functions that read labels from COCO-Stuff 164k's pixel maps.

    Raises:
        FileNotFoundError: the folder has no pixel maps.
    """
    maps = {path.stem: path for path in sorted(folder.glob("*.png")) if "TrainIds" not in path.name}
    if not maps:
        remedy = "get COCO-Stuff 164k's pixel maps, or use COCO's instance JSON"
        raise FileNotFoundError(f"{folder}/*.png: no such files; {remedy}")
    return {name: partial(_read_stuff, path) for name, path in maps.items()}


def _read_stuff(path: Path) -> np.ndarray:
    return convert_stuff(read_labels(path))


def list_outline_maps(instances: Path) -> tuple[dict[str, Callable[[], np.ndarray]], int]:
    """Map image ids to functions that draw labels from the outlines in an instance JSON.

    The file's own `categories` give the thing that each category id stands for. Smaller things are
    drawn on top. COCO-Stuff's pixel maps may differ where things overlap. Needs pycocotools.

    Returns:
        The functions, and the number of outlines that are missing or have fewer than three points,
        which aren't drawn.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it isn't an instance JSON; an id isn't an integer or occurs twice; annotations
            are of images that it lacks, or of categories that it doesn't name or that COCO lacks;
            or, when an image is drawn, an outline is malformed.
        ImportError: the `coco` extra is missing.
    """
    import_pycocotools()
    from pycocotools.coco import COCO

    if not instances.is_file():
        remedy = "COCO's is annotations/instances_val2017.json"
        raise FileNotFoundError(f"{instances}: no such file; {remedy}")
    with redirect_stdout(io.StringIO()):  # it prints how long it took
        try:
            index = COCO(str(instances))
            entries: Any = index.dataset["images"]
            things: Any = index.dataset["annotations"]
            stems = [Path(entry["file_name"]).stem for entry in entries]
            sizes = [(entry["height"], entry["width"]) for entry in entries]
            image_ids = [entry["id"] for entry in entries]
            thing_ids = [thing["id"] for thing in things]
            image_of = [thing["image_id"] for thing in things]
            used = [thing["category_id"] for thing in things]
            skipped = sum(drop_outlines(thing) for thing in things)
            categories = [(entry["id"], entry["name"]) for entry in index.dataset["categories"]]
        except (KeyError, TypeError, ValueError, AssertionError, RecursionError) as error:
            raise ValueError(f"{instances}: not COCO's instance JSON ({error!r})") from error
    if not all(isinstance(name, str) for _, name in categories):
        raise ValueError(f"{instances}: not COCO's instance JSON (a category's name isn't a text)")
    _check_integers("ids of images", image_ids, instances)
    _check_integers("ids of annotations", thing_ids, instances)
    _check_integers("ids of categories", [number for number, _ in categories], instances)
    _check_integers("image_id of annotations", image_of, instances)
    _check_integers("category_id of annotations", used, instances)
    _check_integers("heights and widths", [side for size in sizes for side in size], instances)
    _check_unique("ids of images", image_ids, instances)
    _check_unique("ids of annotations", thing_ids, instances)
    _check_unique("file names of images, without folder and suffix,", stems, instances)
    if unknown := sorted(set(image_of) - set(image_ids)):
        raise ValueError(
            f"{instances}: image_id of annotations must be the id of an image, got {unknown[:5]}; "
            "add the images or remove the annotations"
        )
    for stem, (height, width) in zip(stems, sizes, strict=True):
        if min(height, width) < 1 or height * width > MOST_PIXELS:
            raise ValueError(
                f"{instances}: height and width of images must be at least 1, and at most "
                f"{MOST_PIXELS} pixels in all, got {height} and {width} for {stem}; correct them"
            )
    label_of = _number_categories(categories, set(used), instances)
    images = dict(zip(stems, zip(image_ids, sizes, strict=True), strict=True))

    def measure(thing: Any) -> float:
        return thing["area"] if "area" in thing else int(index.annToMask(thing).sum())

    def draw_labels(name: str) -> np.ndarray:
        image, size = images[name]
        try:
            labels = np.zeros(size, np.uint8)
            annotations: Any = index.loadAnns(index.getAnnIds(imgIds=[image]))
            outlined = [thing for thing in annotations if thing["segmentation"]]
            for thing in sorted(outlined, key=measure, reverse=True):
                labels[index.annToMask(thing) > 0] = label_of[thing["category_id"]]
        except Exception as error:  # pycocotools raises any exception on malformed outlines
            message = f"{instances}: can't draw the outlines of {name} ({error!r})"
            raise ValueError(message) from error
        return labels

    return {name: partial(draw_labels, name) for name in images}, skipped


def _check_integers(what: str, values: Sequence[object], file: Path) -> None:
    if wrong := [value for value in values if type(value) is not int]:
        raise ValueError(f"{file}: {what} must be integers, got {wrong[0]!r}; correct them")


def _check_unique(what: str, values: Sequence[object], file: Path) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        raise ValueError(f"{file}: {what} must differ, got {repeated[:5]} twice; rename them")


def _number_categories(
    categories: Sequence[tuple[int, str]], used: set[int], file: Path
) -> dict[int, int]:
    """Return the label of each category in use; raise ValueError for one that has none."""
    names = dict(categories)
    if len(names) < len(set(categories)):
        raise ValueError(f"{file}: categories must differ in their ids, got an id of several names")
    if missing := sorted(used - names.keys()):
        raise ValueError(
            f"{file}: categories must name every id that annotations have, got none for ids "
            f"{missing[:5]}; add their names"
        )
    things = {number: clean_name(names[number]).lower() for number in sorted(used)}
    if unknown := [names[number] for number, thing in things.items() if thing not in THINGS]:
        raise ValueError(
            f"{file}: categories of annotations must be named as COCO's 80 things are, got "
            f"{unknown[:5]}; rename or remove them"
        )
    return {number: 1 + THINGS.index(thing) for number, thing in things.items()}


def drop_outlines(thing: dict[str, Any]) -> int:
    """Drop an annotation's outlines of fewer than three points; return the number of those missing.

    pycocotools would draw an outline of two points as a box.
    """
    outlines = thing.setdefault("segmentation", None) or []
    if isinstance(outlines, list):
        thing["segmentation"] = [outline for outline in outlines if len(outline) >= 6]
        return max(len(outlines), 1) - len(thing["segmentation"])
    return 0


def import_pycocotools() -> Any:
    """Import pycocotools.mask; raise ImportError with the remedy where it is missing."""
    try:
        from pycocotools import mask
    except ImportError as error:
        remedy = 'pip install "rimjax[pipeline]"'
        raise ImportError(f"COCO annotations need pycocotools ({error}): {remedy}") from error
    return mask
