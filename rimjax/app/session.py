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


class CancelledError(Exception):
    """The visitor has cancelled the work."""


@dataclass
class Bank:
    """A bank, and the manifest that leads to its references."""

    bank: ReferenceBank
    manifest: Manifest


@dataclass
class Session:
    """A visitor's photographs, bank and segmentation.

    Attributes:
        models: from `load_preset`, which all visitors share.
        cache_dir: folder that keeps banks.
        photographs: (class, image, point on the object).
    """

    models: Models
    cache_dir: Path | None = None
    photographs: list[tuple[str, np.ndarray, Point]] = field(default_factory=list)
    _bank: tuple[list[str], Bank] | None = None  # of the photographs, and the classes drawn
    _shown: tuple[np.ndarray, Segmentation, Bank] | None = None
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Stop the work before its next class or stage."""
        self._cancelled.set()

    def add_photograph(self, name: str, image: ImageSource | None, point: Point | None) -> None:
        """Add a photograph of a class.

        Args:
            name: the class.
            image: as of `rimjax.segment`.
            point: x and y of a place on the object, in pixels of `limit_size(image)`.

        Raises:
            ValueError: an argument is missing, the image can't be read, or there are too many.
        """
        if image is None:
            raise ValueError("Choose a photograph first.")
        if not name.strip():
            raise ValueError("Name the class that the photograph shows.")
        if point is None:
            raise ValueError("Click on the object in the photograph.")
        if len(self.photographs) >= MOST_PHOTOGRAPHS:
            raise ValueError(f"There are {MOST_PHOTOGRAPHS} photographs; clear them first.")
        pixels = limit_size(read_image(image))
        height, width = pixels.shape[:2]
        if not (0 <= point[0] < width and 0 <= point[1] < height):
            raise ValueError("Click on the object in the photograph.")
        self.photographs.append((name.strip(), pixels, point))
        self._bank = None

    def clear_photographs(self) -> None:
        self.photographs.clear()
        self._bank = None

    def draw_photographs(self) -> list[tuple[Image.Image, str]]:
        """Return the photographs with a dot on their objects, and their classes."""
        return [(draw.dot(pixels, place), name) for name, pixels, place in self.photographs]

    def segment(
        self, image: ImageSource | None, classes: str, report: Any = lambda done, text: None
    ) -> Segmentation:
        """Segment an image into classes to draw and the photographs' classes.

        Args:
            image: as of `rimjax.segment`.
            classes: names of classes to draw, comma-separated.
            report: receives the share that is done, and what is being done.

        Raises:
            ValueError: an input is missing or can't be used.
            CancelledError: `cancel` was called meanwhile.
        """
        self._cancelled.clear()
        if image is None:
            raise ValueError("Choose an image first.")
        pixels = limit_size(read_image(image))
        names = [name.strip() for name in classes.split(",") if name.strip()]
        if not names and not self.photographs:
            raise ValueError("Name a class, or add a photograph of one.")
        bank = self._open_bank(names, report)
        self._stop_if_cancelled()
        report(0.9, "segmenting")
        seg = segment(pixels, bank.bank, self.models)
        self._stop_if_cancelled()
        self._shown = pixels, seg, bank
        return seg

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

    def _open_bank(self, names: Sequence[str], report: Any) -> Bank:
        own: dict[str, list[Reference]] = {}
        for name, pixels, point in self.photographs:
            own.setdefault(name, []).append(Reference(pixels, point=point))
        drawn = [name for name in names if name not in own]
        if self._bank is not None and self._bank[0] == drawn:
            return self._bank[1]

        def show(classes: Iterable[str]) -> Iterator[str]:
            listed = list(classes)
            for index, name in enumerate(listed):
                self._stop_if_cancelled()
                report(0.9 * index / len(listed), f"references of {name}")
                yield name

        manifest, groups = build_references(
            drawn, self.models, cache_dir=self.cache_dir, references=own, progress=show
        )
        bank = assemble_bank(groups, self.models.references, self.models.features)
        self._bank = drawn, Bank(bank, manifest)
        return self._bank[1]

    def _stop_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError


def limit_size(pixels: np.ndarray) -> np.ndarray:
    """Make an image smaller whose longest side exceeds `LARGEST`."""
    longest = max(pixels.shape[:2])
    if longest <= LARGEST:
        return pixels
    height, width = (max(1, round(side * LARGEST / longest)) for side in pixels.shape[:2])
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
