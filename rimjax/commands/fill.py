"""How commands hand their costly work to a cluster's workers, and keep a record of who did what."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rimjax.commands.console import (
    describe_origin,
    keep_compilations,
    progress,
    shorten,
    warn,
    write_labels,
)
from rimjax.commands.devices import share_gpu_memory
from rimjax.datasets.dataset import Item
from rimjax.distributed.cluster import Workers
from rimjax.distributed.fill import (
    ImageWorker,
    Load,
    Target,
    extract_image,
    fill_references,
    is_seen,
    list_missing,
    mark_folder,
    run_images,
)
from rimjax.distributed.units import Outcome
from rimjax.evaluation.loop import evaluate_items
from rimjax.evaluation.run_folder import ImageResult
from rimjax.files import append_line
from rimjax.models.protocols import Models
from rimjax.references.arguments import check_call
from rimjax.references.build import Names
from rimjax.regions.store import RegionStore
from rimjax.settings import SegmentSettings
from rimjax.types import ReferenceBank

RECORD = "workers.jsonl"


def load_alike(load: Load, models: Models, cache: Path) -> Load:
    """Return what loads a worker's models, with the settings of this machine's models.

    Args:
        load: loads them; it must be picklable.
        models: this machine's.
        cache: keeps compiled programs, where the worker sees it.

    Returns:
        A function that raises ValueError where a worker has other weights, or another version of
        the method.
    """
    settings = {"references": models.references, "segmentation": models.segmentation}
    origin = describe_origin(models)
    return partial(_load_alike, load, settings, origin, cache.absolute(), Path.cwd())


def draw_classes(
    names: Names,
    references: Mapping[str, Sequence[Any]],
    models: Models,
    load: Load,
    cache: Path,
    workers: Workers | None,
) -> None:
    """Draw the classes that a cache lacks by workers; without workers do nothing.

    Args:
        names: the classes, as of `build_references`.
        references: the photographs of classes that aren't drawn.
        models: this machine's.
        load: loads the same models in a worker; it must be picklable.
        cache: the folder.
        workers: the workers.

    Raises:
        ValueError: a class isn't known to the generator.
        ChildProcessError: a class can't be drawn.
    """
    if workers is None:
        return
    classes, given = check_call(names, models, models.references, references, None)
    drawn = {name: prompts for name, prompts in classes.items() if name not in given}
    missing = list_missing(drawn, models, models.references, cache)
    for name, prompts in missing:  # before any worker starts
        for words in prompts or (name,):
            models.generator.check(words)
    start = load_alike(load, models, cache)
    outcomes = fill_references(missing, models, models.references, cache, start, workers)
    watched = watch(outcomes, "bank", "class", [name for name, _ in missing], cache)
    failed = [(each.unit, each.error) for each in watched if each.error is not None]
    if failed:
        unit, error = failed[0]
        raise ChildProcessError(
            f"{missing[unit][0]}: {shorten(error)}; the other classes are kept, and the same "
            "command goes on from there"
        )


def extract_regions(
    items: Sequence[Item], models: Models, load: Load, cache: Path, workers: Workers
) -> tuple[dict[str, Exception], int]:
    """Extract the regions that a cache lacks by workers; the other arguments as above.

    Returns:
        The ids of the images that failed, and why; and how many images were computed now.
    """
    store = RegionStore.open(cache, models)
    if not is_seen(cache, workers):  # they can't find what is stored
        items = [item for item in progress(items, "find stored", "image") if _lacks(store, item)]
    start = load_alike(load, models, cache)
    images = [item.image for item in items]
    outcomes = run_images(images, extract_image, models, cache, start, workers)
    failed: dict[str, Exception] = {}
    computed = 0
    for outcome in watch(outcomes, "regions", "image", [item.id for item in items], cache):
        computed += bool(outcome.result)
        if outcome.error is not None:
            failed[items[outcome.unit].id] = outcome.error
    return failed, computed


def _lacks(store: RegionStore, item: Item) -> bool:
    try:
        return not store.has(item.image())
    except (ValueError, OSError):
        return True  # a worker may see it


def evaluate_images(
    items: Sequence[Item],
    bank: ReferenceBank,
    models: Models,
    load: Load,
    cache: Path,
    workers: Workers,
    *,
    background: bool,
    output: Path | None,
    save_labels: bool,
) -> Iterator[tuple[Item, ImageResult | Exception]]:
    """Evaluate images by workers, which keep their regions as well; other arguments as above.

    Args:
        bank: the bank.
        background: whether regions may be named background.
        output: folder of the run, for the record and label maps; None for none.
        save_labels: whether to write label maps.

    Yields:
        Each image, as it comes, with its result or why there is none.
    """
    start = load_alike(load, models, cache)
    with mark_folder(output or cache) as target:
        labels = target if output is not None and save_labels else None
        work = partial(
            _evaluate,
            bank=bank,
            settings=models.segmentation,
            background=background,
            output=labels,
        )
        outcomes = run_images(items, work, models, cache, start, workers)
        names = [item.id for item in items]
        for outcome in watch(outcomes, "evaluate", "image", names, output or cache):
            item = items[outcome.unit]
            if outcome.error is not None:
                yield item, outcome.error
                continue
            result, unwritten = outcome.result
            if unwritten is not None and output is not None:
                write_labels(locate_labels(output, item.id), unwritten)
            yield item, result


def locate_labels(run: Path, image: str) -> Path:
    """Return where a run's folder keeps an image's label map."""
    return run / f"labels/{image}.png"


def watch(
    outcomes: Iterator[Outcome], title: str, unit: str, names: Sequence[str], folder: Path
) -> Iterator[Outcome]:
    """Pass outcomes on; show the progress over all workers, and record who did what.

    Standard error gets a line for each worker, and a warning of images that workers can't use,
    which callers try by themselves.

    Args:
        outcomes: of the units.
        title: the work.
        unit: what a unit is, in the singular.
        names: of the units.
        folder: gets workers.jsonl, a line for each unit.
    """
    shares: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    unused: list[str] = []
    run = time.strftime("%Y-%m-%dT%H:%M:%S")
    for outcome in progress(outcomes, title, unit, len(names)):
        shares[outcome.worker] += 1
        seconds[outcome.worker] += outcome.seconds
        entry = {
            "run": run,
            "work": title,
            unit: names[outcome.unit],
            "worker": outcome.worker or None,
            "seconds": round(outcome.seconds, 3),
            "given_to": outcome.given,
            "error": None if outcome.error is None else shorten(outcome.error),
        }
        append_line(folder / RECORD, json.dumps(entry, ensure_ascii=False))
        if unit == "image" and isinstance(outcome.error, ValueError):
            name, why = names[outcome.unit], shorten(outcome.error)
            unused.append(why if why.startswith(name) else f"{name}: {why}")
        yield outcome
    if unused:
        of_all = f"{len(unused)} of {len(names)} images, which are tried without them"
        warn(f"workers couldn't use {of_all}; the first is {unused[0]}")
    for worker in sorted(shares):
        each = seconds[worker] / shares[worker]
        did = f"{worker} did {shares[worker]}, {each:.2f} s each"
        print(f"{title}: {did if worker else f'{shares[worker]} given up'}", file=sys.stderr)
    if shares:
        print(f"{title}: who did what is in {folder / RECORD}", file=sys.stderr)


# ---- what workers do; functions of a module, which can be sent to them by name


def _load_alike(
    load: Load, settings: Mapping[str, Any], origin: Mapping[str, Any], cache: Path, folder: Path
) -> Models:
    share_gpu_memory()
    with suppress(OSError):  # the driver's, for relative paths
        os.chdir(folder)
    if cache.is_dir():
        keep_compilations(cache)
    models = replace(load(), **settings)
    own = describe_origin(models)
    for part in ("weights", "steps"):
        if own[part] != origin[part]:
            raise ValueError(
                f"a worker's {part} must be this machine's, got {own[part]} instead of "
                f"{origin[part]}; install the same release and weights everywhere, and give --dtype"
            )
    return models


def _evaluate(
    worker: ImageWorker,
    item: Item,
    *,
    bank: ReferenceBank,
    settings: SegmentSettings,
    background: bool,
    output: Target | None,
) -> tuple[ImageResult, np.ndarray | None]:
    """Evaluate an image; its label map is returned where it can't be written here."""
    rows = {"": (bank, settings)}
    (outcome,) = evaluate_items([item], worker.load_regions, rows, background=background)
    if outcome.error is not None:
        raise outcome.error
    seg = outcome.segmentations[""]
    result = ImageResult.from_confusion(item.id, outcome.confusions[""], seg.timings)
    if output is None or not output.is_seen():
        return result, None if output is None else seg.labels
    write_labels(locate_labels(output.folder, item.id), seg.labels)
    return result, None
