"""A class's references (Sec. 3.4): generate, localise, mask, pool; or the same from photographs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
from PIL import Image

from rimjax.files import digest, step_versions
from rimjax.images import Photograph
from rimjax.models.protocols import Generated, Masker, Models, name_source
from rimjax.references.contents import ClassReferences
from rimjax.settings import ReferenceSettings
from rimjax.steps.localise import cut_foreground
from rimjax.steps.pool import average_features, resize_masks

PHOTO_SIZE = 512
"""Side in pixels at which photographs are kept; encoders resize to their own input anyway."""

Point = tuple[float, float]
_SUMMARY = (  # settings of the bank, not of images
    *("num_subcategories", "foreground_mask", "background_subcategories", "background_mask"),
    *("centre", "whiten"),
)


def draw_references(
    name: str, models: Models, settings: ReferenceSettings, drawing: Generated | None = None
) -> ClassReferences:
    """Draw a class, cut out its foregrounds and pool their features (Sec. 3.4, Eq. 1-4).

    Args:
        name: class name.
        models: generator, masker and encoder are used.
        settings: settings of flow 1.
        drawing: images drawn earlier; None draws them.
    """
    drawing = drawing or models.generator.generate(name, settings.num_images, settings.seed)
    seed = int(hashlib.sha256(f"{settings.seed}/{name}".encode()).hexdigest()[:8], 16)
    foregrounds = [
        cut_foreground(
            image,
            attention,
            models.masker.mask,
            threshold=settings.threshold,
            num_points=settings.num_points,
            rng=np.random.default_rng((seed, index)),
        )
        for index, (image, attention) in enumerate(
            zip(drawing.images, drawing.attention, strict=True)
        )
    ]
    points = np.full((len(foregrounds), settings.num_points, 2), np.nan, np.float32)
    for row, foreground in zip(points, foregrounds, strict=True):
        row[: len(foreground.points)] = foreground.points
    references = _pool_prototypes(
        name,
        drawing.images,
        np.stack([foreground.mask for foreground in foregrounds]),
        drawing.attention,
        points,
        models,
    )
    return replace(
        references,
        fallbacks=sum(foreground.is_fallback for foreground in foregrounds),
        drawing=drawing_key(name, models, settings),
        sources={"generator": name_source(models.generator), **references.sources},
    )


def cut_photographs(
    name: str,
    photographs: Sequence[Photograph],
    models: Models,
    points: Sequence[Point] | None = None,
) -> ClassReferences:
    """Cut a class out of photographs, kept at PHOTO_SIZE pixels a side, and pool its features.

    Args:
        name: class name.
        photographs: at least one.
        models: masker and encoder are used.
        points: a point (x, y) on the object in each photograph; default: its alpha, or its centre.

    Raises:
        ValueError: no photographs, another number of points, or a photograph without a foreground.
    """
    if not photographs:
        raise ValueError(f"references must hold at least one photograph of {name!r}, got none")
    if points is not None and len(points) != len(photographs):
        raise ValueError(
            f"points must hold one point for each of the {len(photographs)} photographs of "
            f"{name!r}, got {len(points)}"
        )
    size = (PHOTO_SIZE, PHOTO_SIZE)
    images, masks, prompts = [], [], []
    for photograph, point in zip(photographs, points or [None] * len(photographs), strict=True):
        mask = _cut_photograph(photograph, models.masker, point)
        if not mask.any() or mask.all():
            raise ValueError(
                f"{photograph.name}: no foreground of {name!r}; give points or a clear ground"
            )
        image = Image.fromarray(photograph.pixels).resize(size, Image.Resampling.BICUBIC)
        images.append(np.asarray(image))
        masks.append(np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST)))
        width_height = np.array(photograph.pixels.shape[1::-1], np.float32)
        prompt = width_height / 2 if point is None else np.array(point, np.float32)
        if point is None and photograph.alpha is not None:
            prompt = np.full(2, np.nan, np.float32)  # its alpha is the mask
        prompts.append(prompt * PHOTO_SIZE / width_height)
    attention = np.zeros((len(images), 1, 1), np.float32)
    return _pool_prototypes(
        name,
        np.stack(images),
        np.stack(masks),
        attention,
        np.stack(prompts)[:, None],
        models,
    )


def drawing_key(name: str, models: Models, settings: ReferenceSettings) -> str:
    """Digest what a class's drawn images depend on; masker and encoder are left out."""
    return digest(
        {
            "name": name,
            "generator": models.generator.fingerprint,
            "images": settings.num_images,
            "seed": settings.seed,
            **step_versions("draw"),
        }
    )


def references_key(
    name: str,
    models: Models,
    settings: ReferenceSettings,
    photographs: Sequence[Photograph] | None = None,
    points: Sequence[Point] | None = None,
) -> str:
    """Digest everything that a class's references depend on.

    That is its name, the models' weights, the steps' versions, and the drawing settings or the
    photographs' pixels.
    """
    depends: dict[str, object] = {
        "name": name,
        "masker": models.masker.fingerprint,
        "encoder": models.features,
        **step_versions("localise", "encode", "pool"),
    }
    if photographs is None:
        fields = {key: value for key, value in asdict(settings).items() if key not in _SUMMARY}
        depends |= {"drawing": drawing_key(name, models, settings), "settings": fields}
    else:
        pixels = [[photo.pixels.shape, _digest_array(photo.pixels)] for photo in photographs]
        alphas = [photo.alpha is not None and _digest_array(photo.alpha) for photo in photographs]
        depends |= {"photographs": pixels, "alphas": alphas, "points": points, "size": PHOTO_SIZE}
    return digest(depends)


def _digest_array(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()


def _cut_photograph(photograph: Photograph, masker: Masker, point: Point | None) -> np.ndarray:
    if photograph.alpha is not None and point is None:
        return photograph.alpha
    height, width = photograph.pixels.shape[:2]
    xy = np.array([(width / 2, height / 2) if point is None else point], np.float32)
    if not (0 <= xy[0, 0] < width and 0 <= xy[0, 1] < height):
        raise ValueError(
            f"points must lie in the {width}x{height} image {photograph.name}, "
            f"got {tuple(xy[0].tolist())}"
        )
    return masker.mask(photograph.pixels, xy)


def _pool_prototypes(
    name: str,
    images: np.ndarray,
    masks: np.ndarray,
    attention: np.ndarray,
    points: np.ndarray,
    models: Models,
) -> ClassReferences:
    """Pool each image under its mask, under the complement (Eq. 4), and as a whole."""
    rows = []
    for features, mask in zip(models.encoder.encode_batch(list(images)), masks, strict=True):
        stack = np.stack([mask, ~mask, np.ones_like(mask)])
        weights = resize_masks(stack, features.shape[:2], models.antialias)
        pooled, valid = (np.asarray(part) for part in average_features(features, weights))
        rows.append(np.where(valid[:, None], pooled, np.nan))
    foreground, background, whole = np.stack(rows, axis=1).astype(np.float32)
    return ClassReferences(
        name=name,
        images=images,
        masks=masks,
        attention=attention,
        points=points,
        fallbacks=0,
        foreground=foreground,
        background=background,
        whole=whole,
        sources={stage: name_source(getattr(models, stage)) for stage in ("masker", "encoder")},
    )
