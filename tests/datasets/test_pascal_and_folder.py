"""The published data sets' readers on tiny trees in mmsegmentation's layouts, and any folder of images and label PNGs."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import trees
from PIL import Image

from rimjax import datasets
from rimjax.datasets import coco, pascal
from rimjax.datasets.dataset import read_labels, read_lines

VOC = "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep sofa train tvmonitor"
"""As the devkit numbers them."""

CONTEXT_AT = {
    1: "aeroplane",
    2: "bag",
    6: "bicycle",
    37: "person",
    40: "pottedplant",
    47: "sky",
    55: "tvmonitor",
    58: "window",
    59: "wood",
}
"""Some of the labels that mmsegmentation's converter writes: it sorts the 459-class ids, which go by the alphabet. 2008_000002, a screen
at a window, holds 0, 55 and 58."""


def test_class_lists_are_the_published_ones() -> None:
    assert tuple(VOC.split()) == pascal.VOC
    assert len(pascal.CONTEXT) == 59 and list(pascal.CONTEXT) == sorted(pascal.CONTEXT)
    assert {label: pascal.CONTEXT[label - 1] for label in CONTEXT_AT} == CONTEXT_AT
    assert set(pascal.VOC) - set(pascal.CONTEXT) == {"diningtable"}, "which Context calls table"
    assert len(coco.THINGS) == len(set(coco.THINGS)) == len(coco.CATEGORIES) == 80
    assert {
        one: coco.THINGS[coco.CATEGORIES.index(one)] for one in trees.COCO_CATEGORIES
    } == trees.COCO_CATEGORIES


@pytest.mark.parametrize(
    ("name", "classes", "published", "aliases"),
    [
        (
            "voc",
            21,
            1449,
            {
                "diningtable": "dining table",
                "pottedplant": "potted plant",
                "tvmonitor": "tv monitor",
            },
        ),
        ("context", 60, 5105, {"pottedplant": "potted plant", "tvmonitor": "tv monitor"}),
        ("context59", 59, 5105, {"pottedplant": "potted plant", "tvmonitor": "tv monitor"}),
        ("coco-object", 81, 5000, {}),
    ],
)
def test_sizes_are_the_published_ones_and_prompts_are_words(
    tmp_path: Path, name: str, classes: int, published: int, aliases: dict[str, str]
) -> None:
    data = trees.LAYOUTS[name](tmp_path)
    if name == "coco-object":
        for path in (tmp_path / "coco_stuff164k/annotations/val2017").glob("0*[0-9].png"):
            shutil.copy(path, path.with_name(f"{path.stem}_instanceTrainIds.png"))
    dataset = datasets.load(name, data)
    assert (
        len(dataset.classes) + dataset.background == classes and dataset.published_size == published
    )
    assert {
        a: b for a, b in zip(dataset.classes, dataset.prompts, strict=True) if a != b
    } == aliases
    assert len(set(dataset.prompts)) == len(dataset.classes)


def test_voc_is_read_in_the_splits_order(tmp_path: Path) -> None:
    dataset = datasets.load("voc", trees.voc(tmp_path))
    assert [item.id for item in dataset.items] == list(trees.VOC_IDS) and len(dataset.items) == 3
    image, labels = dataset.items[0].read()
    assert (
        image.shape == (56, 80, 3)
        and labels.shape == (56, 80)
        and image.dtype == labels.dtype == np.uint8
    )
    assert sorted(set(labels.ravel().tolist())) == [0, 15, 20, 255]
    assert labels[10, 10] == 20 and labels[10, 50] == 15 and labels[7, 10] == 255
    np.testing.assert_allclose(
        image[10, 10], trees.pick_colour("tv monitor"), atol=2
    )  # JPEG rounds to YCbCr and back


@pytest.mark.parametrize("place", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_data_may_name_the_devkit_or_the_year_too(tmp_path: Path, place: str) -> None:
    assert len(datasets.load("voc", trees.voc(tmp_path) / place).items) == 3


def test_context_has_a_background_and_context59_ignores_it(tmp_path: Path) -> None:
    data = trees.context(tmp_path)
    with_it, without = (datasets.load(name, data) for name in ("context", "context59"))
    (image, labels), (same, other) = with_it.items[0].read(), without.items[0].read()
    np.testing.assert_array_equal(image, same)
    assert sorted(set(labels.ravel().tolist())) == [0, 55, 58]
    assert (
        with_it.classes[54] == without.classes[54] == "tvmonitor"
        and with_it.background
        and not without.background
    )
    np.testing.assert_array_equal(other, np.where(labels == 0, 255, labels))


def test_palette_pngs_of_few_bits_hold_indices(tmp_path: Path) -> None:
    truth = np.random.default_rng(0).integers(0, 2, (5, 9)).astype(np.uint8)
    for bits in (1, 2, 4, 8):
        drawn = Image.fromarray(truth)
        drawn.putpalette(trees.PALETTE[: 3 * 2**bits])
        drawn.save(tmp_path / "labels.png", bits=bits)
        assert (tmp_path / "labels.png").read_bytes()[24:26] == bytes([bits, 3])
        np.testing.assert_array_equal(read_labels(tmp_path / "labels.png"), truth)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("RGB", "got 8-bit RGB"),
        ("I;16", "got 16-bit grey"),
        ("1", "got 1-bit grey"),
        ("LA", "grey with alpha"),
    ],
)
def test_labels_that_hold_no_indices_are_refused(tmp_path: Path, mode: str, message: str) -> None:
    Image.new(mode, (4, 3)).save(tmp_path / "labels.png")
    with pytest.raises(ValueError, match=f"labels.png: .*{message}"):
        read_labels(tmp_path / "labels.png")


def test_a_label_file_damaged_anywhere_is_an_error_of_its_own(tmp_path: Path) -> None:
    trees.voc(tmp_path)
    path = next(tmp_path.rglob("SegmentationClass/*.png"))
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        broken = bytearray(whole)
        for at in rng.integers(8, len(whole), 4):
            broken[at] = rng.integers(256)
        path.write_bytes(broken[: rng.integers(len(whole) // 2, len(whole) + 1)])
        try:
            read_labels(path)
        except (ValueError, OSError):  # what `rimjax evaluate` counts as a bad image
            refused += 1
    assert refused > 200
    header = struct.pack(">4sIIBBBBB", b"IHDR", 60_000, 60_000, 8, 0, 0, 0, 0)  # a bomb to Pillow
    path.write_bytes(
        whole[:8]
        + struct.pack(">I", 13)
        + header
        + struct.pack(">I", zlib.crc32(header))
        + whole[33:]
    )
    with pytest.raises(ValueError, match=r"labels .*bomb"):
        read_labels(path)


def folder(root: Path, names: str = "plum: purple plum\nleaf\n") -> Path:
    """Three images of mixed formats."""
    for suffix in ("a.jpg", "b.jpeg", "c.PNG"):
        image, truth = trees.patches((40, 40), ["leaf"], [2])
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / "labels").mkdir(exist_ok=True)
        Image.fromarray(image).save(root / "images" / suffix)
        Image.fromarray(truth).save(root / f"labels/{suffix[0]}.png")
    (root / "images/readme.txt").touch()
    (root / "names.txt").write_text(names)
    return root


@pytest.mark.parametrize(
    "names",
    [
        "plum: purple plum\nleaf\n",
        "Background\nplum : purple plum\n\nleaf",
        "\nplum:purple plum\r\nleaf\r\n",
    ],
)
def test_a_folder_of_ones_own(tmp_path: Path, names: str) -> None:
    dataset = datasets.load(str(folder(tmp_path / "mine", names)))
    assert (dataset.name, dataset.classes, dataset.prompts) == (
        "mine",
        ("plum", "leaf"),
        ("purple plum", "leaf"),
    )
    assert [item.id for item in dataset.items] == ["a", "b", "c"] and dataset.published_size is None
    image, labels = dataset.items[2].read()
    assert labels[10, 10] == 2 and image[10, 10].tolist() == trees.pick_colour("leaf").tolist()


def test_a_folder_that_is_none_says_what_it_lacks(tmp_path: Path) -> None:
    root = folder(tmp_path / "mine")
    shutil.copy(root / "images/a.jpg", root / "images/a.png")
    with pytest.raises(ValueError, match="mine/images: the split holds a more than once"):
        datasets.load(str(root))
    (root / "images/a.png").unlink()
    (root / "labels/b.png").unlink()
    (root / "labels/c.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels/b.png: no such file, and 1 more"):
        datasets.load(str(root))
    for names in (
        "plum\nplum\n",
        "background\n",
        "".join(f"class {index}\n" for index in range(255)),
    ):
        (root / "names.txt").write_text(names)
        with pytest.raises(
            ValueError, match=r"names.txt: must hold 1 to 254 different class names"
        ):
            datasets.load(str(root))
    shutil.rmtree(root / "images")
    (root / "names.txt").write_text("plum\n")
    with pytest.raises(
        FileNotFoundError,
        match=r"mine/images: no such folder; expected a folder with images/NAME.jpg",
    ):
        datasets.load(str(root))
    (root / "images").mkdir()
    with pytest.raises(ValueError, match="mine/images: the split is empty"):
        datasets.load(str(root))
    (root / "names.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"names.txt: no such file; expected a folder with images/NAME.jpg"
    ):
        datasets.load(str(root))


def test_names_in_any_utf_8_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffsneaker\n".encode())
    assert read_lines(path, "") == ["sneaker"]
    path.write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"names\.txt: isn't UTF-8"):
        read_lines(path, "")
