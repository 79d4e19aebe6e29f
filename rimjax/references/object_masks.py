"""Read the mask of an object: a picture beside the photograph, or an array."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageOps

from rimjax.images import SupportsArray, SupportsRead
from rimjax.match.checks import describe


def find_mask_beside(photograph: Path) -> Path | None:
    """Return the mask beside a photograph: the PNG of its name, where it is no PNG itself."""
    if photograph.suffix.lower() == ".png":
        return None
    beside = (photograph.with_suffix(suffix) for suffix in (".png", ".PNG"))
    return next((path for path in beside if os.path.isfile(path)), None)


def read_mask(source: Any, photograph: str, size: tuple[int, int]) -> Bool[np.ndarray, "H W"]:
    """Read a mask: non-zero values are the object.

    Of a palette PNG whose index 0 is black or transparent the indices count; of one in black and
    white, and of a colour picture, a pixel counts where any channel isn't zero and it isn't
    transparent.

    Args:
        source: a path, a file, a PIL image, or an array [H, W] of booleans or integers.
        photograph: the photograph's name, for messages.
        size: H and W of the photograph.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it can't be read, has another size, or its palette leaves open what the object
            is.
    """
    name = f"the mask of {photograph}"
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        if not Path(name).is_file():
            raise FileNotFoundError(f"{name}: no such mask file")
    if isinstance(source, SupportsArray) and not isinstance(source, Image.Image):
        mask = _read_array(source)
    elif isinstance(source, str | os.PathLike | SupportsRead | Image.Image):
        try:
            picture = _open_upright(source)
        except Exception as error:  # Pillow's decoders raise any exception on damaged files
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{name}: unreadable mask ({reason}); save it as PNG") from error
        mask = _find_object(picture, name)
    else:
        raise ValueError(
            f"mask must be a path, file, PIL image or array [H, W], got {describe(source)}"
        )
    if mask.shape != size:
        sides = [f"{shape[1]}x{shape[0]}" for shape in (size, mask.shape)]
        raise ValueError(
            f"{name}: mask must have the size of {photograph} (turned upright), {sides[0]}, got "
            f"{sides[1]}"
        )
    return mask


def _read_array(source: Any) -> np.ndarray:
    if hasattr(source, "detach"):  # torch: NumPy takes neither gradients nor other devices
        source = source.detach().cpu()
    array = np.asarray(source)
    if array.ndim != 2 or array.dtype.kind not in "biu":
        raise ValueError(
            f"mask must be an array [H, W] of booleans or integers, got {describe(array)}"
        )
    return array != 0


def _open_upright(source: Any) -> Image.Image:
    with source if isinstance(source, Image.Image) else Image.open(source) as file:
        if file.format == "JPEG":
            raise ValueError("a JPEG doesn't keep values exactly")
        return ImageOps.exif_transpose(file)


def _find_object(picture: Image.Image, name: str) -> Bool[np.ndarray, "H W"]:
    """Return where a mask's picture shows the object; raise ValueError where that isn't clear."""
    by_colour = picture.mode in ("LA", "PA", "RGBA", "La", "RGBa")
    if picture.mode == "P":
        first = tuple((picture.getpalette("RGB") or [0, 0, 0])[:3])
        transparent = picture.info.get("transparency")
        left_out = transparent[0] if isinstance(transparent, bytes) else transparent
        if any(first) and left_out != 0:
            colours = np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)
            by_colour = bool(np.isin(colours.sum(1), (0, 3 * 255)).all())
            if not by_colour:
                shown = "white" if first == (255, 255, 255) else f"the colour {first}"
                raise ValueError(
                    f"{name}: index 0 of its palette is {shown}, so it isn't clear where the "
                    "object is; save it as grey, the object white"
                )
    if by_colour:
        pixels = np.asarray(picture.convert("RGBA"))
        return pixels[..., :3].any(-1) & (pixels[..., 3] > 0)
    pixels = np.asarray(picture)
    return np.asarray(pixels.any(-1)) if pixels.ndim == 3 else pixels != 0
