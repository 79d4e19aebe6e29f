"""Read pictures of any kind as upright uint8 RGB arrays."""

from __future__ import annotations

import io
import os
import sys
import warnings
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError


@runtime_checkable
class SupportsArray(Protocol):
    """An array of NumPy, JAX or torch."""

    def __array__(self) -> Any: ...


@runtime_checkable
class SupportsRead(Protocol):
    """A file opened to be read in binary."""

    def read(self, size: int = -1, /) -> Any: ...

    def seek(self, offset: int, /) -> Any: ...


ImageSource = (
    str | os.PathLike | bytes | bytearray | memoryview | SupportsRead | SupportsArray | Image.Image
)
"""A path, a file object or its bytes, a PIL image, or an array of NumPy, JAX or torch: uint8[H, W],
uint8[H, W, 3] or uint8[H, W, 4]."""

_DEPTHS = (8, 10, 12, 14, 16)
"""Bits that the values of a deep picture may have."""

_DARK = 16
"""A picture is almost black if hardly any pixel is at least this bright."""

_DEEP = "rimjax: 16 bits a channel"
"""Marks in a PIL image's `info` that its file has more bits than Pillow keeps."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture of an EXIF orientation upright."""


class PictureWarning(UserWarning):
    """A picture was read, but shows hardly anything."""


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

    Grey, palette, CMYK, 16-bit, float and transparent pictures are converted. Pictures of more than
    8 bits are scaled by the bits that their values need (8, 10, 12, 14 or 16), float pictures in
    [0, 1] by 255. Transparent pixels are laid on white. A file that comes out almost black or of
    one value is read with a `PictureWarning`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, truncated or not a picture, its values lie in no picture's
            range, or `source` is of another type, or an array of another shape or dtype; the
            message names it.
    """
    return read_photograph(source).pixels


def read_photograph(source: ImageSource) -> Photograph:
    """Decode a picture once, with its own cut-out where it has transparent pixels.

    Raises:
        FileNotFoundError, ValueError: as `read_image`.
    """
    name = os.fspath(source) if isinstance(source, str | os.PathLike) else "the image"
    photograph = _decode(str(name), _locate_content(source))
    if isinstance(source, SupportsArray):  # nothing was decoded
        return photograph
    if photograph.pixels.min() == photograph.pixels.max():
        shown = f"is of one value, {photograph.pixels.flat[0]}"
    elif np.mean(photograph.pixels >= _DARK) < 1e-3:
        shown = f"is almost black, its values reach {photograph.pixels.max()} of 255"
    else:
        return photograph
    warnings.warn(f"{name}: the picture {shown}", PictureWarning, stacklevel=3)
    return photograph


def _locate_content(source: ImageSource) -> Any:
    """Return what Pillow opens, or a PIL image; raise ValueError for what is no picture."""
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, SupportsRead) and not isinstance(source, type):
        seekable = getattr(source, "seekable", None)
        return io.BytesIO(source.read()) if seekable is not None and not seekable() else source
    if isinstance(source, str | os.PathLike):
        path = Path(os.fsdecode(source))
        try:
            exists = path.exists()
        except OSError as error:  # a name too long, or a folder that mustn't be looked into
            shown = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}..."
            raise ValueError(f"{shown}: can't be opened ({error.strerror})") from error
        if not exists:
            raise FileNotFoundError(f"{path}: no such image file")
        if path.is_dir():
            raise ValueError(f"{path}: must be an image file, got a folder")
        if path.is_file() and path.stat().st_size == 0:
            raise ValueError(f"{path}: the image file is empty")
        return path
    return Image.fromarray(_check_array(source))


def _check_array(source: Any) -> np.ndarray:
    kinds = "uint8[H, W], uint8[H, W, 3] or uint8[H, W, 4]"
    if not isinstance(source, SupportsArray) or isinstance(source, type):
        got = f"a {type(source).__name__}" if source is not None else "None"
        raise ValueError(f"image must be a path, file, PIL image or array {kinds}, got {got}")
    if hasattr(source, "detach"):  # torch: NumPy takes neither gradients nor other devices
        source = source.detach().cpu()  # pyright: ignore[reportAttributeAccessIssue]
    array = np.asarray(source)
    channels = array.shape[2] if array.ndim == 3 else 3
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (3, 4):
        raise ValueError(f"image must be {kinds}, got {array.dtype}{list(array.shape)}")
    if not array.size:
        raise ValueError(f"image must not be empty, got shape {list(array.shape)}")
    return array


def _decode(name: str, content: Any) -> Photograph:
    """Decode a picture; whatever Pillow or one of its decoders raises makes it a bad image."""
    pixels = np.zeros((0, 0, 3), np.uint8)
    try:
        picture = _load(content)
        cut_short = _is_cut_short(picture)
        values = None
        if not (cut_short and isinstance(content, Image.Image)):
            values = _read_deep_values(picture, content, cut_short)
        alpha = _find_opaque(picture, values)
        if values is None:
            pixels = _convert_to_rgb(picture)
    except UnidentifiedImageError as error:
        raise ValueError(f"{name}: not an image that Pillow can read") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{name}: unreadable or truncated image ({reason})") from error
    if values is not None:
        try:
            pixels = _scale(values if values.ndim == 2 else values[..., :3])
        except ValueError as error:
            raise ValueError(f"{name}: {error}; save it with 8 bits a channel") from error
        if alpha is not None:
            pixels = np.where(alpha[..., None], pixels, np.uint8(255))
    elif cut_short:
        raise ValueError(
            f"{name}: its file has 16 bits a channel, of which a PIL image holds the upper 8, and "
            "its values are low; give the file's path or bytes instead"
        )
    return Photograph(name, pixels, alpha)


def _load(content: Any, low_bytes: bool = False) -> Image.Image:
    """Decode the first frame and turn it upright.

    Pillow's own way, `ImageOps.exif_transpose`, writes the EXIF block again, which fails where a
    part of it is damaged that doesn't matter here.

    Args:
        content: what Pillow opens, or a PIL image.
        low_bytes: of channels of 16 bits read the lower 8; Pillow reads the upper 8.
    """
    file: Any
    with nullcontext(content) if isinstance(content, Image.Image) else Image.open(content) as file:
        tiles = getattr(file, "tile", ())
        if any(_swap_bytes(tile.args) != tile.args for tile in tiles):
            file.info[_DEEP] = True  # a PIL image forgets its tiles once it is loaded
        grey = any(_find_raw_mode(tile.args).startswith("LA;16") for tile in tiles)
        if low_bytes:
            file.tile = [tile._replace(args=_swap_bytes(tile.args)) for tile in file.tile]
        file.load()
        turn = _TURNS.get(file.getexif().get(ExifTags.Base.Orientation, 1))
        picture = file.copy() if turn is None else file.transpose(turn)
    if low_bytes and grey:  # read as upper and lower byte of grey, then of alpha
        _, low, _, alpha = picture.split()
        picture = Image.merge("RGBA", (low, low, low, alpha))
    return picture


def _find_raw_mode(args: Any) -> str:
    """Return the raw mode in a decoder's arguments, or "" if they hold none."""
    if isinstance(args, tuple):
        return _find_raw_mode(args[0]) if args else ""
    return args if isinstance(args, str) else ""


def _swap_bytes(args: Any) -> Any:
    """Return a decoder's arguments with the other order of bytes, where a channel has two."""
    if isinstance(args, tuple):
        return (_swap_bytes(args[0]), *args[1:]) if args else args
    if args == "LA;16B":  # Pillow knows no other order of it
        return "RGBA"
    if not isinstance(args, str) or not args.startswith(("RGB;16", "RGBA;16", "RGBX;16")):
        return args
    native = "L" if sys.byteorder == "little" else "B"
    return args[:-1] + {"B": "L", "L": "B"}[args[-1].replace("N", native)]


def _is_cut_short(picture: Image.Image) -> bool:
    """Return whether the upper 8 of 16 bits, which Pillow reads, don't hold the whole picture."""
    return _DEEP in picture.info and int(np.asarray(picture)[..., :3].max()) < 64


def _read_deep_values(picture: Image.Image, content: Any, cut_short: bool) -> np.ndarray | None:
    """Return float64[H, W], [H, W, 3] or RGBA of a picture of which Pillow's 8 bits lose a part."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return np.array(picture, np.float64)
    if not cut_short:
        return None
    if isinstance(content, SupportsRead):
        content.seek(0)
    upper = np.asarray(picture).astype(np.float64)
    return 256 * upper + np.asarray(_load(content, low_bytes=True))


def _scale(values: np.ndarray) -> UInt8[np.ndarray, "H W 3"]:
    """Scale values by what they hold: a range of [0, 1], or the least number of usual bits."""
    low, high = (float(bound) for bound in (values.min(), values.max()))
    if not np.isfinite(values).all():
        raise ValueError("its values must be finite, got NaN or infinity")
    whole = bool((values == np.round(values)).all())
    most = 1.0 if high <= 1.1 and not (whole and high > 1) else _find_most(high)
    if not most or low < -0.1 * most or (most == 255 and high < _DARK and not whole):
        raise ValueError(
            "its values must lie in [0, 1] or have 8, 10, 12, 14 or 16 bits, "
            f"got {low:.6g} to {high:.6g}"
        )
    pixels = (values * (255 / most)).round().clip(0, 255).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def _find_most(high: float) -> float:
    """Return the largest value of the least depth that holds a value; 0 if none does."""
    return next((2.0**bits - 1 for bits in _DEPTHS if high <= 2**bits - 0.5), 0.0)


def _find_opaque(picture: Image.Image, values: np.ndarray | None) -> np.ndarray | None:
    """Return where a picture is opaque, or None if it is everywhere."""
    if values is not None and values.ndim == 2:
        key = picture.info.get("transparency")  # the value that a grey picture leaves out
        opaque = np.ones(values.shape, bool) if key is None else values != key
    elif values is not None and values.shape[-1] == 4:  # alpha has a depth of its own
        opaque = values[..., 3] > _find_most(values[..., 3].max()) / 2
    elif picture.has_transparency_data:
        opaque = np.asarray(picture.convert("RGBA"))[..., 3] >= 128
    else:
        return None
    return None if opaque.all() else opaque


def _convert_to_rgb(picture: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.asarray(picture.convert("RGB"))
