"""Any picture becomes an upright RGB array; an unreadable file is named in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rimjax.images import read_image, read_photograph

RGB = np.zeros((20, 30, 3), np.uint8)
RGB[:10, :15] = (255, 0, 0)
RGB[10:, 15:] = (0, 0, 255)


def test_exif_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png"), np.rot90(RGB, -1))


MODES = [("tif", mode) for mode in ("CMYK", "P", "L", "1", "LA", "RGBA", "I;16", "I", "F")]
MODES += [
    ("png", mode) for mode in ("P", "L", "1", "LA", "RGBA", "I;16")
]  # PNG has no CMYK, no float and no 32-bit integers


@pytest.mark.parametrize(("suffix", "mode"), MODES)
def test_modes(tmp_path: Path, suffix: str, mode: str) -> None:
    grey = RGB[..., 0] // 2 + RGB[..., 2] // 4
    picture = Image.fromarray(RGB)
    if mode in ("I;16", "I"):
        picture = Image.fromarray(grey.astype(np.uint16) * 257)
        picture = picture if mode == "I;16" else Image.fromarray(grey.astype(np.int32) * 257)
    elif mode == "F":
        picture = Image.fromarray(grey.astype(np.float32))
    else:
        picture = picture.convert(mode)
    picture.save(tmp_path / f"it.{suffix}")
    found = read_image(tmp_path / f"it.{suffix}")
    assert found.shape == RGB.shape and found.dtype == np.uint8
    wanted = (
        RGB
        if mode in ("CMYK", "P", "RGBA")
        else np.asarray(Image.fromarray(RGB).convert("L").convert("RGB"))
    )
    if mode in ("I;16", "I", "F"):
        wanted = np.repeat(grey[..., None], 3, 2)
    elif mode == "1":
        wanted = np.asarray(Image.fromarray(RGB).convert("1").convert("RGB"))
    assert np.abs(found.astype(int) - wanted).max() <= 2


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
    ("name", "data"), [("empty.png", b""), ("text.jpg", b"hello"), ("cut.png", None)]
)
def test_bad_files(tmp_path: Path, name: str, data: bytes | None) -> None:
    path = tmp_path / name
    if data is None:
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        data = path.read_bytes()[:2000]
    path.write_bytes(data)
    with pytest.raises(ValueError, match=name) as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_missing_file_folder_and_arrays(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such image"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="folder"):
        read_image(tmp_path)
    for array in (
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros(4, np.uint8),
    ):
        with pytest.raises(ValueError, match="image must "):
            read_image(array)
    np.testing.assert_array_equal(read_image(RGB[..., 0]), np.repeat(RGB[..., :1], 3, 2))
