"""How commands fill a cache folder by a cluster's workers, before they go on as on one machine."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rimjax.commands.console import progress, shorten
from rimjax.commands.devices import share_gpu_memory
from rimjax.commands.options import ModelOptions
from rimjax.datasets.dataset import Item
from rimjax.distributed.fill import fill_references, fill_regions, list_missing
from rimjax.distributed.units import Outcome, Workers
from rimjax.models.protocols import Models
from rimjax.settings import ReferenceSettings


def load_models(options: ModelOptions, settings: ReferenceSettings) -> Models:
    """Load models in a worker, under the options and the settings of the driver's."""
    share_gpu_memory()
    return replace(options.load(), references=settings)


def draw_classes(
    classes: Mapping[str, Sequence[str]],
    models: Models,
    options: ModelOptions,
    cache: Path,
    workers: Workers | None,
) -> None:
    """Draw the classes that a cache lacks by workers; without workers do nothing.

    Raises:
        ValueError: a class isn't known to the generator.
        ChildProcessError: a class can't be drawn.
    """
    if workers is None:
        return
    settings = models.references
    missing = list_missing(classes, models, settings, cache)
    for name, prompts in missing:  # before any worker starts
        for words in prompts or (name,):
            models.generator.check(words)
    load = partial(load_models, options, settings)
    outcomes = fill_references(missing, models, settings, cache, load, workers)
    names = [name for name, _ in missing]
    failed = _watch(outcomes, "bank", "class", names)
    if failed:
        raise ChildProcessError(
            f"{names[failed[0][0]]}: {shorten(failed[0][1])}; the other classes are kept, and the "
            "same command goes on from there"
        )


def extract_regions(
    items: Sequence[Item],
    models: Models,
    options: ModelOptions,
    cache: Path,
    workers: Workers | None,
) -> None:
    """Extract the regions that a cache lacks by workers; without workers do nothing.

    Images that can't be read are left to what comes after, which names them.

    Raises:
        ChildProcessError: workers were lost over an image.
    """
    if workers is None:
        return
    load = partial(load_models, options, models.references)
    outcomes = fill_regions([item.image for item in items], models, cache, load, workers)
    failed = _watch(outcomes, "regions", "image", [item.id for item in items])
    lost = {items[unit].id: error for unit, error in failed if isinstance(error, ChildProcessError)}
    if lost:
        why = next(iter(lost.values()))
        raise ChildProcessError(f"{', '.join(lost)}: {why}; the other images' regions are kept")


def _watch(
    outcomes: Iterator[Outcome], title: str, unit: str, names: Sequence[str]
) -> list[tuple[int, Exception]]:
    """Show the progress over all workers, and say who did how much; return what failed, and why."""
    failed: list[tuple[int, Exception]] = []
    shares: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    for outcome in progress(outcomes, title, unit, len(names)):
        shares[outcome.worker] += 1
        seconds[outcome.worker] += outcome.seconds
        if outcome.error is not None:
            failed.append((outcome.unit, outcome.error))
    for worker in sorted(shares):
        each = seconds[worker] / shares[worker]
        print(f"{title}, {worker or 'given up'}: {shares[worker]}, {each:.2f} s each")
    return failed
