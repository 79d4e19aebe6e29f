"""`rimjax regions build | show | verify`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from rimjax import datasets
from rimjax.commands.console import keep_compilations, progress, shorten, warn
from rimjax.commands.fill import extract_regions
from rimjax.commands.options import (
    CACHE_DEFAULT,
    NO_DEFAULT,
    ModelOptions,
    RayOptions,
    default,
    parse_shard,
)
from rimjax.datasets.dataset import read_ahead
from rimjax.files import WriteError
from rimjax.models.protocols import Pixels
from rimjax.references.store import locate_cache
from rimjax.regions.archive import Archive
from rimjax.regions.store import ABOUT, RegionStore, list_archives, read_about


@dataclass(frozen=True, kw_only=True)
class RegionsBuild:
    """Propose and encode the regions of a data set's images, and keep them.

    `rimjax evaluate`, the experiments and later builds read what is kept. Shards may run at once,
    on one machine or several that share the folder; a stopped build goes on with the same command.

    Example: rimjax regions build --dataset coco-object --data data --preset paper --shard 3/8

    Attributes:
        dataset: Data set, as of `rimjax evaluate`.
        data: Folder that holds a published data set in mmsegmentation's layout.
        shard: Only every n-th image from the i-th on, as "i/n" with i from 1.
        limit: Number of images, from the first on.
        cache_dir: Folder that keeps regions, and banks.
    """

    dataset: str = "fashion-scenes"
    data: Annotated[Path | None, NO_DEFAULT] = None
    shard: Annotated[str | None, default("all images")] = None
    limit: Annotated[int | None, default("all")] = None
    cache_dir: Annotated[Path | None, CACHE_DEFAULT] = None
    cluster: RayOptions = field(default_factory=RayOptions)
    models: ModelOptions = field(default_factory=ModelOptions)

    def run(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")
        start, step = parse_shard(self.shard)
        items = datasets.load(self.dataset, self.data).items[: self.limit][start::step]
        workers, models = self.cluster.open(), self.models.load()
        cache = locate_cache(self.cache_dir)
        if isinstance(models.proposer, Pixels):
            raise ValueError("proposer must not be pixels, which have no regions to keep")
        keep_compilations(cache)
        store = RegionStore.open(cache, models)
        bad, kept, computed = [], 0, 0
        if workers is not None:
            failed, computed = extract_regions(items, models, self.models.load, cache, workers)
            kept = len(items) - len(failed)
            bad = [name for name, error in failed.items() if isinstance(error, ChildProcessError)]
            for name in bad:
                warn(f"{name}: {shorten(failed[name])}")
            # What a worker can't read, this machine may see.
            items = [item for item in items if item.id in failed and item.id not in bad]
        reading = read_ahead(items, lambda item: item.image())
        for item, picture in progress(reading, "regions", "image", len(items)):
            timings: dict[str, float] = {}
            try:
                store.load(picture.result(), timings)
            except WriteError as error:
                raise WriteError(
                    f"{error}; the regions of {kept} images are kept, and the same command "
                    "goes on from there"
                ) from error
            except (ValueError, OSError) as error:
                warn(f"{item.id}: {shorten(error)}")
                bad.append(item.id)
                continue
            kept, computed = kept + 1, computed + ("encode" in timings)
        store.join()
        print(f"{kept} images, {computed} of them computed now: {store.folder}")
        if bad:
            warn(f"{len(bad)} of {kept + len(bad)} images could not be used: {', '.join(bad)}")
            sys.exit(1)


@dataclass(frozen=True, kw_only=True)
class RegionsShow:
    """List the regions that are kept: how many images, files and bytes, and of which models.

    Example: rimjax regions show

    Attributes:
        cache_dir: Folder that keeps regions.
    """

    cache_dir: Annotated[Path | None, CACHE_DEFAULT] = None

    def run(self) -> None:
        for archive, title in _list_archives(self.cache_dir):
            files, size = archive.measure()
            count = archive.count()
            each = f", {size / count * 1000 / 2**20:.1f} MiB per 1,000 images" if count else ""
            print(f"{title}\n  {count} images, {files} files, {size / 2**20:.1f} MiB{each}")


@dataclass(frozen=True, kw_only=True)
class RegionsVerify:
    """Read everything that is kept, compare it with its checksums, and remove what is damaged.

    What is damaged is never used: an image's regions are computed again when they are asked for.
    The exit status is 1 where something was damaged.

    Example: rimjax regions verify

    Attributes:
        cache_dir: Folder that keeps regions.
    """

    cache_dir: Annotated[Path | None, CACHE_DEFAULT] = None

    def run(self) -> None:
        found = []
        for archive, title in _list_archives(self.cache_dir):
            whole, damaged = archive.verify()
            archive.remove_damaged()
            print(f"{title}\n  {whole} images are whole")
            found += damaged
        for line in found:
            warn(line)
        if found:
            warn("what was damaged is removed; run the command that built it to compute it again")
            sys.exit(1)


@dataclass(frozen=True)
class Regions:
    """Keep the regions of images, so that no image is proposed or encoded twice."""

    command: Annotated[
        Annotated[RegionsBuild, tyro.conf.subcommand("build")]
        | Annotated[RegionsShow, tyro.conf.subcommand("show")]
        | Annotated[RegionsVerify, tyro.conf.subcommand("verify")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        self.command.run()


def _list_archives(cache_dir: Path | None) -> Iterator[tuple[Archive, str]]:
    """Yield the archives of a cache folder, and their titles."""
    folder = locate_cache(cache_dir) / "regions"
    archives = list_archives(folder)
    if not archives:
        print(f"{folder}: no regions are kept here; `rimjax regions build` computes them")
    for archive in archives:
        try:
            about = read_about(archive)
            rest = ", ".join(f"{name} {value}" for name, value in about.items() if name != "kind")
        except (OSError, ValueError) as error:
            rest = f"{ABOUT} is damaged ({error})"
        yield archive, f"{archive.folder.name}: {rest}"
