"""Readers of PASCAL's data sets, of any folder of images and label PNGs, and of label PNGs."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import trees
from fakes import pick_colour
from PIL import Image

from rimjax import datasets
from rimjax.datasets import coco, pascal
from rimjax.datasets.dataset import Item, read_labels, read_lines

VOC_CLASSES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
)
"""As the devkit numbers them."""

CONTEXT_CLASSES = {
    **{1: "aeroplane", 2: "bag", 6: "bicycle", 37: "person", 40: "pottedplant", 47: "sky"},
    **{55: "tvmonitor", 58: "window", 59: "wood"},
}
"""Some of the labels that mmsegmentation's converter writes: it sorts the 459-class ids, which are
in alphabetical order. 2008_000002, a screen at a window, holds 0, 55 and 58."""

ALIASES = {"pottedplant": "potted plant", "tvmonitor": "tv monitor"}


def list_values(labels: np.ndarray) -> list[int]:
    return sorted(set(labels.ravel().tolist()))


def test_class_lists_are_the_published_lists() -> None:
    assert tuple(VOC_CLASSES.split()) == pascal.VOC
    assert len(pascal.CONTEXT) == 59 and list(pascal.CONTEXT) == sorted(pascal.CONTEXT)
    assert {label: pascal.CONTEXT[label - 1] for label in CONTEXT_CLASSES} == CONTEXT_CLASSES
    assert set(pascal.VOC) - set(pascal.CONTEXT) == {"diningtable"}, "which Context calls table"
    assert len(coco.THINGS) == len(set(coco.THINGS)) == len(coco.CATEGORIES) == 80
    names = {
        category: coco.THINGS[coco.CATEGORIES.index(category)] for category in trees.COCO_CATEGORIES
    }
    assert names == trees.COCO_CATEGORIES


@pytest.mark.parametrize(
    ("name", "num_classes", "published_size", "aliases"),
    [
        ("voc", 21, 1449, {"diningtable": "dining table", **ALIASES}),
        ("context", 60, 5105, ALIASES),
        ("context59", 59, 5105, ALIASES),
        ("coco-object", 81, 5000, {}),
    ],
)
def test_sizes_are_the_published_sizes_and_prompts_are_words(
    tmp_path: Path, name: str, num_classes: int, published_size: int, aliases: dict[str, str]
) -> None:
    data = trees.WRITERS[name](tmp_path)
    if name == "coco-object":
        for path in trees.list_pixel_maps(data):
            shutil.copy(path, path.with_name(f"{path.stem}{coco.SUFFIX}"))
    dataset = datasets.load(name, data)
    assert len(dataset.classes) + dataset.background == num_classes
    assert dataset.published_size == published_size
    prompts = dict(zip(dataset.classes, dataset.prompts, strict=True))
    assert {name: words for name, words in prompts.items() if name != words} == aliases
    assert len(set(dataset.prompts)) == len(dataset.classes)


def test_voc_is_read_in_the_splits_order(tmp_path: Path) -> None:
    dataset = datasets.load("voc", trees.write_voc(tmp_path))
    assert tuple(item.id for item in dataset.items) == trees.VOC_IDS and len(dataset.items) == 3
    image, labels = dataset.items[0].read()
    assert image.shape == (56, 80, 3) and labels.shape == (56, 80)
    assert image.dtype == labels.dtype == np.uint8
    assert list_values(labels) == [0, 15, 20, 255]
    assert labels[10, 10] == 20 and labels[10, 50] == 15 and labels[7, 10] == 255
    # JPEG rounds to YCbCr and back.
    np.testing.assert_allclose(image[10, 10], pick_colour("tv monitor"), atol=2)


@pytest.mark.parametrize("place", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_data_may_also_be_the_devkit_or_the_years_folder(tmp_path: Path, place: str) -> None:
    assert len(datasets.load("voc", trees.write_voc(tmp_path) / place).items) == 3


def test_context_has_a_background_and_context59_ignores_it(tmp_path: Path) -> None:
    data = trees.write_context(tmp_path)
    context, context59 = (datasets.load(name, data) for name in ("context", "context59"))
    assert context.classes[54] == context59.classes[54] == "tvmonitor"
    assert context.background and not context59.background
    image, labels = context.items[0].read()
    same_image, labels59 = context59.items[0].read()
    np.testing.assert_array_equal(image, same_image)
    assert list_values(labels) == [0, 55, 58]
    np.testing.assert_array_equal(labels59, np.where(labels == 0, 255, labels))


def test_shallow_palette_pngs_hold_indices(tmp_path: Path) -> None:
    truth = np.random.default_rng(0).integers(0, 2, (5, 9)).astype(np.uint8)
    path = tmp_path / "labels.png"
    for bits in (1, 2, 4, 8):
        picture = Image.fromarray(truth)
        picture.putpalette(trees.PALETTE[: 3 * 2**bits])
        picture.save(path, bits=bits)
        assert path.read_bytes()[24:26] == bytes([bits, 3])
        np.testing.assert_array_equal(read_labels(path), truth)


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("RGB", "got 8-bit RGB"),
        ("I;16", "got 16-bit grey"),
        ("1", "got 1-bit grey"),
        ("LA", "grey with alpha"),
    ],
)
def test_label_pngs_without_indices_are_refused(tmp_path: Path, mode: str, message: str) -> None:
    Image.new(mode, (4, 3)).save(tmp_path / "labels.png")
    with pytest.raises(ValueError, match=f"labels.png: .*{message}") as caught:
        read_labels(tmp_path / "labels.png")
    assert "\n" not in str(caught.value)


def test_a_label_file_damaged_anywhere_is_named_in_one_line(tmp_path: Path) -> None:
    trees.write_voc(tmp_path)
    path = next(tmp_path.rglob("SegmentationClass/*.png"))
    whole, rng, messages = path.read_bytes(), np.random.default_rng(0), []
    for _ in range(300):
        broken = bytearray(whole)
        for position in rng.integers(8, len(whole), 4):
            broken[position] = rng.integers(256)
        path.write_bytes(broken[: rng.integers(len(whole) // 2, len(whole) + 1)])
        try:
            read_labels(path)
        except (ValueError, OSError) as error:  # `rimjax evaluate` counts these as bad images
            messages.append(str(error))
    assert len(messages) > 200
    for message in messages:
        assert message.startswith(f"{path}: ") and "\n" not in message


def test_a_label_file_too_large_to_decode_is_named(tmp_path: Path) -> None:
    trees.write_voc(tmp_path)
    path = next(tmp_path.rglob("SegmentationClass/*.png"))
    whole = path.read_bytes()
    header = struct.pack(">4sIIBBBBB", b"IHDR", 60_000, 60_000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    path.write_bytes(whole[:8] + chunk + whole[33:])
    with pytest.raises(ValueError, match=r"labels .*bomb") as caught:
        read_labels(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_labels_of_another_size_are_one_line() -> None:
    item = Item("a", lambda: np.zeros((4, 5, 3), np.uint8), lambda: np.zeros((4, 6), np.uint8))
    with pytest.raises(ValueError, match="labels must have the image's size 5x4, got 6x4") as error:
        item.read()
    assert "\n" not in str(error.value)


NAMES = "plum: purple plum\nleaf\n"


def write_folder(root: Path, names: str = NAMES) -> Path:
    """Write three images of different suffixes, their labels, and names.txt."""
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    image, truth = trees.make_patches((40, 40), {"leaf": 2})
    for name in ("a.jpg", "b.jpeg", "c.PNG"):
        Image.fromarray(image).save(root / "images" / name)
        Image.fromarray(truth).save(root / f"labels/{name[0]}.png")
    (root / "images/readme.txt").touch()
    (root / "names.txt").write_text(names)
    return root


@pytest.mark.parametrize(
    "names",
    [
        NAMES,
        "Background\nplum : purple plum\nleaf\n\n \n",
        "plum:purple plum\r\nleaf\r\n\u200b\r\n",
        "\u200bbackground\u200d\nplum:purple\x0cplum\nleaf\u2028",
        "_background_\nplum: purple  plum\nleaf",
        "__background__\nplum: purple\u00a0plum\nleaf\ufeff",
        "BG\nplum: purple plum\nleaf",
    ],
)
def test_a_folder_is_a_data_set(tmp_path: Path, names: str) -> None:
    dataset = datasets.load(str(write_folder(tmp_path / "mine", names)))
    assert dataset.name == "mine" and dataset.published_size is None
    assert dataset.classes == ("plum", "leaf") and dataset.prompts == ("purple plum", "leaf")
    assert [item.id for item in dataset.items] == ["a", "b", "c"]
    image, labels = dataset.items[2].read()
    assert labels[10, 10] == 2 and image[10, 10].tolist() == pick_colour("leaf").tolist()


def test_missing_and_repeated_images_are_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine")
    shutil.copy(root / "images/a.jpg", root / "images/a.png")
    with pytest.raises(ValueError, match="mine/images: the split holds a more than once"):
        datasets.load(str(root))
    (root / "images/a.png").unlink()
    (root / "labels/b.png").unlink()
    (root / "labels/c.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels/b.png: no such file, and 1 more"):
        datasets.load(str(root))


@pytest.mark.parametrize(
    "names",
    [
        "plum\nplum\n",
        "plum\nPlum\n",
        "plum: fruit\npear: fruit\n",
        "background\n",
        "".join(f"class {index}\n" for index in range(255)),
    ],
    ids=["repeated", "repeated but for case", "same prompt", "none", "too many"],
)
def test_bad_names_are_refused(tmp_path: Path, names: str) -> None:
    root = write_folder(tmp_path / "mine", names)
    with pytest.raises(ValueError, match=r"names.txt: must hold 1 to 254 different class names"):
        datasets.load(str(root))


HEADINGS = [
    *('"background"', "'_background_'", "background,", "background.", "*background*"),
    *("{background}", "0 background", "0\tbackground", "background;0;0", "bg (0)"),
    *("id,name", "Class names", "unlabeled area", "no label", "none"),
]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("__ignore__\n_background_\nplum\nleaf\n", "must hold no '__ignore__'"),
        ("_background_\nplum\nvoid\n", "must hold no 'void'"),
        ("background: grey wall\nplum\nleaf\n", "alone and without words"),
        ("_background_: grey wall\nplum\nleaf\n", "alone and without words"),
        ("plum\nwall: background\n", "at most as its first line"),
        ("plum\nleaf\n_background_\n", "at most as its first line"),
        ("background\n_background_\nplum\n", "at most as its first line"),
        *(
            (f"{line}\nplum\nleaf\n", "must begin with 'background' or a class")
            for line in HEADINGS
        ),
        ("background\n# plants\nplum\nleaf\n", "must hold no comment, got '# plants' on line 2"),
        ("# background\nplum\nleaf\n", "must hold no comment, got '# background' on line 1"),
        ("background\nplum\n\nleaf\n", "must hold no blank line before its last class, .* line 3"),
        ("\nplum\nleaf\n", "must hold no blank line before its last class, got one on line 1"),
        ("\u200b\nplum\n", "must hold no blank line before its last class, got one on line 1"),
    ],
)
def test_names_that_would_shift_the_classes_are_refused(
    tmp_path: Path, names: str, message: str
) -> None:
    root = write_folder(tmp_path / "mine", names)
    with pytest.raises(ValueError, match=rf"names.txt: .*{message}"):
        datasets.load(str(root))


@pytest.mark.parametrize("name", ["name tag", "0", "no entry sign", "class 0", "plum #2"])
def test_a_first_class_that_only_resembles_a_heading_is_kept(tmp_path: Path, name: str) -> None:
    root = write_folder(tmp_path / "mine", f"{name}\nleaf: leaf on a background\nbackground light")
    assert datasets.load(str(root)).classes == (name, "leaf", "background light")


def test_a_splits_ids_may_have_blank_lines_between_them(tmp_path: Path) -> None:
    trees.write_voc(tmp_path)
    split = next(tmp_path.glob("**/ImageSets/Segmentation/val.txt"))
    before = [item.id for item in datasets.load("voc", tmp_path).items]
    split.write_text(split.read_text().replace("\n", "\n\n"))
    assert [item.id for item in datasets.load("voc", tmp_path).items] == before


def test_a_missing_part_of_the_layout_is_named(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "mine")
    shutil.rmtree(root / "images")
    layout = "expected a folder with images/NAME.jpg"
    with pytest.raises(FileNotFoundError, match=rf"mine/images: no such folder; {layout}"):
        datasets.load(str(root))
    (root / "images").mkdir()
    with pytest.raises(ValueError, match="mine/images: the split is empty"):
        datasets.load(str(root))
    (root / "names.txt").unlink()
    with pytest.raises(FileNotFoundError, match=rf"names.txt: no such file; {layout}"):
        datasets.load(str(root))


def test_names_must_be_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffsneaker\n".encode())
    assert read_lines(path, "") == ["sneaker"]
    path.write_bytes("caf\xe9\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"names\.txt: isn't UTF-8"):
        read_lines(path, "")


def test_labelmes_export_is_read_as_it_is(tmp_path: Path) -> None:
    write_folder(tmp_path)
    for ours, theirs in (("images", "JPEGImages"), ("labels", "SegmentationClass")):
        (tmp_path / ours).rename(tmp_path / theirs)
    first = datasets.load(str(tmp_path))
    (tmp_path / "names.txt").unlink()
    (tmp_path / "class_names.txt").write_text(f"__ignore__\n_background_\n{NAMES}")
    second = datasets.load(str(tmp_path))
    assert first.classes == second.classes == ("plum", "leaf")
    for one, other in zip(first.items, second.items, strict=True):
        for expected, found in zip(one.read(), other.read(), strict=True):
            np.testing.assert_array_equal(expected, found)


def test_a_data_set_can_be_restricted_to_some_classes_in_any_order(tmp_path: Path) -> None:
    write_folder(tmp_path)
    whole = datasets.load(str(tmp_path))
    swapped = whole.restrict(("leaf", "purple plum"))
    single = whole.restrict(("leaf",))
    assert (swapped.classes, single.classes) == (("leaf", "plum"), ("leaf",))
    assert single.prompts == ("leaf",) and swapped.prompts == ("leaf", "purple plum")
    for item, other, one in zip(whole.items, swapped.items, single.items, strict=True):
        labels = item.labels()
        table = np.array([0, 2, 1, *[255] * 253], np.uint8)
        np.testing.assert_array_equal(other.labels(), table[labels])
        table = np.array([0, 255, 1, *[255] * 253], np.uint8)
        np.testing.assert_array_equal(one.labels(), table[labels])
    with pytest.raises(ValueError, match=r"must hold classes of .* only, got .plum. too"):
        whole.restrict(("plum",))
