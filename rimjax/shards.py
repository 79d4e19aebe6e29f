"""One class's part of a bank (paper, Sec. 3.4): generate > localise > mask > pool, or the same from a user's photographs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from rimjax.bank import Shard
from rimjax.images import read_alpha, read_image
from rimjax.localise import foreground_mask
from rimjax.models.protocols import Generated
from rimjax.pool import masked_average, resize_masks

if TYPE_CHECKING:
    from rimjax.models.protocols import Encoder, Masker
    from rimjax.presets import Models
    from rimjax.references import ReferenceSettings

PHOTO_SIZE = 512
"""Side in pixels at which a user's photographs are kept; encoders resize to their own input anyway."""


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")


def _pooled(
    name: str, images: np.ndarray, masks: np.ndarray, attention: np.ndarray, points: np.ndarray, fallbacks: int, encoder: Encoder
) -> Shard:
    """Prototypes of every image: under its mask, under the complement (Eq. 4), and over the whole image."""
    features = encoder.encode_batch(list(images))
    grid = features.shape[1:3]
    prototypes = {"foreground": [], "background": [], "whole": []}
    for feature, mask in zip(features, masks, strict=True):
        weights = resize_masks(np.stack([mask, ~mask, np.ones_like(mask)]), grid)
        average, valid = masked_average(feature, weights)
        for kind, row, usable in zip(prototypes, np.asarray(average), np.asarray(valid), strict=True):
            prototypes[kind].append(row if usable else np.full_like(row, np.nan))
    return Shard(
        name=name,
        images=images,
        masks=masks,
        attention=attention,
        points=points,
        fallbacks=fallbacks,
        foreground=np.stack(prototypes["foreground"]).astype(np.float32),
        background=np.stack(prototypes["background"]).astype(np.float32),
        whole=np.stack(prototypes["whole"]).astype(np.float32),
    )


def generated_shard(name: str, models: Models, settings: ReferenceSettings, drawn: Generated | None = None) -> Shard:
    """Draw a class, or take what was drawn before; cut out its foregrounds and pool their features (Sec. 3.4, Eq. 1-4)."""
    drawn = drawn or models.generator.generate(name, settings.num_images, settings.seed)
    cut = [
        foreground_mask(
            image,
            attention,
            models.masker,
            threshold=settings.threshold,
            num_points=settings.num_points,
            rng=np.random.default_rng((_seed(settings.seed, name), index)),
        )
        for index, (image, attention) in enumerate(zip(drawn.images, drawn.attention, strict=True))
    ]
    points = np.full((len(cut), settings.num_points, 2), np.nan, np.float32)
    for row, one in zip(points, cut, strict=True):
        row[: len(one.points)] = one.points
    masks = np.stack([one.mask for one in cut])
    made = _pooled(name, drawn.images, masks, drawn.attention, points, sum(one.fell_back for one in cut), models.encoder)
    return replace(made, drawing=drawing_key(name, models, settings))


def photo_mask(source: str | Path | np.ndarray, image: np.ndarray, masker: Masker, point: tuple[float, float] | None) -> np.ndarray:
    """A photograph's foreground: its alpha if it has one, else SAM's mask from a point xy (default: the centre)."""
    alpha = read_alpha(source)
    if alpha is not None and point is None:
        return alpha
    height, width = image.shape[:2]
    xy = np.array([point or (width / 2, height / 2)], np.float32)
    if not (0 <= xy[0, 0] < width and 0 <= xy[0, 1] < height):
        raise ValueError(f"point: {tuple(xy[0].tolist())} lies outside the {width}x{height} image {source}")
    return masker.mask(image, xy)


def photo_shard(
    name: str, photos: Sequence[str | Path | np.ndarray], models: Models, points: Sequence[tuple[float, float]] | None = None
) -> Shard:
    """A class from one or more photographs of the user's, kept at PHOTO_SIZE pixels a side.

    Args: as of `build_bank`; of the models the masker and the encoder are used.
    """
    if not photos:
        raise ValueError(f"references: no photographs given for {name!r}")
    if points is not None and len(points) != len(photos):
        raise ValueError(f"points: expected one for each of the {len(photos)} photographs of {name!r}, got {len(points)}")
    images, masks, places = [], [], []
    for index, photo in enumerate(photos):
        image = read_image(photo)
        point = points[index] if points is not None else None
        mask = photo_mask(photo, image, models.masker, point)
        if not mask.any() or mask.all():
            raise ValueError(f"{photo}: no foreground found for {name!r}; give `points`, or a transparent ground")
        images.append(np.asarray(Image.fromarray(image).resize((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.BICUBIC)))
        masks.append(np.asarray(Image.fromarray(mask).resize((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.NEAREST)))
        middle = np.array(point or (image.shape[1] / 2, image.shape[0] / 2), np.float32)
        places.append(middle * PHOTO_SIZE / np.array([image.shape[1], image.shape[0]], np.float32))
    nothing = np.zeros((len(images), 1, 1), np.float32)
    return _pooled(name, np.stack(images), np.stack(masks), nothing, np.stack(places)[:, None], 0, models.encoder)


def drawing_key(name: str, models: Models, settings: ReferenceSettings) -> str:
    """A digest of what a class's synthetic images depend on, masker and encoder left out."""
    return _digest({"name": name, "generator": models.generator.fingerprint, "images": settings.num_images, "seed": settings.seed})


def shard_key(
    name: str, models: Models, settings: ReferenceSettings, photos: Sequence[str | Path | np.ndarray] | None = None, points: object = None
) -> str:
    """A digest of everything that a class's shard depends on: name, models' weights and settings, drawing settings or photographs."""
    depends: dict[str, object] = {"name": name, "masker": models.masker.fingerprint, "encoder": models.encoder.fingerprint}
    if photos is None:
        summary = ("num_subcategories", "foreground_mask", "whiten")  # what a bank does with its shards
        drawing = {key: value for key, value in asdict(settings).items() if key not in summary}
        depends |= {"generator": models.generator.fingerprint, "settings": drawing}
    else:
        depends |= {"photos": [hashlib.sha256(read_image(photo).tobytes()).hexdigest() for photo in photos], "points": points}
        depends["alpha"] = [alpha is not None and hashlib.sha256(alpha.tobytes()).hexdigest() for alpha in map(read_alpha, photos)]
    return _digest(depends)


def _digest(depends: dict[str, object]) -> str:
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:20]
