"""A run of `rimjax segment`: which images are done, and how workers do them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rimjax.commands.fill import load_alike, watch
from rimjax.commands.segment_bank import digest_bank
from rimjax.commands.segment_files import Outputs
from rimjax.commands.segment_record import append_entry, read_record
from rimjax.distributed.cluster import Workers
from rimjax.distributed.fill import Load, Target, mark_folder
from rimjax.distributed.units import run_units
from rimjax.files import atomic_file, digest, sha256
from rimjax.images import read_image
from rimjax.models.protocols import Models
from rimjax.pipeline import segment
from rimjax.types import ReferenceBank


class Run:
    """The images that are done, by the record in the folder of their files.

    Args:
        outputs: the files of the images.
        bank: that they are matched against.
        models: that segment them.
        origin: of the models, from `describe_origin`.
        resumes: whether earlier results count.

    Attributes:
        fresh: images that were done since the run began.
    """

    def __init__(
        self,
        outputs: Outputs,
        bank: ReferenceBank,
        models: Models,
        origin: Mapping[str, Any],
        resumes: bool,
    ) -> None:
        known = None if models.calibration is None else models.calibration.fingerprint
        depends = [digest_bank(bank), origin["settings"], origin["weights"], outputs.settings]
        self._outputs, self._key = outputs, digest([*depends, known])
        self._entries = read_record(outputs.folder, self._key) if resumes else {}
        self.fresh: set[Path] = set()

    def has(self, image: Path) -> bool:
        """Return whether an image is done, and is still the same."""
        entry = self._entries.get(image.name)
        return image in self.fresh or (
            entry is not None and image.is_file() and entry["sha256"] == sha256(image)
        )

    def describe(self, image: Path) -> dict[str, Any]:
        """Return what the report says of an image that is done."""
        return self._outputs.describe(image, self._entries[image.name]["result"])

    def add(self, image: Path, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Record an image, show what it holds, and return what the report says of it.

        Args:
            image: its path.
            entry: from `Outputs.write`.

        Raises:
            WriteError: the record can't be written; the message names it.
        """
        if self._outputs.folder is not None:
            append_entry(self._outputs.folder, {**entry, "key": self._key})
        shares, places = entry["result"]["shares"], self._outputs.locate(image).values()
        present = ", ".join(
            f"{name} {100 * share:.0f} %" for name, share in shares.items() if share
        )
        arrow = f" -> {', '.join(map(str, places))}" if places else ""
        tqdm.write(f"{image}: {present}{arrow}")
        self._entries[image.name] = dict(entry)
        self.fresh.add(image)
        return self.describe(image)


def segment_images(
    images: Sequence[Path],
    outputs: Outputs,
    folder: Path,
    bank: ReferenceBank,
    models: Models,
    load: Load,
    cache: Path,
    workers: Workers,
) -> Iterator[tuple[Path, dict[str, Any] | Exception]]:
    """Segment images by workers, which write the images' files.

    Args:
        images: their paths.
        outputs: the files.
        folder: of the files.
        bank: the bank.
        models: this machine's.
        load: loads the same models in a worker.
        cache: keeps compiled programs.
        workers: the workers.

    Yields:
        Each image, as it comes, with the entry of `Outputs.write`, or why there is none.
    """
    start = load_alike(load, models, cache)
    with mark_folder(folder) as target:
        alone = replace(outputs, files=(), json=None)
        work = partial(_segment, bank=bank, outputs=alone, target=target)
        outcomes = run_units(images, start, work, workers)
        for outcome in watch(outcomes, "segment", "image", [str(path) for path in images], folder):
            image = images[outcome.unit]
            if outcome.error is not None:
                yield image, outcome.error
                continue
            entry, contents = outcome.result
            for name, content in contents.items():
                with atomic_file(folder / name) as temporary:
                    temporary.write_bytes(content)
            yield image, entry


def _segment(
    models: Models, image: Path, *, bank: ReferenceBank, outputs: Outputs, target: Target
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Segment an image; return its entry, and the files that can't be written here."""
    pixels = read_image(image)
    seg = segment(pixels, bank, models)
    with target.open() as (folder, is_seen):
        entry = replace(outputs, output=folder).write(image, pixels, seg)
        names = () if is_seen else entry["files"]
        return entry, {name: (folder / name).read_bytes() for name in names}
