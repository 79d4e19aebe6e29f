"""What the experiments share: their options, the cached bank and regions, and tables with bootstrap intervals.

A sweep never draws an image twice, nor proposes a region twice: images lie in the bank's shards, and the regions of every test image, with
their pooled features, below `<cache>/regions`, under digests of the image and of all that they depend on.
"""

from __future__ import annotations

import csv
import hashlib
import json
import sys
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import tyro
from cached import cached, packed, unpacked
from PIL import Image
from tqdm import tqdm
from validation import validation_scenes

import rimjax
from rimjax import bank as storage
from rimjax import datasets, draw
from rimjax.bank import Shard
from rimjax.console import check_outputs, compile_cache, one_line, progress, provenance, write
from rimjax.datasets import Dataset, Item, fashion_scenes
from rimjax.evaluate import Evaluation
from rimjax.inference import SegmentSettings, label
from rimjax.metrics import bootstrap_means, confusion_matrix, mean_iou
from rimjax.models.protocols import Encoder, Masker
from rimjax.pool import pool_image
from rimjax.presets import Models
from rimjax.references import ReferenceSettings, bank_from_shards, build_manifest
from rimjax.types import ReferenceBank, Regions, Segmentation

RESULTS = Path(__file__).parent / "results"
Describe = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Image uint8[H, W, 3] and masks bool[P, H, W] to features f32[P, D] and their validity bool[P]."""
Options = TypeVar("Options", bound="Experiment")


@dataclass(frozen=True)
class Row:
    """A line of a table: what it is, what the paper printed for it (%), and what was measured, or why it wasn't."""

    name: str
    paper: str
    found: Evaluation | None = None
    why_not: str = ""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment's options, and what follows from them."""

    preset: Literal["mini", "paper"] = "mini"
    """The models."""
    dataset: str | None = None
    """As of `rimjax evaluate`. Default: fashion-scenes on mini, on paper what the paper has used."""
    data: Path | None = None
    """Folder that holds the published data sets, in mmsegmentation's layout."""
    validation: bool = False
    """Mini: 200 scenes of training-split photographs, to choose settings by, instead of the benchmark."""
    limit: int | None = None
    """Only the first so many images."""
    images: int | None = None
    """K, images drawn of each class (default: the preset's)."""
    cache_dir: Path | None = None
    """Where banks and regions are kept (default: the user's cache folder)."""
    weights_dir: Path | None = None
    """Folder that holds the paper preset's weights (default: RIMJAX_WEIGHTS, or the user's data folder)."""
    out: Path | None = None
    """Folder for tables and pictures (default: experiments/results/PRESET, with -DATASET for other images and -part for less than all)."""

    @cached_property
    def images_of(self) -> Dataset:
        """The data set."""
        if self.validation:
            if self.dataset not in (None, "fashion-scenes"):
                raise ValueError("--validation: its scenes are a data set of their own; leave --dataset out")
            return validation_scenes(self.data or fashion_scenes.DEBIAN_ROOT)
        return datasets.load(self.dataset or "fashion-scenes", self.data)

    @property
    def items(self) -> Sequence[Item]:
        """Those that count."""
        return self.images_of.items[: self.limit]

    @property
    def cache(self) -> Path:
        return storage.cache_folder(self.cache_dir)

    def models(self, configuration: Literal["paper", "rimjax"] = "paper", **stages: Any) -> Models:
        """The preset's models under a configuration; stages by name, as `rimjax.load_preset` takes them."""
        models = rimjax.load_preset(self.preset, self.weights_dir, configuration=configuration, **stages)
        return replace(models, references=replace(models.references, num_images=self.images or models.references.num_images))

    def shards(self, models: Models, settings: ReferenceSettings | None = None, pictures: bool = False) -> list[Shard]:
        """The classes' shards, drawn where the cache lacks them."""
        made = build_manifest(self.images_of.prompts, models, settings=settings, cache_dir=self.cache_dir, progress=progress)
        return storage.read_shards(made, pictures)

    def bank(self, models: Models, **changes: Any) -> ReferenceBank:
        """The bank under the models' reference settings with changes, e.g. `num_subcategories=1`."""
        settings = replace(models.references, **changes)
        return bank_from_shards(self.shards(models, settings), settings, models.encoder.fingerprint)

    def regions(
        self, masker: Masker, describe: Describe, fingerprint: str, items: Sequence[Item] | None = None
    ) -> Generator[tuple[Item, Regions]]:
        """Every image's regions, from the cache where they are there.

        Args:
            masker: proposes them.
            describe: gives their features.
            fingerprint: of all that those depend on besides image and masks.
            items: default: all that count.
        """
        key = hashlib.sha256(json.dumps([masker.proposals_fingerprint, fingerprint]).encode()).hexdigest()[:20]
        masks_folder, folder = (self.cache / "regions" / name for name in (masker.proposals_fingerprint, key))
        for item in tqdm(self.items if items is None else items, desc="regions", unit="image"):
            image = item.image()
            name = hashlib.sha256(np.int64(image.shape).tobytes() + image.tobytes()).hexdigest()[:24] + ".npz"
            masks = unpacked(cached(masks_folder / name, lambda image=image: packed(masker.propose(image))), image.shape)

            def described(image: np.ndarray = image, masks: np.ndarray = masks) -> dict[str, np.ndarray]:
                return dict(zip(("features", "valid"), describe(image, masks), strict=True))

            yield item, Regions(masks=masks, **cached(folder / name, described))

    def regions_of(self, models: Models, items: Sequence[Item] | None = None) -> Generator[tuple[Item, Regions]]:
        """Every image's regions with the features that the models give them (Eq. 5)."""
        return self.regions(models.masker, partial(pooled, models.encoder), models.encoder.fingerprint, items)

    def evaluate(
        self, regions: Generator[tuple[Item, Regions]], rows: Mapping[str, tuple[ReferenceBank, SegmentSettings]]
    ) -> dict[str, Evaluation]:
        """Each row's figures; all rows share the regions, read once."""
        confusions: dict[str, list[np.ndarray]] = {name: [] for name in rows}
        with closing(regions):  # and its progress bar, before an error is printed
            for item, one in regions:
                try:
                    truth = item.labels()
                    for name, (bank, settings) in rows.items():
                        seg = label(one, bank, replace(settings, background=self.images_of.background))
                        confusions[name].append(confusion_matrix(truth, seg.labels, len(bank.names)).astype(np.int32))
                except ValueError as error:
                    raise ValueError(f"{item.id}: {error}") from error
        if not any(np.any(found) for found in confusions.values()):
            raise ValueError(f"{self.images_of.name}: no pixel of the images counts: wherever there are labels they are 255")
        names = ("background", *self.images_of.classes)
        return {name: Evaluation(names, np.stack(found), {}, self.images_of.background) for name, found in confusions.items()}

    def side_by_side(self, name: str, variants: Mapping[str, Models], items: Sequence[Item]) -> None:
        """Write a picture of images, each variant's segmentation and the truth, and a CSV of each image's mIoU."""
        segmented = {}
        for title, models in variants.items():
            bank, settings = self.bank(models), replace(models.segmentation, background=self.images_of.background)
            segmented[title] = [label(regions, bank, settings) for _, regions in self.regions_of(models, items)]
        pictures, rows = [], []
        for item, *segs in zip(items, *segmented.values(), strict=True):
            image, truth = item.read()
            pictures.append(draw.comparison(image, dict(zip(segmented, segs, strict=True)), truth))
            rows.append((item.id, *(f"{100 * image_miou(seg, truth):.1f}" for seg in segs)))
        self.write_picture(name, draw.grid(pictures, 2))
        self.write_csv(name, [("image", *(f"mIoU, {title}" for title in segmented)), *rows])

    def compare(self, name: str, stage: str, choices: Mapping[str, tuple[str, Mapping[str, str | None]]]) -> None:
        """Write the table of one stage's choices, each under the paper's and the `rimjax` configuration.

        Args:
            name: of the table.
            stage: "encoder" or "proposer".
            choices: title -> the paper's figure, and the choice's name in each preset.
        """
        rows, models = [], None
        for configuration, suffix in (("rimjax", ", rimjax configuration"), ("paper", "")):
            for title, (paper, choice) in choices.items():
                models = self.models(configuration, **{stage: choice[self.preset]})
                found = self.evaluate(self.regions_of(models), {title: (self.bank(models), models.segmentation)})
                rows.append(Row(title + suffix, "" if suffix else paper, found[title]))
        self.table(name, rows, models=models)

    # ---- what comes out

    @property
    def folder(self) -> Path:
        own = self.dataset in (None, "fashion-scenes" if self.preset == "mini" else "coco-object")
        other = "-validation" if self.validation else "" if own else f"-{Path(str(self.dataset)).name}"
        return self.out or RESULTS / (self.preset + other + "-part" * (self.limit is not None or self.images is not None))

    def table(self, name: str, rows: Iterable[Row], bases: Mapping[str, Evaluation] | None = None, models: Models | None = None) -> None:
        """Print a table, paper beside measured, and write it as CSV, with settings, weights and versions in a JSON file beside it.

        Args:
            name: of the files.
            rows: in order.
            bases: each gives a last column: what every row gains over it, with a paired interval.
            models: whose settings are written.
        """
        bases = bases or {}
        header = ("", "paper", "measured", "95 % interval", "images", *(f"gain over {title}, 95 % interval" for title in bases))
        lines = [_line(row, bases.values()) for row in rows]
        widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
        for line in (header, *lines):
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        self.write_csv(name, [("row", *header[1:]), *lines])
        about = {"dataset": self.dataset, "validation": self.validation, "limit": self.limit, **(provenance(models) if models else {})}
        write(self.folder / f"{name}.json", json.dumps(about, indent=1) + "\n")

    def write_csv(self, name: str, rows: Iterable[Sequence[Any]]) -> None:
        """Write rows, the header first."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
        print(f"-> {self.folder / name}.csv")

    def write_picture(self, name: str, picture: Image.Image) -> None:
        """Write a PNG."""
        write(self.folder / f"{name}.png", picture)
        print(f"-> {self.folder / name}.png")


def start(main: Callable[[Options], None], options: type[Options], description: str | None, dataset: str | None = "coco-object") -> None:
    """Run an experiment from its command line; a refusal is one line, and exit status 2.

    Args:
        main: the experiment.
        options: its options.
        description: the script's docstring.
        dataset: that the paper has used; None: the experiment knows itself.
    """
    try:
        chosen = tyro.cli(options, description=description)
        if chosen.dataset is None and chosen.preset == "paper":
            chosen = replace(chosen, dataset=dataset)
        for name in ("limit", "images"):
            if (number := getattr(chosen, name)) is not None and number < 1:
                raise ValueError(f"--{name}: expected at least 1, got {number}")
        check_outputs(chosen.folder / "any")
        compile_cache(chosen.cache)
        main(chosen)
    except (ValueError, OSError, ImportError) as error:
        print(f"{Path(sys.argv[0]).name}: {one_line(error)}", file=sys.stderr)
        raise SystemExit(2) from error


def pooled(encoder: Encoder, image: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Masked averages of an image's features (Eq. 5) and their validity."""
    return pool_image(encoder.encode(image), masks)


def image_miou(seg: Segmentation, truth: np.ndarray) -> float:
    """mIoU in 0..1 of one image, over the classes in truth or segmentation."""
    return mean_iou(confusion_matrix(truth, seg.labels, len(seg.names)))


def gain(found: Evaluation, base: Evaluation) -> tuple[float, float, float]:
    """Difference of two mIoUs over the same images, in points, and its paired bootstrap 95 % interval."""
    drawn = [bootstrap_means(one.confusions, background=one.background) for one in (found, base)]
    low, high = np.nanquantile(drawn[0] - drawn[1], [0.025, 0.975])
    return 100 * (found.miou - base.miou), 100 * float(low), 100 * float(high)


def _line(row: Row, bases: Collection[Evaluation]) -> tuple[str, ...]:
    if row.found is None:
        return (row.name, row.paper, "-", row.why_not, "", *("" for _ in bases))
    low, high = row.found.interval()
    gains = ("" if row.found is base else "{:+.1f} ({:+.1f} to {:+.1f})".format(*gain(row.found, base)) for base in bases)
    return (
        row.name,
        row.paper,
        f"{100 * row.found.miou:.1f}",
        f"{100 * low:.1f} to {100 * high:.1f}",
        str(len(row.found.confusions)),
        *gains,
    )
