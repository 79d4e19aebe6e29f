"""What a labelled data set is, and how label PNGs are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from rimjax.images import read_image

IGNORED = 255
"""The label of pixels that don't count."""


@dataclass(frozen=True)
class Item:
    """One image of a data set; nothing is read before it is asked for.

    Attributes:
        id: unique in its data set, fit for a file's name.
        image: reads uint8[H, W, 3].
        labels: reads uint8[H, W].
    """

    id: str
    image: Callable[[], np.ndarray]
    labels: Callable[[], np.ndarray]

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """Image and labels; OSError or ValueError where either can't be read or their sizes differ."""
        image, labels = self.image(), self.labels()
        if image.shape[:2] != labels.shape:
            sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (image, labels)]
            raise ValueError(f"the image is {sizes[0]} pixels, its labels are {sizes[1]}")
        return image, labels


@dataclass(frozen=True)
class Dataset:
    """A labelled data set.

    Attributes:
        name: as on the command line.
        classes: canonical names without the background; label 1 + i is `classes[i]`, 0 the background, 255 ignored.
        items: the images, in the split's order.
        aliases: class -> what it is called in the prompt, where its own name is no words.
        background: whether the background is a class that counts; where it isn't, every label 0 is read as 255.
        published_size: how many images the split has in the literature; None where nobody says.
    """

    name: str
    classes: tuple[str, ...]
    items: Sequence[Item] = field(repr=False)
    aliases: Mapping[str, str] = field(default_factory=dict)
    background: bool = True
    published_size: int | None = None

    @property
    def size(self) -> int:
        """Number of images."""
        return len(self.items)

    @property
    def prompts(self) -> tuple[str, ...]:
        """What the generator is asked to draw, class by class: the bank's names."""
        return tuple(self.aliases.get(name, name) for name in self.classes)

    def scenes(self, limit: int | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(image uint8[H, W, 3], labels uint8[H, W]) pairs, the first `limit` of them."""
        for item in self.items[:limit]:
            yield item.read()


def read_labels(path: Path, background: bool = True) -> np.ndarray:
    """A label PNG's indices, uint8[H, W]; without a background 0 becomes 255.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or not an 8-bit grey or a palette PNG.
    """
    from PIL import Image

    with path.open("rb") as file:
        head = file.read(26)
    if head[:8] != b"\x89PNG\r\n\x1a\n" or len(head) < 26:
        raise ValueError(f"{path}: labels must be a PNG")
    depth, colour = head[24:26]  # of the IHDR chunk, which comes first
    if (depth, colour) != (8, 0) and colour != 3:  # Pillow would stretch grey of fewer bits to 0..255
        kind = {0: "grey", 2: "RGB", 4: "grey with alpha", 6: "RGBA"}.get(colour, f"colour type {colour}")
        raise ValueError(f"{path}: labels must be an 8-bit grey or a palette PNG that holds class indices, got {depth}-bit {kind}")
    try:
        with Image.open(path) as picture:
            labels = np.array(picture, np.uint8)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: unreadable or truncated labels ({error})") from error
    if not background:
        labels[labels == 0] = IGNORED
    return labels


def pairs(
    split: Path | str, ids: Iterable[str], image: Callable[[str], Path], labels: Callable[[str], Path], background: bool = True
) -> tuple[Item, ...]:
    """Items from an image file and a label file for each id.

    Args:
        split: where the ids come from, for messages.
        ids: of the images.
        image: id -> its file.
        labels: id -> its label PNG.
        background: as of `read_labels`.

    Raises:
        FileNotFoundError: files are missing; the first is named.
        ValueError: there is no id, or one comes twice.
    """
    ids = list(ids)
    if not ids:
        raise ValueError(f"{split}: the split is empty")
    if twice := [one for one, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"{split}: the split holds {twice[0]} more than once")
    missing = [path for one in ids for path in (image(one), labels(one)) if not path.is_file()]
    if missing:
        more = f", and {len(missing) - 1} more of the split's files" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{missing[0]}: no such file{more}")
    return tuple(Item(one, partial(read_image, image(one)), partial(read_labels, labels(one), background)) for one in ids)


def lines(path: Path, layout: str) -> list[str]:
    """The lines of a text file, blank ones left out.

    Raises:
        FileNotFoundError: there is none; the message has the layout that was expected.
        ValueError: it isn't UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; expected {layout}")
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without the mark that some editors put first
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: isn't UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    return [line.strip() for line in text.splitlines() if line.strip()]


def below(root: Path, *places: str) -> Path:
    """The first of the folders that is there, so that `--data` may name any of them; else the first."""
    return next((root / place for place in places if (root / place).is_dir()), root / places[0])
