"""Evaluate any number of readings in one pass over stored regions.

Which region lies on top of a pixel doesn't depend on the regions' names (`paint`, by area). So an
image is reduced, once, to the number of pixels of each true class under each region on top; a
reading names all images' regions in a single call, and its pixel counts are sums of those rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8

from rimjax.datasets import Item
from rimjax.datasets.dataset import IGNORED, read_ahead
from rimjax.evaluation import Evaluation
from rimjax.evaluation.metrics import Counts
from rimjax.match import match
from rimjax.regions.store import LoadRegions
from rimjax.settings import SegmentSettings
from rimjax.steps.assemble import find_owners
from rimjax.types import BACKGROUND, ReferenceBank, Regions

BLOCK = 20_000  # regions that are matched at a time


@dataclass(frozen=True, eq=False)
class Pass:
    """All images' regions.

    Attributes:
        features: of the images' valid regions, one image after the other, in blocks: a single
            array would be in memory twice while it is put together.
        images: the image that each region belongs to.
        owned: pixels of each true class under each region on top; row P + i counts the pixels of
            image i that lie under no region.
        truth: pixels of each true class in each image.
        names: the class names, the background first.
        background: whether regions may be named background.
    """

    features: tuple[Float32[np.ndarray, "_ D"], ...]
    images: Int[np.ndarray, " P"]
    owned: Int32[np.ndarray, "rows C"]
    truth: Int[np.ndarray, "n C"]
    names: tuple[str, ...]
    background: bool

    def evaluate(self, bank: ReferenceBank, settings: SegmentSettings) -> Evaluation:
        """Name every region and count the pixels, as the loop over images does.

        Random agents depend on the regions' numbers here, so they differ from image to image.

        Args:
            bank: the references.
            settings: how to match; regions are painted by area.
        """
        allowed = np.arange(len(bank.names)) >= (0 if self.background else 1)
        labels, start = [np.zeros(0, np.int32)], 0
        for rows in self.features:
            result = match(rows, bank, allowed=allowed, **settings.as_keywords(start))
            labels.append(np.asarray(result.labels))
            start += len(rows)
        count, classes = len(self.truth), len(self.names)
        # Pixels under no region, the last rows, are background.
        named = np.concatenate([*labels, np.zeros(count, np.int32)]).clip(0)
        images = np.concatenate([self.images, np.arange(count)])
        owned = self.owned[np.arange(len(named)), named]
        hits, predicted = (
            np.bincount(images * classes + named, pixels, count * classes).reshape(count, classes)
            for pixels in (owned, self.owned.sum(1))
        )
        unions = self.truth + predicted - hits
        counts = Counts(hits.astype(np.int64), unions.astype(np.int64))
        return Evaluation(self.names, counts, {}, self.background)


def can_evaluate(settings: SegmentSettings) -> bool:
    """Return whether a pass gives what the loop over images gives under these settings.

    Random agents are numbered otherwise there.
    """
    painted = settings.assembly == "paint" and settings.on_top == "area"
    painted &= not settings.has_thresholds
    return painted and settings.agent_policy != "random"


def gives_regions(item: Item, load: LoadRegions) -> bool:
    """Return whether regions are loaded, as for all images; if not, pixels are named one by one.

    Raises:
        ValueError: the image can't be used.
    """
    try:
        return isinstance(load(item.image(), {}), Regions)
    except (ValueError, OSError) as error:
        raise ValueError(f"{item.id}: {error}") from error


def collect(
    items: Iterable[Item],
    loads: Mapping[str, LoadRegions],
    classes: tuple[str, ...],
    background: bool,
) -> dict[str, Pass]:
    """Load or compute the regions of images, and count the pixels under each of them.

    Args:
        items: the images.
        loads: what loads an image's regions, by a name; often the same masks with other features.
        classes: names without the background.
        background: whether regions may be named background.

    Returns:
        The pass of each name.

    Raises:
        ValueError: an image can't be used.
    """
    names = (BACKGROUND, *classes)
    gathered = {name: _Gathered() for name in loads}
    for item, reading in read_ahead(items, Item.read):
        try:
            image, truth = reading.result()
            counts = truth != IGNORED
            if not background:
                counts &= truth != 0
            known: list[tuple[Any, np.ndarray, np.ndarray]] = []
            for name, load in loads.items():
                regions = load(image, {})
                assert isinstance(regions, Regions) and regions.masks is not None
                valid = np.asarray(regions.valid)[: len(regions.masks)]
                same = (
                    table
                    for masks, rows, table in known
                    if masks is regions.masks and np.array_equal(rows, valid)
                )
                table = next(same, None)
                if table is None:
                    masks = np.asarray(regions.masks)[valid]
                    table = _count_pixels(masks, truth, counts, len(names))
                    known.append((regions.masks, valid, table))
                gathered[name].add(np.asarray(regions.features)[: len(valid)][valid], table)
        except (ValueError, OSError) as error:
            raise ValueError(f"{item.id}: {error}") from error
    return {name: each.finish(names, background) for name, each in gathered.items()}


def _count_pixels(
    masks: Bool[np.ndarray, "P H W"],
    truth: UInt8[np.ndarray, "H W"],
    counted: Bool[np.ndarray, "H W"],
    num_classes: int,
) -> Int32[np.ndarray, "rows C"]:
    """Count the pixels of each true class under no region (row 0) and under each region on top."""
    owners = find_owners(masks, np.ones(len(masks), bool), truth.shape) + 1
    pairs = owners[counted].astype(np.int64) * num_classes + truth[counted]
    table = np.bincount(pairs, minlength=(len(masks) + 1) * num_classes)
    return table.reshape(-1, num_classes).astype(np.int32)


@dataclass
class _Gathered:
    """What a pass is put together from, image by image."""

    blocks: list[np.ndarray] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)
    tables: list[np.ndarray] = field(default_factory=list)

    def add(self, features: np.ndarray, table: np.ndarray) -> None:
        """Add an image."""
        self.features.append(features.astype(np.float32))
        self.tables.append(table)
        if sum(map(len, self.features)) >= BLOCK:
            rows = np.concatenate(self.features)
            self.blocks.append(rows[:BLOCK])
            self.features = [rows[BLOCK:]]

    def finish(self, names: tuple[str, ...], background: bool) -> Pass:
        """Put the pass together."""
        if not self.tables:
            raise ValueError("dataset must hold at least one image, got none")
        owned, free = [table[1:] for table in self.tables], [table[:1] for table in self.tables]
        return Pass(
            features=(*self.blocks, np.concatenate(self.features)),
            images=np.repeat(np.arange(len(owned)), [len(rows) for rows in owned]),
            owned=np.concatenate([*owned, *free]),
            truth=np.stack([table.sum(0) for table in self.tables]),
            names=names,
            background=background,
        )
