"""A class's drawn references (Sec. 3.4): generate, localise, mask, pool."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from rimjax.files import digest, step_versions
from rimjax.models.protocols import Generated, Models, name_source
from rimjax.references.contents import ClassReferences
from rimjax.settings import ReferenceSettings
from rimjax.steps.localise import cut_foreground
from rimjax.steps.pool import average_features, resize_masks

_SUMMARY = (  # settings of the bank, not of images
    *("num_subcategories", "foreground_mask", "background_subcategories", "background_mask"),
    *("centre", "whiten"),
)


def draw_references(
    name: str,
    models: Models,
    settings: ReferenceSettings,
    drawing: Generated | None = None,
    prompts: Sequence[str] = (),
) -> ClassReferences:
    """Draw a class, cut out its foregrounds and pool their features (Sec. 3.4, Eq. 1-4).

    Args:
        name: class name.
        models: generator, masker and encoder are used.
        settings: settings of flow 1.
        drawing: images drawn earlier; None draws them.
        prompts: the class's prompts, which share the images out; none: the class's name.
    """
    drawing = drawing or _draw(name, models, settings, prompts)
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
    masks = np.stack([foreground.mask for foreground in foregrounds])
    pooled = pool_prototypes(drawing.images, masks, ~masks, models)
    return ClassReferences(
        name=name,
        images=drawing.images,
        masks=masks,
        attention=drawing.attention,
        points=points,
        fallbacks=sum(foreground.is_fallback for foreground in foregrounds),
        foreground=pooled.foreground,
        background=pooled.background,
        whole=pooled.whole,
        drawing=drawing_key(name, models, settings, prompts),
        sources=name_sources(models, "generator", "masker", "encoder"),
        prompts=tuple(prompts),
    )


def _draw(
    name: str, models: Models, settings: ReferenceSettings, prompts: Sequence[str]
) -> Generated:
    """Draw a class from its name, or from its prompts, which share the images out evenly."""
    count, seed, draw = settings.num_images, settings.seed, models.generator.generate
    if not prompts:
        return draw(name, count, seed)
    shares = [count // len(prompts) + (i < count % len(prompts)) for i in range(len(prompts))]
    drawn = [draw(prompt, share, seed) for prompt, share in zip(prompts, shares, strict=True)]
    images, attention = (
        [getattr(part, kind) for part in drawn] for kind in ("images", "attention")
    )
    return Generated(np.concatenate(images), np.concatenate(attention))


def name_sources(models: Models, *stages: str) -> dict[str, str]:
    """Return the source of each stage's model, as `ClassReferences.sources` records it."""
    return {stage: name_source(getattr(models, stage)) for stage in stages}


def drawing_key(
    name: str, models: Models, settings: ReferenceSettings, prompts: Sequence[str] = ()
) -> str:
    """Digest what a class's drawn images depend on; masker and encoder are left out."""
    return digest(
        {
            "name": name,
            "generator": models.generator.fingerprint,
            "images": settings.num_images,
            "seed": settings.seed,
            **({"prompts": list(prompts)} if prompts else {}),
            **step_versions("draw"),
        }
    )


def references_key(
    name: str,
    models: Models,
    settings: ReferenceSettings,
    prompts: Sequence[str] = (),
    photographs: Mapping[str, Any] | None = None,
) -> str:
    """Digest everything that a class's references depend on.

    That is its name, the models' weights, the steps' versions, and the drawing settings or the
    photographs.

    Args:
        name: class name.
        models: generator, masker and encoder are used.
        settings: settings of flow 1.
        prompts: the class's prompts; none: its name.
        photographs: JSON content that stands for the class's photographs; None: it is drawn.
    """
    depends: dict[str, object] = {
        "name": name,
        "masker": models.masker.fingerprint,
        "encoder": models.features,
        **step_versions("localise", "encode", "pool"),
    }
    if photographs is None:
        fields = {key: value for key, value in asdict(settings).items() if key not in _SUMMARY}
        drawing = drawing_key(name, models, settings, prompts)
        return digest({**depends, "drawing": drawing, "settings": fields})
    return digest({**depends, **photographs})


class Pooled(NamedTuple):
    """Prototypes of K images.

    Attributes:
        foreground: features pooled under the mask (Eq. 4); NaN where it covers nothing.
        background: features pooled under the background's mask; NaN likewise.
        whole: features pooled over the whole image (Table 2, row 2).
        cells: of the encoder's grid that the mask covers.
    """

    foreground: Float32[np.ndarray, "K D"]
    background: Float32[np.ndarray, "K D"]
    whole: Float32[np.ndarray, "K D"]
    cells: Float32[np.ndarray, " K"]


def pool_prototypes(
    images: UInt8[np.ndarray, "K H W 3"],
    masks: Bool[np.ndarray, "K H W"],
    backgrounds: Bool[np.ndarray, "K H W"],
    models: Models,
) -> Pooled:
    """Pool each image under its mask, under its background's mask (Eq. 4), and as a whole."""
    rows, cells = [], []
    encoded = models.encoder.encode_batch(list(images))
    for features, mask, background in zip(encoded, masks, backgrounds, strict=True):
        stack = np.stack([mask, background, np.ones_like(mask)])
        weights = resize_masks(stack, features.shape[:2], models.antialias)
        pooled, valid = (np.asarray(part) for part in average_features(features, weights))
        rows.append(np.where(valid[:, None], pooled, np.nan))
        cells.append(weights[0].sum())
    foreground, background, whole = np.stack(rows, axis=1).astype(np.float32)
    return Pooled(foreground, background, whole, np.array(cells, np.float32))
