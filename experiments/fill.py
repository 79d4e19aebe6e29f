"""Draw the classes and extract the regions that reproduce.py's steps read, by Ray's workers.

Command:  python experiments/fill.py --ray auto --preset paper --data data
              as reproduce.py runs it, with its options

The workers use the preset's own models. Steps that take another encoder find the proposals stored,
which cost the most, and encode by themselves.
"""

from __future__ import annotations

import sys

import tyro
from scripts import Reproduce

from rimjax.commands.console import keep_compilations, name_flag, shorten
from rimjax.commands.devices import share_gpu_memory
from rimjax.commands.fill import draw_classes, extract_regions
from rimjax.commands.main import CONFIG


def main() -> None:
    share_gpu_memory()
    options = tyro.cli(Reproduce, description=__doc__, config=CONFIG)
    try:
        keep_compilations(options.open_experiment(None).cache)
        fill(options)
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"fill.py: {name_flag(shorten(error), options)}", file=sys.stderr)
        raise SystemExit(2) from error


def fill(options: Reproduce) -> None:
    """Fill the cache with what the chosen steps read.

    Images that no worker can read are left to the steps, which name them.

    Raises:
        ValueError: --ray isn't given.
        ChildProcessError: workers were lost over a class or an image.
    """
    workers = options.cluster.open()
    if workers is None:
        raise ValueError("ray must be given: a cluster's address, auto or local")
    names = dict.fromkeys(name for step in options.steps for name in options.name_datasets(step))
    for name in names:
        experiment = options.open_experiment(name)
        load, cache = options.open_experiment(name).load_models, experiment.cache
        models = load()
        draw_classes(experiment.dataset.prompts, {}, models, load, cache, workers)
        if all(step.few for step in options.steps if name in options.name_datasets(step)):
            continue
        failed, _ = extract_regions(experiment.items, models, load, cache, workers)
        for image, error in failed.items():
            if isinstance(error, ChildProcessError):
                raise ChildProcessError(f"{image}: {error}; the other images' regions are kept")


if __name__ == "__main__":
    main()
