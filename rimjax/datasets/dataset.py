"""What a labelled data set is, and how label PNGs are read."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from rimjax.datasets.names import clean_name
from rimjax.images import read_image

IGNORED = 255
"""Label of pixels that don't count."""

READ_AHEAD = 2
"""Images that a thread reads before their turn; each is in memory meanwhile."""

Source = TypeVar("Source")
Content = TypeVar("Content")


@dataclass(frozen=True)
class Item:
    """An image of a data set; files are read when a function is called.

    The functions must be picklable, for workers in other processes: no closures.

    Attributes:
        id: unique in its data set, fit for a file name.
        image: reads uint8[H, W, 3].
        labels: reads uint8[H, W].
    """

    id: str
    image: Callable[[], np.ndarray]
    labels: Callable[[], np.ndarray]

    def read(self) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "h w"]]:
        """Read image and labels.

        Raises:
            OSError, ValueError: either can't be read, or their sizes differ.
        """
        image, labels = self.image(), self.labels()
        if image.shape[:2] != labels.shape:
            sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (image, labels)]
            raise ValueError(f"labels must have the image's size {sizes[0]}, got {sizes[1]}")
        return image, labels


def read_ahead(
    items: Iterable[Source], read: Callable[[Source], Content], threads: int = 1
) -> Iterator[tuple[Source, Future[Content]]]:
    """Read images in threads of their own, while the device works on those before.

    Args:
        items: images.
        read: what is read of an image.
        threads: number of threads.

    Yields:
        Each image, and what was read, whose `result()` raises what reading raised.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[tuple[Source, Future[Content]]] = deque()
        try:
            for item in items:
                waiting.append((item, pool.submit(read, item)))
                if len(waiting) > READ_AHEAD * threads:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for _, future in waiting:
                future.cancel()


@dataclass(frozen=True)
class Dataset:
    """A labelled data set.

    Attributes:
        name: name on the command line.
        classes: canonical names without the background; label 1 + i is `classes[i]`, 0 is the
            background, 255 is ignored.
        items: images, in the split's order.
        aliases: class -> words for the prompt, where the name itself isn't made of words.
        background: whether the background counts as a class; if not, every label 0 reads as 255.
        published_size: number of images of the split in the literature; None where unknown.
    """

    name: str
    classes: tuple[str, ...]
    items: Sequence[Item] = field(repr=False)
    aliases: Mapping[str, str] = field(default_factory=dict)
    background: bool = True
    published_size: int | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """Each class's words for the prompt, which are the bank's names."""
        return tuple(clean_name(self.aliases.get(name, name)) for name in self.classes)

    def restrict(self, prompts: Sequence[str]) -> Dataset:
        """Return the same images with some of the classes only; the others' pixels are ignored.

        Args:
            prompts: of the classes to keep, in the order that they shall have.

        Raises:
            ValueError: none of the classes has one of these prompts.
        """
        if missing := [prompt for prompt in prompts if prompt not in self.prompts]:
            raise ValueError(
                f"bank must hold classes of {self.name} only, got {missing[0]!r} too; its classes "
                f"are {', '.join(self.prompts)}"
            )
        kept = [self.prompts.index(prompt) for prompt in prompts]
        table = np.full(256, IGNORED, np.uint8)
        table[0] = 0
        table[[1 + index for index in kept]] = np.arange(1, 1 + len(kept))
        items = [replace(item, labels=partial(_read_kept, item, table)) for item in self.items]
        classes = tuple(self.classes[index] for index in kept)
        return replace(self, classes=classes, items=items, published_size=None)


def _read_kept(item: Item, table: UInt8[np.ndarray, 256]) -> UInt8[np.ndarray, "H W"]:
    return table[item.labels()]


def read_labels(path: Path, background: bool = True) -> UInt8[np.ndarray, "H W"]:
    """Read a label PNG's indices; without a background 0 becomes 255.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or neither an 8-bit grey nor a palette PNG.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(26)
    if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 26:
        raise ValueError(f"{path}: labels must be a PNG")
    depth, colour = head[24:26]  # of the IHDR chunk, which comes first
    if (depth, colour) != (8, 0) and colour != 3:  # Pillow would stretch shallow grey to 0..255
        kinds = {0: "grey", 2: "RGB", 4: "grey with alpha", 6: "RGBA"}
        kind = kinds.get(colour, f"colour type {colour}")
        raise ValueError(
            f"{path}: labels must be an 8-bit grey or a palette PNG of class indices, "
            f"got {depth}-bit {kind}"
        )
    try:
        with Image.open(path) as picture:
            labels = np.array(picture, np.uint8)
    except Exception as error:  # Pillow's decoders raise any exception on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: unreadable or truncated labels ({reason})") from error
    if not background:
        labels[labels == 0] = IGNORED
    return labels


def pair_files(
    split: Path | str,
    ids: Iterable[str],
    image: Callable[[str], Path],
    labels: Callable[[str], Path],
    background: bool = True,
) -> tuple[Item, ...]:
    """Pair an image file with a label PNG for each id.

    Args:
        split: where the ids come from, for messages.
        ids: ids of the images.
        image: id -> image file.
        labels: id -> label PNG.
        background: as of `read_labels`.

    Raises:
        FileNotFoundError: files are missing; the message names the first.
        ValueError: there is no id, or an id is repeated.
    """
    ids = list(ids)
    if not ids:
        raise ValueError(f"{split}: the split is empty")
    if repeated := [name for name, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"{split}: the split holds {repeated[0]} more than once")
    files = [path for name in ids for path in (image(name), labels(name))]
    if missing := [path for path in files if not path.is_file()]:
        more = f", and {len(missing) - 1} more of the split's files" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{missing[0]}: no such file{more}")
    return tuple(
        Item(
            name,
            partial(read_image, image(name)),
            partial(read_labels, labels(name), background),
        )
        for name in ids
    )


def read_lines(path: Path, layout: str) -> list[str]:
    """Read the lines of a UTF-8 text up to the last that isn't blank, without blanks around each.

    Raises:
        FileNotFoundError: there is no such file; the message describes the expected layout.
        ValueError: it isn't UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected {layout}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark first
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: isn't UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error
    return [line.strip() for line in text.rstrip().split("\n")]


def first_existing(root: Path, *places: str) -> Path:
    """Return the first of some folders below `root` that exists; otherwise the first.

    Raises:
        FileNotFoundError: `root` itself doesn't exist.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: no such folder; expected the data set's, with {places[0]}"
        )
    existing = (root / place for place in places if (root / place).is_dir())
    return next(existing, root / places[0])


def check_labels(dataset: Dataset, items: Iterable[Item]) -> None:
    """Raise ValueError, before any work is done, for a label outside the class list.

    Labels that can't be read are left to the run, which names them. They are read in as many
    threads as there are CPUs.
    """
    for item, reading in read_ahead(items, _find_largest, os.cpu_count() or 1):
        try:
            largest = reading.result()
        except (ValueError, OSError):
            continue
        if largest > len(dataset.classes):
            raise ValueError(
                f"{item.id}: labels must lie in [0, {len(dataset.classes)}], the classes of "
                f"{dataset.name}, or be {IGNORED} where ignored, got {largest}"
            )


def _find_largest(item: Item) -> int:
    labels = item.labels()
    return int(labels[labels != IGNORED].max(initial=0))
