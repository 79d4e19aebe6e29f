"""What a visitor of the page does: references, a segmentation, an explanation; without any page."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rimjax.images import ImageSource, read_image
from rimjax.models.protocols import Models
from rimjax.pipeline import segment
from rimjax.references.build import assemble_bank, build_references
from rimjax.references.contents import Manifest
from rimjax.references.reference import Point, Reference
from rimjax.results import Segmentation
from rimjax.show import draw
from rimjax.show.explain import Explanation, explain
from rimjax.types import ReferenceBank

MOST_PHOTOGRAPHS = 64
LARGEST = 2048
"""Longest side, in pixels, of the images that the page works on; larger ones are made smaller."""
MOST_PIXELS = 64_000_000
"""Pixels that a picture may have, since all of them are decoded before it is made smaller."""


class CancelledError(Exception):
    """The visitor has cancelled the work."""


@dataclass
class Bank:
    """A bank, and the manifest that leads to its references."""

    bank: ReferenceBank
    manifest: Manifest


Photographs = tuple[tuple[str, np.ndarray, Point], ...]
"""Class, image and point on the object of each."""


@dataclass
class Session:
    """A visitor's photographs, bank and segmentation.

    `start` and `cancel` may be called from another thread than the one that segments.

    Attributes:
        models: from `load_preset`, which all visitors share.
        cache_dir: folder that keeps banks.
        photographs: the visitor's own; another tuple after each change, which marks banks made of
            the photographs before.
    """

    models: Models
    cache_dir: Path | None = None
    photographs: Photographs = ()
    _bank: tuple[list[str], Photographs, Bank] | None = None  # and what it was made of
    _shown: tuple[np.ndarray, Segmentation, Bank] | None = None
    _image: str | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _started: bool = False

    def start(self, image: str | None = None) -> None:
        """Announce a call of `segment`, which `cancel` stops from now on, even before it begins.

        What is shown is forgotten.

        Args:
            image: path of the image.
        """
        self._image, self._shown, self._started = image, None, True
        self._cancelled = threading.Event()  # work before may have to see that it is cancelled

    def cancel(self) -> bool:
        """Stop the work before its next class or stage; until `start`, none begins.

        Returns:
            Whether there is any.
        """
        self._cancelled.set()
        return self._started

    def choose(self, image: str | None) -> bool:
        """Forget what is shown of another image than this one, and cancel the work on it.

        Args:
            image: path of the image that is chosen now; None: none is.

        Returns:
            Whether it is another one.
        """
        if image == self._image:
            return False
        self.cancel()
        self._image, self._shown = image, None
        return True

    def add_photograph(self, name: str, image: ImageSource | None, point: Point | None) -> None:
        """Add a photograph of a class.

        Args:
            name: the class.
            image: as of `rimjax.segment`.
            point: x and y of a place on the object, in pixels of `limit_size(image)`.

        Raises:
            ValueError: an argument is missing, the image can't be read, the photograph is there
                already with this point, or there are too many.
        """
        if image is None:
            raise ValueError("Choose a photograph first.")
        if not name.strip():
            raise ValueError("Name the class that the photograph shows.")
        if point is None:
            raise ValueError("Click on the object in the photograph.")
        if len(self.photographs) >= MOST_PHOTOGRAPHS:
            raise ValueError(f"There are {MOST_PHOTOGRAPHS} photographs; clear them first.")
        pixels = read_picture(image)
        height, width = pixels.shape[:2]
        if not (0 <= point[0] < width and 0 <= point[1] < height):
            raise ValueError("Click on the object in the photograph.")
        for old, there, place in self.photographs:
            if place == point and np.array_equal(there, pixels):
                raise ValueError(f"This photograph, with this point, is there already as {old!r}.")
        self.photographs = (*self.photographs, (name.strip(), pixels, point))

    def clear_photographs(self) -> None:
        self.photographs = ()

    def draw_photographs(self) -> list[tuple[Image.Image, str]]:
        """Return the photographs with a dot on their objects, and their classes."""
        return [(draw.dot(pixels, place), name) for name, pixels, place in self.photographs]

    def segment(
        self, image: ImageSource | None, classes: str, report: Any = lambda done, text: None
    ) -> Segmentation:
        """Segment an image into classes to draw and the photographs' classes.

        What was shown before is forgotten, whether or not this succeeds.

        Args:
            image: as of `rimjax.segment`.
            classes: names of classes to draw, comma-separated.
            report: receives the share that is done, and what is being done.

        Raises:
            ValueError: an input is missing or can't be used.
            CancelledError: `cancel` was called since `start`.
        """
        self._shown = None
        cancelled = self._cancelled
        try:
            _stop_if(cancelled)
            if image is None:
                raise ValueError("Choose an image first.")
            pixels = read_picture(image)
            names = [name.strip() for name in classes.split(",") if name.strip()]
            bank = self._open_bank(names, report, cancelled)
            _stop_if(cancelled)
            report(0.9, "segmenting")
            seg = segment(pixels, bank.bank, self.models)
            _stop_if(cancelled)
            self._shown = pixels, seg, bank
            return seg
        finally:
            if cancelled is self._cancelled:  # no other work has been announced meanwhile
                self._started = False

    def draw_overlay(self, opacity: float) -> Image.Image | None:
        """Draw the segmentation over its image; None before there is any."""
        if self._shown is None:
            return None
        pixels, seg, _ = self._shown
        return draw.overlay(pixels, seg, opacity)

    def explain(self, place: tuple[int, int]) -> tuple[Explanation, Image.Image]:
        """Explain the region at a place of the overlay, as data and as a picture.

        Args:
            place: x and y in pixels of `draw_overlay`.

        Raises:
            ValueError: there is no segmentation, or no region there.
        """
        if self._shown is None:
            raise ValueError("Segment an image first.")
        pixels, seg, bank = self._shown
        height, width = seg.labels.shape
        factor = draw.find_factor(pixels)
        x, y = place[0] // factor, place[1] // factor
        if not (x < width and y < height):
            raise ValueError("Click on the picture, above the legend.")
        explained = explain(seg, (x, y), bank.bank, self.models, references=bank.manifest)
        return explained, draw.explanation(pixels, explained)

    def _open_bank(self, names: Sequence[str], report: Any, cancelled: threading.Event) -> Bank:
        photographs = self.photographs  # the visitor may change them meanwhile
        if not names and not photographs:
            raise ValueError("Name a class, or add a photograph of one.")
        own: dict[str, list[Reference]] = {}
        for name, pixels, point in photographs:
            own.setdefault(name, []).append(Reference(pixels, point=point))
        drawn = [name for name in names if name not in own]
        if self._bank is not None:
            names_before, photographs_before, bank = self._bank
            if names_before == drawn and photographs_before is photographs:
                return bank

        def show(classes: Iterable[str]) -> Iterator[str]:
            listed = list(classes)
            for index, name in enumerate(listed):
                _stop_if(cancelled)
                report(0.9 * index / len(listed), f"references of {name}")
                yield name

        manifest, groups = build_references(
            drawn, self.models, cache_dir=self.cache_dir, references=own, progress=show
        )
        bank = Bank(assemble_bank(groups, self.models.references, self.models.features), manifest)
        self._bank = drawn, photographs, bank
        return bank


def _stop_if(cancelled: threading.Event) -> None:
    if cancelled.is_set():
        raise CancelledError


def read_picture(image: ImageSource) -> np.ndarray:
    """Read a picture that a visitor gives, at most `LARGEST` in length: uint8[H, W, 3].

    Args:
        image: as of `rimjax.segment`; only a path's pixels are counted before they are decoded.

    Raises:
        ValueError: it can't be read, or has more than `MOST_PIXELS` pixels.
        FileNotFoundError: there is no such image.
    """
    if isinstance(image, str | Path):
        _check_pixels(Path(image))
    return limit_size(read_image(image))


def _check_pixels(path: Path) -> None:
    """Raise ValueError for a file that says it has too many pixels."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
    except Image.DecompressionBombError:
        width = height = MOST_PIXELS
    except Exception:  # `read_image` says what is wrong with it
        return
    if width * height > MOST_PIXELS:
        raise ValueError(
            f"{path}: has more than {MOST_PIXELS // 10**6} million pixels; make it smaller, it is "
            f"worked on at {LARGEST:,} pixels a side at most"
        )


def limit_size(pixels: np.ndarray) -> np.ndarray:
    """Make an image smaller whose longest side exceeds `LARGEST`."""
    longest = max(pixels.shape[:2])
    if longest <= LARGEST:
        return pixels
    height, width = (max(1, round(side * LARGEST / longest)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
