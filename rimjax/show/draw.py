"""Draw overlays with a legend, scenes beside their truth, and contact sheets of references."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageColor, ImageDraw, ImageFont

from rimjax.images import ImageSource, read_image
from rimjax.references.contents import ClassReferences
from rimjax.types import Segmentation

GAP = 4
_COLOURS = (  # as different as colour names are
    *("#e6194b", "#3cb44b", "#ffe119", "#0082c8", "#f58230", "#911eb4", "#46f0f0", "#fabed4"),
    *("#aa6e28", "#d2f53c", "#f032e6", "#008080", "#800000", "#dcbeff", "#808000"),
)


def pick_colours(count: int) -> UInt8[np.ndarray, "C 3"]:
    """Return distinct colours, dark grey first for the background.

    From the 17th colour on, only neighbours differ clearly.
    """
    colours = [ImageColor.getrgb(name) for name in ("#404040", *_COLOURS)]
    hues = [index * 0.381966 % 1 for index in range(count - len(colours))]
    bright = [
        colorsys.hsv_to_rgb(hue, 0.85 if index % 2 else 0.6, 1.0 if index % 3 else 0.8)
        for index, hue in enumerate(hues)
    ]
    more = np.round(np.reshape(bright, (-1, 3)) * 255)
    return np.concatenate([colours, more])[:count].astype(np.uint8)


def colour_labels(labels: np.ndarray, num_classes: int) -> UInt8[np.ndarray, "H W 3"]:
    """Colour a label map; labels beyond the classes (255: ignored) are white."""
    colours = np.concatenate([pick_colours(num_classes), np.full((1, 3), 255, np.uint8)])
    return colours[np.minimum(labels, num_classes)]


def _draw_legend(names: tuple[str, ...], shown: Sequence[int], width: int) -> Image.Image:
    """Draw colour squares with class names, wrapped to a width."""
    font, colours = ImageFont.load_default(size=12), pick_colours(len(names))
    x, y, places = GAP, GAP, []
    for index in shown:
        wide = 14 + GAP + int(font.getlength(names[index])) + 2 * GAP
        if x + wide > width and x > GAP:
            x, y = GAP, y + 18
        places.append((x, y, index))
        x += wide
    sheet = Image.new("RGB", (width, y + 18), "white")
    pen = ImageDraw.Draw(sheet)
    for x, y, index in places:
        pen.rectangle((x, y, x + 12, y + 12), fill=tuple(colours[index].tolist()), outline="black")
        pen.text((x + 14 + GAP, y - 1), names[index], fill="black", font=font)
    return sheet


def _enlarge(picture: np.ndarray, least: int) -> Image.Image:
    """Enlarge a picture by a whole factor until its short side has `least` pixels."""
    image = Image.fromarray(picture)
    factor = max(1, -(-least // min(image.size)))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)


def _stack(parts: Sequence[Image.Image], across: bool = False) -> Image.Image:
    """Stack pictures in a column, or across in a row, on white with gaps."""
    sizes = [part.size if across else part.size[::-1] for part in parts]
    long, wide = (
        sum(size[0] for size in sizes) + GAP * (len(parts) - 1),
        max(size[1] for size in sizes),
    )
    sheet = Image.new("RGB", (long, wide) if across else (wide, long), "white")
    at = 0
    for part, size in zip(parts, sizes, strict=True):
        sheet.paste(part, (at, 0) if across else (0, at))
        at += size[0] + GAP
    return sheet


def _blend(image: np.ndarray, labels: np.ndarray, num_classes: int, alpha: float) -> np.ndarray:
    """Lay each class's colour over the image, opaque along its outline; darken the background."""
    padded = np.pad(labels, 1, mode="edge")
    around = (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:])
    edge = (labels > 0) & np.any([neighbour != labels for neighbour in around], axis=0)
    share = np.where(edge, 1, np.where(labels > 0, alpha, alpha / 2))[..., None]
    return (image * (1 - share) + colour_labels(labels, num_classes) * share).astype(np.uint8)


def overlay(image: ImageSource, seg: Segmentation, alpha: float = 0.55) -> Image.Image:
    """Draw an image under its segmentation, with a legend of its classes.

    Args:
        image: as of `rimjax.segment`.
        seg: from `rimjax.segment`.
        alpha: opacity of the colours in 0..1.

    Raises:
        ValueError: the sizes differ.
    """
    pixels = read_image(image)
    if pixels.shape[:2] != seg.labels.shape:
        raise ValueError(
            f"image must have the segmentation's size {seg.labels.shape}, got {pixels.shape[:2]}"
        )
    picture = _enlarge(_blend(pixels, seg.labels, len(seg.names), alpha), 384)
    return _stack([picture, _draw_legend(seg.names, np.unique(seg.labels).tolist(), picture.width)])


def comparison(
    image: np.ndarray, segs: Mapping[str, Segmentation], truth: np.ndarray
) -> Image.Image:
    """Draw image, segmentations and truth side by side, with titles and a legend.

    Args:
        image: uint8[H, W, 3].
        segs: title -> segmentation, all of the same classes.
        truth: uint8[H, W]; labels beyond the classes are ignored.
    """
    names = next(iter(segs.values())).names
    maps = {**{title: seg.labels for title, seg in segs.items()}, "truth": truth}
    views = {
        "image": image,
        **{title: _blend(image, labels, len(names), 0.55) for title, labels in maps.items()},
    }
    row = _stack(
        [_add_title(title, _enlarge(view, 256)) for title, view in views.items()], across=True
    )
    shown = np.unique(
        np.concatenate([labels[labels < len(names)].ravel() for labels in maps.values()])
    )
    return _stack([row, _draw_legend(names, shown.tolist(), row.width)])


def _add_title(title: str, picture: Image.Image, width: int = 0) -> Image.Image:
    """Put a title over a picture, on a bar at least `width` wide."""
    bar = Image.new("RGB", (max(width, picture.width), 18), "white")
    ImageDraw.Draw(bar).text((GAP, 2), title, fill="black", font=ImageFont.load_default(size=13))
    return _stack([bar, picture])


def grid(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Arrange pictures in rows of `columns`."""
    rows = [
        _stack(pictures[start : start + columns], across=True)
        for start in range(0, len(pictures), columns)
    ]
    return _stack(rows)


def contact_sheet(references: ClassReferences, most: int = 16) -> Image.Image:
    """Draw a class's references: each image, its attention map, its prompt points and its mask.

    Args:
        references: read with their pictures.
        most: number of images shown.

    Raises:
        ValueError: the references were read without their pictures.
    """
    if references.images is None or references.masks is None:
        raise ValueError("references must be read with pictures=True to be drawn")
    columns = []
    for image, mask, attention, points in zip(
        references.images, references.masks, references.attention, references.points, strict=True
    ):
        heat = (np.clip(attention / max(float(attention.max()), 1e-6), 0, 1) * 255).astype(np.uint8)
        warm = np.stack([heat, heat // 2, 255 - heat], axis=-1)
        side = (128, 128)
        dotted = Image.fromarray(image).resize(side)
        pen = ImageDraw.Draw(dotted)
        for x, y in points[np.isfinite(points).all(1)] * 128 / np.array(image.shape[1::-1]):
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill="red", outline="white")
        cut = np.where(mask[..., None], image, image // 5)
        views = [
            Image.fromarray(image).resize(side),
            Image.fromarray(warm).resize(side),
            dotted,
            Image.fromarray(cut).resize(side),
        ]
        columns.append(_stack(views))
        if len(columns) == most:
            break
    line = describe_references(references)
    return _add_title(line, grid(columns, 8), width=8 * (128 + GAP))


def describe_references(references: ClassReferences) -> str:
    """Describe a class's references in a line."""
    count = len(references.foreground)
    return f"{references.name}: {count} images, {references.fallbacks} masks from attention alone"
