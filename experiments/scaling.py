"""Measure what workers on a Ray cluster cost and save, fit a cost model to it, and check it.

Command:  export OMP_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false
          RAY_worker_niceness=0 python experiments/scaling.py
              the mini preset on Fashion Scenes, without Ray and with 1, 2 and 4 workers by turns,
              from empty caches; about 15 minutes on 2 CPU cores, 4 GiB of memory
          python experiments/scaling.py --plan
              measures nothing: what the model says of the paper preset on many GPUs
          python experiments/scaling.py --only driver
              one of the parts: workers, overhead, driver, bank, dispatch, store, vocabulary

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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import tyro
from scaling_plan import print_plan
from stored_evaluation import StoredEvaluation, fill

from rimjax import datasets, match
from rimjax.bench.timing import time_call
from rimjax.commands.console import write_labels
from rimjax.commands.fill import load_models
from rimjax.commands.main import CONFIG
from rimjax.commands.options import Flag, ModelOptions
from rimjax.distributed.fill import fill_references, fill_regions, list_missing
from rimjax.distributed.units import Workers, import_ray, run_units
from rimjax.evaluation.loop import evaluate_items, summarise_timings
from rimjax.models.protocols import Models
from rimjax.references import store
from rimjax.references.build import assemble_bank, draw_class
from rimjax.references.contents import FEATURES, ClassReferences
from rimjax.regions.archive import RECORDS_PER_PART, Archive
from rimjax.regions.store import RegionStore
from rimjax.settings import CONFIGURATIONS, ReferenceSettings, SegmentSettings
from rimjax.types import BACKGROUND, ReferenceBank

Part = Literal["workers", "overhead", "driver", "bank", "dispatch", "store", "vocabulary"]
PARTS: tuple[Part, ...] = get_args(Part)
MIB = 2**20


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


@dataclass(frozen=True)
class Run:
    """The seconds of a stage: drawing all classes, or extracting all images' regions.

    Attributes:
        start: until the first unit's result, less a unit.
        unit: of a unit, from the first result to the last, over all workers.
        whole: of everything.
        busy: seconds of CPUs that the start took, over all processes.
        free: cores that other jobs left to this one, on average.
    """

    start: float
    unit: float
    whole: float
    busy: float
    free: float


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
        load = partial(load_models, self.models, settings)
        workers = Workers(address="local", count=count)
        missing = list_missing(classes, models, settings, cache)
        drawn = fill_references(missing, models, settings, cache, load, workers)
        runs = {"class": time_units(check_outcomes(drawn))}
        extracted = fill_regions(images, models, cache, load, workers)
        return runs | {"image": time_units(check_outcomes(extracted))}


def time_units(results: Iterable[Any], begun: float | None = None) -> Run:
    """Go through the results of a stage's units and time them.

    Args:
        results: of the units, as they come.
        begun: when the stage began; default: now.
    """
    called, before, all_before = time.perf_counter(), list_own(), count_busy()
    begun = called if begun is None else begun
    times, looks = [], []
    for _ in results:
        times.append(time.perf_counter())
        if not looks or times[-1] - looks[-1][0] > 0.5:  # a look takes some milliseconds
            own = sum(taken - before.get(pid, 0) for pid, taken in list_own().items())
            looks.append((times[-1], own, count_busy() - all_before - own))
    unit = (times[-1] - times[0]) / max(1, len(times) - 1)
    whole = time.perf_counter() - begun
    until, _, others = looks[-1]
    free = len(os.sched_getaffinity(0)) - others / (until - called)
    return Run(times[0] - begun - unit, unit, whole, looks[0][1] - unit, free)


def count_busy() -> float:
    """Return the seconds that all CPUs have worked, or were kept by a host."""
    user, nice, system, _, _, *rest = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def list_own() -> dict[int, float]:
    """List the seconds of CPUs of this process and of all that it started and that still run."""
    parents, seconds = dict[int, int](), dict[int, float]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # a process that has ended
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)] = int(fields[1])
            taken = sum(map(int, fields[11:13]))
            seconds[int(path.parent.name)] = taken / os.sysconf("SC_CLK_TCK")
    own, waiting = set[int](), {os.getpid()}
    while waiting:
        own |= waiting
        waiting = {pid for pid, parent in parents.items() if parent in waiting}
    return {pid: seconds[pid] for pid in own if pid in seconds}


def predict(one: Measured, stage: str, units: int, workers: int, free: float) -> float:
    """Predict the seconds of a stage, Ray's start excluded, from one worker's rates.

    Args:
        one: of one worker.
        stage: "class" or "image".
        units: of the stage.
        workers: their number.
        free: cores.
    """
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


def measure_folder(folder: Path) -> tuple[int, int]:
    """Return the bytes that a folder takes on disk, as `du` counts them, and its files."""
    files = [path.stat() for path in folder.rglob("*") if path.is_file()]
    return sum(each.st_blocks * 512 for each in files), len(files)


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
    load = partial(load_models, stages.models, models.references)
    import_ray().init("local", num_cpus=1, log_to_driver=False)
    for _ in range(options.turns):
        with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
            regions = RegionStore.open(Path(first), models)
            workers = Workers(address="local", count=1)
            worker = check_outcomes(fill_regions(images, models, Path(second), load, workers))
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


def measure_driver(images: int = 30) -> None:
    """Time what `rimjax evaluate` does by itself once all regions are stored: the paper's sizes."""
    options = StoredEvaluation(count=images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(options, folder)
        bank, load = options.make_bank("image", 8), options.open_store(folder, "image").load
        timings, times = [], [time.perf_counter()]
        rows = {"": (bank, SegmentSettings())}
        for index, outcome in enumerate(evaluate_items(options.list_items(), load, rows)):
            seg = outcome.segmentations[""]
            write_labels(folder / f"labels/{index}.png", seg.labels)
            timings.append(seg.timings)
            times.append(time.perf_counter())
        each = statistics.median(np.diff(times))
        size = measure_folder(folder)[0] / images
    stages = ", ".join(f"{k} {v:.3f}" for k, v in summarise_timings(timings)[0].items())
    print(
        f"\ndriver: {each:.3f} s an image of 640x480 with {options.regions} regions, "
        f"{1 / each:.1f} images/s ({stages}); {size / 1024:,.0f} KiB an image, with both encoders"
    )


def measure_bank(sizes: Sequence[int] = (2, 100, 400), per_class: int = 32) -> None:
    """Time putting a bank together from stored references, which the driver does by itself."""
    print("\n| classes | printed: 8 sub-categories | rimjax: whitened |\n|---|---|---|")
    rng = np.random.default_rng(0)
    for count in sizes:
        drawn = [
            ClassReferences(
                name=str(index),
                images=None,
                masks=None,
                attention=np.zeros((per_class, 0, 0), np.float32),
                points=np.zeros((per_class, 0, 2), np.float32),
                fallbacks=0,
                **{name: rng.standard_normal((per_class, 768), np.float32) for name in FEATURES},
            )
            for index in range(count)
        ]
        cells = []
        for name in ("printed", "rimjax"):
            settings = CONFIGURATIONS[name].adjust(ReferenceSettings())
            begun = time.perf_counter()
            assemble_bank(drawn, settings, "")
            cells.append(f"{time.perf_counter() - begun:.2f} s")
        print(f"| {count} | {' | '.join(cells)} |")


def measure_dispatch(units: int = 2000, waiting: int = 2048) -> None:
    """Time handing out units that do nothing, and waiting for one of many workers."""
    ray = import_ray()
    ray.init("local", num_cpus=2, log_to_driver=False)
    workers, begun = Workers(address="local", count=1), time.process_time()
    run = time_units(run_units(range(units), _nothing, _return, workers))
    driver = (time.process_time() - begun) / units
    never = ray.remote(_nothing).options(num_cpus=3)  # more than there are: it never runs
    refs, ready = [never.remote() for _ in range(waiting)], ray.put(0)
    begun = time.perf_counter()
    for _ in range(100):
        ray.wait([*refs, ready], num_returns=1, timeout=1)
    each = (time.perf_counter() - begun) / 100
    ray.shutdown()
    print(
        f"\na unit that does nothing: {run.unit * 1000:.2f} ms over one worker, "
        f"of which the driver works {driver * 1000:.2f} ms"
    )
    print(f"waiting for one of {waiting:,} workers: {each * 1000:.2f} ms")


def _nothing() -> None:
    pass


def _return(state: None, unit: int) -> int:
    return unit


def measure_store(parts: Sequence[int] = (250, 1000), folders: int = 5000) -> None:
    """Time looking up an image that isn't there among many, and finding a class's drawing."""
    print("\n| images stored | read the headers, look up | look up again | write a record |")
    print("|---|---|---|---|")
    record = {"row": np.zeros((1, 8), np.float32)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive = Archive(folder)
        for index in range(RECORDS_PER_PART):
            archive.put(f"{index:032x}", record)
        first = next(folder.glob("part-*"))
        for count in parts:
            for index in range(len(list(folder.glob("part-*"))), count):
                shutil.copyfile(first, folder / f"part-{index:016x}.safetensors")
            archive, cells = Archive(folder), []
            for call in (archive.get, archive.get, partial(archive.put, record=record)):
                begun = time.perf_counter()
                call("f" * 32)
                cells.append(f"{time.perf_counter() - begun:.4f} s")
            (folder / f"{'f' * 32}.safetensors").unlink()
            print(f"| {count * RECORDS_PER_PART:,} | {' | '.join(cells)} |")
    features = {"features": np.zeros((100, 768), np.float32), "valid": np.ones(100, bool)}
    with tempfile.TemporaryDirectory() as name:
        archive, times = Archive(Path(name)), [time.perf_counter()]
        for index in range(RECORDS_PER_PART):
            archive.put(f"{index:032x}", features)
            times.append(time.perf_counter())
        taken = np.diff(times)
        print(
            f"an image's features, 100 x 768: written in {np.median(taken[:-1]):.4f} s; "
            f"{RECORDS_PER_PART} of them joined to a part in {taken[-1]:.2f} s"
        )
    with tempfile.TemporaryDirectory() as name:
        for index in range(folders):
            (Path(name) / f"references/class-{index}-{index:016x}").mkdir(parents=True)
        begun = time.perf_counter()
        store.find_drawing(Path(name), "another", "")
        print(f"find a drawing among {folders:,} classes: {time.perf_counter() - begun:.4f} s")


def measure_vocabulary(sizes: Sequence[int] = (1_000, 3_000, 10_000)) -> None:
    """Time matching an image's regions with banks of many classes."""
    print("\n| classes | prototypes | bank | 100 regions |\n|---|---|---|---|")
    rng = np.random.default_rng(0)
    regions = rng.standard_normal((100, 768), np.float32)
    for count in sizes:
        classes = rng.standard_normal((count, 768), np.float32)
        prototypes = np.repeat(classes, 8, 0) + 0.5 * rng.standard_normal(
            (8 * count, 768), np.float32
        )
        owners = np.repeat(np.arange(count), 8)
        names = (BACKGROUND, *map(str, range(1, count)))
        bank = ReferenceBank.create(prototypes, owners, classes, names)
        call = partial(match.match, regions, bank, num_agents=4, top_k=1)
        seconds = time_call(call, repeats=3)[1]
        size = (prototypes.nbytes + classes.nbytes) / MIB
        print(f"| {count:,} | {8 * count:,} | {size:,.0f} MiB | {seconds:.3f} s |")


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
    others = {
        "driver": measure_driver,
        "bank": measure_bank,
        "dispatch": measure_dispatch,
        "store": measure_store,
        "vocabulary": measure_vocabulary,
    }
    for part, measure in others.items():
        if part in options.only:
            measure()


if __name__ == "__main__":
    main()
