"""What a report shows, and where it comes from: the folder of a run, its data set and its bank."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from rimjax import datasets
from rimjax.datasets.dataset import IGNORED, Dataset, Item, read_labels
from rimjax.evaluation import Evaluation
from rimjax.evaluation.metrics import confusion_matrix
from rimjax.evaluation.run_folder import Results, merge_runs, summarise_run
from rimjax.references import store
from rimjax.references.contents import ClassReferences
from rimjax.references.packed import PackedBank
from rimjax.settings import CONFIGURATIONS
from rimjax.types import BACKGROUND


@dataclass(frozen=True, eq=False)
class Labelled:
    """An image with its labels.

    Attributes:
        image: RGB.
        truth: true labels; 255 is ignored.
        prediction: predicted labels.
    """

    image: UInt8[np.ndarray, "H W 3"]
    truth: UInt8[np.ndarray, "H W"]
    prediction: UInt8[np.ndarray, "H W"]


@dataclass(frozen=True, eq=False)
class Contents:
    """What a report shows.

    Attributes:
        description: "dataset", "classes", "background" (whether it counts), and what
            `describe_origin` tells, as in run.json.
        results: image id -> result.
        read: reads an image by its id; raises ValueError or OSError where it can't be read. Or the
            reason why the report has no pictures.
        references: the bank's classes with their pictures, or the reason why there are none.
        files: image id -> its file; none of a data set that is rendered.
    """

    description: Mapping[str, Any]
    results: Results
    read: Callable[[str], Labelled] | str
    references: Iterable[ClassReferences] | str
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Classes, the background first."""
        return (BACKGROUND, *self.description["classes"])

    @property
    def images(self) -> list[str]:
        """Ids of the images that could be used, in the order of `summarise`'s counts."""
        return sorted(name for name, result in self.results.items() if result.error is None)

    def write_explain_command(self, name: str, point: tuple[int, int]) -> str:
        """Write the shell command that explains the region at a point (x, y) of an image.

        An image without a file is called NAME.png, and an unknown bank BANK.
        """
        bank = self.description.get("sources", {}).get("bank") or "BANK"
        image, (x, y) = self.files.get(name, f"{name}.png"), point
        words = ["rimjax", "segment", str(image), "--bank", bank]
        words += ["--explain", "why.png", "--explain-at", f"{x},{y}"]
        if self.description.get("preset") == "paper":  # mini is the default
            words += ["--preset", "paper"]
        if self.description.get("configuration") in CONFIGURATIONS:
            words += ["--configuration", self.description["configuration"]]
        return shlex.join(words)

    def summarise(self) -> Evaluation:
        """Compute the figures; raises as `summarise_run`."""
        return summarise_run(self.description, self.results)

    def score_images(self, evaluation: Evaluation) -> Float[np.ndarray, " n"]:
        """Compute each image's mean IoU over the classes in its truth or prediction, in [0, 1].

        NaN where every pixel is ignored.
        """
        start = 0 if evaluation.background else 1
        unions = evaluation.counts.unions[:, start:]
        present = unions > 0
        ious = evaluation.counts.hits[:, start:] / np.maximum(unions, 1)
        count = present.sum(1)
        means = np.full(len(ious), np.nan)
        return np.divide(ious.sum(1), count, out=means, where=count > 0)


def read_run(folders: Sequence[Path], moved: Mapping[str, Path] | None = None) -> Contents:
    """Read what the report of a run shows.

    Args:
        folders: the run's folder, or those of all its shards.
        moved: where something lies now, if not where the run recorded it: a "dataset" folder, the
            "data" that holds a published data set, or the "bank".

    Raises:
        FileNotFoundError: a folder isn't a run's.
        ValueError: a run is damaged or unfinished, the folders aren't shards of the same run, or
            what is said to have moved isn't there.
    """
    moved = moved or {}
    description, results = merge_runs(folders)
    places = {name: str(path.absolute()) for name, path in moved.items()}
    sources = description.get("sources", {}) | places
    description = description | {"sources": sources}
    read, files = _open_images(description, results, folders)
    expected = moved.keys() & {"dataset", "data"} if description.get("save_labels") else ()
    if isinstance(read, str) and expected:
        raise ValueError(read)
    references = _open_references(description)
    if isinstance(references, str) and "bank" in moved:
        raise ValueError(references)
    return Contents(description, results, read, references, files)


def _open_images(
    description: Mapping[str, Any], results: Results, folders: Sequence[Path]
) -> tuple[Callable[[str], Labelled] | str, dict[str, Path]]:
    """Return a function that reads an image, or the reason why none can be read; and the files."""
    if not description.get("save_labels"):
        return "the run kept no label maps (it was started with --no-save-labels)", {}
    try:
        dataset = _open_dataset(description)
    except (ValueError, OSError) as error:
        return f"the data set can't be read: {error}", {}
    items = {item.id: item for item in dataset.items}
    if not items.keys() & results.keys():
        return f"{description['sources']['dataset']}: the data set has none of the run's images", {}
    files = {item.id: path for item in dataset.items if (path := _locate_image(item)) is not None}

    def read(name: str) -> Labelled:
        if name not in items:
            raise ValueError(f"{name}: the data set has no such image any more")
        paths = [folder / f"labels/{name}.png" for folder in folders]
        prediction = read_labels(next((path for path in paths if path.exists()), paths[0]))
        image, truth = items[name].read()
        if prediction.shape != truth.shape:
            raise ValueError(f"{name}: the data set's labels have another size than the run's")
        if not description["background"]:
            truth = np.where(truth == 0, IGNORED, truth).astype(np.uint8)
        counted = results[name].fill_confusion(len(description["classes"]) + 1)
        if not np.array_equal(confusion_matrix(truth, prediction, len(counted)), counted):
            raise ValueError(f"{name}: the labels aren't those that the run counted")
        return Labelled(image, truth, prediction)

    return read, files


def _locate_image(item: Item) -> Path | None:
    """Return the file that an image is read from, as `pair_files` notes it; None without one."""
    read = item.image
    found = read.args[0] if isinstance(read, partial) and read.args else None
    return found if isinstance(found, Path) else None


def _open_dataset(description: Mapping[str, Any]) -> Dataset:
    sources = description["sources"]
    if not sources.get("dataset"):
        raise ValueError("the run doesn't record where it is")
    dataset = datasets.load(sources["dataset"], sources.get("data"))
    classes = description["classes"]
    if missing := [name for name in classes if name not in dataset.classes]:
        raise ValueError(f"{dataset.name} has no class {missing[0]} any more")
    if tuple(classes) != dataset.classes:  # --only-bank-classes
        dataset = dataset.restrict([dataset.prompts[dataset.classes.index(n)] for n in classes])
    return replace(dataset, background=description["background"])


def _open_references(description: Mapping[str, Any]) -> Iterable[ClassReferences] | str:
    """Return the references of a run's bank, or the reason why they can't be shown."""
    bank = description["sources"].get("bank")
    if not bank:
        return "the run doesn't record where its bank is"
    try:
        manifest = store.read_manifest(bank)
        if isinstance(manifest, PackedBank):
            return f"{manifest.path}: a packed bank holds no pictures"
        if store.digest_references(manifest) != description["bank"]:
            return f"{manifest.path}: the bank isn't the one that the run used"
    except (ValueError, OSError) as error:
        return f"the bank can't be read: {error}"
    return read_references(manifest)


def read_references(manifest: store.Manifest) -> Iterator[ClassReferences]:
    """Read a bank's classes with their pictures, one at a time."""
    for folder in manifest.folders:
        yield store.read_references(manifest.cache / "references" / folder, pictures=True)
