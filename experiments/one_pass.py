"""Evaluate any number of readings in one pass over stored regions.

Which region lies on top of a pixel doesn't depend on the regions' names (`paint`, by area). So an
image is reduced, once, to the number of pixels of each true class under each region on top; a
reading names all images' regions in a single call, and its pixel counts are sums of those rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Int32

from rimjax.datasets import Item
from rimjax.datasets.dataset import IGNORED, read_ahead
from rimjax.evaluation import Evaluation
from rimjax.evaluation.metrics import Counts
from rimjax.match import match
from rimjax.regions.store import LoadRegions
from rimjax.settings import SegmentSettings
from rimjax.steps.assemble import paint
from rimjax.types import BACKGROUND, ReferenceBank, Regions

BLOCK = 50_000  # regions that are matched at a time


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
    items: Iterable[Item], load: LoadRegions, classes: tuple[str, ...], background: bool
) -> Pass:
    """Load or compute the regions of images, and count the pixels under each of them.

    Raises:
        ValueError: an image can't be used.
    """
    names = (BACKGROUND, *classes)
    blocks, features, images, owned, free, truths = [], [], [], [], [], []
    for number, (item, reading) in enumerate(read_ahead(items, Item.read)):
        try:
            image, truth = reading.result()
            regions = load(image, {})
        except (ValueError, OSError) as error:
            raise ValueError(f"{item.id}: {error}") from error
        assert isinstance(regions, Regions) and regions.masks is not None
        valid = np.asarray(regions.valid)[: len(regions.masks)]
        masks = np.asarray(regions.masks)[valid]
        owner = paint(masks, np.arange(1, len(masks) + 1), truth.shape)
        counts = truth != IGNORED
        if not background:
            counts &= truth != 0
        pairs = owner[counts].astype(np.int64) * len(names) + truth[counts]
        table = np.bincount(pairs, minlength=(len(masks) + 1) * len(names))
        table = table.reshape(-1, len(names)).astype(np.int32)
        features.append(np.asarray(regions.features, np.float32)[: len(valid)][valid])
        if sum(map(len, features)) >= BLOCK:
            rows = np.concatenate(features)
            blocks.append(rows[:BLOCK])
            features = [rows[BLOCK:]]
        images.append(np.full(len(masks), number))
        owned.append(table[1:])
        free.append(table[:1])
        truths.append(table.sum(0))
    if not truths:
        raise ValueError("dataset must hold at least one image, got none")
    return Pass(
        (*blocks, np.concatenate(features)),
        np.concatenate(images),
        np.concatenate([*owned, *free]),
        np.stack(truths),
        names,
        background,
    )
