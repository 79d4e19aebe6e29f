"""References of one's own on the real mini models: every form leads to the object that it means."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
from fakes import fake_models
from own_pictures import encode, find_box, find_scene, list_objects, save_photograph, write_coco
from PIL import Image

import rimjax
from rimjax.models.protocols import Models
from rimjax.references import store
from rimjax.references.build import build_references
from rimjax.references.contents import ClassReferences, Manifest
from rimjax.references.cut import PHOTO_SIZE, choose_window
from rimjax.references.reference import ReferenceWarning
from rimjax.show import draw

pytestmark = pytest.mark.filterwarnings("ignore::rimjax.references.reference.ReferenceWarning")


@pytest.fixture(scope="module")
def models() -> Models:
    return rimjax.load_preset("mini")


def build(models: Models, cache: Path, references: dict[str, Any], **options: Any) -> Manifest:
    return build_references([], models, cache_dir=cache, references=references, **options)[0]


def read(manifest: Manifest) -> dict[str, ClassReferences]:
    groups = store.read_all_references(manifest, pictures=True)
    return {group.name: group for group in groups}


def keep(mask: np.ndarray) -> np.ndarray:
    """Return a mask as a bank keeps it."""
    x0, y0, x1, y1 = choose_window(mask)
    kept = Image.fromarray(np.ascontiguousarray(mask[y0:y1, x0:x1]))
    return np.asarray(kept.resize((PHOTO_SIZE, PHOTO_SIZE), Image.Resampling.NEAREST))


def measure_iou(mask: np.ndarray, other: np.ndarray) -> float:
    return (mask & other).sum() / (mask | other).sum()


def test_a_mask_beside_a_photograph_given_or_as_an_array_is_the_object(
    models: Models, tmp_path: Path
) -> None:
    scene = find_scene(2)
    (_, first), (_, second) = list_objects(scene)
    photo = save_photograph(tmp_path / "mugs/mug1.jpg", scene)
    palette = Image.fromarray(second.astype(np.uint8) * 3, "P")
    palette.putpalette([0, 0, 0] * 256)  # index 3 counts, though it's black
    palette.save(tmp_path / "mugs/mug1.png")
    Image.fromarray(second).convert("RGB").save(tmp_path / "other.png")
    pixels = np.asarray(Image.open(photo))
    given = {
        "folder": [tmp_path / "mugs"],
        "pattern": [f"{tmp_path}/mugs/mug*"],
        "path": [str(photo)],
        "reference": [rimjax.Reference(photo, mask=tmp_path / "other.png")],
        "array": [rimjax.Reference(pixels, mask=second)],
        "numbers": [rimjax.Reference(pixels, mask=second.astype(np.int64) * 7)],
    }
    for name, listed in given.items():
        group = read(build(models, tmp_path / name, {"mug": listed}))["mug"]
        assert group.masks is not None and len(group.masks) == 1
        np.testing.assert_array_equal(group.masks[0], keep(second))
    by_point = [rimjax.Reference(photo, point=tuple(np.argwhere(first).mean(0)[::-1].tolist()))]
    group = read(build(models, tmp_path / "point", {"mug": by_point}))["mug"]
    assert group.masks is not None and measure_iou(group.masks[0], keep(first)) > 0.7


def test_a_palette_mask_whose_index_0_is_no_black_is_read_by_colour_or_refused(
    tmp_path: Path,
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    mask = np.zeros((40, 50), bool)
    mask[8:30, 5:35] = True
    quantised = Image.fromarray(mask).convert("RGB").quantize(2)
    for first in ((255, 255, 255), (0, 0, 0)):
        indices = (mask != bool(first[0])).astype(np.uint8)
        palette = Image.fromarray(indices, "P")
        palette.putpalette([*first, *(255 - value for value in first)])
        for name, saved in (("palette", palette), ("quantised", quantised)):
            saved.save(tmp_path / f"{name}.png")
            listed = {"x": [rimjax.Reference(picture, mask=tmp_path / f"{name}.png")]}
            group = read(build(fake_models(), tmp_path / "cache", listed))["x"]
            assert group.masks is not None
            np.testing.assert_array_equal(group.masks[0], keep(mask))
    palette = Image.fromarray((~mask).astype(np.uint8), "P")
    for colour, shown in (((255, 255, 255), "white"), ((9, 8, 7), r"the colour \(9, 8, 7\)")):
        palette.putpalette([*colour, 200, 0, 0])
        palette.save(tmp_path / "unclear.png")
        listed = {"x": [rimjax.Reference(picture, mask=tmp_path / "unclear.png")]}
        message = rf"unclear.png: index 0 of its palette is {shown}, so .*; save it as grey"
        with pytest.raises(ValueError, match=message):
            build(fake_models(), tmp_path / "cache", listed)
    palette.save(tmp_path / "clear.png", transparency=0)
    listed = {"x": [rimjax.Reference(picture, mask=tmp_path / "clear.png")]}
    group = read(build(fake_models(), tmp_path / "cache", listed))["x"]
    assert group.masks is not None
    np.testing.assert_array_equal(group.masks[0], keep(~mask))


def test_folders_and_patterns_are_sorted_and_a_file_counts_once(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "c.webp", ".hidden.png", "notes.txt"):
        picture = np.full((20, 20, 3), 128, np.uint8)
        picture[5:15, 5:15] = [ord(name[0]), 40, 250]
        if not name.endswith("txt"):
            Image.fromarray(picture).save(tmp_path / name, lossless=True)
    Image.fromarray(np.eye(20, dtype=np.uint8)).save(tmp_path / "b.png")  # b.JPG's mask
    (tmp_path / "notes.txt").touch()
    listed = [tmp_path, tmp_path / "a.png", f"{tmp_path}/*.webp"]
    group = read(build(fake_models(), tmp_path / "cache", {"mug": listed}))["mug"]
    assert group.images is not None
    seen = [chr(int(image[256, 256, 0])) for image in group.images]
    assert seen[0] == "a" and seen[2] == "c" and len(seen) == 3, "b.JPG's values aren't exact"
    again = [tmp_path, rimjax.Reference(tmp_path / "a.png", point=(0, 0))]
    group = read(build(fake_models(), tmp_path / "cache", {"mug": again}))["mug"]
    assert len(group.points) == 3 and np.isfinite(group.points[:, 0]).any(1).tolist() == [
        *(False, True, True)  # b's mask, c's centre, a's point
    ]


def test_a_box_is_its_centre_cut_to_the_box_where_sam_knows_no_boxes(
    models: Models, tmp_path: Path
) -> None:
    scene = find_scene(2)
    mask = list_objects(scene)[0][1]
    box = find_box(mask)
    group = read(build(models, tmp_path, {"x": [rimjax.Reference(scene.image, box=box)]}))["x"]
    assert group.masks is not None and measure_iou(group.masks[0], keep(mask)) > 0.7
    half = (box[0], box[1], box[2], (box[1] + box[3]) // 2)
    cut = read(build(models, tmp_path, {"x": [rimjax.Reference(scene.image, box=half)]}))["x"]
    assert cut.masks is not None
    kept = Image.fromarray(cut.masks[0]).resize((128, 128), Image.Resampling.NEAREST)
    assert not np.asarray(kept)[half[3] + 1 :].any() or cut.masks[0].mean() < 0.99


@dataclass
class BoxMasker:
    """A masker of one's own that takes boxes, and notes its prompts."""

    prompts: list[tuple[np.ndarray, Any]]
    fingerprint: str = "box masker"
    takes_boxes: bool = True

    def mask(self, image: np.ndarray, points: np.ndarray, box: Any = None) -> np.ndarray:
        self.prompts.append((points, box))
        mask = np.zeros(image.shape[:2], bool)
        mask[4:20, 4:20] = True
        return mask


class PointMasker:
    """A masker of one's own as before boxes were known."""

    fingerprint = "point masker"

    def mask(self, image: np.ndarray, points: np.ndarray) -> np.ndarray:
        assert points.tolist() == [[10.0, 12.0]]
        return np.ones(image.shape[:2], bool)


def test_a_masker_of_ones_own_gets_a_box_only_if_it_takes_boxes(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    masker = BoxMasker([])
    models = replace(fake_models(), masker=masker)
    box = rimjax.Reference(picture, box=(2, 4, 18, 20))
    build(models, tmp_path / "a", {"x": [box]})
    ((points, given),) = masker.prompts
    assert points.shape == (0, 2) and given.tolist() == [2, 4, 18, 20]
    build(models, tmp_path / "a", {"y": [box]})
    assert len(masker.prompts) == 1, "the mask is kept"
    build(models, tmp_path / "a", {"x": [rimjax.Reference(picture, point=(2, 4))]})
    assert masker.prompts[-1][1] is None
    models = replace(fake_models(), masker=PointMasker())
    group = read(build(models, tmp_path / "b", {"x": [box]}))["x"]
    expected = np.zeros((24, 24), bool)
    expected[4:20, 2:18] = True
    assert group.masks is not None
    np.testing.assert_array_equal(group.masks[0], keep(expected))


def test_other_objects_in_a_picture_are_no_background(tmp_path: Path) -> None:
    """Whatever their class, and whatever says where they are."""
    models, cache = fake_models(), tmp_path / "cache"
    colours = {"mug": (250, 250, 40), "cup": (40, 40, 250), "pan": (40, 250, 40)}
    picture = np.full((64, 64, 3), 128, np.uint8)
    picture[::2, ::2] = 127  # a ground of two values, so that no mask covers it all
    places = [np.s_[4:28, 4:28], np.s_[36:60, 4:28], np.s_[4:28, 36:60]]
    for place, colour in zip(places, colours.values(), strict=True):
        picture[place] = colour
    Image.fromarray(picture).save(tmp_path / "shelf.png")
    path, mask = tmp_path / "shelf.png", np.zeros((64, 64), bool)
    mask[places[2]] = True
    listed = {
        "mug": [rimjax.Reference(path, point=(10, 10))],
        "cup": [rimjax.Reference(path, box=(2, 34, 30, 62))],
        "pan": [rimjax.Reference(str(path), mask=mask)],
    }
    ground = picture[::32, ::32].reshape(-1, 3)[:1] / 128.0 - 1 + [0, 0, 0.01]
    groups = read(build(models, cache, listed))
    for group in groups.values():
        np.testing.assert_allclose(group.background, ground, atol=0.08)
    alone = read(build(models, cache, {"mug": listed["mug"]}))["mug"]
    assert abs(alone.background - ground).max() > 0.1, "cup and pan are background to a mug alone"
    others = (*listed["cup"], *listed["pan"])
    told = {"mug": [replace(listed["mug"][0], others=others)]}
    manifest, every = build(models, cache, told), build(models, cache, listed)
    assert manifest.folders[0] == every.folders[0], "the same objects, the same references"


def test_a_coco_files_instances_are_references(models: Models, tmp_path: Path) -> None:
    scene = find_scene(3)
    (_, first), (_, second), (_, third) = list_objects(scene)
    x0, y0, x1, y1 = find_box(second)
    polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
    names = ["_background_", "mug", "tv/monitor", "unused", "void"]
    things = [
        {"category_id": 2, "segmentation": encode(first), "iscrowd": 0},
        {"category_id": 3, "segmentation": [polygon], "bbox": [x0, y0, x1 - x0, y1 - y0]},
        {"category_id": 2, "segmentation": [], "bbox": [0, 0, 60.5, 300]},
        {"category_id": 2, "segmentation": encode(third), "iscrowd": 1},
        {"category_id": 2, "segmentation": []},
        {"category_id": 2, "segmentation": encode(np.ones((128, 128), bool))},
        {"category_id": 1, "segmentation": encode(third)},
        {"category_id": 5, "segmentation": encode(third)},
    ]
    path = write_coco(tmp_path / "refs.json", scene, things, names)
    with pytest.warns(
        ReferenceWarning,
        match=r"refs.json: 3 annotations are left out as references: 1 fills the picture, 1 has no "
        "outline or box, 1 is a crowd",
    ):
        references = rimjax.read_coco_references(path)
    assert {name: len(listed) for name, listed in references.items()} == {
        **{"mug": 2, "tv/monitor": 1}
    }
    np.testing.assert_array_equal(np.asarray(references["mug"][0].mask), first)
    assert references["mug"][1].box == (0, 0, 60.5, 128), "a box is cut to its picture"
    outline = np.asarray(references["tv/monitor"][0].mask)
    assert outline[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1].all() and outline.mean() < 0.5
    assert len(references["mug"][0].others) == 2, "the crowd and what fills the picture"

    mugs = {"mug": rimjax.read_coco_references(path, ["Mug"])["Mug"][:1]}
    group = read(build(models, tmp_path / "cache", mugs))["mug"]
    assert group.masks is not None
    np.testing.assert_array_equal(group.masks[0], keep(first))


def test_a_categorys_references_dont_depend_on_the_categories_chosen(tmp_path: Path) -> None:
    scene = find_scene(3)
    things = [
        {"category_id": index, "segmentation": encode(mask)}
        for index, (_, mask) in enumerate(list_objects(scene), 1)
    ]
    path = write_coco(tmp_path / "refs.json", scene, things, ["a", "b", "c"])
    models, cache = fake_models(), tmp_path / "cache"
    every = build(models, cache, rimjax.read_coco_references(path))
    one = build(models, cache, rimjax.read_coco_references(path, ["b"]))
    assert one.folders == every.folders[1:2]


def test_a_small_object_is_cropped_out_of_a_large_photograph(
    models: Models, tmp_path: Path
) -> None:
    scene = find_scene(1)
    mask = list_objects(scene)[0][1]
    large, place = np.full((1200, 1600, 3), 90, np.uint8), np.zeros((1200, 1600), bool)
    large[700:828, 300:428], place[700:828, 300:428] = scene.image, mask
    listed = {
        "x": [rimjax.Reference(large, mask=place)],
        "y": [rimjax.Reference(scene.image, mask)],
    }
    groups = read(build(models, tmp_path, listed))
    assert groups["x"].masks is not None and groups["x"].masks[0].mean() > 0.2
    features = [groups[name].foreground[0] for name in "xy"]
    cosine = np.dot(*features) / np.prod([np.linalg.norm(each) for each in features])
    assert cosine > 0.9, "as the same object in a small photograph"


@pytest.mark.parametrize("value", [0, 255])
def test_a_mask_file_of_nothing_or_everything_is_named(tmp_path: Path, value: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "shoe.jpg")
    Image.fromarray(np.full((40, 50), value, np.uint8)).save(tmp_path / "shoe.png")
    with pytest.raises(ValueError, match=r"shoe\.png: no foreground of 'shoe'.*; save it with"):
        build(fake_models(), tmp_path / "cache", {"shoe": [tmp_path / "shoe.jpg"]})


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"mask": np.zeros((40, 50), bool)}, r"the image: no foreground of 'mug'; give its mask"),
        (
            {"mask": np.ones((40, 50), bool)},
            r"the image: no foreground of 'mug', whose mask covers",
        ),
        (
            {"mask": np.ones((50, 40), bool)},
            "mask must have the size of the image .*, 50x40, got 40",
        ),
        ({"mask": np.zeros((40, 50), float)}, "mask must be an array .* of booleans or integers"),
        ({"mask": "none.png"}, "none.png: no such mask file"),
        ({"point": (50, 3)}, r"points must lie in the 50x40 image the image, got \(50.0, 3.0\)"),
        ({"box": (-1, 0, 20, 20)}, "box must lie in the 50x40 image the image, got"),
        ({"box": (0, 0, 51, 20)}, "box must lie in the 50x40 image the image, got"),
    ],
)
def test_a_reference_without_an_object_is_refused(
    tmp_path: Path, reference: dict[str, Any], message: str
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    listed = {"mug": [rimjax.Reference(picture, **reference)]}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build(fake_models(), tmp_path, listed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": "a.png", "point": (1, 2)}, "mask must be given without point and box"),
        ({"point": (1,)}, r"point must be \(x, y\) in pixels, got"),
        ({"point": (1, float("nan"))}, r"point must be \(x, y\) in pixels, got"),
        ({"box": (5, 5, 5, 9)}, "box must be .* with x0 < x1 and y0 < y1"),
    ],
)
def test_a_malformed_reference_is_refused(arguments: dict[str, Any], message: str) -> None:
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(ValueError, match=f"^{message}"):
            rimjax.Reference("a.jpg", **arguments)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_tiny_and_flat_objects_are_named(models: Models, tmp_path: Path) -> None:
    scene, tiny = find_scene(1), np.zeros((128, 128), bool)
    tiny[60:63, 60:63] = True
    good = rimjax.Reference(scene.image, mask=list_objects(scene)[0][1])
    small = rimjax.Reference(save_photograph(tmp_path / "small.png", scene), mask=tiny)
    words = r"small.png: the object of 'x' covers 0.14 cells of the encoder's grid, fewer than 1"
    with pytest.warns(ReferenceWarning, match=f"{words}; it is left out"):
        group = read(build(models, tmp_path, {"x": [small, good]}))["x"]
    assert len(group.foreground) == 1 and group.images is not None and len(group.images) == 1
    with pytest.raises(ValueError, match=f"{words}; give a picture in which it is larger"):
        build(models, tmp_path, {"x": [small]})
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    picture[8:40, 8:40] = 7
    with pytest.warns(ReferenceWarning, match="the object of 'x' is of one colour"):
        build(models, tmp_path, {"x": [rimjax.Reference(picture, mask=(picture == 7).all(-1))]})


def test_points_go_on_working_and_are_of_single_photographs(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    picture[4:14, 4:14] = [250, 250, 40]
    save = tmp_path / "mugs/mug.png"
    save.parent.mkdir()
    Image.fromarray(picture).save(save)
    models = fake_models()
    by_points = build(models, tmp_path, {"mug": [save]}, points={"mug": [(5, 5)]})
    by_reference = build(models, tmp_path, {"mug": [rimjax.Reference(save, point=(5, 5))]})
    assert by_points.folders == by_reference.folders
    for listed, shown in (
        ([save.parent], "mugs"),
        ([rimjax.Reference(save)], "a Reference"),
    ):
        with pytest.raises(ValueError, match=f"points must be of photographs .* got .*{shown}"):
            build(models, tmp_path, {"mug": listed}, points={"mug": [(5, 5)]})
    with pytest.raises(ValueError, match="points must hold one point for each of the 1"):
        build(models, tmp_path, {"mug": [save]}, points={"mug": []})


def test_what_places_an_object_is_part_of_its_key(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    picture[4:14, 4:14] = [250, 250, 40]
    square, models = (picture == [250, 250, 40]).all(-1), fake_models()
    given: tuple[dict[str, Any], ...] = (
        *({"point": (5, 5)}, {"point": (6, 5)}, {"box": (3, 3, 12, 12)}, {"box": (3, 3, 12, 13)}),
        *({"mask": square}, {"mask": square & (np.arange(24) > 7)}),
        *({"mask": square, "others": (rimjax.Reference(picture, mask=~square),)},),
    )
    folders = [
        build(models, tmp_path, {"x": [rimjax.Reference(picture, **each)]}).folders
        for each in given
    ]
    assert len(set(folders)) == len(given)
    with pytest.MonkeyPatch.context() as patched:  # nothing is cut out or encoded again
        patched.setattr(type(models.encoder), "encode_batch", None)
        assert (
            build(models, tmp_path, {"x": [rimjax.Reference(picture, **given[0])]}).folders
            == (folders[0])
        )


def test_a_contact_sheet_of_photographs_shows_box_and_mask_without_attention(
    tmp_path: Path,
) -> None:
    picture = np.random.default_rng(0).integers(0, 100, (64, 64, 3), np.uint8)
    picture[8:56, 8:56] = 90
    listed = [
        rimjax.Reference(picture, box=(8, 8, 56, 56)),
        rimjax.Reference(picture, point=(32, 32)),
    ]
    group = read(build(fake_models(), tmp_path, {"x": listed}))["x"]
    sheet = np.asarray(draw.contact_sheet(group))
    assert sheet.shape[0] == 18 + 3 * (128 + draw.GAP), "a title and three rows"
    rows = sheet[22 + 132 : 22 + 132 + 128]
    red = (rows == (255, 0, 0)).all(-1)
    edges = red[:, 16:112]  # the box of the first, without the point of the second
    assert edges[16].all() and edges[112].all() and red[16:112, [16, 112]].all()
    assert not red[20:108, 20:108].any() and red[64, 132 + 64]
    assert draw.describe_references(group) == "x: 2 photographs"


def test_a_class_of_references_among_the_names_sets_its_place(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    mug = {"mug": [rimjax.Reference(picture, mask=np.tri(24, dtype=bool))]}
    models = fake_models()
    bank = rimjax.build_bank(["mug", "apple"], models, cache_dir=tmp_path, references=mug)
    assert bank.names == ("background", "mug", "apple")
    with pytest.raises(ValueError, match="names must have no prompts for 'mug'"):
        rimjax.build_bank({"mug": "cup"}, models, cache_dir=tmp_path, references=mug)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": [{"category_id": 9}]}, "not a COCO annotation file"),
        (
            {"annotations": [{"category_id": 9, "image_id": 7}]},
            "must be of a category and an image",
        ),
        ({"categories": 3}, "not a COCO annotation file"),
        *(
            (
                {"categories": [{"id": 1, "name": name}, {"id": 2, "name": "mug"}]},
                f"names of categories must differ .* got '{name}', 'mug'",
            )
            for name in ("Mug", "mug")
        ),
        (
            {"images": [{"id": 7, "file_name": n, "height": 128, "width": 128} for n in "ab"]},
            "ids of images must differ, got 7 twice",
        ),
        ({"images": [{"id": 7, "file_name": "a", "height": -1, "width": 2}]}, "must be positive"),
        (
            {"images": [{"id": 7, "file_name": "a.png", "height": 128, "width": 128}]},
            "no such image",
        ),
        ({"annotations": []}, "holds no instance that can be used"),
        *(
            (
                {"annotations": [{"category_id": 1, "image_id": 7, "segmentation": runs}]},
                "malformed",
            )
            for runs in (
                *({"counts": "z9~", "size": [128, 128]}, {"counts": "", "size": [128, 128]}),
                *({"counts": [128**2], "size": [9, 9]}, {"counts": [5], "size": [128, 128]}),
                *(
                    {"counts": [-1, 128**2 + 1], "size": [128, 128]},
                    {"size": [128, 128]},
                    [["a"] * 6],
                ),
            )
        ),
    ],
)
def test_a_damaged_coco_file_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    scene = find_scene(1)
    things = [{"category_id": 1, "segmentation": encode(list_objects(scene)[0][1])}]
    path = write_coco(tmp_path / "refs.json", scene, things, ["mug", "cup"])
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises((ValueError, FileNotFoundError), match=f"refs.json: .*({message})"):
        rimjax.read_coco_references(path)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_a_coco_file_of_a_picture_of_another_size_is_refused(tmp_path: Path, kind: str) -> None:
    scene = find_scene(1)
    outline = encode(list_objects(scene)[0][1]) if kind == "mask" else []
    things = [{"category_id": 1, "segmentation": outline, "bbox": [1, 2, 60, 50]}]
    path = write_coco(tmp_path / "refs.json", scene, things, ["mug"])
    photo, words = tmp_path / "images/scene.png", "refs.json: width and height must be the size of"
    Image.fromarray(scene.image).resize((256, 200)).save(photo)
    with pytest.raises(ValueError, match=rf"{words} .*scene.png .*, 256x200, got 128x128; annot"):
        rimjax.read_coco_references(path)
    exif = Image.Exif()
    exif[274] = 6  # shown upright after a quarter turn
    Image.fromarray(scene.image).resize((128, 96)).save(photo, exif=exif)
    with pytest.raises(ValueError, match=rf"{words} .*scene.png .*, 96x128, got 128x128; annot"):
        rimjax.read_coco_references(path)
    entry = json.loads(path.read_text()) | {
        "images": [{"id": 7, "file_name": "images/scene.png", "height": 128, "width": 96}]
    }
    if kind == "box":
        path.write_text(json.dumps(entry))
        assert rimjax.read_coco_references(path)["mug"][0].box == (1, 2, 61, 52)


def test_a_category_that_a_coco_file_lacks_is_refused(tmp_path: Path) -> None:
    scene = find_scene(1)
    things = [{"category_id": 1, "segmentation": encode(list_objects(scene)[0][1])}]
    path = write_coco(tmp_path / "refs.json", scene, things, ["mug", "cup"])
    with pytest.raises(ValueError, match="got none for pan; its categories are mug, cup"):
        rimjax.read_coco_references(path, ["pan", "mug"])
    with pytest.raises(ValueError, match="got none that can be used for cup"):
        rimjax.read_coco_references(path, ["cup", "mug"])
    with pytest.raises(FileNotFoundError, match=r"none.json: no such COCO"):
        rimjax.read_coco_references(tmp_path / "none.json")
    shutil.move(tmp_path / "images/scene.png", tmp_path / "elsewhere.png")
    with pytest.raises(FileNotFoundError, match=r"refs.json: names .*scene.png: no such image"):
        rimjax.read_coco_references(path)


def test_a_table_of_prompts(tmp_path: Path) -> None:
    scene = save_photograph(tmp_path / "pictures/a b.png", find_scene(1))
    table = tmp_path / "refs.csv"
    table.write_text(
        'image, class ,y,x\n"pictures/a b.png", mug ,20,10.5\n\npictures/a b.png,cup,1,2\n'
    )
    references = rimjax.read_prompt_table(table)
    assert list(references) == ["mug", "cup"] and references["mug"][0].point == (10.5, 20)
    assert references["mug"][0].image == scene
    table.write_text("class,image,x0,y0,x1,y1\nmug,pictures/a b.png,1,2,3,4\n")
    assert rimjax.read_prompt_table(table)["mug"][0].box == (1, 2, 3, 4)
    table.write_text(
        '# by "hand\nclass,who,image,x,y\n#cup,me,none.png,1,2\nmug,me,pictures/a b.png,1,2\n'
    )
    assert rimjax.read_prompt_table(table)["mug"][0].point == (1, 2)
    for text, message in (
        ("class,image,x,y,x0,y0,x1,y1\n", "its first line must be class,image,x,y or"),
        ("# a\nclass,image,x,y\nmug,pictures/a b.png,nan,2\n", r"line 3: .* got \(nan, 2.0\)"),
        ("class,image,x,y\nmug,pictures/a b.png,128,2\n", "line 2: points must lie in the 128x128"),
        (
            "class,image,x0,y0,x1,y1\nmug,pictures/a b.png,9,2,30,129\n",
            "line 2: box must lie in the 128x128",
        ),
        ("class,image\nmug,a.png\n", "its first line must be class,image,x,y or"),
        ("", "its first line must be class,image,x,y or"),
        ("class,image,x,y\n", "holds no row under its first line"),
        ("class,image,x,y\nmug,pictures/a b.png,1\n", "line 2: must have 4 columns, got 3"),
        ("class,image,x,y\n,pictures/a b.png,1,2\n", "line 2: class and image must not be blank"),
        ("class,image,x,y\nmug,none.png,1,2\n", "line 2: .*none.png: no such image file"),
        ("class,image,x,y\nmug,pictures/a b.png,1,z\n", "line 2: could not convert"),
        ("class,image,x0,y0,x1,y1\nmug,pictures/a b.png,9,2,3,4\n", "line 2: box must be"),
    ):
        table.write_text(text)
        with pytest.raises((ValueError, FileNotFoundError), match=f"refs.csv.*{message}"):
            rimjax.read_prompt_table(table)
