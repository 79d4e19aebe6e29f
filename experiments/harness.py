"""Shared by the experiments: options, the cached bank and regions, evaluation and tables.

A sweep never draws an image or proposes a region twice: drawn images are part of the stored
references, and the regions of test images are kept by `rimjax.regions.store`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro
from one_pass import can_evaluate, collect, gives_regions
from tables import Row, write_spread, write_table
from validation import open_validation_scenes

import rimjax
from rimjax import datasets
from rimjax.commands.console import (
    check_outputs,
    describe_origin,
    keep_compilations,
    name_flag,
    progress,
    shorten,
    show_class_progress,
)
from rimjax.commands.devices import share_gpu_memory
from rimjax.commands.main import CONFIG
from rimjax.commands.options import (
    CACHE_DEFAULT,
    DTYPE_DEFAULT,
    NO_DEFAULT,
    PRESET_DEFAULT,
    WEIGHTS_DEFAULT,
    Flag,
    default,
)
from rimjax.datasets import Dataset, Item, fashion_mnist
from rimjax.evaluation import Evaluation
from rimjax.evaluation.loop import (
    Outcome,
    Setup,
    check_counted,
    evaluate_items,
    raise_errors,
)
from rimjax.evaluation.metrics import Counts
from rimjax.models.protocols import Models
from rimjax.presets import Precision
from rimjax.references.build import assemble_bank, build_references
from rimjax.references.store import locate_cache
from rimjax.regions.store import LoadRegions, load_or_extract
from rimjax.settings import SegmentSettings
from rimjax.types import BACKGROUND, ReferenceBank

RESULTS = Path(__file__).parent / "results"
Options = TypeVar("Options", bound="Experiment")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment's options, and the data set, models, banks and tables that they define.

    Attributes:
        preset: Models and settings.
        dataset_name: Data set, as of `rimjax evaluate`.
        data: Folder that holds the published data sets in mmsegmentation's layout.
        validation: Evaluate 200 scenes of training-split photographs, for choosing settings,
            instead of mini's benchmark.
        limit: Number of images to evaluate, from the first on.
        seed: Random seed of the drawn images.
        seeds: Number of seeds from --seed on. With more than one, a bank is drawn with each, and
            the tables show the spread over them.
        images: K, images drawn of each class.
        dtype: Numbers that the generator computes in, as of `rimjax evaluate`.
        encoder_dtype: Numbers that the encoder computes in.
        cache_dir: Folder that keeps banks and regions.
        weights_dir: Folder that holds the paper preset's weights.
        out: Folder for tables and pictures. The default ends in -DATASET for other images, in
            -part for fewer images, in -seed-SEED or -seeds for other seeds, and in the name of a
            chosen number format.
    """

    preset: Literal["mini", "paper"] = "mini"
    dataset_name: Annotated[
        str | None,
        tyro.conf.arg(
            name="dataset", help_behavior_hint="(default: fashion-scenes on mini, else the paper's)"
        ),
    ] = None
    data: Annotated[Path | None, NO_DEFAULT] = None
    validation: Flag = False
    limit: Annotated[int | None, default("all")] = None
    seed: int = 0
    seeds: int = 1
    images: Annotated[int | None, PRESET_DEFAULT] = None
    dtype: Annotated[Precision | None, DTYPE_DEFAULT] = None
    encoder_dtype: Precision = "float32"
    cache_dir: Annotated[Path | None, CACHE_DEFAULT] = None
    weights_dir: Annotated[Path | None, WEIGHTS_DEFAULT] = None
    out: Annotated[Path | None, default("experiments/results/PRESET")] = None

    @cached_property
    def dataset(self) -> Dataset:
        """The data set."""
        if not self.validation:
            return datasets.load(self.dataset_name or "fashion-scenes", self.data)
        if self.dataset_name not in (None, "fashion-scenes"):
            raise ValueError(f"dataset must be left out with --validation, got {self.dataset_name}")
        return open_validation_scenes(self.data or fashion_mnist.DEBIAN_ROOT)

    @property
    def items(self) -> Sequence[Item]:
        """The images that are evaluated."""
        return self.dataset.items[: self.limit]

    @property
    def cache(self) -> Path:
        """The cache folder."""
        return locate_cache(self.cache_dir)

    def load_models(self, configuration: str = "printed", **stages: Any) -> Models:
        """Load the preset's models under a configuration.

        Args:
            configuration: name of the configuration.
            stages: stages by name, as `rimjax.load_preset` takes them.
        """
        numbers = {"dtype": self.dtype, "encoder_dtype": self.encoder_dtype}
        models = rimjax.load_preset(
            self.preset, self.weights_dir, configuration=configuration, **numbers | stages
        )
        count = self.images or models.references.num_images
        references = replace(models.references, num_images=count, seed=self.seed)
        return replace(models, references=references)

    def build_bank(self, models: Models, **changes: Any) -> ReferenceBank:
        """Build the bank, with changes to the reference settings, e.g. `num_subcategories=1`."""
        settings = replace(models.references, **changes)
        _, references = build_references(
            self.dataset.prompts,
            models,
            settings=settings,
            cache_dir=self.cache_dir,
            progress=show_class_progress,
        )
        return assemble_bank(references, settings, models.features)

    def build_cosine_rows(self, models: Models, title: str = "") -> dict[str, Setup]:
        """Build the rows that every table has beside its own: plain cosine at T = 1 and T = 8.

        Args:
            models: under the printed configuration, whose features are as the encoder gives them.
            title: the beginning of the rows' names.
        """
        return {
            f"{title}plain cosine, T = {count}": (
                self.build_bank(models, num_subcategories=count),
                SegmentSettings(similarity="cosine"),
            )
            for count in (1, 8)
        }

    def open_regions(self, models: Models) -> LoadRegions:
        """Return what loads the models' own regions and features (Eq. 5) from the store."""
        return load_or_extract(self.cache, models)

    def evaluate_images(
        self, load: LoadRegions, rows: Mapping[str, Setup], items: Sequence[Item]
    ) -> Iterator[Outcome]:
        """Evaluate rows that share an image's regions, image by image.

        Raises:
            ValueError: an image can't be used; a table over fewer images would be another table.
        """
        outcomes = evaluate_items(items, load, rows, background=self.dataset.background)
        shown: Any = progress(outcomes, "regions", "image", len(items))
        with closing(shown):  # and the progress bar, before an error is printed
            yield from raise_errors(shown)

    def evaluate(self, load: LoadRegions, rows: Mapping[str, Setup]) -> dict[str, Evaluation]:
        """Evaluate rows that share the images' regions.

        Rows that paint regions by their area are evaluated in one pass over all images.
        """
        names, background = (BACKGROUND, *self.dataset.classes), self.dataset.background
        quick = {name for name, (_, settings) in rows.items() if can_evaluate(settings)}
        if not gives_regions(self.items[0], load):
            quick = set()  # pixels are named one by one
        evaluations = {}
        if quick:
            shown = progress(self.items, "regions", "image")
            images = collect(shown, {"": load}, self.dataset.classes, background)[""]
            evaluations = {name: images.evaluate(*rows[name]) for name in quick}
        counts: dict[str, list[Counts]] = {name: [] for name in rows if name not in quick}
        if counts:
            slow = {name: rows[name] for name in counts}
            for outcome in self.evaluate_images(load, slow, self.items):
                for name, confusion in outcome.confusions.items():
                    counts[name].append(Counts.from_confusions(confusion[None]))
        for name, images_counts in counts.items():
            evaluations[name] = Evaluation(names, Counts.stack(images_counts), {}, background)
        check_counted(next(iter(evaluations.values())).counts)
        return {name: evaluations[name] for name in rows}

    def evaluate_models(self, models: Models, items: Sequence[Item]) -> list[Outcome]:
        """Evaluate images under the models' own settings; the outcomes' row is ""."""
        rows = {"": (self.build_bank(models), models.segmentation)}
        return list(self.evaluate_images(self.open_regions(models), rows, items))

    @property
    def folder(self) -> Path:
        """Folder for tables and pictures."""
        usual = "fashion-scenes" if self.preset == "mini" else "coco-object"
        suffix = "" if self.dataset_name in (None, usual) else f"-{Path(self.dataset_name).name}"
        if self.validation:
            suffix = "-validation"
        if self.limit is not None or self.images is not None:
            suffix += "-part"
        if self.seeds > 1:
            suffix += "-seeds"
        elif self.seed:
            suffix += f"-seed-{self.seed}"
        if self.dtype is not None:
            suffix += f"-{self.dtype}"
        if self.encoder_dtype != "float32":
            suffix += f"-encoder-{self.encoder_dtype}"
        return self.out or RESULTS / (self.preset + suffix)

    def write_table(
        self,
        name: str,
        rows: Sequence[Row],
        bases: Mapping[str, Evaluation] | None = None,
        models: Models | None = None,
    ) -> None:
        """Write a table, and settings, weights and versions beside it; see `tables.write_table`."""
        options = {"dataset": self.dataset_name, "validation": self.validation, "limit": self.limit}
        origin = describe_origin(models) if models else {}
        write_table(self.folder, name, rows, bases, {**options, **origin})


def start(
    main: Callable[[Options], None],
    options: type[Options],
    description: str | None,
    dataset: str | None = "coco-object",
) -> None:
    """Run an experiment from its command line; bad input is one line, and exit status 2.

    Args:
        main: the experiment.
        options: class of its options.
        description: the script's docstring.
        dataset: the paper's data set; None if the experiment chooses it.
    """
    share_gpu_memory()
    experiment = tyro.cli(options, description=description, config=CONFIG)
    try:
        if experiment.dataset_name is None and experiment.preset == "paper":
            experiment = replace(experiment, dataset_name=dataset)
        for name in ("limit", "images", "seeds"):
            if (number := getattr(experiment, name)) is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        check_outputs(experiment.folder / "any")
        keep_compilations(experiment.cache)
        if experiment.seeds > 1:
            run_seeds(main, experiment, Path(sys.argv[0]).stem)
        else:
            main(experiment)
    except (ValueError, OSError, ImportError, MemoryError) as error:
        message = name_flag(shorten(error), experiment)
        print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
        raise SystemExit(2) from error


def run_seeds(main: Callable[[Options], None], experiment: Options, name: str) -> None:
    """Run an experiment with each seed, and write each table's spread over them.

    Args:
        main: the experiment.
        experiment: its options.
        name: of the folder, inside each seed's, that keeps other experiments' tables apart.
    """
    folders = []
    for seed in range(experiment.seed, experiment.seed + experiment.seeds):
        folders.append(experiment.folder / f"seed-{seed}" / name)
        print(f"seed {seed}")
        main(replace(experiment, seed=seed, seeds=1, out=folders[-1]))
    for path in sorted(folders[0].glob("*.csv")):
        write_spread(experiment.folder, path.stem, folders)
