"""A class's references from photographs: locate the objects, crop, pool (Sec. 3.4, Eq. 4)."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from rimjax.images import Photograph, read_photograph
from rimjax.models.protocols import Masker, Models
from rimjax.references.contents import ClassReferences
from rimjax.references.object_masks import read_mask
from rimjax.references.one_class import name_sources, pool_prototypes
from rimjax.references.photographs import identify
from rimjax.references.reference import Box, Point, Reference, ReferenceWarning, check_prompt

PHOTO_SIZE = 512
"""Side in pixels at which photographs are kept; encoders resize to their own input anyway."""

CROP_SHARE, CROP_MARGIN, CROP_SIDE = 0.25, 1.2, 128
"""An object on less than this share of its photograph is cropped to a square of this many times its
longer side, and of at least this many pixels."""

LEAST_CELLS = 1.0
"""An object on fewer cells of the encoder's grid is left out."""


@dataclass(frozen=True, eq=False)
class Shown:
    """An object in a decoded photograph, and what is known of its place.

    Attributes:
        photograph: the picture.
        mask: where the object is; None: a point, a box, or nothing says.
        point: as of `Reference`.
        box: as of `Reference`.
        mask_file: name of the file that the mask was read from.
    """

    photograph: Photograph
    mask: Bool[np.ndarray, "H W"] | None
    point: Point | None
    box: Box | None
    mask_file: str | None = None

    def describe(self) -> list[Any]:
        """Return JSON content that tells the object from others in its photograph."""
        mask = None if self.mask is None else digest_array(self.mask)
        return [mask, self.point, self.box]

    def locate(self, masker: Masker) -> Bool[np.ndarray, "H W"]:
        """Return where the object is: the mask given, the opaque part, or what the masker finds.

        Raises:
            ValueError: a point or box lies outside the photograph.
        """
        if self.mask is not None:
            return self.mask
        pixels, name = self.photograph.pixels, self.photograph.name
        height, width = pixels.shape[:2]
        check_prompt(self.point, self.box, (height, width), name)
        point = self.point
        if point is None and self.box is None:
            if self.photograph.alpha is not None:
                return self.photograph.alpha
            point = (width / 2, height / 2)
        return _prompt(masker, pixels, point, self.box)


@dataclass(frozen=True, eq=False)
class OpenReference:
    """A reference whose picture and masks are read.

    Attributes:
        shown: the object.
        others: further objects in the same photograph.
    """

    shown: Shown
    others: tuple[Shown, ...]


def open_references(references: Sequence[Reference]) -> list[OpenReference]:
    """Read the pictures of references, each once, and their masks.

    Raises:
        FileNotFoundError, ValueError: a picture or mask can't be read, or their sizes differ.
    """
    photographs: dict[object, Photograph] = {}
    objects: dict[int, Shown] = {}

    def show(reference: Reference, photograph: Photograph) -> Shown:
        if id(reference) not in objects:
            mask, file = reference.mask, None
            if mask is not None:
                file = os.fsdecode(mask) if isinstance(mask, str | os.PathLike) else None
                size = (photograph.pixels.shape[0], photograph.pixels.shape[1])
                mask = read_mask(mask, photograph.name, size)
            objects[id(reference)] = Shown(photograph, mask, reference.point, reference.box, file)
        return objects[id(reference)]

    opened = []
    for each in references:
        key = identify(each)
        if key not in photographs:
            photographs[key] = read_photograph(each.image)
        others = tuple(show(other, photographs[key]) for other in each.others)
        opened.append(OpenReference(show(each, photographs[key]), others))
    return opened


def describe_references(references: Sequence[OpenReference]) -> dict[str, Any]:
    """Return JSON content of what references from photographs depend on: pixels and places."""
    digests: dict[int, tuple[Any, Any]] = {}
    pixels, alphas = [], []
    for photo in (each.shown.photograph for each in references):
        if id(photo) not in digests:
            alpha = photo.alpha is not None and digest_array(photo.alpha)
            digests[id(photo)] = [photo.pixels.shape, digest_array(photo.pixels)], alpha
        pixels.append(digests[id(photo)][0])
        alphas.append(digests[id(photo)][1])
    places = [each.shown.describe() for each in references]
    others = [sorted((other.describe() for other in each.others), key=str) for each in references]
    crop = [CROP_SHARE, CROP_MARGIN, CROP_SIDE, LEAST_CELLS]
    content = {"photographs": pixels, "alphas": alphas, "places": places, "others": others}
    return {**content, "size": PHOTO_SIZE, "crop": crop}


def cut_references(
    name: str, references: Sequence[OpenReference], models: Models
) -> ClassReferences:
    """Cut a class out of photographs, kept at PHOTO_SIZE pixels a side, and pool its features.

    Args:
        name: class name.
        references: at least one.
        models: masker and encoder are used.

    Raises:
        ValueError: there is no reference, or one of them shows no object, or only the object, or
            every object is tiny; the message names the file.
    """
    if not references:
        raise ValueError(f"references must hold at least one photograph of {name!r}, got none")
    size = (PHOTO_SIZE, PHOTO_SIZE)
    images, masks, backgrounds, prompts, names = [], [], [], [], []
    for reference in references:
        shown, photograph = reference.shown, reference.shown.photograph
        mask = shown.locate(models.masker)
        _check_object(mask, shown, name)
        background = ~mask
        for other in reference.others:
            background &= ~other.locate(models.masker)
        x0, y0, x1, y1 = window = choose_window(mask)
        part = np.s_[y0:y1, x0:x1]
        image = Image.fromarray(np.ascontiguousarray(photograph.pixels[part]))
        images.append(np.asarray(image.resize(size, Image.Resampling.BICUBIC)))
        for whole, kept in ((mask, masks), (background, backgrounds)):
            cropped = Image.fromarray(np.ascontiguousarray(whole[part]))
            kept.append(np.asarray(cropped.resize(size, Image.Resampling.NEAREST)))
        prompts.append(_place_prompts(shown, window))
        names.append(photograph.name)
    pooled = pool_prototypes(np.stack(images), np.stack(masks), np.stack(backgrounds), models)
    large = pooled.cells >= LEAST_CELLS
    for index in np.flatnonzero(~large):
        problem = (
            f"{names[index]}: the object of {name!r} covers {pooled.cells[index]:.2g} cells of the "
            f"encoder's grid, fewer than {LEAST_CELLS:.0f}"
        )
        if not large.any():
            raise ValueError(f"{problem}; give a picture in which it is larger")
        warnings.warn(f"{problem}; it is left out", ReferenceWarning, stacklevel=2)
    return ClassReferences(
        name=name,
        images=np.stack(images)[large],
        masks=np.stack(masks)[large],
        attention=np.zeros((int(large.sum()), 1, 1), np.float32),
        points=np.stack(prompts)[large],
        fallbacks=0,
        foreground=pooled.foreground[large],
        background=pooled.background[large],
        whole=pooled.whole[large],
        sources=name_sources(models, "masker", "encoder"),
    )


def choose_window(mask: Bool[np.ndarray, "H W"]) -> tuple[int, int, int, int]:
    """Return the part of a photograph that is kept (x0, y0, x1, y1): all, or around a small object.

    Args:
        mask: of the object; not empty.
    """
    height, width = mask.shape
    if mask.mean() >= CROP_SHARE:
        return 0, 0, width, height
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    longer = max(np.ptp(rows), np.ptp(columns)) + 1
    side = max(CROP_SIDE, round(CROP_MARGIN * float(longer)))
    (y0, y1), (x0, x1) = (
        _centre(int(part[0]), int(part[-1]) + 1, min(side, whole), whole)
        for part, whole in ((rows, height), (columns, width))
    )
    return x0, y0, x1, y1


def _centre(start: int, stop: int, side: int, whole: int) -> tuple[int, int]:
    """Return a range of a length around another, moved into 0..whole."""
    low = min(max((start + stop - side) // 2, 0), whole - side)
    return low, low + side


def _prompt(
    masker: Masker, pixels: UInt8[np.ndarray, "H W 3"], point: Point | None, box: Box | None
) -> Bool[np.ndarray, "H W"]:
    """Prompt a masker; one that takes no boxes gets the centre, and its mask is cut to the box."""
    points = np.array([] if point is None else [point], np.float32).reshape(-1, 2)
    if box is None:
        return np.asarray(masker.mask(pixels, points), bool)
    x0, y0, x1, y1 = corners = np.array(box, np.float32)
    if getattr(masker, "takes_boxes", False):
        prompt: Callable[..., np.ndarray] = masker.mask
        return np.asarray(prompt(pixels, points, box=corners), bool)
    if point is None:
        points = np.array([[(x0 + x1) / 2, (y0 + y1) / 2]], np.float32)
    inside = np.zeros(pixels.shape[:2], bool)
    inside[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))] = True
    return np.asarray(masker.mask(pixels, points), bool) & inside


def _check_object(mask: np.ndarray, shown: Shown, name: str) -> None:
    """Raise ValueError for a mask of nothing or everything; warn of an object of one colour."""
    photograph, pixels = shown.photograph, shown.photograph.pixels
    file, advice = photograph.name, "give its mask, a point or a box, or a clear ground"
    if shown.mask_file is not None:
        file, advice = shown.mask_file, "save it with the object white, all else black"
    if mask.shape != pixels.shape[:2]:
        raise ValueError(f"mask must have the image's size {pixels.shape[:2]}, got {mask.shape}")
    if not mask.any():
        raise ValueError(f"{file}: no foreground of {name!r}; {advice}")
    if mask.all():
        raise ValueError(
            f"{file}: no foreground of {name!r}, whose mask covers the whole picture; {advice}"
        )
    if not np.ptp(pixels[mask], axis=0).any():
        warnings.warn(
            f"{photograph.name}: the object of {name!r} is of one colour",
            ReferenceWarning,
            stacklevel=3,
        )


def _place_prompts(shown: Shown, window: tuple[int, int, int, int]) -> np.ndarray:
    """Return point and corners of the box, float32[3, 2], in pixels of the kept picture, or NaN."""
    places = np.full((3, 2), np.nan, np.float32)
    height, width = shown.photograph.pixels.shape[:2]
    if shown.point is not None:
        places[0] = shown.point
    elif shown.mask is None and shown.box is None and shown.photograph.alpha is None:
        places[0] = width / 2, height / 2
    if shown.box is not None:
        places[1:] = np.reshape(shown.box, (2, 2))
    x0, y0, x1, y1 = window
    return ((places - (x0, y0)) * PHOTO_SIZE / (x1 - x0, y1 - y0)).astype(np.float32)


def digest_array(array: np.ndarray) -> str:
    """Return the sha256 of an array's content."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
