"""Fill the stores of a cache folder by a cluster's workers: references of classes, and regions.

Workers write into the folder where they see it, and otherwise send back what they made, which is
then written here. The command that comes after finds everything stored, and its results are those
of one machine.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from rimjax.distributed.units import Outcome, Workers, run_units
from rimjax.models.protocols import Models
from rimjax.references import store as references_store
from rimjax.references.build import draw_class, locate_class
from rimjax.references.contents import ClassReferences
from rimjax.regions.archive import Record
from rimjax.regions.store import RegionStore, digest_image
from rimjax.settings import ReferenceSettings

Load = Callable[[], Models]
Read = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Target:
    """The cache folder that workers fill.

    Attributes:
        folder: as this machine calls it.
        mark: a file in it, by which a worker knows that it sees the same folder.
    """

    folder: Path
    mark: str

    @contextmanager
    def open(self) -> Iterator[tuple[Path, bool]]:
        """Open the folder, or a temporary folder where it isn't seen; and tell which."""
        if (self.folder / self.mark).is_file():
            yield self.folder, True
            return
        with tempfile.TemporaryDirectory(prefix="rimjax-") as folder:
            yield Path(folder), False


@contextmanager
def mark_folder(cache: Path) -> Iterator[Target]:
    """Put a mark into a cache folder while workers fill it."""
    target = Target(cache.absolute(), f"ray-{uuid.uuid4().hex}.mark")
    mark = target.folder / target.mark
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield target
    finally:
        mark.unlink(missing_ok=True)


def list_missing(
    classes: Mapping[str, Sequence[str]],
    models: Models,
    settings: ReferenceSettings,
    cache: Path,
) -> list[tuple[str, Sequence[str]]]:
    """List the classes, with their prompts, whose references a cache lacks."""
    return [
        (name, prompts)
        for name, prompts in classes.items()
        if not locate_class(name, models, settings, cache, prompts).exists()
    ]


def fill_references(
    missing: Sequence[tuple[str, Sequence[str]]],
    models: Models,
    settings: ReferenceSettings,
    cache: Path,
    load: Load,
    workers: Workers,
) -> Iterator[Outcome]:
    """Draw classes; a unit is a class, so that its batches are those of one machine.

    Args:
        missing: from `list_missing`.
        models: this machine's.
        settings: of flow 1.
        cache: the folder.
        load: loads the same models in a worker.
        workers: the workers.

    Yields:
        The outcome of each class.
    """
    with mark_folder(cache) as target:
        draw = partial(_draw, target=target, settings=settings)
        for outcome in run_units(missing, load, draw, workers):
            if outcome.result is not None:
                name, prompts = missing[outcome.unit]
                path = locate_class(name, models, settings, cache, prompts)
                references_store.write_references(path, outcome.result)
            yield outcome


def fill_regions(
    images: Sequence[Read], models: Models, cache: Path, load: Load, workers: Workers
) -> Iterator[Outcome]:
    """Propose and encode the regions of images that the cache lacks; a unit is an image.

    Args:
        images: each reads an image, uint8[H, W, 3], in a worker.
        models: this machine's.
        cache: the folder.
        load: loads the same models in a worker.
        workers: the workers.

    Yields:
        The outcome of each image.
    """
    store = RegionStore.open(cache, models)
    with mark_folder(cache) as target:
        extract = partial(_extract, target=target)
        for outcome in run_units(images, load, extract, workers):
            if outcome.result is not None:
                key, proposals, features = outcome.result
                store.proposals.put(key, proposals)
                store.features.put(key, features)
            yield outcome
    store.join()


# ---- what workers do; functions of a module, which can be sent to them by name


def _draw(
    models: Models,
    unit: tuple[str, Sequence[str]],
    *,
    target: Target,
    settings: ReferenceSettings,
) -> ClassReferences | None:
    name, prompts = unit
    with target.open() as (folder, is_shared):
        made = draw_class(name, models, settings, folder, prompts)[0]
        path = folder / "references" / made
        return None if is_shared else references_store.read_references(path, pictures=True)


def _extract(models: Models, read: Read, *, target: Target) -> tuple[str, Record, Record] | None:
    image = read()
    with target.open() as (folder, is_shared):
        store = RegionStore.open(folder, models)
        store.load(image)
        if is_shared:
            return None
        key = digest_image(image)
        proposals, features = store.proposals.get(key), store.features.get(key)
        assert proposals is not None and features is not None
        return key, proposals, features
