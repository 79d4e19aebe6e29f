"""The scripts that reproduce.py runs, in order, what each costs, and the options."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

from harness import Experiment

from rimjax.commands.console import check_outputs
from rimjax.commands.options import (
    CACHE_DEFAULT,
    DTYPE_DEFAULT,
    NO_DEFAULT,
    WEIGHTS_DEFAULT,
    Flag,
    RayOptions,
    default,
)
from rimjax.presets import Precision

ALL, COCO, VOC = ("voc", "context", "coco-object"), ("coco-object",), ("voc",)


@dataclass(frozen=True)
class Step:
    """A script, and what it costs on the paper preset.

    Attributes:
        name: of the script.
        datasets: that it reads; mini's is always its own.
        encodings: how many encoders and sizes go over the images.
        few: whether it reads the first images only.
    """

    name: str
    datasets: tuple[str, ...]
    encodings: int = 1
    few: bool = False

    @property
    def title(self) -> str:
        """What the page calls it."""
        for prefix, kind in (("table", "Table "), ("fig", "Figure ")):
            if self.name.startswith(prefix):
                return kind + self.name.removeprefix(prefix)
        return self.name.replace("_", " ").capitalize()


STEPS = (
    Step("table2", COCO, encodings=2),
    Step("table1", ALL),
    Step("table3", COCO, encodings=4),
    Step("table4", VOC, encodings=2),
    Step("table5", COCO),
    Step("fig3", VOC, few=True),
    Step("fig4", VOC, few=True),
    Step("fig5", COCO),
    Step("fig6", VOC, encodings=2),
    Step("beyond", COCO, encodings=4),
    Step("ablations", COCO, encodings=11),
    Step("readings", VOC),
    Step("half_precision", COCO, encodings=2),
    Step("report", VOC),
)


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Options of reproduce.py.

    Attributes:
        preset: Models and settings.
        data: Folder that holds the published data sets in mmsegmentation's layout.
        only: Only these steps.
        limit: Number of images of each data set, for a try.
        images: K, images drawn of each class, for a try.
        dtype: Numbers that the generator computes in, as of `rimjax evaluate`.
        encoder_dtype: Numbers that the encoder computes in.
        cache_dir: Folder that keeps banks and regions.
        weights_dir: Folder that holds the paper preset's weights.
        output: Folder for tables, pictures and the page.
        plan: Print the plan and stop. Draws up to two classes and segments two images of each data
            set to measure their speed; all are kept in the cache.
        again: Run finished steps again; what they need is still taken from the cache.
    """

    preset: Literal["mini", "paper"] = "mini"
    data: Annotated[Path | None, NO_DEFAULT] = None
    only: Annotated[tuple[str, ...], default("all")] = ()
    limit: Annotated[int | None, default("all")] = None
    images: Annotated[int | None, default("the preset's")] = None
    dtype: Annotated[Precision | None, DTYPE_DEFAULT] = None
    encoder_dtype: Precision = "float32"
    cache_dir: Annotated[Path | None, CACHE_DEFAULT] = None
    weights_dir: Annotated[Path | None, WEIGHTS_DEFAULT] = None
    output: Annotated[Path | None, default("experiments/results/PRESET")] = None
    plan: Flag = False
    again: Flag = False
    cluster: RayOptions = field(default_factory=RayOptions)

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return self.output or self.open_experiment(None).folder

    @property
    def steps(self) -> list[Step]:
        """The chosen steps, in order."""
        names = [step.name for step in STEPS]
        if unknown := sorted(set(self.only) - set(names)):
            raise ValueError(f"only must name steps of {', '.join(names)}, got {unknown[0]!r}")
        return [step for step in STEPS if not self.only or step.name in self.only]

    def check(self) -> None:
        """Raise ValueError for an option that the steps would refuse."""
        for name in ("limit", "images"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        self.cluster.open()
        check_outputs(self.folder / "any")

    def open_experiment(self, dataset: str | None) -> Experiment:
        """Return the options as the scripts take them."""
        return Experiment(
            preset=self.preset,
            dataset_name=dataset,
            data=self.data,
            limit=self.limit,
            images=self.images,
            dtype=self.dtype,
            encoder_dtype=self.encoder_dtype,
            cache_dir=self.cache_dir,
            weights_dir=self.weights_dir,
            out=self.output,
        )

    def name_datasets(self, step: Step) -> tuple[str, ...]:
        """Return the data sets that a step reads."""
        return step.datasets if self.preset == "paper" else ("fashion-scenes",)

    @property
    def words(self) -> list[str]:
        """The options that every script takes, as words of a command line."""
        given = {
            "--preset": self.preset,
            "--encoder-dtype": self.encoder_dtype,
            "--dtype": self.dtype,
            "--data": self.data,
            "--limit": self.limit,
            "--images": self.images,
            "--cache-dir": self.cache_dir,
            "--weights-dir": self.weights_dir,
        }
        pairs = [(flag, str(value)) for flag, value in given.items() if value is not None]
        return [word for pair in pairs for word in pair]

    @property
    def worker_words(self) -> list[str]:
        """The options of the workers, as words of a command line."""
        return [
            word
            for each in fields(self.cluster)
            if (value := getattr(self.cluster, each.name)) != each.default
            for word in (f"--{each.name.replace('_', '-')}", str(value))
        ]
