"""Measure what workers on a Ray cluster cost and save, fit a cost model to it, and check it.

Command:  export OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false
          RAY_worker_niceness=0 python experiments/scaling.py
              the mini preset on Fashion Scenes, without Ray and with 1, 2 and 4 workers by turns,
              from empty caches; about 15 minutes on 2 CPU cores, 4 GiB of memory
          python experiments/scaling.py --plan
              measures nothing: what the model says of the paper preset on many GPUs
          python experiments/scaling.py --only overhead
              one of the parts: workers, overhead, evaluation, bank, dispatch, store, vocabulary

One thread for each process makes the runs comparable: Ray gives a worker as many threads as it has
CPUs, while a process alone takes all cores. Ray also runs workers at niceness 15, so that other
jobs on the same cores would slow them alone.

The model: a run takes the start of Ray, the start of the workers (models, and compilation in the
first unit), then as many rounds of units as the workers need. Workers beyond the cores that other
jobs leave share them, while they start too. The model is fitted to one worker and checked on the
others. docs/scaling.md has the figures.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import scaling_parts
import tyro
from scaling_clock import Run, measure_folder, time_units
from scaling_plan import print_plan

from rimjax import datasets
from rimjax.commands.fill import load_alike
from rimjax.commands.main import CONFIG
from rimjax.commands.options import Flag, ModelOptions
from rimjax.distributed.cluster import Workers, import_ray
from rimjax.distributed.fill import extract_image, fill_references, list_missing, run_images
from rimjax.models.protocols import Models
from rimjax.references.build import draw_class
from rimjax.regions.store import RegionStore

Part = Literal["workers", "overhead", "evaluation", "bank", "dispatch", "store", "vocabulary"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Options.

    Attributes:
        images: Scenes whose regions are extracted.
        classes: Classes that are drawn.
        per_class: Images drawn of a class.
        workers: Numbers of workers; the model is fitted to one.
        turns: How often each number of workers runs; medians count.
        only: Measure these parts alone.
        plan: Print the plan for the paper preset, and measure nothing.
    """

    images: int = 60
    classes: int = 4
    per_class: int = 8
    workers: tuple[int, ...] = (1, 2, 4)
    turns: int = 3
    only: tuple[Part, ...] = PARTS
    plan: Flag = False


@dataclass
class Measured:
    """What the turns of a number of workers measured; 0 workers: without Ray.

    Attributes:
        ray: seconds that Ray's start took.
        stages: "class" and "image" -> the runs.
        sizes: "class" and "image" -> bytes on disk and files of a unit.
    """

    ray: list[float] = field(default_factory=list)
    stages: defaultdict[str, list[Run]] = field(default_factory=lambda: defaultdict(list))
    sizes: dict[str, tuple[float, float]] = field(default_factory=dict)

    def take(self, stage: str, what: str) -> float:
        """Return the median of an attribute of a stage's runs."""
        return statistics.median(getattr(run, what) for run in self.stages[stage])


@dataclass(frozen=True)
class Stages:
    """Both stages' work: what the commands do.

    Attributes:
        options: which classes and how many images.
    """

    options: Scaling

    @property
    def models(self) -> ModelOptions:
        """The models' options."""
        return ModelOptions(preset="mini", images=self.options.per_class)

    @property
    def units(self) -> dict[str, int]:
        """The units of each stage."""
        return {"class": self.options.classes, "image": self.options.images}

    def list_units(self) -> tuple[dict[str, tuple[()]], list[Callable[[], np.ndarray]]]:
        """List classes and images."""
        dataset = datasets.load("fashion-scenes", None)
        images = [item.image for item in dataset.items[: self.options.images]]
        return dict.fromkeys(dataset.prompts[: self.options.classes], ()), images

    def run_alone(self, cache: Path, begun: float) -> dict[str, Run]:
        """Do both stages in this process, which began at a time."""
        (classes, images), models = self.list_units(), self.models.load()
        regions = RegionStore.open(cache, models)
        drawn = (draw_class(name, models, models.references, cache, ()) for name in classes)
        runs = {"class": time_units(drawn, begun)}
        return runs | {"image": time_units(regions.load(read()) for read in images)}

    def run_workers(self, cache: Path, models: Models, count: int) -> dict[str, Run]:
        """Do both stages by workers."""
        (classes, images), settings = self.list_units(), models.references
        load = load_alike(self.models.load, models, cache)
        workers = Workers(address="local", count=count)
        missing = list_missing(classes, models, settings, cache)
        drawn = fill_references(missing, models, settings, cache, load, workers)
        runs = {"class": time_units(check_outcomes(drawn))}
        extracted = run_images(images, extract_image, models, cache, load, workers)
        return runs | {"image": time_units(check_outcomes(extracted))}


def predict(one: Measured, stage: str, units: int, workers: int, free: float) -> float:
    """Predict the seconds of a stage, Ray's start excluded, from one worker's rates.

    Args:
        one: of one worker.
        stage: "class" or "image".
        units: of the stage.
        workers: their number.
        free: cores.
    """
    workers = min(workers, units)
    start = max(one.take(stage, "start"), workers * one.take(stage, "busy") / free)
    rounds = max(math.ceil(units / workers), units / free)
    return start + rounds * one.take(stage, "unit")


def measure_workers(options: Scaling) -> dict[int, Measured]:
    """Run both stages by turns with each number of workers, and without Ray."""
    stages, fresh = Stages(options), multiprocessing.get_context("spawn")
    models = stages.models.load()
    found = {count: Measured() for count in (0, *options.workers)}
    for _ in range(options.turns):
        for count, measured in found.items():
            cache = Path(tempfile.mkdtemp(prefix="rimjax-scaling-"))
            begun = time.perf_counter()
            if count:
                import_ray().init("local", num_cpus=count, log_to_driver=False)
                measured.ray.append(time.perf_counter() - begun)
                runs = stages.run_workers(cache, models, count)
                import_ray().shutdown()
            else:
                with ProcessPoolExecutor(1, fresh) as process:
                    runs = process.submit(stages.run_alone, cache, begun).result()
            for (stage, run), folder in zip(runs.items(), ("references", "regions"), strict=True):
                measured.stages[stage].append(run)
                size, files = measure_folder(cache / folder)
                measured.sizes[stage] = size / stages.units[stage], files / stages.units[stage]
                print(f"{count} workers, {stage}: {run}", flush=True)
            shutil.rmtree(cache)
    return found


def check_outcomes(results: Iterable[Any]) -> Iterator[Any]:
    """Pass results on; raise the error of a unit that failed."""
    for result in results:
        if getattr(result, "error", None) is not None:
            raise result.error
        yield result


def print_workers(options: Scaling, found: dict[int, Measured]) -> None:
    """Print the measured rates, and the model's predictions beside what was measured."""
    units, one = Stages(options).units, found[1]
    print(f"\n{len(os.sched_getaffinity(0))} cores; medians of {options.turns} turns\n")
    print("| workers | Ray's start | start, classes | s a class | start, images | s an image |")
    print("|---|---|---|---|---|---|")
    for count, each in found.items():
        cells = [f"{statistics.median(each.ray):.1f} s" if each.ray else ""]
        for stage in units:
            cells += [f"{each.take(stage, 'start'):.1f} s", f"{each.take(stage, 'unit'):.3f}"]
        print(f"| {count or 'no Ray'} | {' | '.join(cells)} |")
    for stage, (size, files) in one.sizes.items():
        print(f"\n{stage}: {size / 1024:,.1f} KiB on disk in {files:.2f} files", end="")
        print(f"; a worker's start takes {one.take(stage, 'busy'):.1f} s of CPUs", end="")
    print("\n\n| units | workers | cores left | predicted | measured | off by |")
    print("|---|---|---|---|---|---|")
    for stage, count in [(stage, count) for stage in units for count in found if count]:
        free, whole = found[count].take(stage, "free"), found[count].take(stage, "whole")
        expected = predict(one, stage, units[stage], count, free)
        print(
            f"| {units[stage]} x {stage} | {count} | {free:.2f} | {expected:.1f} s | {whole:.1f} s "
            f"| {expected / whole - 1:+.0%}{' (fitted)' if count == 1 else ''} |"
        )
    print("\n| workers over 1 | turn | cores left | left to 1 | faster | expected |")
    print("|---|---|---|---|---|---|")
    for count in found.keys() - {0, 1}:
        pairs = zip(one.stages["image"], found[count].stages["image"], strict=True)
        for turn, (first, second) in enumerate(pairs, start=1):
            expected = min(count, second.free) / min(1, first.free)
            print(
                f"| {count} | {turn} | {second.free:.2f} | {first.free:.2f} "
                f"| {first.unit / second.unit:.2f} | {expected:.2f} |"
            )


def measure_overhead(options: Scaling) -> None:
    """Extract the regions of each image by one worker and without Ray, one after the other.

    Only one of the two works at a time, so that other jobs slow both alike.
    """
    stages, ratios = Stages(options), []
    models, (_, images) = stages.models.load(), stages.list_units()
    import_ray().init("local", num_cpus=1, log_to_driver=False)
    for _ in range(options.turns):
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            regions = RegionStore.open(Path(first), models)
            workers = Workers(address="local", count=1)
            load = load_alike(stages.models.load, models, Path(second))
            outcomes = run_images(images, extract_image, models, Path(second), load, workers)
            worker = check_outcomes(outcomes)
            seconds = []
            for read in images:
                begun = time.perf_counter()
                regions.load(read())
                alone = time.perf_counter()
                next(worker)
                seconds.append((alone - begun, time.perf_counter() - alone))
            list(worker)
        alone, by_worker = np.mean(seconds[1:], 0)  # the first one includes the start
        ratios.append(alone / by_worker)
        print(f"an image: {alone:.4f} s alone, {by_worker:.4f} s by a worker", flush=True)
    import_ray().shutdown()
    print(f"one worker's rate over no Ray: {statistics.median(ratios):.3f} (median of the turns)")


def main() -> None:
    options = tyro.cli(Scaling, description=__doc__, config=CONFIG)
    if options.plan:
        print_plan()
        return
    if 1 not in options.workers:
        raise SystemExit(f"scaling.py: --workers must hold 1, got {options.workers}")
    if "workers" in options.only:
        print_workers(options, measure_workers(options))
    if "overhead" in options.only:
        measure_overhead(options)
    for part, measure in scaling_parts.PARTS.items():
        if part in options.only:
            measure()


if __name__ == "__main__":
    main()
