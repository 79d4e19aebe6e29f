"""Reading pictures: whatever the file holds, an upright uint8 RGB array comes out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError


def read_image(source: str | Path | np.ndarray | Image.Image) -> np.ndarray:
    """One picture as uint8[H, W, 3], turned upright by its EXIF orientation.

    Grey, palette, CMYK, 16-bit and transparent pictures are converted; transparent pixels are laid on white.

    Args:
        source: a path, a PIL image, or an array uint8[H, W], uint8[H, W, 3] or uint8[H, W, 4].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated or no picture, or the array isn't one of the above; the message names it.
    """
    return _rgb(_opened(source))


def read_alpha(source: str | Path | np.ndarray | Image.Image) -> np.ndarray | None:
    """The picture's own cut-out: bool[H, W], True where alpha is at least half; None if it has no transparent pixel."""
    picture = _opened(source)
    if not picture.has_transparency_data:
        return None
    opaque = np.asarray(picture.convert("RGBA"))[..., 3] >= 128
    return None if opaque.all() else opaque


def _opened(source: str | Path | np.ndarray | Image.Image) -> Image.Image:
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or (source.ndim == 3 and source.shape[2] not in (3, 4)) or not source.size:
            raise ValueError(f"image: expected uint8[H, W], [H, W, 3] or [H, W, 4], got {source.dtype}{list(source.shape)}")
        return Image.fromarray(source)
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such image file")
    if not path.is_file():
        raise ValueError(f"{path}: expected an image file, not a folder")
    if path.stat().st_size == 0:
        raise ValueError(f"{path}: the image file is empty")
    try:
        with Image.open(path) as picture:
            picture.load()
            return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError as error:
        raise ValueError(f"{path}: not an image that Pillow can read") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: unreadable or truncated image ({error})") from error


def _rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, np.float64)
        deep = picture.mode.startswith("I;16") or values.max(initial=0) > 255
        return np.repeat((values / 257 if deep else values).round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.asarray(picture.convert("RGB"))
