"""`rimjax evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from rimjax import datasets
from rimjax.commands.console import (
    check_outputs,
    describe_origin,
    keep_compilations,
    progress,
    shorten,
    show_class_progress,
    warn,
    write_labels,
)
from rimjax.commands.fill import draw_classes, evaluate_images, locate_labels
from rimjax.commands.merge import Merge, report_figures
from rimjax.commands.options import (
    CACHE_DEFAULT,
    NO_DEFAULT,
    PRESET_DEFAULT,
    Flag,
    ModelOptions,
    RayOptions,
    default,
    parse_shard,
)
from rimjax.commands.report import add_report
from rimjax.datasets.dataset import Dataset, Item, check_labels
from rimjax.distributed.cluster import Workers
from rimjax.distributed.fill import Load
from rimjax.evaluation import run_folder
from rimjax.evaluation.loop import Outcome, check_classes, evaluate_items
from rimjax.evaluation.run_folder import REPORT, ImageResult, Results
from rimjax.files import WriteError, check_writable, digest
from rimjax.models.protocols import Models
from rimjax.pipeline import check_encoder
from rimjax.references import store
from rimjax.references.build import assemble_bank, build_references
from rimjax.regions.store import load_or_extract
from rimjax.settings import ReferenceSettings, SegmentSettings
from rimjax.show.report.contents import read_run
from rimjax.types import ReferenceBank

Similarity = Literal["relation", "cosine", "combined", "weighted"]
Settings = TypeVar("Settings", ReferenceSettings, SegmentSettings)


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Compute the mean IoU on a labelled data set.

    Example: rimjax evaluate --dataset fashion-scenes --preset mini --json result.json

    Example: rimjax evaluate --dataset voc --data data --preset paper --output run-1 --shard 1/4

    Attributes:
        dataset: fashion-scenes, voc, context (59 classes and background), context59 (without),
            coco-object, or a folder with images/NAME.jpg, labels/NAME.png (0 the background, i the
            class on line i, 255 ignored) and names.txt (a class per line; a first line
            "background" isn't counted). LabelMe's VOC export is such a folder too.
        data: Folder that holds a published data set in mmsegmentation's layout: VOCdevkit/VOC2012,
            VOCdevkit/VOC2010 or coco_stuff164k.
        output: Folder of the run, which gets each image's result when it is there, and at the end
            a report (report.html; `rimjax report` writes that of a run in shards). The same command
            resumes a stopped run. A run knows its data set by name and image names: after changing
            images or labels, choose another folder.
        shard: Evaluate only every n-th image from the i-th on, as "i/n" with i from 1; `rimjax
            evaluate merge` combines the shards.
        save_labels: Write each label map to OUTPUT/labels/ID.png; without them the report has no
            pictures.
        limit: Number of images to evaluate, from the first on.
        bank: A bank's manifest, as `rimjax bank build` prints it, or a packed bank, instead of
            building a bank; its classes must be the data set's. It keeps its configuration unless
            --configuration is given.
        only_bank_classes: Evaluate the classes of --bank alone; pixels of the data set's other
            classes don't count.
        similarity: Rankings alone (relation, Eq. 9), plain cosine, their product (combined), or
            cosine plus a share of relation (weighted).
        candidates: Classes that may win: all (Eq. 9), or the region's agents.
        assembly: How overlapping regions become a label map.
        num_agents: N, category agents of a region.
        num_subcategories: T, clusters of a class's prototypes.
        foreground_mask: Pool references under their foreground mask.
        json: File for the figures.
        cache_dir: Folder that keeps banks and the images' regions.
    """

    dataset: str = "fashion-scenes"
    data: Annotated[Path | None, NO_DEFAULT] = None
    output: Annotated[Path | None, NO_DEFAULT] = None
    shard: Annotated[str | None, default("all images")] = None
    save_labels: Annotated[bool, default("with --output")] = True
    limit: Annotated[int | None, default("all")] = None
    bank: Annotated[Path | None, NO_DEFAULT] = None
    only_bank_classes: Flag = False
    similarity: Annotated[Similarity | None, PRESET_DEFAULT] = None
    candidates: Annotated[Literal["all", "agents"] | None, PRESET_DEFAULT] = None
    assembly: Annotated[Literal["paint", "vote"] | None, PRESET_DEFAULT] = None
    num_agents: Annotated[int | None, PRESET_DEFAULT] = None
    num_subcategories: Annotated[int | None, PRESET_DEFAULT] = None
    foreground_mask: Annotated[bool | None, PRESET_DEFAULT] = None
    json: Annotated[Path | None, NO_DEFAULT] = None
    cache_dir: Annotated[Path | None, CACHE_DEFAULT] = None
    cluster: RayOptions = field(default_factory=RayOptions)
    models: ModelOptions = field(default_factory=ModelOptions)
    command: Annotated[
        Annotated[Merge, tyro.conf.subcommand("merge")]
        | Annotated[None, tyro.conf.subcommand("run", description="Evaluate (the default).")],
        tyro.conf.arg(name=""),
    ] = None

    def run(self) -> None:
        if self.command is not None:
            return self.command.run()
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")
        if self.output is None and self.shard is not None:
            raise ValueError("output must be given with --shard, got none")
        start, step = parse_shard(self.shard)
        workers = self.cluster.open()
        check_outputs(self.json)
        run_folder.check_apart([self.output] if self.output else [], self.json)
        dataset = datasets.load(self.dataset, self.data)
        count = len(dataset.items)
        if dataset.published_size not in (None, count):
            warn(f"{dataset.name} has {dataset.published_size} images in papers, {count} here")
        manifest = None if self.bank is None else store.read_manifest(self.bank)
        if self.only_bank_classes and manifest is None:
            raise ValueError("bank must be given with --only-bank-classes, got none")
        if manifest is not None:
            dataset = dataset.restrict(manifest.names) if self.only_bank_classes else dataset
            check_classes(manifest.names, dataset)
        items = dataset.items[: self.limit]
        finished = run_folder.read_finished(self.output) if self.output else set()
        unchecked = [item for item in items[start::step] if item.id not in finished]
        check_labels(dataset, progress(unchecked, "check labels", "image"))
        models = self._load_models(manifest)
        keep_compilations(store.locate_cache(self.cache_dir))
        description = {
            "dataset": dataset.name,
            "classes": dataset.classes,
            "background": dataset.background,
            "num_images": len(items),
            "images": digest([item.id for item in items]),
            "shard": self.shard,
            "save_labels": self.save_labels,
            **describe_origin(models),
        }
        if self.output is not None:  # before anything is drawn
            run_folder.check_run(self.output, description, unknown=("bank",))
            check_writable(self.output)
            check_outputs(self.output / REPORT)
        load = partial(self.models.load, with_bank=manifest is not None)
        if manifest is None:  # workers fill the cache, which is then read
            cache = store.locate_cache(self.cache_dir)
            draw_classes(dataset.prompts, {}, models, load, cache, workers)
        bank, manifest = self._open_bank(manifest, dataset, models)
        description["bank"] = store.digest_references(manifest)
        description["sources"] = self._locate_sources(manifest)
        setup = (dataset, bank, models, load, workers)
        results = self._evaluate_items(items[start::step], *setup, description)
        if not results:
            print(f"shard {self.shard} of {len(items)} images is empty; merge it with the others")
            return None
        report_figures(description, run_folder.summarise_run(description, results), self.json)
        if self.output is not None and self.shard is None:
            add_report(read_run([self.output]), self.output / REPORT)
        return None

    def _locate_sources(self, manifest: store.Manifest) -> dict[str, str | None]:
        """Return where data set and bank are, for a later report."""
        folder = Path(self.dataset)
        named = self.dataset == "fashion-scenes" or self.dataset in datasets.READERS
        return {
            "dataset": self.dataset if named else str(folder.absolute()),
            "data": None if self.data is None else str(self.data.absolute()),
            "bank": str(manifest.path.absolute()),
        }

    def _load_models(self, manifest: store.Manifest | None) -> Models:
        models = self.models.load(with_bank=manifest is not None)
        if manifest is not None:
            models = self.models.adopt_bank(manifest, models)
        return replace(
            models,
            references=self._override(models.references),
            segmentation=self._override(models.segmentation),
        )

    def _open_bank(
        self, manifest: store.Manifest | None, dataset: Dataset, models: Models
    ) -> tuple[ReferenceBank, store.Manifest]:
        """Return the bank and its manifest."""
        if manifest is None:
            manifest, references = build_references(
                dataset.prompts, models, cache_dir=self.cache_dir, progress=show_class_progress
            )
        else:
            references = store.read_all_references(manifest)
        bank = assemble_bank(references, models.references, manifest.encoder)
        check_encoder(bank, models)
        return bank, manifest

    def _evaluate_items(
        self,
        items: Sequence[Item],
        dataset: Dataset,
        bank: ReferenceBank,
        models: Models,
        load: Load,
        workers: Workers | None,
        description: dict[str, Any],
    ) -> Results:
        """Evaluate the images that have no result yet; return all results of the run."""
        cache = store.locate_cache(self.cache_dir)
        memory: Results = {}
        run = nullcontext((memory, lambda result: memory.update({result.image: result})))
        with (
            run_folder.open_run(self.output, description) if self.output else run as (
                results,
                append,
            ),
            _say_what_is_kept(results),
        ):
            todo = [
                item
                for item in items
                if item.id not in results or results[item.id].error is not None
            ]
            if workers is not None:
                done = evaluate_images(
                    todo,
                    bank,
                    models,
                    load,
                    cache,
                    workers,
                    background=dataset.background,
                    output=self.output,
                    save_labels=self.save_labels,
                )
                todo = []
                for item, result in done:
                    if isinstance(result, ChildProcessError):
                        append(_note_failure(item, result))
                    elif isinstance(result, Exception):  # this machine may see the image
                        todo.append(item)
                    else:
                        append(result)
            rows = {"": (bank, models.segmentation)}
            load_regions = load_or_extract(cache, models)
            outcomes = evaluate_items(todo, load_regions, rows, background=dataset.background)
            for outcome in progress(outcomes, "evaluate", "image", len(todo)):
                append(self._keep_outcome(outcome))
        return results

    def _keep_outcome(self, outcome: Outcome) -> ImageResult:
        if outcome.error is not None:
            return _note_failure(outcome.item, outcome.error)
        seg = outcome.segmentations[""]
        if self.output is not None and self.save_labels:
            write_labels(locate_labels(self.output, outcome.item.id), seg.labels)
        return ImageResult.from_confusion(outcome.item.id, outcome.confusions[""], seg.timings)

    def _override(self, settings: Settings) -> Settings:
        """Put the options that were given into settings."""
        options = {name: getattr(self, name, None) for name in asdict(settings)}
        return replace(settings, **{k: value for k, value in options.items() if value is not None})


def _note_failure(item: Item, error: Exception) -> ImageResult:
    warn(f"{item.id}: {shorten(error)}")
    return ImageResult(item.id, error=shorten(error))


@contextmanager
def _say_what_is_kept(results: Results) -> Iterator[None]:
    """Add to the error of a full disk that the same command goes on."""
    try:
        yield
    except WriteError as error:
        raise WriteError(
            f"{error}; the results of {len(results)} images are kept, and the same command resumes "
            "the run"
        ) from error
