"""What the steps of reproduce.py compute that isn't kept yet, and how long that takes.

Command:  python experiments/plan.py
              as reproduce.py runs it, with its options

A process of its own: JAX gives a GPU's memory back only when its process ends, and the steps need
that memory.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tyro
from scripts import Reproduce, Step

from rimjax.commands.console import keep_compilations, name_flag, shorten
from rimjax.commands.devices import share_gpu_memory
from rimjax.commands.main import CONFIG
from rimjax.datasets import Item
from rimjax.models.protocols import Models
from rimjax.references.build import build_references
from rimjax.references.one_class import references_key
from rimjax.references.store import locate_references
from rimjax.regions.store import RegionStore, digest_image

MEASURED = 2
"""Classes and images that are timed; the last one's time, without compilation, counts."""

SAMPLE = 200
"""Images of a data set that are looked up in the store; their share stands for all."""


def main() -> None:
    share_gpu_memory()
    options = tyro.cli(Reproduce, description=__doc__, config=CONFIG)
    try:
        keep_compilations(options.open_experiment(None).cache)
        print_plan(options)
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"plan.py: {name_flag(shorten(error), options)}", file=sys.stderr)
        raise SystemExit(2) from error


def print_plan(options: Reproduce) -> None:
    """Print what the chosen steps compute, and how long that takes."""
    total = 0.0
    for what, count, seconds in estimate(options, options.steps):
        total += count * seconds
        hours = f"{count:>7} x {seconds:>8.3f} s = {count * seconds / 3600:>7.2f} h"
        print(f"  {what:<45} {hours if count else ' stored'}")
    print(f"  in all, at most and without the evaluation: {total / 3600:.2f} h", flush=True)


def estimate(options: Reproduce, steps: Iterable[Step]) -> Iterator[tuple[str, int, float]]:
    """Yield what the steps compute that isn't kept yet: how often, and the seconds of one.

    Classes are drawn and images are segmented to measure them, `MEASURED` of each; both are kept.
    """
    steps = list(steps)
    for name in dict.fromkeys(name for step in steps for name in options.name_datasets(step)):
        experiment = options.open_experiment(name)
        models = experiment.load_models()
        prompts, items = experiment.dataset.prompts, experiment.items
        keys = [references_key(prompt, models, models.references) for prompt in prompts]
        paths = [
            locate_references(experiment.cache, *pair) for pair in zip(prompts, keys, strict=True)
        ]
        undrawn = [prompt for prompt, path in zip(prompts, paths, strict=True) if not path.exists()]
        yield f"{name}: classes to draw", len(undrawn), _time_draws(options, models, undrawn)
        unproposed, unencoded, seconds = measure_images(
            RegionStore.open(experiment.cache, models), models, items
        )
        passes = sum(
            step.encodings for step in steps if name in options.name_datasets(step) and not step.few
        )
        yield f"{name}: images to propose", unproposed, seconds.get("propose", 0.0)
        others = unencoded + len(items) * max(0, passes - 1)  # by other encoders and at other sizes
        yield f"{name}: images to encode, at most", others, seconds["encode"]


def measure_images(
    store: RegionStore, models: Models, items: Sequence[Item]
) -> tuple[int, int, dict[str, float]]:
    """Count the images without stored proposals and features, and time a few of them.

    Args:
        store: of the models.
        models: whose encoder is timed alone where all features are stored.
        items: the images.

    Returns:
        Number of images to propose; number of images to encode, both scaled up from a sample; the
        seconds of "encode", and of "propose" where an image had to be proposed.
    """
    sample = np.unique(np.linspace(0, len(items) - 1, min(len(items), SAMPLE)).round().astype(int))
    unproposed, unencoded = [], []
    for index in sample:
        key = digest_image(items[index].image())
        if store.proposals.get(key) is None:
            unproposed.append(index)
        if store.features.get(key) is None:
            unencoded.append(index)
    seconds: dict[str, float] = {}
    for index in unproposed[:MEASURED] or unencoded[:MEASURED]:
        store.load(items[index].image(), seconds)
    if "encode" not in seconds:
        for index in sample[:MEASURED]:
            image, start = items[index].image(), time.perf_counter()
            models.encoder.encode(image)
            seconds["encode"] = time.perf_counter() - start
    scale = len(items) / len(sample)
    return round(len(unproposed) * scale), round(len(unencoded) * scale), seconds


def _time_draws(options: Reproduce, models: Models, prompts: Sequence[Any]) -> float:
    """Draw the first classes one by one; return the seconds of the last, 0 if there is none."""
    seconds = 0.0
    for prompt in prompts[:MEASURED]:
        start = time.perf_counter()
        build_references([prompt], models, cache_dir=options.cache_dir)
        seconds = time.perf_counter() - start
    return seconds


if __name__ == "__main__":
    main()
