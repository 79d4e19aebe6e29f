"""The folder of an evaluation that can be killed at any moment and goes on where it was.

    RUN/run.json        settings, bank, weights, versions: what was asked for
    RUN/images.jsonl    a line an image, appended and synced when it is done: the cells of its confusion matrix that aren't 0
    RUN/labels/ID.png   the label maps, if they were asked for

A line that a kill cut short has no newline; it is dropped, and its image done again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rimjax.console import write
from rimjax.evaluate import Evaluation
from rimjax.types import BACKGROUND

MAY_DIFFER = ("versions",)
"""Parts of run.json that a resumed run may find changed."""


@dataclass(frozen=True)
class ImageResult:
    """What an evaluation says of one image.

    Attributes:
        image: its id.
        cells: (true class, predicted class, pixels) where there are any.
        timings: seconds of every stage.
        error: why the image couldn't be used; None if it could.
    """

    image: str
    cells: Sequence[tuple[int, int, int]] = ()
    timings: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None

    @classmethod
    def counted(cls, image: str, confusion: np.ndarray, timings: Mapping[str, float]) -> ImageResult:
        """From int64[C, C]."""
        truth, prediction = confusion.nonzero()
        cells = [(int(row), int(column), int(confusion[row, column])) for row, column in zip(truth, prediction, strict=True)]
        return cls(image, cells, timings)


Results = dict[str, ImageResult]


def check(folder: Path, about: Mapping[str, Any], unknown: Sequence[str] = ()) -> None:
    """Raise ValueError where `opened` would: the folder holds something else, or a run with other settings.

    unknown: parts of `about` that aren't known yet, and are left out.
    """
    path = folder / "run.json"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; choose another place for --output")
    if path.exists():
        if changed := _differences(_about(folder), json.loads(json.dumps(about)), (*MAY_DIFFER, *unknown)):
            raise ValueError(f"{folder}: this run was started with other settings ({'; '.join(changed[:3])}); choose another --output")
    elif folder.exists() and any(one.name != "images.jsonl" for one in folder.iterdir()):
        raise ValueError(f"{folder}: isn't the folder of a run; choose another place for --output")


@contextmanager
def opened(folder: Path, about: Mapping[str, Any]) -> Iterator[tuple[Results, Callable[[ImageResult], None]]]:
    """Start a run, or go on with it: what it holds already, and what appends a result.

    Args:
        folder: made if it isn't there.
        about: everything that the results depend on, as JSON; written to run.json.

    Raises:
        ValueError: the folder holds something else, a damaged run or one with other settings, or another process writes to it.
    """
    import fcntl  # Unix's own

    path = folder / "run.json"
    check(folder, about)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "images.jsonl").open("ab")
    except OSError as error:
        raise ValueError(f"{folder}: can't be written ({error.strerror or error}); choose another place for --output") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{folder}: another process is writing to this run") from error
        check(folder, about)  # again: another process may have begun the run since
        if not path.exists():
            write(path, json.dumps(about, indent=1))
        results, whole = _results(folder)
        file.truncate(whole)

        def append(result: ImageResult) -> None:
            file.write(json.dumps(asdict(result), separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            results[result.image] = result

        yield results, append


def usable(folder: Path) -> set[str]:
    """Images that a run's folder, if it is there, holds a result of; those that couldn't be used are left out."""
    if not (folder / "images.jsonl").is_file():
        return set()
    return {name for name, result in _results(folder)[0].items() if result.error is None}


def merged(folders: Sequence[Path]) -> tuple[dict[str, Any], Results]:
    """The run that the shards make up: its run.json without the shard, and every image's result.

    Raises:
        FileNotFoundError: a folder isn't a run's.
        ValueError: the runs differ in more than their shard, hold an image twice, or lack some.
    """
    if not folders:
        raise ValueError("merge: expected at least one run's folder")
    whole, results = {**_about(folders[0]), "shard": None}, {}
    for folder in folders:
        if changed := _differences(whole, _about(folder), (*MAY_DIFFER, "shard")):
            raise ValueError(f"{folder}: isn't a shard of the same run as {folders[0]} ({'; '.join(changed[:3])})")
        held = _results(folder)[0]
        if twice := sorted(results.keys() & held.keys()):
            raise ValueError(f"{folder}: holds {twice[0]}, as another of the runs does; name every shard once")
        results |= held
    if len(results) != whole["num_images"]:
        raise ValueError(f"merge: {len(results)} of the run's {whole['num_images']} images are here; finish the shards, and name them all")
    return whole, results


def evaluation(about: Mapping[str, Any], results: Results) -> Evaluation:
    """The figures of a run, whatever order its images came in; ValueError if not one image could be used, or no pixel counts."""
    used = sorted((result for result in results.values() if result.error is None), key=lambda result: result.image)
    bad = {result.image: result.error for result in results.values() if result.error is not None}
    if not used:
        first = next(iter(bad.items()), None)
        raise ValueError(f"none of the images could be used; {': '.join(first)}" if first else "the shard holds no image")
    names = (BACKGROUND, *about["classes"])
    confusions = np.zeros((len(used), len(names), len(names)), np.int64)
    for confusion, result in zip(confusions, used, strict=True):
        for truth, prediction, pixels in result.cells:
            confusion[truth, prediction] = pixels
    if not confusions.any():
        raise ValueError("no pixel of the images counts: wherever there are labels they are 255")
    stages = [stage for stage in used[0].timings if all(stage in result.timings for result in used)]
    timings = {stage: float(np.mean([result.timings[stage] for result in used])) for stage in stages}
    return Evaluation(names, confusions, timings, about["background"], bad)


def _about(folder: Path) -> dict[str, Any]:
    path = folder / "run.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected the folder of a run, as `rimjax evaluate --output` makes it")
    try:
        about = json.loads(path.read_text())
        if not {"classes", "background", "num_images", "shard"} <= about.keys():
            raise ValueError("a part is missing")
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{path}: damaged, or no run of rimjax's ({error}); delete the run and start it again") from error
    return about


def _results(folder: Path) -> tuple[Results, int]:
    """The whole lines' results, the last one of an image counting, and how many bytes they take."""
    lines = (folder / "images.jsonl").read_bytes().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines = lines[:-1]
    count = 1 + len(_about(folder)["classes"]) if (folder / "run.json").exists() else None
    results = {}
    for number, line in enumerate(lines, start=1):
        try:
            result = ImageResult(**json.loads(line))
            _check_result(result, count)
        except (TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"{folder / 'images.jsonl'}: line {number} is damaged; delete that line and resume the run") from error
        results[result.image] = result
    return results, sum(map(len, lines))


def _check_result(result: ImageResult, count: int | None) -> None:
    """Raise TypeError or ValueError for parts that are no result's among `count` classes, the background included."""
    if not isinstance(result.image, str) or not isinstance(result.error, str | None):
        raise TypeError("image and error are texts")
    for cell in result.cells:
        truth, prediction, _ = cell
        if not all(isinstance(number, int) and number >= 0 for number in cell):
            raise TypeError("cells are whole numbers, none negative")
        if count is not None and max(truth, prediction) >= count:
            raise ValueError(f"cells are of {count} classes")
    if not all(isinstance(seconds, int | float) for seconds in result.timings.values()):
        raise TypeError("timings are seconds")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], except_for: Sequence[str] = (), prefix: str = "") -> list[str]:
    found = []
    for key in sorted((old.keys() | new.keys()) - set(except_for)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, prefix=f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key}: {before} there, {after} here")
    return found
