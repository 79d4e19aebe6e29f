"""Photographs of one's own for the tests: benchmark scenes, and their instances' masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as tools

from rimjax.datasets.fashion_mnist import CLASSES, load_shipped_items
from rimjax.datasets.fashion_scenes import Scene, render_benchmark_scene


def find_scene(items: int, least: float = 0.02) -> Scene:
    """Return the first scene of a number of items, each visible on this share of it."""
    for index in range(50):
        scene = render_benchmark_scene(index)
        shares = [(scene.instances == item + 1).mean() for item in range(len(scene.items))]
        if len(scene.items) == items and min(shares) >= least:
            return scene
    raise AssertionError("no such scene")


def list_objects(scene: Scene) -> list[tuple[str, np.ndarray]]:
    """Return each item's class and mask."""
    classes = load_shipped_items()[1]
    return [
        (CLASSES[classes[item]], scene.instances == position)
        for position, item in enumerate(scene.items, 1)
    ]


def find_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return a mask's bounding box x0, y0, x1, y1."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def save_photograph(path: Path, scene: Scene) -> Path:
    """Save a scene; a JPEG's blocks change its values a little."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).save(path)
    return path


def write_coco(
    path: Path, scene: Scene, annotations: list[dict[str, Any]], names: list[str]
) -> Path:
    """Write an annotation file of one picture beside it; category i + 1 is names[i]."""
    save_photograph(path.parent / "images/scene.png", scene)
    height, width = scene.labels.shape
    image = {"id": 7, "file_name": "images/scene.png", "height": height, "width": width}
    things = [{"id": i, "image_id": 7, **thing} for i, thing in enumerate(annotations, 1)]
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    content = {"images": [image], "annotations": things, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask as COCO's run lengths."""
    encoded: Any = tools.encode(np.asfortranarray(mask, np.uint8))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def save_documented_files(folder: Path) -> Path:
    """Save the photographs, masks and tables that the documentation's snippets name."""
    scene = find_scene(1)
    mask = list_objects(scene)[0][1]
    places = ("mug1.jpg", "mug2.jpg", "mugs/mug1.jpg", "mugs/mug2.jpg", "more/mug3.jpg")
    for name in (*places, "photo.png"):
        save_photograph(folder / name, scene)
    Image.fromarray(mask).save(folder / "mugs/mug1.png")
    (folder / "refs.csv").write_text(
        "class,image,x,y\ncup,mug1.jpg,60,70\ncup,mugs/mug2.jpg,64,64\n"
    )
    things = [
        {"category_id": 1, "segmentation": encode(mask)},
        {"category_id": 2, "segmentation": [], "bbox": [20, 30, 80, 80]},
    ]
    write_coco(folder / "annotations.json", scene, things, ["mug", "plate", "pan"])
    return folder
