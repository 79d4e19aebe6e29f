"""The folder of an evaluation that resumes after a kill at any moment.

    RUN/run.json        settings, bank, weights and versions of the run
    RUN/images.jsonl    a line per image, appended and synced when the image is done
    RUN/labels/ID.png   label maps, unless they aren't wanted
    RUN/report.html     the report

run.json and each line carry a digest of their own. A line that a kill cut short has no newline; it
is dropped, and its image is done again.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from jaxtyping import Int64

from rimjax.evaluation.loop import Evaluation, check_counted, summarise_timings
from rimjax.evaluation.metrics import Counts
from rimjax.files import WriteError, is_full, is_temporary, write_json
from rimjax.sealed import read_sealed, seal, unseal
from rimjax.types import BACKGROUND

MAY_DIFFER = ("versions", "sources")
"""Parts of run.json that may change before a run is resumed."""

REPORT = "report.html"
_RUN, _IMAGES, _LOCK, _LABELS = "run.json", "images.jsonl", "run.lock", "labels"


@dataclass(frozen=True)
class ImageResult:
    """One image's result.

    Attributes:
        image: its id.
        cells: (true class, predicted class, pixels) of each cell that isn't 0.
        timings: seconds of each stage.
        error: why the image couldn't be used; None if it could.
    """

    image: str
    cells: Sequence[Sequence[int]] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    @classmethod
    def from_confusion(
        cls, image: str, confusion: np.ndarray, timings: Mapping[str, float]
    ) -> ImageResult:
        """Return the result of an image with these pixel counts, int64[C, C]."""
        truth, prediction = confusion.nonzero()
        counts = confusion[truth, prediction]
        columns = (truth.tolist(), prediction.tolist(), counts.tolist())
        return cls(image, list(zip(*columns, strict=True)), timings)

    def fill_confusion(self, num_classes: int) -> Int64[np.ndarray, "C C"]:
        """Return the pixel counts as a confusion matrix."""
        confusion = np.zeros((num_classes, num_classes), np.int64)
        for truth, prediction, pixels in self.cells:
            confusion[truth, prediction] = pixels
        return confusion


Results = dict[str, ImageResult]


def check_run(folder: Path, description: Mapping[str, Any], unknown: Sequence[str] = ()) -> None:
    """Raise ValueError where the folder holds something else, or a run with other settings.

    Args:
        folder: the run's folder; it needn't exist.
        description: what the results depend on, as JSON content.
        unknown: parts of `description` that aren't known yet and aren't compared.
    """
    path, images = folder / _RUN, folder / _IMAGES
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; choose another folder for the run")
    # Looked at before run.json, which another process that starts the run writes before the rest.
    files = list(folder.iterdir()) if folder.exists() else []
    own = (_IMAGES, _LOCK, _LABELS, REPORT)
    has_results = images.is_file() and images.stat().st_size > 0
    if path.exists():
        ours = json.loads(json.dumps(description))
        if changes := _list_differences(_read_description(folder), ours, (*MAY_DIFFER, *unknown)):
            raise ValueError(
                f"{folder}: this run was started with other settings ({'; '.join(changes[:3])}); "
                "choose another folder for the run"
            )
    elif any(file.name not in own and not is_temporary(file) for file in files):
        raise ValueError(f"{folder}: isn't the folder of a run; choose another folder")
    elif has_results:
        raise ValueError(
            f"{folder}: holds results but no {_RUN}; delete the folder or choose another"
        )


@contextmanager
def open_run(
    folder: Path, description: Mapping[str, Any]
) -> Iterator[tuple[Results, Callable[[ImageResult], None]]]:
    """Start a run, or resume it.

    Args:
        folder: created if it isn't there.
        description: everything that the results depend on, as JSON content; goes to run.json.

    Yields:
        The results that the folder holds, and a function that appends a result.

    Raises:
        ValueError: the folder can't be written, holds something else, a damaged run or a run with
            other settings, or another process writes to it.
    """
    check_run(folder, description)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK).acquire(blocking=False)
    except Timeout as error:
        raise ValueError(
            f"{folder}: another process is writing to this run; wait, or choose another folder"
        ) from error
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"{folder}: can't be written ({reason}); choose another folder") from error
    with lock, (folder / _IMAGES).open("ab", buffering=0) as file:
        check_run(folder, description)  # again: another process may have started the run since
        if not (folder / _RUN).exists():
            write_json(folder / _RUN, seal(description))
        results, size = _read_results(folder)
        file.truncate(size)

        def append(result: ImageResult) -> None:
            line = json.dumps(seal(asdict(result)), separators=(",", ":")).encode() + b"\n"
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError as error:
                reason = error.strerror or error
                remedy = "free space" if is_full(error) else "mend the disk, then resume the run"
                message = f"{folder / _IMAGES}: can't be written ({reason}); {remedy}"
                raise WriteError(message) from error
            results[result.image] = result

        yield results, append


def check_apart(folders: Sequence[Path], json: Path | None) -> None:
    """Raise ValueError if a file for figures would replace one of a run's own, existing or not."""
    if json is None:
        return
    parts = (_RUN, _IMAGES, _LOCK, _LABELS, REPORT)
    own = {(folder / part).resolve() for folder in folders for part in parts}
    if own & {json.resolve(), json.resolve().parent}:
        raise ValueError(f"json must not be a file of the run itself, got {json}; choose another")


def read_finished(folder: Path) -> set[str]:
    """Return the ids of the images that a run has a usable result of; none if it isn't there."""
    if not (folder / _IMAGES).is_file():
        return set()
    return {name for name, result in _read_results(folder)[0].items() if result.error is None}


def merge_runs(folders: Sequence[Path]) -> tuple[dict[str, Any], Results]:
    """Combine the shards of a run.

    Returns:
        The run's description without the shard, and every image's result.

    Raises:
        FileNotFoundError: a folder isn't a run's.
        ValueError: the runs differ in more than their shard, hold an image twice, or lack some.
    """
    if not folders:
        raise ValueError("runs must hold at least one run's folder, got none")
    description, results = {**_read_description(folders[0]), "shard": None}, {}
    for folder in folders:
        other = _read_description(folder)
        if changes := _list_differences(description, other, (*MAY_DIFFER, "shard")):
            raise ValueError(
                f"{folder}: isn't a shard of the same run as {folders[0]} "
                f"({'; '.join(changes[:3])})"
            )
        more = _read_results(folder)[0]
        if repeated := sorted(results.keys() & more.keys()):
            raise ValueError(
                f"{folder}: holds {repeated[0]}, as another run does; name every shard once"
            )
        results |= more
    if len(results) != description["num_images"]:
        raise ValueError(
            f"runs must hold the run's {description['num_images']} images, got {len(results)}; "
            "finish the shards, and name them all"
        )
    return description, results


def summarise_run(description: Mapping[str, Any], results: Results) -> Evaluation:
    """Compute the figures of a run; its images' order decides only which of them was the first.

    Raises:
        ValueError: no image could be used, or every pixel is ignored.
    """
    usable = [result for result in results.values() if result.error is None]
    bad = {name: result.error for name, result in results.items() if result.error is not None}
    if not usable:
        reason = ": ".join(next(iter(bad.items()))) if bad else "the shard holds no image"
        raise ValueError(f"no image could be used; {reason}")
    names = (BACKGROUND, *description["classes"])
    counts, total = [], np.zeros((len(names), len(names)), np.int64)
    for result in sorted(usable, key=lambda result: result.image):
        confusion = result.fill_confusion(len(names))
        total += confusion
        counts.append(Counts.from_confusions(confusion[None]))
    timings, first = summarise_timings([result.timings for result in usable])
    background = description["background"]
    evaluation = Evaluation(names, Counts.stack(counts), timings, background, bad, total, first)
    check_counted(evaluation.counts)
    return evaluation


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / _RUN
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the folder of an evaluation run")
    try:
        description = read_sealed(path)
        if not {"classes", "background", "num_images", "shard"} <= description.keys():
            raise ValueError("a part is missing")
    except (AttributeError, ValueError) as error:
        raise ValueError(
            f"{path}: damaged, or not a run ({error}); delete the run and start it again"
        ) from error
    return description


def _read_results(folder: Path) -> tuple[Results, int]:
    """Return the complete lines' results, an image's last line counting, and the lines' bytes."""
    if not (folder / _IMAGES).is_file():
        raise FileNotFoundError(
            f"{folder / _IMAGES}: no such file; name the folder of a started run"
        )
    lines = (folder / _IMAGES).read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines = lines[:-1]
    exists = (folder / _RUN).exists()
    count = 1 + len(_read_description(folder)["classes"]) if exists else None
    results = {}
    for number, line in enumerate(lines, start=1):
        try:
            result = ImageResult(**unseal(line))
            _check_result(result, count)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{folder / _IMAGES}: line {number} is damaged; delete that line and resume the run"
            ) from error
        results[result.image] = result
    return results, sum(map(len, lines))


def _check_result(result: ImageResult, count: int | None) -> None:
    """Raise TypeError or ValueError for parts that can't be a result's among `count` classes."""
    if not isinstance(result.image, str) or not isinstance(result.error, str | None):
        raise TypeError("image and error must be texts")
    for cell in result.cells:
        truth, prediction, _ = cell
        if not all(isinstance(number, int) and number >= 0 for number in cell):
            raise TypeError("cells must be whole numbers, not negative")
        if count is not None and max(truth, prediction) >= count:
            raise ValueError(f"cells must be of {count} classes")
    if not all(isinstance(seconds, int | float) for seconds in result.timings.values()):
        raise TypeError("timings must be seconds")


def _list_differences(
    old: Mapping[str, Any], new: Mapping[str, Any], ignore: Sequence[str] = (), prefix: str = ""
) -> list[str]:
    differences = []
    for key in sorted((old.keys() | new.keys()) - set(ignore)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            differences += _list_differences(before, after, prefix=f"{prefix}{key}.")
        elif before != after:
            differences.append(f"{prefix}{key} must be {before}, got {after}")
    return differences
