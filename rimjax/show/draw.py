"""Draw overlays with a legend, scenes beside their truth, and contact sheets of references."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy import ndimage

from rimjax.images import ImageSource, read_image
from rimjax.references.contents import ClassReferences
from rimjax.results import Segmentation
from rimjax.show.colours import colour_labels as colour_labels
from rimjax.show.colours import colour_names as colour_names
from rimjax.show.colours import pick_colours as pick_colours
from rimjax.show.plot import explanation as explanation

GAP, LEAST_SIDE, LONGEST_SIDE = 4, 384, 4096
OPACITY, DIMMED = 0.55, 0.35


def _draw_legend(
    names: tuple[str, ...], shown: Sequence[int], width: int, scale: float = 1
) -> Image.Image:
    """Draw colour squares with class names, wrapped to a width; `scale` 1 is 12 pixels high."""
    side, gap, line = (round(scale * pixels) for pixels in (12, GAP, 18))
    font, colours = ImageFont.load_default(size=12 * scale), colour_names(names)
    x, y, places = gap, gap, []
    for index in shown:
        wide = side + gap + int(font.getlength(names[index])) + 3 * gap
        if x + wide > width and x > gap:
            x, y = gap, y + line
        places.append((x, y, index))
        x += wide
    sheet = Image.new("RGB", (width, y + line), "white")
    pen = ImageDraw.Draw(sheet)
    for x, y, index in places:
        square = (x, y, x + side, y + side)
        fill = tuple(colours[index].tolist())
        pen.rectangle(square, fill=fill, outline="black", width=max(1, round(scale)))
        pen.text((x + side + gap, y - round(scale)), names[index], fill="black", font=font)
    return sheet


def find_factor(picture: np.ndarray, least: int = LEAST_SIDE) -> int:
    """Return the whole factor by which `overlay` enlarges a picture [H, W, 3]."""
    sides = picture.shape[:2]
    return max(1, min(-(-least // min(sides)), LONGEST_SIDE // max(sides)))


def _enlarge(picture: np.ndarray, least: int) -> Image.Image:
    """Enlarge a picture by a whole factor until its short side has `least` pixels.

    A long side beyond LONGEST_SIDE isn't made.
    """
    image, factor = Image.fromarray(picture), find_factor(picture, least)
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


def _blend(
    picture: Image.Image,
    labels: np.ndarray,
    names: Sequence[str],
    alpha: float,
    ids: np.ndarray | None = None,
) -> Image.Image:
    """Lay the classes' colours over a picture without its own, opaque along each outline.

    The background is dimmed, so every colour that is seen is a class's.

    Args:
        picture: a whole factor larger than `labels`.
        labels: [H, W]; beyond the classes they are white.
        names: of the C classes.
        alpha: opacity of the colours.
        ids: [H, W], what is outlined; the labels by default.
    """
    size, factor = picture.size, picture.width // labels.shape[1]
    shown, parts = (
        np.minimum(values.astype(np.int32), most)
        .astype(np.uint16)
        .repeat(factor, 0)
        .repeat(factor, 1)
        for values, most in ((labels, len(names)), (labels if ids is None else ids, 65535))
    )
    width = 1 + 2 * round(_find_scale(picture))
    lowest, highest = (
        filter_1d(filter_1d(parts, width, axis=0), width, axis=1)
        for filter_1d in (ndimage.minimum_filter1d, ndimage.maximum_filter1d)
    )
    colours = Image.fromarray(colour_labels(shown, names))
    grey = ImageOps.grayscale(picture).convert("RGB")
    tinted = Image.blend(grey, colours, alpha)
    dimmed = Image.blend(grey, Image.new("RGB", size), DIMMED)
    result = Image.composite(tinted, dimmed, Image.fromarray(shown > 0))
    result.paste(colours, mask=Image.fromarray((lowest != highest) & (shown > 0)))
    return result


def _find_scale(picture: Image.Image) -> float:
    """Return the scale of lines and letters: 1 for a picture of 384 pixels on its short side."""
    return max(1.0, min(picture.size) / LEAST_SIDE)


def overlay(image: ImageSource, seg: Segmentation, alpha: float = OPACITY) -> Image.Image:
    """Draw an image in grey under the colours of its segmentation, with a legend of its classes.

    Lines and letters scale with the image; a small image is enlarged.

    Args:
        image: as of `rimjax.segment`.
        seg: from `rimjax.segment`.
        alpha: opacity of the colours in 0..1; outlines are always opaque.

    Raises:
        ValueError: the sizes differ, or `alpha` is out of range.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"opacity must be from 0 to 1, got {alpha}")
    pixels = read_image(image)
    if pixels.shape[:2] != seg.labels.shape:
        raise ValueError(
            f"image must have the segmentation's size {seg.labels.shape}, got {pixels.shape[:2]}"
        )
    picture = _blend(_enlarge(pixels, LEAST_SIDE), seg.labels, seg.names, alpha, seg.id_map)
    present, scale = np.unique(seg.labels).tolist(), _find_scale(picture)
    return _stack([picture, _draw_legend(seg.names, present, picture.width, scale)])


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
    picture = _enlarge(image, 256)
    views = {
        "image": picture,
        **{title: _blend(picture, labels, names, OPACITY) for title, labels in maps.items()},
    }
    row = _stack([_add_title(title, view) for title, view in views.items()], across=True)
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


def draw_references(references: ClassReferences, most: int = 16) -> list[dict[str, Image.Image]]:
    """Draw each image of a class with what was found in it.

    Args:
        references: read with their pictures.
        most: number of images drawn.

    Returns:
        Of each image: "image", "attention" (not of photographs), "points" (of photographs with a
        box around the object) and "mask" -> a picture of 128x128 pixels.

    Raises:
        ValueError: the references were read without their pictures.
    """
    if references.images is None or references.masks is None:
        raise ValueError("references must be read with pictures=True to be drawn")
    drawn, photographs, side = [], _are_photographs(references), (128, 128)
    for image, mask, attention, points in zip(
        references.images[:most],
        references.masks[:most],
        references.attention[:most],
        references.points[:most],
        strict=True,
    ):
        heat = (np.clip(attention / max(float(attention.max()), 1e-6), 0, 1) * 255).astype(np.uint8)
        warm = np.stack([heat, heat // 2, 255 - heat], axis=-1)
        dotted = Image.fromarray(image).resize(side)
        pen = ImageDraw.Draw(dotted)
        places = points * 128 / np.array(image.shape[1::-1])
        if photographs and np.isfinite(places[1:]).all():
            pen.rectangle(places[1:].ravel().tolist(), outline="red", width=2)
            places = places[:1]
        for x, y in places[np.isfinite(places).all(1)]:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), fill="red", outline="white")
        cut = np.where(mask[..., None], image, image // 5)
        views = {
            "image": Image.fromarray(image).resize(side),
            "attention": Image.fromarray(warm).resize(side),
            "points": dotted,
            "mask": Image.fromarray(cut).resize(side),
        }
        if photographs:
            del views["attention"]
        drawn.append(views)
    return drawn


def contact_sheet(references: ClassReferences, most: int = 16) -> Image.Image:
    """Draw a class's references: each image, its attention map, its prompt points and its mask.

    Photographs have no attention map; a box is drawn around the object.

    Args:
        references: read with their pictures.
        most: number of images shown.

    Raises:
        ValueError: the references were read without their pictures.
    """
    columns = [_stack(list(views.values())) for views in draw_references(references, most)]
    line = describe_references(references)
    return _add_title(line, grid(columns, 8), width=8 * (128 + GAP))


def dot(picture: np.ndarray, place: tuple[float, float]) -> Image.Image:
    """Draw a red dot at (x, y) in pixels of a picture uint8[H, W, 3]."""
    image = Image.fromarray(picture)
    radius = max(2, min(image.size) / 40)
    (x, y), pen = place, ImageDraw.Draw(image)
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill="red", outline="white")
    return image


def describe_references(references: ClassReferences) -> str:
    """Describe a class's references in a line."""
    count = len(references.foreground)
    if _are_photographs(references):
        return f"{references.name}: {count} photograph{'s' if count != 1 else ''}"
    return f"{references.name}: {count} images, {references.fallbacks} masks from attention alone"


def _are_photographs(references: ClassReferences) -> bool:
    """Return whether references weren't drawn: their attention is zero, though not left out."""
    return references.attention.size > 0 and not references.attention.any()
