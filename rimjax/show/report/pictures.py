"""Which images a report embeds, and how: a photograph with layers of colour to lay over it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from heapq import nlargest
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from rimjax.datasets.dataset import IGNORED
from rimjax.evaluation.run_folder import ImageResult
from rimjax.references.contents import ClassReferences
from rimjax.show import draw
from rimjax.show.report.contents import Labelled

SHOWN = 8
"""Worst images, best images, and images of a cell that the page shows at once."""

MOST_IMAGES = 300
"""A run of more images is sampled."""

IMAGE_BYTES, REFERENCE_BYTES = 10_500_000, 3_000_000
"""Space for pictures as base64, so that the page stays under 20 MB with plotly's script."""

_LONGEST, _QUALITY = 384, 82
_WRONG, _RIGHT = 1, 0
_VEIL = 120
"""Opacity, of 255, of the white over ignored pixels."""


def find_examples(
    results: Mapping[str, ImageResult], images: Sequence[str]
) -> dict[tuple[int, int], list[tuple[str, int]]]:
    """List the images with the most pixels of each cell of the confusion matrix.

    Args:
        results: image id -> result.
        images: ids of the images to choose from.

    Returns:
        (true class, predicted class) -> up to SHOWN (image id, pixels), most pixels first.
    """
    cells: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for name in images:
        for truth, prediction, pixels in results[name].cells:
            cells.setdefault((truth, prediction), []).append((name, pixels))
    return {
        cell: nlargest(SHOWN, found, key=lambda example: example[1])
        for cell, found in cells.items()
    }


def order_images(
    images: Sequence[str],
    scores: np.ndarray,
    examples: Mapping[tuple[int, int], Sequence[tuple[str, int]]],
) -> tuple[list[str], list[str], list[str]]:
    """Order images by how much they tell.

    Args:
        images: ids.
        scores: [n], mean IoU of each image, in [0, 1] or NaN.
        examples: as of `find_examples`.

    Returns:
        The worst images, at most as good as the mean, the best, above it, worst and best first, and
        the images that the page embeds, the most telling first: worst, best, one example of each
        confusion, further ones, then others.
    """
    positions: list[int] = np.argsort(scores, kind="stable").tolist()
    ranked = [images[index] for index in positions if np.isfinite(scores[index])]
    below = int((scores <= np.nanmean(scores) + 1e-9).sum()) if ranked else 0
    worst, best = ranked[:below][:SHOWN], ranked[below:][::-1][:SHOWN]
    confusions = sorted(
        (cell for cell in examples if cell[0] != cell[1]),
        key=lambda cell: -examples[cell][0][1],
    )
    order = dict.fromkeys([*worst, *best])
    for rank in range(SHOWN):
        for cell in confusions:
            if rank < len(examples[cell]):
                order[examples[cell][rank][0]] = None
    order |= dict.fromkeys(images)
    return worst, best, list(order)[:MOST_IMAGES]


def encode_image(name: str, labelled: Labelled, names: Sequence[str]) -> dict[str, Any]:
    """Encode an image and its layers for the page.

    Args:
        name: its id.
        labelled: the image and its labels.
        names: classes, the background first.

    Returns:
        JSON content: "size", "photo", "prediction", "truth" and "errors" as data URIs, the texts
        that describe them, and the classes in truth or prediction.
    """
    image = Image.fromarray(labelled.image)
    image.thumbnail((_LONGEST, _LONGEST))
    truth, prediction = (
        np.asarray(Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST))
        for labels in (labelled.truth, labelled.prediction)
    )
    counted = labelled.truth != IGNORED
    wrong = (labelled.prediction != labelled.truth) & counted
    errors = np.where(truth == IGNORED, IGNORED, np.where(prediction != truth, _WRONG, _RIGHT))
    red = np.array([[0, 0, 0], [230, 30, 30]], np.uint8)
    colours = draw.pick_colours(len(names))
    present = np.union1d(labelled.truth[counted], labelled.prediction[counted])
    share = wrong.sum() / max(1, counted.sum())
    return {
        "size": image.size,
        "photo": _encode(image, "WEBP", quality=_QUALITY),
        "prediction": _encode_layer(prediction, colours),
        "truth": _encode_layer(truth, colours),
        "errors": _encode_layer(errors.astype(np.uint8), red),
        "texts": {
            "photo": f"Image {name}",
            "prediction": f"Predicted: {_list_shares(labelled.prediction, names)}",
            "truth": f"True: {_list_shares(labelled.truth, names)}",
            "errors": f"Wrong pixels: {100 * share:.0f} %",
        },
        "classes": present.tolist(),
    }


def find_mistake(labelled: Labelled) -> tuple[int, int, tuple[int, int]] | None:
    """Find an image's largest mistake: the true and the predicted class, and a point (x, y) of it.

    The point is the one farthest from the mistake's border. None where every pixel is right.
    """
    truth, prediction = labelled.truth, labelled.prediction
    wrong = (prediction != truth) & (truth != IGNORED)
    if not wrong.any():
        return None
    codes, counts = np.unique(
        256 * truth[wrong].astype(int) + prediction[wrong], return_counts=True
    )
    true_class, named = divmod(int(codes[counts.argmax()]), 256)
    mistake = (truth == true_class) & (prediction == named)
    depth = np.asarray(ndimage.distance_transform_edt(np.pad(mistake, 1)))
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return true_class, named, (int(x) - 1, int(y) - 1)


def encode_references(groups: Iterable[ClassReferences], count: int) -> list[dict[str, Any]]:
    """Encode some references of each class for the page, as many as REFERENCE_BYTES hold.

    Args:
        groups: the classes with their pictures.
        count: number of classes.

    Returns:
        For each class its name, a line about it, the kinds of pictures, and for each image the
        pictures of these kinds as data URIs.
    """
    most = int(np.clip(160 // count, 1, 8))
    encoded, left = [], REFERENCE_BYTES
    for group in groups:
        columns = []
        for views in draw.draw_references(group, most):
            column = {kind: _encode(view, "WEBP", quality=_QUALITY) for kind, view in views.items()}
            left -= sum(map(len, column.values()))
            if left < 0:
                break
            columns.append(column)
        encoded.append(
            {
                "name": group.name,
                "line": draw.describe_references(group),
                "kinds": list(columns[0]) if columns else [],
                "images": columns,
            }
        )
    return encoded


def _list_shares(labels: np.ndarray, names: Sequence[str]) -> str:
    """List the classes in labels with their share of the pixels that aren't ignored."""
    kept = labels[labels != IGNORED]
    counts = np.bincount(kept, minlength=len(names))
    shares = [
        f"{names[index]} {100 * counts[index] / kept.size:.0f} %"
        for index in np.argsort(-counts, kind="stable")
        if counts[index]
    ]
    return ", ".join(shares) or "all ignored"


def _encode_layer(labels: np.ndarray, colours: np.ndarray) -> str:
    """Encode labels as colours over a photograph, opaque at each outline.

    Args:
        labels: uint8[H, W]; 0 is clear, 255 veiled.
        colours: uint8[C, 3].
    """
    count = len(colours)
    padded = np.pad(labels, 1, mode="edge")
    centre = np.s_[1:-1]
    edge = np.zeros(labels.shape, bool)
    for neighbour in (
        padded[:-2, centre],
        padded[2:, centre],
        padded[centre, :-2],
        padded[centre, 2:],
    ):
        edge |= neighbour != labels
    outlined = labels.copy()
    if 2 * count < IGNORED:  # indices for outlines are left
        solid = edge & (labels > 0) & (labels < count)
        outlined[solid] += count
    palette, alpha = np.full((256, 3), 255, np.uint8), np.full(256, _VEIL, np.uint8)
    palette[:count], alpha[:count] = colours, round(255 * draw.OPACITY)
    palette[count : 2 * count], alpha[count : 2 * count] = colours[: 256 - count], 255
    alpha[[0, IGNORED]], palette[IGNORED] = (0, _VEIL), 255
    layer = Image.fromarray(outlined)
    layer.putpalette(palette.tobytes())
    return _encode(layer, "PNG", transparency=alpha.tobytes(), optimize=True)


def _encode(picture: Image.Image, kind: str, **options: Any) -> str:
    """Encode a picture as a data URI."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    content = base64.b64encode(file.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{content}"
