"""Any picture becomes an upright RGB array; an unreadable file is named in one line."""

from __future__ import annotations

import io
import struct
import subprocess
import warnings
import zlib
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
from fakes import fake_models
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from scenes import as_exif

from rimjax.images import PictureWarning, read_image, read_photograph

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


@pytest.mark.parametrize("path", ["a" * 5000, "a/" * 5000])
def test_a_path_that_is_too_long_is_refused_in_one_short_line(path: str) -> None:
    with pytest.raises(ValueError, match=r"^a[a/]+\.\.\.: .*\(File name too long\)") as caught:
        read_image(path)
    assert len(str(caught.value)) < 300


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


def fade(most: int, colour: bool = False) -> np.ndarray:
    """Return a ramp from 0 to `most`, uint16."""
    ramp = np.linspace(0, most, 30).round().astype(np.uint16)[None].repeat(20, 0)
    return np.stack([ramp, ramp[:, ::-1], ramp], axis=-1) if colour else ramp


def write_deep_png(path: Path, pixels: np.ndarray) -> None:
    """Write a PNG of 16 bits a channel, which Pillow can't: grey, with alpha, RGB or RGBA."""
    colour = 0 if pixels.ndim == 2 else {2: 4, 3: 2, 4: 6}[pixels.shape[-1]]
    rows = pixels.astype(">u2").reshape(len(pixels), -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + kind + body
        content += struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(content)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_deep_pictures_are_scaled_by_the_bits_that_they_hold(
    tmp_path: Path, bits: int, channels: int
) -> None:
    deep = fade(2**bits - 1, colour=channels > 2)
    if channels in (2, 4):
        deep = np.dstack([deep, np.full(deep.shape[:2], 65535, np.uint16)])
    write_deep_png(tmp_path / "deep.png", deep)
    colours = deep[..., :3] if channels > 2 else np.repeat(np.dstack([deep])[..., :1], 3, 2)
    expected = colours / (2**bits - 1) * 255
    image = read_image(tmp_path / "deep.png")
    assert np.abs(image - expected).max() <= 1


@pytest.mark.parametrize(
    ("bits", "alpha_bits"), [*product([10, 12, 14], [10, 12, 14, 16]), (16, 16)]
)
@pytest.mark.parametrize("colour", [False, True])
def test_the_alpha_of_a_deep_picture_is_scaled_too(
    tmp_path: Path, bits: int, alpha_bits: int, colour: bool
) -> None:
    alpha = np.full((20, 30), 2**alpha_bits - 1, np.uint16)
    alpha[:5] = 2**alpha_bits // 4
    write_deep_png(tmp_path / "deep.png", np.dstack([fade(2**bits - 1, colour), alpha]))
    photograph = read_photograph(tmp_path / "deep.png")
    assert photograph.alpha is not None
    np.testing.assert_array_equal(photograph.alpha, alpha > 2**alpha_bits // 2)
    ramp = photograph.pixels[10, :, 0]
    assert ramp[0] == 0 and ramp[-1] == 255


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_a_pil_image_of_a_deep_file_with_low_values_is_refused(
    tmp_path: Path, channels: int
) -> None:
    path = tmp_path / "deep.png"
    alpha = np.full((20, 30), 65535, np.uint16)
    write_deep_png(path, np.dstack([fade(2**14 - 1, channels > 2), alpha])[..., :channels])
    with Image.open(path) as picture:
        for _ in range(2):  # the first reading loads it
            with pytest.raises(ValueError, match=r"^the image: .*; give the file's path or bytes"):
                read_image(picture)
    write_deep_png(path, np.dstack([fade(2**16 - 1, channels > 2), alpha])[..., :channels])
    with Image.open(path) as picture:
        np.testing.assert_array_equal(read_image(picture), read_image(path))


@pytest.mark.parametrize("deep", [False, True])
def test_a_stream_that_cannot_seek_is_read(tmp_path: Path, deep: bool) -> None:
    path = tmp_path / "picture.png"
    if deep:
        write_deep_png(path, fade(2**12 - 1, colour=True))
    else:
        Image.fromarray(RGB).save(path)
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        np.testing.assert_array_equal(read_image(process.stdout), read_image(path))


@pytest.mark.parametrize("most", [1.0, 1.02, 255.0, 1023.0, 4095.0, 65535.0])
def test_float_pictures_are_scaled_by_their_range(tmp_path: Path, most: float) -> None:
    ramp = np.linspace(0, most, 30, dtype=np.float32)[None].repeat(20, 0)
    Image.fromarray(ramp).save(tmp_path / "float.tif")
    expected = np.minimum(ramp / (1 if most < 2 else most), 1) * 255
    assert np.abs(read_image(tmp_path / "float.tif")[..., 0] - expected).max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        np.full((4, 4), np.nan, np.float32),
        np.linspace(-1, 1, 16, dtype=np.float32).reshape(4, 4),
        np.linspace(0, 8, 16, dtype=np.float32).reshape(4, 4),
        np.arange(16, dtype=np.int32).reshape(4, 4) * 10**8,
        np.arange(-8, 8, dtype=np.int32).reshape(4, 4) * 30,
    ],
    ids=["nan", "signed", "bright", "32 bits", "negative"],
)
def test_a_range_that_is_no_pictures_is_refused(tmp_path: Path, values: np.ndarray) -> None:
    Image.fromarray(values).save(tmp_path / "odd.tif")
    with pytest.raises(ValueError, match=r"odd\.tif: .*; save it with 8 bits"):
        read_image(tmp_path / "odd.tif")


@pytest.mark.parametrize(
    ("value", "words"), [(3, "almost black"), (0, "of one value"), (200, "of one value")]
)
def test_a_picture_that_shows_nothing_is_said_to_be_so(
    tmp_path: Path, value: int, words: str
) -> None:
    picture = np.full((20, 30, 3), value, np.uint8)
    picture[0, 0] = value if words == "of one value" else 0
    Image.fromarray(picture).save(tmp_path / "dark.png")
    with pytest.warns(PictureWarning, match=rf"dark\.png: .*{words}"):
        read_image(tmp_path / "dark.png")


def test_an_ordinary_picture_is_read_without_a_warning(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "fine.png")
    with warnings.catch_warnings(action="error", category=PictureWarning):
        read_image(tmp_path / "fine.png")


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_damaged_exif_block_still_turns_the_picture(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    path = tmp_path / f"turned.{suffix}"
    blocks = np.kron(RGB[::10, ::15], np.ones((16, 32, 1), np.uint8))  # JPEG keeps blocks plain
    Image.fromarray(blocks).save(
        path, exif=as_exif(orientation, broken=True), quality=100, subsampling=0
    )
    turns = (0, 0, 0, 2, 2, 1, -1, -1, 1)  # quarter turns, after mirroring where it is mirrored
    mirrored = blocks[:, ::-1] if orientation in (2, 4, 5, 7) else blocks
    expected = np.rot90(mirrored, turns[orientation]).astype(int)
    assert np.abs(read_image(path) - expected).max() <= 4


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, struct.error, MemoryError])
def test_whatever_a_decoder_raises_is_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def decode(*args: object) -> None:
        raise error("two\nlines")

    Image.fromarray(RGB).save(tmp_path / "odd.png")
    monkeypatch.setattr(PngImageFile, "load", decode)
    with pytest.raises(ValueError, match=r"odd\.png: unreadable or truncated image \(.*two lines"):
        read_image(tmp_path / "odd.png")


def test_any_usual_form_of_a_picture_is_read(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(RGB).save(path)
    content = path.read_bytes()
    with path.open("rb") as file:
        sources = [str(path), path, file, content, io.BytesIO(content), Image.open(path), RGB]
        sources += [
            jnp.asarray(RGB),
            torch.from_numpy(RGB),
            memoryview(content),
            bytearray(content),
        ]
        for source in sources:
            np.testing.assert_array_equal(read_image(source), RGB)
    with pytest.raises(ValueError, match=r"^the image: not an image"):
        read_image(b"rubbish")


@pytest.fixture
def without_type_checks() -> Iterator[None]:
    """Switch jaxtyping's checks off: a wrong type is passed on purpose."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.parametrize(
    "source", [None, 3, RGB.tolist(), [RGB], {"image": 1}, fake_models, np.array(["a"])]
)
@pytest.mark.usefixtures("without_type_checks")
def test_anything_else_is_refused_by_name(source: object) -> None:
    with pytest.raises(ValueError, match=r"^image must be "):
        read_image(source)  # pyright: ignore[reportArgumentType]
