"""Labelled data sets: PASCAL VOC and Context, COCO Object, Fashion Scenes, and folders."""

from __future__ import annotations

from pathlib import Path

from rimjax.datasets import coco, fashion_scenes, folder, pascal
from rimjax.datasets.dataset import Dataset as Dataset
from rimjax.datasets.dataset import Item as Item

READERS = {
    "voc": pascal.open_voc,
    "context": pascal.open_context,
    "context59": pascal.open_context59,
    "coco-object": coco.open_coco_object,
}


def load(name: str, data: str | Path | None = None) -> Dataset:
    """Open a data set by its name, or a folder in the layout of `rimjax.datasets.folder`.

    Args:
        name: "fashion-scenes" (part of the package), "voc", "context" (60 classes), "context59",
            "coco-object", or a folder's path.
        data: folder that holds a published data set, in mmsegmentation's layout.

    Raises:
        FileNotFoundError: a file of the layout is missing; the message names it.
        ValueError: there is no such data set, its split is empty, or it takes no `data`.
    """
    if data is not None and name not in READERS:
        raise ValueError(
            f"data must be given with {', '.join(READERS)} only, got {data} with {name!r}; for a "
            f"folder of your own, name the folder as dataset"
        )
    if name == "fashion-scenes":
        return fashion_scenes.open_benchmark()
    if name in READERS:
        if data is None:
            raise ValueError(f"data must be the folder that holds {name}, got none")
        return READERS[name](Path(data))
    if Path(name).is_dir():
        return folder.open_folder(Path(name))
    names = f"fashion-scenes, {', '.join(READERS)}"
    raise ValueError(f"dataset must be {names}, or {folder.LAYOUT}, got {name!r}")
