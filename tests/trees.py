"""Tiny data sets in mmsegmentation's layouts: patches of the classes' colours on grey."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
from fakes import pick_colour
from PIL import Image

Patches = Mapping[str, int]
"""Words for the prompt -> label of the patch in their colour."""

VOC: Mapping[str, Patches] = {
    "2007_000033": {"tv monitor": 20, "person": 15},
    "2007_000042": {"aeroplane": 1},
    "2007_000061": {"dining table": 11},
}
CONTEXT: Mapping[str, Patches] = {
    "2008_000002": {"tv monitor": 55, "window": 58},
    "2008_000003": {"sky": 47, "wood": 59},
}
COCO_STUFF: Mapping[str, Patches] = {  # the values are category ids minus 1
    "000000000139": {"person": 0, "tv": 71},
    "000000000285": {"bear": 22, "grass": 123},  # grass is stuff
    "000000000632": {"toothbrush": 89},
}
COCO_OBJECT: Mapping[str, Patches] = {
    "000000000139": {"person": 1, "tv": 63},
    "000000000285": {"bear": 22, "grass": 0},
    "000000000632": {"toothbrush": 80},
}
"""The labels that COCO Object gives the patches of `COCO_STUFF`."""

VOC_IDS, CONTEXT_IDS, COCO_IDS = tuple(VOC), tuple(CONTEXT), tuple(COCO_STUFF)

VOC_BASE, CONTEXT_BASE, COCO_BASE = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010", "coco_stuff164k"

NOISY_CLASSES, NUM_NOISY = ("apple", "plum", "leaf"), 7

COCO_CATEGORIES = {
    **{1: "person", 11: "fire hydrant", 13: "stop sign", 25: "giraffe", 27: "backpack"},
    **{44: "bottle", 46: "wine glass", 65: "bed", 67: "dining table", 70: "toilet", 72: "tv"},
    **{73: "laptop", 82: "refrigerator", 84: "book", 90: "toothbrush"},
}
"""Some of COCO's category ids, among them the neighbours of every unused id."""

PALETTE = [
    *(0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0),
    *np.random.default_rng(0).integers(0, 256, 252 * 3).tolist(),
]


def make_patches(
    size: tuple[int, int], patches: Patches, ground: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return a grey image with a patch per class, and its labels.

    Patches lie on JPEG's 8x8 blocks, so that compression keeps them plain.

    Args:
        size: (H, W).
        patches: words and labels, from left to right.
        ground: label of the pixels beside the patches.
    """
    image, truth = np.full((*size, 3), 128, np.uint8), np.full(size, ground, np.uint8)
    for index, (words, label) in enumerate(patches.items()):
        patch = np.s_[8:32, 8 + 32 * index : 32 + 32 * index]
        image[patch], truth[patch] = pick_colour(words), label
    return image, truth


def write_pair(
    image: np.ndarray, truth: np.ndarray, image_path: Path, labels_path: Path, palette: bool = False
) -> None:
    """Write a JPEG and its label PNG, which is grey or has a palette."""
    for path in (image_path, labels_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(image_path, quality=100, subsampling=0)
    labels = Image.fromarray(truth)
    if palette:
        labels.putpalette(PALETTE)
    labels.save(labels_path)


def write_split(path: Path, ids: Iterable[str]) -> None:
    """Write the ids of a split, an id per line."""
    path.parent.mkdir(parents=True)
    path.write_text("".join(f"{image_id}\n" for image_id in ids))


def write_voc(root: Path) -> Path:
    """Write VOC 2012: palette PNGs with a border of 255 round every patch, as VOC's have."""
    base = root / VOC_BASE
    for image_id, patches in VOC.items():
        image, truth = make_patches((40 + 8 * len(patches), 80), patches)
        inside = truth > 0
        shifts = ((1, 0), (-1, 0), (1, 1), (-1, 1))
        near = np.any([np.roll(inside, step, axis) for step, axis in shifts], axis=0)
        truth[near & ~inside] = 255
        image_path = base / f"JPEGImages/{image_id}.jpg"
        write_pair(image, truth, image_path, locate_labels("voc", root, image_id), palette=True)
    write_split(base / "ImageSets/Segmentation/val.txt", VOC)
    return root


def write_context(root: Path) -> Path:
    """Write PASCAL Context as mmsegmentation's converter leaves it: grey PNGs."""
    base = root / CONTEXT_BASE
    for image_id, patches in CONTEXT.items():
        image, truth = make_patches((40, 80), patches)
        image_path = base / f"JPEGImages/{image_id}.jpg"
        write_pair(image, truth, image_path, locate_labels("context", root, image_id))
    write_split(base / "ImageSets/SegmentationContext/val.txt", CONTEXT)
    return root


def write_coco_stuff(root: Path) -> Path:
    """Write COCO-Stuff's pixel maps, with mmsegmentation's _labelTrainIds beside them.

    The ground is stuff, the four rows at the top are 255.
    """
    base = root / COCO_BASE
    for image_id, patches in COCO_STUFF.items():
        image, truth = make_patches((40, 80), patches, ground=156)
        truth[:4] = 255
        labels_path = base / f"annotations/val2017/{image_id}.png"
        write_pair(image, truth, base / f"images/val2017/{image_id}.jpg", labels_path)
        Image.fromarray(truth).save(labels_path.with_name(f"{image_id}_labelTrainIds.png"))
    return root


def list_pixel_maps(root: Path) -> list[Path]:
    """Return the raw pixel maps of `write_coco_stuff`."""
    return sorted((root / COCO_BASE / "annotations/val2017").glob("0*[0-9].png"))


def locate_labels(name: str, root: Path, image_id: str) -> Path:
    """Return the path of an image's label PNG."""
    if name == "voc":
        return root / VOC_BASE / f"SegmentationClass/{image_id}.png"
    if name == "coco-object":
        return root / COCO_BASE / f"annotations/val2017/{image_id}_instanceTrainIds.png"
    return root / CONTEXT_BASE / f"SegmentationClassContext/{image_id}.png"


def write_noisy_folder(root: Path, names: str) -> Path:
    """Write `NUM_NOISY` images of two patches; some labels are wrong, some pixels ignored.

    Args:
        root: folder of images, labels and names.txt.
        names: content of names.txt, which must name `NOISY_CLASSES` in order.
    """
    rng = np.random.default_rng(0)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    (root / "names.txt").write_text(names)
    for index in range(NUM_NOISY):
        chosen = rng.choice(3, 2, replace=False)
        labels = 1 + (chosen + (rng.random(2) < 0.3)) % 3
        words = [NOISY_CLASSES[number] for number in chosen]
        patches = dict(zip(words, labels.tolist(), strict=True))
        image, truth = make_patches((40 + index, 80), patches)
        truth[rng.random(truth.shape) < 0.1] = 255
        Image.fromarray(image).save(root / f"images/{index}.png")
        Image.fromarray(truth).save(root / f"labels/{index}.png")
    return root


WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "voc": write_voc,
    "context": write_context,
    "context59": write_context,
    "coco-object": write_coco_stuff,
}
