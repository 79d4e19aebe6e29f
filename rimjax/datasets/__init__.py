"""Labelled data sets: PASCAL VOC and Context, COCO Object, Fashion Scenes, and any folder of images and label PNGs."""

from __future__ import annotations

from pathlib import Path

from rimjax.datasets import coco, fashion_scenes, folder, pascal
from rimjax.datasets.dataset import Dataset as Dataset
from rimjax.datasets.dataset import Item as Item

READERS = {"voc": pascal.voc, "context": pascal.context, "context59": pascal.context59, "coco-object": coco.coco_object}


def load(name: str, data: str | Path | None = None) -> Dataset:
    """A data set by its name, or from a folder of one's own.

    Args:
        name: "fashion-scenes" (in the package), "voc", "context" (60 classes), "context59", "coco-object", or the path of a folder
            in the layout of `rimjax.datasets.folder`.
        data: the folder that holds a published data set, in mmsegmentation's layout.

    Raises:
        FileNotFoundError: a file of the layout is missing; the message names it.
        ValueError: no such data set, or its split is empty.
    """
    if name == "fashion-scenes":
        return fashion_scenes.dataset()
    if name in READERS:
        if data is None:
            raise ValueError(f"--data: say where {name} lies, e.g. --data data")
        return READERS[name](Path(data))
    if Path(name).is_dir():
        return folder.folder(Path(name))
    raise ValueError(f"--dataset: expected fashion-scenes, {', '.join(READERS)}, or {folder.LAYOUT}; got {name!r}")
