"""Any picture becomes an upright RGB array; an unreadable file is named in one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rimjax.images import read_image, read_photograph

RGB = np.zeros((20, 30, 3), np.uint8)
RGB[:10, :15] = (255, 0, 0)
RGB[10:, 15:] = (0, 0, 255)
GREY = RGB[..., 0] // 2 + RGB[..., 2] // 4


def test_exif_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(RGB, -1))


MODES = [("tif", mode) for mode in ("CMYK", "P", "L", "1", "LA", "RGBA", "I;16", "I", "F")]
# PNG has no CMYK, no float and no 32-bit integers.
MODES += [("png", mode) for mode in ("P", "L", "1", "LA", "RGBA", "I;16")]
GREY_VALUES = {
    "I;16": GREY.astype(np.uint16) * 257,
    "I": GREY.astype(np.int32) * 257,
    "F": GREY.astype(np.float32),
}


def convert_by_pillow(mode: str) -> np.ndarray:
    return np.asarray(Image.fromarray(RGB).convert(mode).convert("RGB"))


@pytest.mark.parametrize(("suffix", "mode"), MODES)
def test_modes(tmp_path: Path, suffix: str, mode: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    if mode in GREY_VALUES:
        Image.fromarray(GREY_VALUES[mode]).save(path)
        expected = np.repeat(GREY[..., None], 3, 2)
    else:
        Image.fromarray(RGB).convert(mode).save(path)
        expected = RGB if mode in ("CMYK", "P", "RGBA") else convert_by_pillow(mode)
    image = read_image(path)
    assert image.shape == RGB.shape and image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).max() <= 2


def test_a_float_picture_may_have_values_up_to_1(tmp_path: Path) -> None:
    Image.fromarray(GREY.astype(np.float32) / 255).save(tmp_path / "unit.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "unit.tif")[..., 0], GREY)


def test_transparent_pixels_are_white(tmp_path: Path) -> None:
    alpha = np.full((20, 30), 255, np.uint8)
    alpha[:5] = 0
    Image.fromarray(np.dstack([RGB, alpha])).save(tmp_path / "cut.png")
    assert (read_image(tmp_path / "cut.png")[:5] == 255).all()
    mask = read_photograph(tmp_path / "cut.png").alpha
    assert mask is not None
    np.testing.assert_array_equal(mask, alpha > 0)
    assert read_photograph(RGB).alpha is None


@pytest.mark.parametrize(
    ("name", "content"), [("empty.png", b""), ("text.jpg", b"hello"), ("cut.png", None)]
)
def test_an_unreadable_file_is_named_in_one_line(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    path = tmp_path / name
    if content is None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        content = path.read_bytes()[:2000]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=name) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such image"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="folder"):
        read_image(tmp_path)


def test_arrays() -> None:
    np.testing.assert_array_equal(read_image(RGB[..., 0]), np.repeat(RGB[..., :1], 3, 2))
    for array in (
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
    ):
        with pytest.raises(ValueError, match="image must "):
            read_image(array)


def test_a_decompression_bomb_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("L", (1, 1)).save(path)
    whole = path.read_bytes()
    header = struct.pack(">4sIIBBBBB", b"IHDR", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(whole[:8] + chunk + whole[33:])
    with pytest.raises(ValueError, match=r"bomb\.png: .*decompression bomb") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
