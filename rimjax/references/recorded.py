"""Files of a class's folder: none through a symbolic link, none that isn't as recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from rimjax.files import check_plain_name


def find_inside(path: Path, name: str) -> Path:
    """Return the path of a file; raise ValueError where it or its class's folder is a link.

    Args:
        path: the class's folder.
        name: a plain file name.
    """
    file = path / check_plain_name(name, path)
    if path.is_symlink() or file.is_symlink():
        raise ValueError(f"{file} leads elsewhere by a symbolic link; it isn't trusted")
    return file


def read_recorded(path: Path, name: str, recorded: Mapping[str, str]) -> bytes:
    """Return a file's content; raise ValueError unless it is the recorded content.

    Args:
        path: the class's folder.
        name: a plain file name.
        recorded: the sha256 of each file by name; KeyError for a name that it lacks.
    """
    expected, content = recorded[name], find_inside(path, name).read_bytes()
    if hashlib.sha256(content).hexdigest() != expected:
        raise ValueError(f"{name} differs from its recorded sha256")
    return content


def read_picture(path: Path, kind: str, index: int, recorded: Mapping[str, str]) -> np.ndarray:
    """Read a picture of a kind, "image" or "mask"; raises as `read_recorded`."""
    content = read_recorded(path, name_picture(kind, index), recorded)
    return np.asarray(Image.open(BytesIO(content)))


def name_picture(kind: str, index: int) -> str:
    """Return the file name of the picture at an index."""
    return f"{kind}-{index:05d}.png"
