"""Time an evaluation of COCO Object's size from stored regions: Table 2's rows and every reading.

Command:  python experiments/stored_evaluation.py
              5,000 images of 640x480 with 100 regions each, 81 classes; 2 CPU cores and 4 GiB; 7 GB
              on disk for the time that it runs; about 20 minutes, most of them to fill the store
          python experiments/stored_evaluation.py --count 200
              a part of it

No model runs. The store is filled with regions of irregular outlines and with random features near
their class's, in a process of its own, so that the peak of memory is the evaluation's. What is
timed: a pass over the store with text features and image features, five rows of Table 2, and each
reading of Sec. 3.5 with T = 1 and T = 8, top and random agents. Images are made in memory, so
decoding files is left out.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated

import numpy as np
import trials
import tyro
from one_pass import collect
from tables import print_lines, write_csv

from rimjax.commands.console import progress
from rimjax.commands.main import CONFIG
from rimjax.commands.options import Flag, default
from rimjax.datasets import Item
from rimjax.models.protocols import Proposals
from rimjax.regions.store import RegionStore
from rimjax.settings import SegmentSettings
from rimjax.steps.resize import bilinear_matrix
from rimjax.types import BACKGROUND, ReferenceBank, Regions

DIMS = {"text": 512, "image": 768}  # CLIP ViT-B/16, DINOv2 ViT-B
OUTLINES = 400  # different masks, of which each image takes some
CELL = 80  # pixels along a square of one true class


@dataclass(frozen=True, kw_only=True)
class StoredEvaluation:
    """Options.

    Attributes:
        count: Number of images.
        regions: Regions of each image.
        classes: Classes with the background.
        size: Width and height of the images.
        output: Folder for the table; by default it is only printed.
        store: Folder of the store, which is kept; what it holds isn't made again.
        fill: Fill the store, and nothing else.
    """

    count: int = 5000
    regions: int = 100
    classes: int = 81
    size: tuple[int, int] = (640, 480)
    output: Annotated[Path | None, default("none")] = None
    store: Annotated[Path | None, default("a temporary folder")] = None
    fill: Flag = False

    @property
    def names(self) -> tuple[str, ...]:
        """Class names without the background."""
        return tuple(f"class {number}" for number in range(1, self.classes))

    def list_items(self) -> list[Item]:
        """List the images: each of a colour of its own, and squares of true classes."""
        return [
            Item(str(index), partial(self.make_image, index), partial(self.make_labels, index))
            for index in range(self.count)
        ]

    def make_image(self, index: int) -> np.ndarray:
        """Make an image whose number can be read from any pixel."""
        colour = [index >> shift & 255 for shift in (0, 8, 16)]
        return np.full((*self.size[::-1], 3), colour, np.uint8)

    def make_labels(self, index: int) -> np.ndarray:
        """Make an image's labels."""
        width, height = self.size
        shape = (-(-height // CELL), -(-width // CELL))
        grid = np.random.default_rng((1, index)).integers(self.classes, size=shape, dtype=np.uint8)
        return grid.repeat(CELL, 0).repeat(CELL, 1)[:height, :width]

    def make_centres(self, kind: str, count: int = 1) -> np.ndarray:
        """Make prototypes, `count` of each class, that lie around the class's centre."""
        rng = np.random.default_rng((2, DIMS[kind]))
        centres = rng.standard_normal((self.classes, DIMS[kind]), np.float32)
        spread = rng.standard_normal((self.classes, count, DIMS[kind]), np.float32)
        return (centres[:, None] + (spread if count > 1 else 0)).reshape(-1, DIMS[kind])

    def make_bank(self, kind: str, count: int = 1) -> ReferenceBank:
        """Make a bank with `count` sub-categories of each class."""
        owners = np.repeat(np.arange(self.classes), count)
        rows = self.make_centres(kind, count), owners, self.make_centres(kind)
        return ReferenceBank.create(*rows, (BACKGROUND, *self.names))

    def open_store(self, folder: Path, kind: str) -> RegionStore:
        """Open a store of regions whose features are of a kind."""
        encode = partial(self.encode, kind)
        return RegionStore(folder, Outlines(self), encode, f"synthetic {kind}")

    def encode(
        self, kind: str, image: np.ndarray, masks: np.ndarray, timings: dict[str, float]
    ) -> Regions:
        """Make each region's features, near those of the class at its first pixel."""
        index = read_index(image)
        found = self.make_labels(index).ravel()[masks.reshape(len(masks), -1).argmax(1)]
        rng = np.random.default_rng((3, DIMS[kind], index))
        noise = 8 * rng.standard_normal((len(masks), DIMS[kind]), np.float32)
        return Regions(self.make_centres(kind)[found] + noise, masks, np.ones(len(masks), bool))


@dataclass(frozen=True)
class Outlines:
    """A proposer of irregular outlines, which depend on the image's number."""

    options: StoredEvaluation
    fingerprint: str = "synthetic outlines"

    @cached_property
    def masks(self) -> np.ndarray:
        """Discs of many sizes with an uneven edge."""
        rng, (width, height) = np.random.default_rng(0), self.options.size
        y, x = np.mgrid[:height, :width]
        rows, columns = (bilinear_matrix(side // 16, side) for side in (height, width))
        masks = np.empty((OUTLINES, height, width), bool)
        for mask in masks:
            bumps = rows @ rng.standard_normal((height // 16, width // 16)) @ columns.T
            centre = rng.uniform(0, (width, height))
            distance = np.hypot(x - centre[0], y - centre[1])
            radius = min(width, height) * rng.uniform(0.04, 0.4)
            mask[:] = distance < radius * (1 + 0.3 * bumps)
        return masks[masks.any((1, 2))]

    def propose(self, image: np.ndarray) -> Proposals:
        """Propose the image's regions."""
        rng, count = np.random.default_rng((4, read_index(image))), self.options.regions
        chosen = rng.choice(len(self.masks), count, replace=False)
        return Proposals(self.masks[chosen], rng.uniform(size=count).astype(np.float32))


def read_index(image: np.ndarray) -> int:
    """Read the number of an image that `make_image` made."""
    return int(image[0, 0].astype(int) @ [1, 256, 65536])


def list_rows() -> Iterator[tuple[str, str, int, SegmentSettings]]:
    """Yield title, kind of features, T and settings of Table 2's rows and of every reading."""
    yield "Table 2, row 1", "text", 1, trials.COSINE
    for row in (2, 3):
        yield f"Table 2, row {row}", "image", 1, trials.COSINE
    for row, count in ((4, 1), (5, trials.T)):
        yield f"Table 2, row {row}", "image", count, trials.READINGS["printed"]
    for features, title, count, policy, settings in trials.list_trials():
        if features == "as they are":
            yield f"{title}, T = {count}{policy and f', {policy} agents'}", "image", count, settings


def measure(options: StoredEvaluation, folder: Path) -> list[tuple[str, str, str]]:
    """Evaluate everything from the store; return its table."""
    lines, begun = [("what", "seconds", "mIoU (%)")], time.monotonic()
    items = progress(options.list_items(), "regions", "image")
    loads = {kind: options.open_store(folder, kind).load for kind in DIMS}
    passes = collect(items, loads, options.names, background=True)
    lines.append(("a pass with both kinds of features", f"{time.monotonic() - begun:.1f}", ""))
    for title, kind, count, settings in progress(list(list_rows()), "rows", "row"):
        start = time.monotonic()
        if kind == "image":
            passes.pop("text", None)  # its rows come first
        evaluation = passes[kind].evaluate(options.make_bank(kind, count), settings)
        low, high = evaluation.estimate_interval()
        seconds = f"{time.monotonic() - start:.1f}"
        score = f"{100 * evaluation.miou:.1f} ({100 * low:.1f} to {100 * high:.1f})"
        lines.append((title, seconds, score))
    lines.append(("in all", f"{time.monotonic() - begun:.1f}", ""))
    return [*lines, ("peak of memory", f"{measure_peak():.2f} GiB", "")]


def measure_peak() -> float:
    """Return the most memory that this process has had, in GiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


def fill(options: StoredEvaluation, folder: Path) -> None:
    """Store every image's regions with both kinds of features."""
    stores = [options.open_store(folder, kind) for kind in DIMS]
    if all(store.features.count() == options.count for store in stores):
        return
    for item in progress(options.list_items(), "fill the store", "image"):
        for store in stores:
            store.load(item.image())
    for store in stores:
        store.join()


def main() -> None:
    options = tyro.cli(StoredEvaluation, description=__doc__, config=CONFIG)
    if options.fill and options.store is not None:
        fill(options, options.store)
        return
    with tempfile.TemporaryDirectory() as folder:
        store = options.store or Path(folder)
        words = () if options.store else ("--store", folder)
        subprocess.run([sys.executable, *sys.argv, *words, "--fill"], check=True)
        lines = measure(options, store)
    print_lines(lines)
    if options.output is not None:
        write_csv(options.output, "stored-evaluation", lines)


if __name__ == "__main__":
    main()
