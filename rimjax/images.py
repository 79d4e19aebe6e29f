"""Read pictures of any kind as upright uint8 RGB arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

ImageSource = str | Path | np.ndarray | Image.Image
"""A path, a PIL image, or an array uint8[H, W], uint8[H, W, 3] or uint8[H, W, 4]."""


@dataclass(frozen=True, eq=False)
class Photograph:
    """A decoded picture.

    Attributes:
        name: its path, or "the image".
        pixels: RGB, upright, transparent pixels laid on white.
        alpha: where the picture is opaque (alpha at least half); None if it is opaque everywhere.
    """

    name: str
    pixels: UInt8[np.ndarray, "H W 3"]
    alpha: Bool[np.ndarray, "H W"] | None


def read_image(source: ImageSource) -> UInt8[np.ndarray, "H W 3"]:
    """Read a picture as RGB, turned upright by its EXIF orientation.

    Grey, palette, CMYK, 16-bit, float (in [0, 1] or [0, 255]) and transparent pictures are
    converted; transparent pixels are laid on white.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated or not a picture, or an array has another shape or
            dtype; the message names it.
    """
    return _convert_to_rgb(_open_image(source))


def read_photograph(source: ImageSource) -> Photograph:
    """Decode a picture once, with its own cut-out where it has transparent pixels.

    Raises:
        FileNotFoundError, ValueError: as `read_image`.
    """
    picture = _open_image(source)
    alpha = None
    if picture.has_transparency_data:
        opaque = np.asarray(picture.convert("RGBA"))[..., 3] >= 128
        alpha = None if opaque.all() else opaque
    name = str(source) if isinstance(source, str | Path) else "the image"
    return Photograph(name, _convert_to_rgb(picture), alpha)


def _open_image(source: ImageSource) -> Image.Image:
    if isinstance(source, np.ndarray):
        channels = source.shape[2] if source.ndim == 3 else 3
        if source.dtype != np.uint8 or source.ndim not in (2, 3) or channels not in (3, 4):
            kind = f"{source.dtype}{list(source.shape)}"
            raise ValueError(f"image must be uint8[H, W], [H, W, 3] or [H, W, 4], got {kind}")
        if not source.size:
            raise ValueError(f"image must not be empty, got shape {list(source.shape)}")
        return Image.fromarray(source)
    if isinstance(source, Image.Image):
        return ImageOps.exif_transpose(source)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such image file")
    if not path.is_file():
        raise ValueError(f"{path}: must be an image file, got a folder")
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


def _convert_to_rgb(picture: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.array(picture, np.float64)
        highest = values.max(initial=0)
        if picture.mode == "F" and highest <= 1:
            values *= 255
        elif picture.mode.startswith("I;16") or highest > 255:
            values /= 257
        grey = values.round().clip(0, 255).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.asarray(picture.convert("RGB"))
