"""A zoo of pictures: each is read right, or named in one line; no traceback, nothing else."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, features
from scenes import as_exif

from rimjax.images import read_image

HEIGHT, WIDTH = 24, 36
RGB = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
RGB[:12, :12], RGB[:12, 12:24], RGB[:12, 24:] = (250, 20, 30), (20, 230, 40), (30, 40, 240)
RGB[12:, :12], RGB[12:, 12:24], RGB[12:, 24:] = (240, 240, 30), (90, 90, 90), (220, 220, 220)
GREY = np.asarray(Image.fromarray(RGB).convert("L"))

Case = tuple[str, bytes, np.ndarray | str, int]
"""A file's name and content; the picture, or words of the error; and how far values may be off."""


def save(pixels: np.ndarray | Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def stack(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def as_png(depth: int, colour: int, rows: bytes, size: tuple[int, int] = (WIDTH, HEIGHT)) -> bytes:
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def as_rows(pixels: np.ndarray) -> bytes:
    """Return PNG rows of 16-bit values, without a filter."""
    return b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)


def list_modes() -> Iterator[Case]:
    """Yield every mode that a format has."""
    image = Image.fromarray(RGB)
    palette = image.quantize(8, dither=Image.Dither.NONE)
    one = stack(np.where(GREY > 127, 255, 0).astype(np.uint8))
    bit = image.convert("1", dither=Image.Dither.NONE)
    for kind in ("PNG", "TIFF", "BMP", "PPM", "TGA", "WEBP", "GIF", "JPEG", "JPEG2000", "PCX"):
        exact = kind not in ("WEBP", "JPEG")
        options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
        tolerance = 0 if exact or kind == "WEBP" else 12
        yield f"rgb.{kind}", save(image, kind, **options.get(kind, {})), RGB, max(tolerance, 1)
        if kind not in ("WEBP", "JPEG2000"):
            finest = {"quality": 100} if kind == "JPEG" else {}
            yield (
                f"grey.{kind}",
                save(GREY, kind, **finest),
                stack(GREY),
                12 if kind == "JPEG" else 0,
            )
    for kind in ("PNG", "TIFF", "BMP", "GIF", "TGA", "PCX"):
        yield f"palette.{kind}", save(palette, kind), RGB, 1
    for kind in ("PNG", "TIFF", "BMP", "PPM", "XBM", "PCX"):
        yield f"bit.{kind}", save(bit, kind), one, 0
    for kind in ("JPEG", "TIFF"):
        options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
        yield f"cmyk.{kind}", save(image.convert("CMYK"), kind, **options), RGB, 14
    # Pillow 12 can't read uncompressed YCbCr, not even what it has written itself.
    ycbcr = RGB if PIL.__version__ >= "13" else "unreadable or truncated"
    yield "ycbcr.tif", save(image.convert("YCbCr"), "TIFF"), ycbcr, 6
    yield "lab.tif", save(to_lab(image), "TIFF"), RGB, 6
    for compression in ("raw", "tiff_lzw", "tiff_deflate", "packbits"):
        yield f"{compression}.tif", save(image, "TIFF", compression=compression), RGB, 0
    yield (
        "progressive.jpg",
        save(image, "JPEG", quality=100, subsampling=0, progressive=True),
        RGB,
        12,
    )
    yield "interlaced.png", interlace(), stack(np.full((1, 1), 200, np.uint8)), 0
    if features.check("avif"):
        yield "rgb.avif", save(image, "AVIF", quality=100, subsampling="4:4:4"), RGB, 12


def to_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    rgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    transformed = ImageCms.profileToProfile(image, rgb, lab, outputMode="LAB")  # pyright: ignore[reportArgumentType]
    assert transformed is not None
    return transformed


def interlace() -> bytes:
    """Return an Adam7 PNG of one pixel."""
    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 1)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0\xc8")) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def list_depths() -> Iterator[Case]:
    """Yield pictures of more than 8 bits."""
    for bits in (10, 12, 14, 16):
        scale = (2**bits - 1) / 255
        deep = (RGB * scale).round()
        deep[0, 0], deep[0, 1] = 2**bits - 1, 0
        expected = (deep / scale).round().astype(np.uint8)
        grey = deep[..., 0]
        yield f"{bits}.png", as_png(16, 2, as_rows(deep.reshape(HEIGHT, -1))), expected, 1
        yield f"grey-{bits}.png", as_png(16, 0, as_rows(grey)), stack(expected[..., 0]), 1
        yield f"grey-{bits}.tif", save(grey.astype(np.uint16), "TIFF"), stack(expected[..., 0]), 1
        yield f"int-{bits}.tif", save(grey.astype(np.int32), "TIFF"), stack(expected[..., 0]), 1
        opaque = np.concatenate([deep, np.full((HEIGHT, WIDTH, 1), 65535)], axis=2)
        yield f"rgba-{bits}.png", as_png(16, 6, as_rows(opaque.reshape(HEIGHT, -1))), expected, 1
    for most in (1, 255, 4095, 65535):
        values = (GREY / GREY.max() * most).astype(np.float32)
        expected = stack((GREY / GREY.max() * 255).round().astype(np.uint8))
        yield f"float-{most}.tif", save(values, "TIFF"), expected, 1
    for name, odd in (("nan", np.nan), ("inf", np.inf), ("minus", -300), ("huge", 1e30)):
        values = GREY.astype(np.float32)
        values[0, 0] = odd
        yield f"{name}.tif", save(values, "TIFF"), "its values must", 0
    yield "int32.tif", save(GREY.astype(np.int32) * 10**6, "TIFF"), "its values must", 0
    for depth in (1, 2, 4):
        levels = 2**depth - 1
        grey = (GREY / 255 * levels).round().astype(np.uint8)
        bits = [np.unpackbits(row[:, None], axis=1)[:, 8 - depth :].ravel() for row in grey]
        rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
        expected = stack((grey * (255 // levels)).astype(np.uint8))
        yield f"depth-{depth}.png", as_png(depth, 0, rows), expected, 0


def list_turned() -> Iterator[Case]:
    """Yield EXIF's turns, whole and beside damage."""
    turns = (0, 0, 0, 2, 2, 1, -1, -1, 1)
    for orientation in (*range(1, 9), 0, 99):
        index = orientation if orientation < 9 else 0
        mirrored = RGB[:, ::-1] if index in (2, 4, 5, 7) else RGB
        expected = np.rot90(mirrored, turns[index])
        for broken in (False, True):
            exif = as_exif(orientation, broken)
            name = f"turned-{orientation}-{'broken' if broken else 'whole'}"
            jpeg = {"quality": 100, "subsampling": 0, "exif": exif}
            yield f"{name}.jpg", save(RGB, "JPEG", **jpeg), expected, 12
            yield f"{name}.png", save(RGB, "PNG", exif=exif), expected, 0
            yield f"{name}.webp", save(RGB, "WEBP", exif=exif, lossless=True), expected, 0
    garbage = b"Exif\0\0MM\0*" + b"\xff" * 40
    yield "garbage.jpg", save(RGB, "JPEG", quality=100, subsampling=0, exif=garbage), RGB, 12


def list_transparent() -> Iterator[Case]:
    """Yield pictures with transparent pixels, and animations."""
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:12, :12] = 0
    expected = RGB.copy()
    expected[:12, :12] = 255
    cut = np.dstack([RGB, alpha])
    for kind, options in (("PNG", {}), ("TIFF", {}), ("TGA", {}), ("WEBP", {"lossless": True})):
        yield f"cut.{kind}", save(cut, kind, **options), expected, 1
    grey = stack(GREY)
    grey[:12, :12] = 255
    yield "cut-grey.png", save(Image.fromarray(np.dstack([GREY, alpha])), "PNG"), grey, 0
    yield "palette.png", save(Image.fromarray(cut).quantize(8), "PNG"), expected, 1
    yield "key.png", save(RGB, "PNG", transparency=(250, 20, 30)), expected, 0
    key = int(GREY[0, 0])
    keyed = stack(np.where(key == GREY, np.uint8(255), GREY))
    yield "key-grey.png", save(GREY, "PNG", transparency=key), keyed, 0
    frames = [Image.fromarray(np.full_like(RGB, value)) for value in (10, 200)]
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        many = save(Image.fromarray(RGB), kind, save_all=True, append_images=frames, **options)
        yield f"frames.{kind}", many, RGB, 1


def list_broken() -> Iterator[Case]:
    """Yield files that are no whole picture."""
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "PPM", "WEBP"):
        content = save(noise, kind)
        for share in (3, 10, len(content) // 2):
            yield f"cut-{share}.{kind}", content[:share], ": ", 0
    yield "empty.png", b"", "the image file is empty|not an image", 0
    yield "text.jpg", b"hello", "not an image", 0
    yield "page.png", b"<!doctype html><html></html>", "not an image", 0
    yield "vector.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image", 0
    for side in (2**31 - 1, 2**20):
        yield f"wide-{side}.png", as_png(8, 2, b"", (side, side)), "unreadable", 0
    yield "bomb.png", as_png(8, 0, bytes(100), (20000, 20000)), "unreadable", 0
    yield "zero.png", as_png(8, 0, b"", (0, 5)), ": ", 0
    yield "header.bmp", b"BM" + bytes(8) + b"\xff" * 60, ": ", 0
    yield "dds.dds", b"DDS " + struct.pack("<I", 124) + bytes(120), ": ", 0
    yield "type.png", as_png(8, 5, bytes(10)), ": ", 0
    yield "checksum.png", save(RGB, "PNG")[:40] + b"\0\0\0" + save(RGB, "PNG")[43:], ": ", 0
    yield "tiff.tif", b"II*\0" + struct.pack("<I", 8) + b"\xff\xff" + b"\1" * 50, ": ", 0


KINDS = (list_modes, list_depths, list_turned, list_transparent, list_broken)
CASES = [case for kind in KINDS for case in kind()]


def test_the_zoo_is_large() -> None:
    assert len(CASES) >= 60 and len({name for name, *_ in CASES}) >= 60


@pytest.mark.parametrize(
    ("name", "content", "expected", "tolerance"), CASES, ids=[case[0] for case in CASES]
)
@pytest.mark.filterwarnings("ignore")
def test_a_picture_is_read_right_or_named_in_one_line(
    tmp_path: Path, name: str, content: bytes, expected: np.ndarray | str, tolerance: int
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if isinstance(expected, str):
        for source in (path, io.BytesIO(content)):
            with pytest.raises(ValueError, match=expected) as caught:
                read_image(source)
            message = str(caught.value)
            assert "\n" not in message and message.startswith((f"{path}: ", "the image: "))
        return
    for source in (path, io.BytesIO(content), content):
        image = read_image(source)
        assert image.dtype == np.uint8 and image.shape == expected.shape
        assert np.abs(image.astype(int) - expected).max() <= tolerance


def test_a_flipped_byte_gives_a_picture_or_a_line(tmp_path: Path, robust: int) -> None:
    """Damage that a format has no checksum for may go unseen, but never ends in a traceback."""
    rng, path = np.random.default_rng(0), tmp_path / "flipped"
    contents = [content for _, content, expected, _ in CASES if not isinstance(expected, str)]
    for _ in range(200 * robust):
        content = bytearray(contents[rng.integers(len(contents))])
        for _ in range(rng.integers(1, 4)):
            content[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(content)
        with warnings.catch_warnings(action="ignore"):
            try:
                image = read_image(path)
            except ValueError as error:
                assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            else:
                assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
