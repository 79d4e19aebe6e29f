"""What one process or one folder does, however many workers there are: parts of scaling.py."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scaling_clock import measure_folder, time_units
from stored_evaluation import StoredEvaluation, fill

from rimjax import match
from rimjax.bench.timing import time_call
from rimjax.commands.console import write_labels
from rimjax.commands.fill import watch
from rimjax.distributed.cluster import Workers, import_ray
from rimjax.distributed.units import Outcome, run_units
from rimjax.evaluation.loop import evaluate_items, summarise_timings
from rimjax.evaluation.run_folder import ImageResult, open_run
from rimjax.references import store
from rimjax.references.build import assemble_bank
from rimjax.references.contents import FEATURES, ClassReferences
from rimjax.regions.archive import RECORDS_PER_PART, Archive
from rimjax.settings import CONFIGURATIONS, ReferenceSettings, SegmentSettings
from rimjax.types import BACKGROUND, ReferenceBank

MIB = 2**20


def measure_evaluation(images: int = 30) -> None:
    """Time evaluating an image whose regions are stored, in a worker: the paper's sizes.

    Then time how the driver writes down its result, and which worker gave it.
    """
    options = StoredEvaluation(count=images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fill(options, folder)
        bank, load = options.make_bank("image", 8), options.open_store(folder, "image").load
        timings, times, results = [], [time.perf_counter()], []
        rows = {"": (bank, SegmentSettings())}
        for index, outcome in enumerate(evaluate_items(options.list_items(), load, rows)):
            seg = outcome.segmentations[""]
            write_labels(folder / f"labels/{index}.png", seg.labels)
            timings.append(seg.timings)
            results.append(ImageResult.from_confusion(str(index), outcome.confusions[""], {}))
            times.append(time.perf_counter())
        each = statistics.median(np.diff(times))
        size = measure_folder(folder)[0] / images
        done = (Outcome(index, worker="host:1", seconds=each) for index in range(images))
        about = {"classes": bank.names[1:], "background": True, "num_images": images, "shard": None}
        with open_run(folder / "run", about) as (_, append):
            begun = time.perf_counter()
            names = [result.image for result in results]
            for outcome in watch(done, "evaluate", "image", names, folder / "run"):
                append(results[outcome.unit])
            record = (time.perf_counter() - begun) / images
    stages = ", ".join(f"{k} {v:.3f}" for k, v in summarise_timings(timings)[0].items())
    print(
        f"\nevaluation: {each:.3f} s an image of 640x480 with {options.regions} regions, "
        f"{1 / each:.1f} images/s ({stages}); {size / 1024:,.0f} KiB an image, with both encoders"
    )
    print(f"the driver writes down a result in {record * 1000:.2f} ms")


def measure_bank(sizes: Sequence[int] = (2, 100, 400), per_class: int = 32) -> None:
    """Time putting a bank together from stored references, which the driver does by itself."""
    print("\n| classes | printed: 8 sub-categories | rimjax: whitened |\n|---|---|---|")
    rng = np.random.default_rng(0)

    def make_features() -> dict[str, Any]:
        return {name: rng.standard_normal((per_class, 768), np.float32) for name in FEATURES}

    for count in sizes:
        drawn = [
            ClassReferences(
                name=str(index),
                images=None,
                masks=None,
                attention=np.zeros((per_class, 0, 0), np.float32),
                points=np.zeros((per_class, 0, 2), np.float32),
                fallbacks=0,
                **make_features(),
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


PARTS = {
    "evaluation": measure_evaluation,
    "bank": measure_bank,
    "dispatch": measure_dispatch,
    "store": measure_store,
    "vocabulary": measure_vocabulary,
}
