"""A reference of one's own: a picture, and where the object is in it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rimjax.images import ImageSource
from rimjax.match.checks import describe

Point = tuple[float, float]
"""x and y in pixels of the upright picture."""

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the upright picture: its left, top, right and bottom edge."""


class ReferenceWarning(UserWarning):
    """A reference is left out, or shows hardly anything."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A picture of a class, and where the object is in it.

    Without mask, point and box the object is under the mask beside the picture (`mug.png` for the
    photograph `mug.jpg`), else where the picture is opaque, else what SAM finds at its centre.

    Attributes:
        image: a path, a file object or its bytes, a PIL image or an array, as of `read_image`.
        mask: a picture of the same size whose non-zero values are the object: as `image`, or an
            array [H, W] of booleans or integers.
        point: a point (x, y) on the object, in pixels.
        box: a box (x0, y0, x1, y1) around the object, in pixels. SAM takes it as a prompt; a SAM
            that wasn't trained on boxes, such as mini's, takes its centre, and the mask is cut to
            the box.
        others: further objects in the same picture, which are no background. The references of a
            bank in one picture are each other's in any case.

    Raises:
        ValueError: a mask comes with a point or box, or a point or box isn't of numbers.
    """

    image: ImageSource
    mask: Any = None
    point: Point | None = None
    box: Box | None = None
    others: tuple[Reference, ...] = ()

    def __post_init__(self) -> None:
        if self.mask is not None and self.has_prompt:
            raise ValueError("mask must be given without point and box, got both; leave one out")
        if self.point is not None:
            point = _read_numbers("point", self.point, "(x, y)", 2)
            object.__setattr__(self, "point", point)
        if self.box is not None:
            box = _read_numbers("box", self.box, "(x0, y0, x1, y1)", 4)
            if not (box[0] < box[2] and box[1] < box[3]):
                raise ValueError(
                    f"box must be (x0, y0, x1, y1) with x0 < x1 and y0 < y1, got {box}; give its "
                    "left, top, right and bottom edge"
                )
            object.__setattr__(self, "box", box)
        if not all(isinstance(other, Reference) for other in self.others):
            raise ValueError(
                "others must be References of the same picture, e.g. (Reference(...),)"
            )

    @property
    def has_prompt(self) -> bool:
        """Whether there is a point or a box."""
        return self.point is not None or self.box is not None


def _read_numbers(name: str, value: Any, form: str, count: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(number) for number in value) if isinstance(value, Iterable) else ()
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != count or not np.isfinite(numbers).all():
        shown = numbers if 0 < len(numbers) <= 8 else describe(value)
        raise ValueError(f"{name} must be {form} in pixels, got {shown}")
    return numbers


def check_prompt(
    point: Point | None, box: Box | None, size: tuple[int, int], picture: object
) -> None:
    """Raise ValueError where a point or box lies outside a picture.

    Args:
        point: x and y, or None.
        box: x0, y0, x1 and y1, or None.
        size: height and width of the picture.
        picture: its name.
    """
    height, width = size
    if box is not None and (box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height):
        raise ValueError(f"box must lie in the {width}x{height} image {picture}, got {box}")
    if point is not None and not (0 <= point[0] < width and 0 <= point[1] < height):
        raise ValueError(f"points must lie in the {width}x{height} image {picture}, got {point}")
