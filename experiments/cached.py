"""Arrays that are made once and kept in a file."""

import math
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np


def cached(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of a file, made and written whole if it isn't there or is damaged."""
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error):
        made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez_compressed(temporary, **made)
    temporary.replace(path)
    return made


def packed(masks: np.ndarray) -> dict[str, np.ndarray]:
    """Masks, bool[P, H, W], as bits."""
    return {"bits": np.packbits(masks.reshape(len(masks), math.prod(masks.shape[1:])), axis=1)}


def unpacked(held: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The masks again, of an image of that shape."""
    return np.unpackbits(held["bits"], axis=1, count=shape[0] * shape[1]).astype(bool).reshape(len(held["bits"]), *shape[:2])
