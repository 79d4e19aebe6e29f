"""Fill the stores of a cache folder by a cluster's workers: references of classes, and regions.

Workers write into the folder where they see it, and otherwise send back what they made, which is
then written here. What comes after finds everything stored, and its results are those of one
machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rimjax.distributed.cluster import Workers
from rimjax.distributed.units import Outcome, run_units
from rimjax.files import make_temporary
from rimjax.models.protocols import Models, Pixels
from rimjax.references import store as references_store
from rimjax.references.build import draw_class, locate_class
from rimjax.references.contents import ClassReferences
from rimjax.regions.archive import Record
from rimjax.regions.store import LoadRegions, RegionStore, digest_image, load_or_extract
from rimjax.settings import ReferenceSettings
from rimjax.types import Regions

Load = Callable[[], Models]
Read = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Target:
    """A folder that workers write into.

    Attributes:
        folder: as this machine calls it.
        mark: a file in it, by which a worker knows that it sees the same folder.
    """

    folder: Path
    mark: str

    def is_seen(self) -> bool:
        """Return whether this machine sees the folder."""
        return (self.folder / self.mark).is_file()

    @contextmanager
    def open(self) -> Iterator[tuple[Path, bool]]:
        """Open the folder, or a temporary folder where it isn't seen; and tell which."""
        if self.is_seen():
            yield self.folder, True
            return
        with tempfile.TemporaryDirectory(prefix="rimjax-") as folder:
            yield Path(folder), False


@contextmanager
def mark_folder(folder: Path) -> Iterator[Target]:
    """Put a mark into a folder while workers write into it."""
    mark = make_temporary(folder.absolute() / "seen.mark")
    mark.touch()
    try:
        yield Target(mark.parent, mark.name)
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
        The outcome of each class; the references are stored.
    """
    with mark_folder(cache) as target:
        draw = partial(_draw, target=target, settings=settings)
        for outcome in run_units(missing, load, draw, workers):
            if outcome.result is not None:
                name, prompts = missing[outcome.unit]
                path = locate_class(name, models, settings, cache, prompts)
                references_store.write_references(path, outcome.result)
            yield replace(outcome, result=None)


def is_seen(folder: Path, workers: Workers) -> bool:
    """Ask a worker whether it sees a folder of this machine."""
    with mark_folder(folder) as target:
        one = replace(workers, count=1)
        return all(each.result for each in run_units([None], target.is_seen, _return_state, one))


class ImageWorker:
    """The models in a worker, and what loads an image's regions.

    Attributes:
        models: the models.
        load_regions: loads regions from the driver's region store, or fills it, where it is seen.
        records: of the last image, for the driver to write, where the store isn't seen.
    """

    def __init__(self, load: Load, cache: Target) -> None:
        self.models = load()
        self.records: tuple[str, Record, Record] | None = None
        self.load_regions: LoadRegions = self._extract
        if cache.is_seen() or isinstance(self.models.proposer, Pixels):
            # One store for all images, since it remembers what its files hold.
            self.load_regions = load_or_extract(cache.folder, self.models)

    def _extract(self, image: np.ndarray, timings: dict[str, float]) -> Regions:
        with tempfile.TemporaryDirectory(prefix="rimjax-") as folder:
            store = RegionStore.open(Path(folder), self.models)
            regions, key = store.load(image, timings), digest_image(image)
            proposals, features = store.proposals.get(key), store.features.get(key)
        assert proposals is not None and features is not None
        self.records = key, proposals, features
        return regions


def run_images(
    images: Sequence[Any],
    work: Callable[[ImageWorker, Any], Any],
    models: Models,
    cache: Path,
    load: Load,
    workers: Workers,
) -> Iterator[Outcome]:
    """Work on images by workers that load regions from the region store and fill it.

    Args:
        images: what a worker is sent of each image.
        work: what it does with it.
        models: this machine's.
        cache: the folder.
        load: loads the same models in a worker.
        workers: the workers.

    Yields:
        The outcome of each image.
    """
    store = RegionStore.open(cache, models)
    with mark_folder(cache) as target:
        start, run = partial(ImageWorker, load, target), partial(_run_image, work=work)
        for outcome in run_units(images, start, run, workers):
            result, records = outcome.result or (None, None)
            if records is not None:
                key, proposals, features = records
                store.proposals.put(key, proposals)
                store.features.put(key, features)
            yield replace(outcome, result=result)
    if not isinstance(models.proposer, Pixels):
        store.join()


def extract_image(worker: ImageWorker, read: Read) -> bool:
    """Load an image's regions in a worker; return whether they had to be computed."""
    timings: dict[str, float] = {}
    worker.load_regions(read(), timings)
    return "encode" in timings


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


def _return_state(state: bool, unit: None) -> bool:
    return state


def _run_image(
    worker: ImageWorker, image: Any, *, work: Callable[[ImageWorker, Any], Any]
) -> tuple[Any, tuple[str, Record, Record] | None]:
    worker.records = None
    return work(worker, image), worker.records
