"""`rimjax evaluate`, `rimjax evaluate merge` and `rimjax convert-coco`."""

from __future__ import annotations

import hashlib
import json
import sys
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from PIL import Image
from tqdm import tqdm

from rimjax import bank as storage
from rimjax import datasets, run_folder
from rimjax.console import ModelOptions, check_outputs, compile_cache, one_line, progress, provenance, write
from rimjax.datasets import coco
from rimjax.datasets.dataset import IGNORED, Dataset, Item
from rimjax.evaluate import Evaluation
from rimjax.inference import SegmentSettings, check_bank, describe, label
from rimjax.metrics import confusion_matrix
from rimjax.presets import Models
from rimjax.references import ReferenceSettings, build_manifest, load_bank
from rimjax.run_folder import ImageResult
from rimjax.types import ReferenceBank

Settings = TypeVar("Settings", ReferenceSettings, SegmentSettings)


def table(found: Evaluation) -> str:
    """Per-class IoU, mIoU with its interval, and stage timings, as text."""
    low, high = found.interval()
    width = max(12, *map(len, found.names))
    lines = [f"  {name:<{width}} {'   -' if iou is None else f'{100 * iou:5.1f}'}" for name, iou in found.per_class.items()]
    stages = "  ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in found.timings.items())
    return "\n".join(
        [
            "IoU (%)",
            *lines,
            f"  {'mIoU':<{width}} {100 * found.miou:5.1f}   (95 %: {100 * low:.1f} to {100 * high:.1f}; {len(found.confusions)} images)",
            f"an image: {stages}",
        ]
    )


def _report(about: dict[str, Any], found: Evaluation, file: Path | None) -> None:
    print(table(found))
    if found.bad:
        _warn(f"{len(found.bad)} of {len(found.bad) + len(found.confusions)} images could not be used: {', '.join(found.bad)}")
    if file is not None:
        write(file, json.dumps({**about, **found.as_json()}, indent=1))


def _warn(line: str) -> None:
    tqdm.write(f"rimjax: warning: {line}", file=sys.stderr)


@dataclass(frozen=True, kw_only=True)
class Merge:
    """The figures of a run, put together from its shards: exactly those of one run over all images.

    Example: rimjax evaluate merge run-1 run-2 run-3 --json result.json
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """The shards' folders, as `rimjax evaluate --shard 1/3 --output run-1` made them. One finished run will do too."""
    json: Path | None = None
    """Write the figures to this file."""

    def run(self) -> None:
        check_outputs(self.json)
        about, results = run_folder.merged(self.runs)
        _report(about, run_folder.evaluation(about, results), self.json)


@dataclass(frozen=True, kw_only=True)
class Evaluate(ModelOptions):
    """Mean IoU on a labelled data set; by default the preset's own configuration.

    Example: rimjax evaluate --dataset fashion-scenes --preset mini --json result.json

    Example: rimjax evaluate --dataset voc --data data --preset paper --output run-1 --shard 1/4
    """

    dataset: str = "fashion-scenes"
    """fashion-scenes, voc, context (59 classes and background), context59 (without), coco-object, or a folder of your own that holds
    images/NAME.jpg, labels/NAME.png (0 the background, i the class on line i, 255 ignored) and names.txt (a class a line)."""
    data: Path | None = None
    """The folder that holds a published data set as mmsegmentation lays it out: VOCdevkit/VOC2012, VOCdevkit/VOC2010, coco_stuff164k."""
    output: Path | None = None
    """Folder for the run: every image's result as soon as it is there. The same command goes on with a run that was stopped.
    It knows the data set by its name and its images' names: where images or labels have changed since, start another folder."""
    shard: str | None = None
    """Only every n-th image from the i-th on, as "i/n" with i from 1; `rimjax evaluate merge` puts the shards together."""
    save_labels: bool = False
    """Write each label map to OUTPUT/labels/ID.png."""
    limit: int | None = None
    """Only the first so many images."""
    bank: Path | None = None
    """A bank's manifest, as printed by `rimjax bank build`, instead of building one; its classes must be the data set's.
    Its T and whitening stay as they were built, unless --configuration is given."""
    similarity: Literal["relation", "cosine"] | None = None
    """Relation-aware (Eq. 9) or plain cosine matching."""
    candidates: Literal["all", "agents"] | None = None
    """Classes that may win: all (Eq. 9), or only the region's agents."""
    assembly: Literal["paint", "vote"] | None = None
    """How overlapping regions are put together."""
    num_agents: int | None = None
    """N, category agents of a region."""
    num_subcategories: int | None = None
    """T, clusters of a class's prototypes."""
    foreground_mask: bool | None = None
    """Pool the references under their foreground mask."""
    json: Path | None = None
    """Write the figures to this file."""
    cache_dir: Path | None = None
    """Where banks are kept (default: the user's cache folder)."""
    command: Annotated[
        Annotated[Merge, tyro.conf.subcommand("merge")] | Annotated[None, tyro.conf.subcommand("run", description="Evaluate.")],
        tyro.conf.arg(name=""),
    ] = None

    def run(self) -> None:
        if self.command is not None:
            return self.command.run()
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit: expected at least 1, got {self.limit}")
        if self.output is None and (self.shard is not None or self.save_labels):
            raise ValueError("--shard and --save-labels: say --output FOLDER too")
        first, step = _shard(self.shard)
        check_outputs(self.json)
        dataset = datasets.load(self.dataset, self.data)
        if dataset.published_size not in (None, dataset.size):
            _warn(f"{dataset.name}: the literature has {dataset.published_size} images, this copy {dataset.size}")
        manifest = None if self.bank is None else storage.read_manifest(self.bank)
        if manifest is not None:
            _check_classes(manifest, dataset)
        items = dataset.items[: self.limit]
        done = run_folder.usable(self.output) if self.output else set()
        check_labels(dataset, [item for item in items[first::step] if item.id not in done])
        models = self.load()
        models = replace(models, references=self._chosen(models.references), segmentation=self._chosen(models.segmentation))
        models = replace(models, segmentation=replace(models.segmentation, background=dataset.background))
        compile_cache(storage.cache_folder(self.cache_dir))
        if manifest is not None:
            models = replace(models, references=self._chosen(self.bank_settings(manifest, models)))
        about = {
            "dataset": dataset.name,
            "classes": dataset.classes,
            "background": dataset.background,
            "num_images": len(items),
            "images": hashlib.sha256("\n".join(item.id for item in items).encode()).hexdigest()[:20],
            "shard": self.shard,
            "save_labels": self.save_labels,
            **provenance(models),
        }
        if self.output is not None:  # before anything is drawn
            run_folder.check(self.output, about, unknown=("bank",))
        if manifest is None:
            manifest = build_manifest(dataset.prompts, models, cache_dir=self.cache_dir, progress=progress)
        bank = load_bank(manifest, models.references)
        check_bank(bank, models)
        about["bank"] = storage.references_digest(manifest)
        memory: run_folder.Results = {}
        run = run_folder.opened(self.output, about) if self.output else nullcontext((memory, lambda one: memory.update({one.image: one})))
        with run as (results, append):
            todo = [item for item in items[first::step] if item.id not in results or results[item.id].error is not None]
            for item in tqdm(todo, desc="evaluate", unit="image"):
                append(self._evaluated(item, bank, models))
        if not results:
            return print(f"the shard {self.shard} of {len(items)} images holds none; merge it with the others")
        _report(about, run_folder.evaluation(about, results), self.json)

    def _evaluated(self, item: Item, bank: ReferenceBank, models: Models) -> ImageResult:
        timings: dict[str, float] = {}
        try:
            image, truth = item.read()
            regions = describe(image, models, timings)
        except (ValueError, OSError) as error:
            _warn(f"{item.id}: {one_line(error)}")
            return ImageResult(item.id, error=one_line(error))
        found = label(regions, bank, models.segmentation, timings)
        if self.output is not None and self.save_labels:
            write(self.output / f"labels/{item.id}.png", Image.fromarray(found.labels))
        return ImageResult.counted(item.id, confusion_matrix(truth, found.labels, len(bank.names), IGNORED), found.timings)

    def _chosen(self, settings: Settings) -> Settings:
        """The settings with those given on the command line put in."""
        given = {name: getattr(self, name) for name in asdict(settings) if getattr(self, name, None) is not None}
        return replace(settings, **given)


def check_labels(dataset: Dataset, items: list[Item]) -> None:
    """Raise ValueError, before any work is done, for a label outside the class list; what can't be read is left to the run to name."""
    for item in tqdm(items, desc="check labels", unit="image", leave=False):
        try:
            labels = item.labels()
        except (ValueError, OSError):
            continue
        worst = int(labels[labels != IGNORED].max(initial=0))
        if worst > len(dataset.classes):
            raise ValueError(
                f"{item.id}: holds label {worst}, but {dataset.name} has {len(dataset.classes)} classes besides the background; "
                f"expected 0 to {len(dataset.classes)}, or {IGNORED} for ignored"
            )


def _check_classes(manifest: storage.Manifest, dataset: Dataset) -> None:
    if manifest.names != dataset.prompts:
        differing = sorted(set(manifest.names) ^ set(dataset.prompts)) or ["their order"]
        raise ValueError(
            f"--bank: {manifest.path} holds other classes than {dataset.name} ({', '.join(differing[:5])}); "
            "leave --bank out to build the right one"
        )


def _shard(text: str | None) -> tuple[int, int]:
    """Index of the first image and the step."""
    if text is None:
        return 0, 1
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f'--shard: expected "i/n" with i from 1 to n, got {text!r}')
    return int(index) - 1, int(count)


@dataclass(frozen=True)
class ConvertCoco:
    """Write COCO Object's label PNGs for val2017, from COCO-Stuff 164k's pixel maps or from COCO's instance JSON.

    Example: rimjax convert-coco --data data/coco_stuff164k
    """

    data: Path
    """The folder with images/val2017 and annotations/val2017."""
    instances: Path | None = None
    """COCO's instances_val2017.json; left out, the pixel maps in annotations/val2017 are converted."""

    def run(self) -> None:
        folder = coco.label_folder(self.data)
        if self.instances is None:
            maps = coco.stuff_maps(folder)
        else:
            coco.image_folder(self.data)  # so that no slip of the pen gets thousands of PNGs
            maps = coco.outline_maps(self.instances)
        there = 0
        for name, labels in tqdm(maps.items(), desc="convert", unit="image"):
            if (target := folder / f"{name}{coco.SUFFIX}").exists():
                there += 1
            else:
                write(target, Image.fromarray(labels()))
        kept = f"; {there} of them were there, and stay as they are (delete them to have them made anew)" if there else ""
        print(f"{len(maps)} label maps in {folder}{kept}")
