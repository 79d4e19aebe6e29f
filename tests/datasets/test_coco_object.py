"""COCO Object's label PNGs by `rimjax convert-coco`, from pixel maps and from instance JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trees
from cli import refused, run
from PIL import Image

from rimjax import datasets
from rimjax.datasets import coco

UNUSED_VALUES = [11, 25, 28, 29, 44, 65, 67, 68, 70, 82]
"""Values below 90 that COCO-Stuff doesn't use."""


def read_converted(data: Path) -> dict[str, np.ndarray]:
    """Return the label maps that `rimjax convert-coco` wrote, by image id."""
    paths = sorted((data / trees.COCO_BASE / "annotations/val2017").glob(f"*{coco.SUFFIX}"))
    return {path.name.removesuffix(coco.SUFFIX): np.asarray(Image.open(path)) for path in paths}


def test_pixel_maps_hold_category_ids_minus_1_and_the_rest_is_background() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    labels = coco.convert_stuff(values)
    assert labels.dtype == np.uint8 and labels.shape == (16, 16)
    label_of = labels.ravel().tolist()
    names = {
        category: coco.THINGS[label_of[category - 1] - 1] for category in trees.COCO_CATEGORIES
    }
    assert names == trees.COCO_CATEGORIES
    assert sorted(filter(None, label_of)) == list(range(1, 81)), "a single value per thing"
    assert not any(label_of[90:]), "stuff, and 255"
    assert [value for value in range(90) if not label_of[value]] == UNUSED_VALUES


@pytest.mark.parametrize("place", [".", "coco_stuff164k"])
def test_convert_coco_from_pixel_maps_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    trees.write_coco_stuff(tmp_path)
    evaluate = ("evaluate", "--dataset", "coco-object", "--data", tmp_path)
    assert "no such files; `rimjax convert-coco" in refused(capsys, *evaluate)
    convert = ("convert-coco", "--data", tmp_path / place)
    assert run(*convert, capsys=capsys).startswith("3 label maps in ")
    converted = read_converted(tmp_path)
    assert tuple(converted) == trees.COCO_IDS
    for image_id, patches in trees.COCO_OBJECT.items():
        np.testing.assert_array_equal(converted[image_id], trees.make_patches((40, 80), patches)[1])
    folder = tmp_path / trees.COCO_BASE / "annotations/val2017"
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "3 existed already" in run(*convert, capsys=capsys)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    dataset = datasets.load("coco-object", tmp_path)
    assert tuple(item.id for item in dataset.items) == trees.COCO_IDS and dataset.background
    np.testing.assert_array_equal(dataset.items[1].read()[1], converted["000000000285"])


def test_a_stopped_conversion_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.write_coco_stuff(tmp_path)
    path = trees.list_pixel_maps(tmp_path)[-1]
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    convert = ("convert-coco", "--data", tmp_path)
    assert f"{path.name}: unreadable or truncated labels" in refused(capsys, *convert)
    assert len(read_converted(tmp_path)) == 2
    path.write_bytes(whole)
    assert "2 existed already" in run(*convert, capsys=capsys)
    assert len(read_converted(tmp_path)) == 3


def make_box(left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    """Return an annotation's outline round pixels [top, bottom) x [left, right)."""
    corners = [left, top, right, top, right, bottom, left, bottom]
    size = (right - left, bottom - top)
    area, box = size[0] * size[1], [left, top, *size]
    return {"segmentation": [corners], "area": area, "iscrowd": 0, "bbox": box}


def make_crowd(mask: np.ndarray) -> dict[str, Any]:
    """Return an annotation's mask as COCO writes crowds: run lengths, column by column."""
    counts, last = [0], 0
    for value in mask.T.ravel().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    runs = {"counts": counts, "size": list(mask.shape)}
    return {"segmentation": runs, "area": int(mask.sum()), "iscrowd": 1, "bbox": [0, 0, 1, 1]}


def write_instances(path: Path, things: list[dict[str, Any]], **changes: Any) -> Path:
    """Write COCO's instance JSON for the images of `trees`, all things in the first image."""
    size = {"height": 40, "width": 80}
    content = {
        "images": [
            {"id": int(name), "file_name": f"{name}.jpg", **size} for name in trees.COCO_IDS
        ],
        "annotations": [
            {"id": index, "image_id": 139, **thing} for index, thing in enumerate(things, start=1)
        ],
        "categories": [
            {"id": number, "name": name}
            for number, name in {**trees.COCO_CATEGORIES, 3: "car"}.items()
        ],
    }
    path.write_text(json.dumps({**content, **changes}))
    return path


def test_outlines_are_drawn_with_smaller_things_on_top(tmp_path: Path) -> None:
    cars = np.zeros((40, 80), bool)
    cars[5:39, 30:75] = True
    cars[10:20, 40:50] = False
    upper, lower = [50, 22, 58, 22, 58, 26, 50, 26], [50, 28, 58, 28, 58, 30, 50, 30]
    screen = {**make_box(50, 22, 58, 30), "segmentation": [upper, lower], "area": 48}
    things = [
        {"category_id": 90, **make_box(12, 12, 16, 16)},  # a toothbrush on a person
        {"category_id": 1, **make_box(4, 8, 24, 36)},
        {"category_id": 13, **make_box(20, 10, 40, 30)},  # a stop sign over person and crowd
        {"category_id": 3, **make_crowd(cars)},
        {"category_id": 72, **screen},  # a tv in two parts
    ]
    maps, _ = coco.list_outline_maps(write_instances(tmp_path / "instances.json", things))
    assert tuple(maps) == trees.COCO_IDS
    expected = np.zeros((40, 80), np.uint8)
    expected[cars] = 3  # 1460 pixels
    expected[8:36, 4:24] = 1  # 560
    expected[10:30, 20:40] = 12  # 400
    expected[22:26, 50:58] = expected[28:30, 50:58] = 63  # 48
    expected[12:16, 12:16] = 80  # 16
    np.testing.assert_array_equal(maps["000000000139"](), expected)
    assert not maps["000000000285"]().any(), "an image without things is all background"


@pytest.mark.parametrize(
    "categories",
    [
        {0: "_background_", 15: "person", 18: "sofa", 13: "horse", 19: "Train "},
        {17: "person", 18: "horse", 6: "train"},
    ],
    ids=["as VOC numbers them", "without gaps"],
)
def test_a_files_own_categories_say_by_name_which_thing_an_id_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], categories: dict[int, str]
) -> None:
    trees.write_coco_stuff(tmp_path)
    named = {name.lower().strip(): number for number, name in categories.items()}
    things = [
        {"category_id": named["person"], **make_box(0, 0, 10, 10)},
        {"category_id": named["horse"], **make_box(20, 0, 30, 10)},
        {"category_id": named["train"], **make_box(40, 0, 50, 10)},
    ]
    listed = [{"id": number, "name": name} for number, name in categories.items()]
    instances = write_instances(tmp_path / "instances.json", things, categories=listed)
    run("convert-coco", "--data", tmp_path, "--instances", instances)
    labels = read_converted(tmp_path)["000000000139"]
    names = [coco.THINGS[labels[5, column] - 1] for column in (5, 25, 45)]
    assert names == ["person", "horse", "train"] and labels[20].max() == 0


def test_convert_coco_from_outlines_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pycocotools import mask as coco_mask

    trees.write_coco_stuff(tmp_path)
    people = np.zeros((40, 80), np.uint8)
    people[3:30, 2:50] = 1
    counts = coco_mask.encode(np.asfortranarray(people))["counts"]
    assert isinstance(counts, bytes)
    packed = {"counts": counts.decode(), "size": [40, 80]}  # pycocotools' own form
    things = [
        {"category_id": 1, "segmentation": packed, "area": 1296, "iscrowd": 1},
        {"category_id": 44, **make_box(10, 10, 20, 20)},
    ]
    instances = write_instances(tmp_path / "instances.json", things)
    convert = ("convert-coco", "--data", tmp_path, "--instances", instances)
    assert run(*convert, capsys=capsys).startswith("3 label maps in ")
    expected = people.copy()
    expected[10:20, 10:20] = 40
    np.testing.assert_array_equal(read_converted(tmp_path)["000000000139"], expected)
    assert "3 existed already" in run(*convert, capsys=capsys)
    assert len(datasets.load("coco-object", tmp_path).items) == 3


@pytest.mark.parametrize("nested", [[], [[5, 5, 20, 20]], None, [[1, 1]], "missing"])
def test_missing_and_two_point_outlines_are_skipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nested: Any
) -> None:
    trees.write_coco_stuff(tmp_path)
    box = make_box(0, 0, 30, 30)
    lacking = {"category_id": 44, "area": 9, "iscrowd": 0, "bbox": [5, 5, 15, 15]}
    lacking |= {} if nested == "missing" else {"segmentation": nested}
    mixed = {**box, "category_id": 44, "segmentation": [*box["segmentation"], [0, 35, 40, 39]]}
    instances = write_instances(
        tmp_path / "instances.json", [{"category_id": 1, **box, "area": 5}, lacking, mixed]
    )
    run("convert-coco", "--data", tmp_path, "--instances", instances)
    assert "rimjax: warning: 2 outlines are missing or have fewer" in capsys.readouterr().err
    labels = read_converted(tmp_path)["000000000139"]
    expected = np.zeros((40, 80), np.uint8)
    expected[:30, :30] = 1
    np.testing.assert_array_equal(labels, expected)


def test_an_outline_without_an_area_is_drawn_by_the_pixels_that_it_covers(tmp_path: Path) -> None:
    things = [
        {"category_id": 1, **make_box(10, 10, 14, 14)},
        {"category_id": 3, **make_box(0, 0, 30, 30)},
    ]
    del things[1]["area"]
    maps, _ = coco.list_outline_maps(write_instances(tmp_path / "instances.json", things))
    labels = maps["000000000139"]()
    assert labels[12, 12] == 1 and labels[5, 5] == 3


THING = {"id": 1, "image_id": 139, "category_id": 1, "iscrowd": 0, "area": 4}
BOX = make_box(0, 0, 4, 4)
ONE_BOX = {"annotations": [{**THING, **BOX}]}
PERSON = {"id": 1, "name": "person"}
IMAGE = {"id": 139, "file_name": "000000000139.jpg", "height": 40, "width": 80}
OTHER = {"id": 285, "file_name": "000000000285.jpg", "height": 40, "width": 80}


def annotate(**changes: object) -> dict[str, Any]:
    """Return two annotations, of which the second has these changes."""
    return {"annotations": [{**THING, **BOX}, {**THING, **BOX, "id": 2, **changes}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotations": [{**THING, **BOX, "category_id": 12}]}, "got none for ids [12]"),
        ({**ONE_BOX, "categories": []}, "got none for ids [1]"),
        ({**ONE_BOX, "categories": None}, "not COCO's instance JSON"),
        ({**ONE_BOX, "categories": [{"id": 1}]}, "not COCO's instance JSON"),
        ({**ONE_BOX, "categories": [{"id": 1, "name": 3}]}, "not COCO's instance JSON"),
        ({**ONE_BOX, "categories": [{"id": 1, "name": "sofa"}]}, "80 things are, got ['sofa']"),
        ({**ONE_BOX, "categories": [{"id": 1, "name": "_background_"}]}, "got ['_background_']"),
        ({**ONE_BOX, "categories": [PERSON, {**PERSON, "name": "cat"}]}, "id of several names"),
        ({"annotations": [{**THING, **BOX, "segmentation": 3}]}, "000000000139"),
        ({"images": [{"id": 139, "file_name": "000000000139.jpg"}]}, "not COCO's instance JSON"),
        ({"images": [{"id": 139, "height": 40, "width": 80}]}, "not COCO's instance JSON"),
        ({"images": None}, "not COCO's instance JSON"),
        ({"annotations": "none"}, "not COCO's instance JSON"),
        (annotate(id=1), "ids of annotations must differ, got [1] twice"),
        (annotate(id=2.0), "ids of annotations must be integers, got 2.0"),
        (annotate(image_id=7), "must be the id of an image, got [7]"),
        (annotate(image_id="139"), "image_id of annotations must be integers, got '139'"),
        (annotate(category_id=1.5), "category_id of annotations must be integers, got 1.5"),
        ({**ONE_BOX, "categories": [{**PERSON, "id": 1.2}]}, "ids of categories must be integers"),
        ({"images": [IMAGE, {**IMAGE, "file_name": "b.jpg"}]}, "ids of images must differ"),
        ({"images": [IMAGE, {**IMAGE, "id": True}]}, "ids of images must be integers, got True"),
        (
            {"images": [{**IMAGE, "file_name": "x/a.jpg"}, {**OTHER, "file_name": "y/a.jpg"}]},
            "without folder and suffix, must differ, got ['a'] twice",
        ),
        ({"images": [{**IMAGE, "height": 10**6, "width": 10**6}]}, "1000000 and 1000000 for 000"),
        ({"images": [{**IMAGE, "width": -80}]}, "got 40 and -80 for 000000000139"),
        ({"images": [{**IMAGE, "width": 80.5}]}, "heights and widths must be integers, got 80.5"),
    ],
)
def test_malformed_instances_are_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    trees.write_coco_stuff(tmp_path)
    instances = write_instances(tmp_path / "instances.json", [], **changes)
    assert message in refused(capsys, "convert-coco", "--data", tmp_path, "--instances", instances)


@pytest.mark.parametrize("content", [b"[" * 10**6, b"[]", b"{}", b"{", b"\xff\xfe", b""])
def test_a_file_that_is_not_instance_json_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    trees.write_coco_stuff(tmp_path)
    instances = tmp_path / "instances.json"
    instances.write_bytes(content)
    line = refused(capsys, "convert-coco", "--data", tmp_path, "--instances", instances)
    assert "not COCO's instance JSON" in line


def test_missing_files_are_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    instances = write_instances(tmp_path / "instances.json", [])
    missing = ("convert-coco", "--data", tmp_path / "none", "--instances", instances)
    assert f"rimjax: {tmp_path}/none: no such folder; expected the" in refused(capsys, *missing)
    (tmp_path / "coco_stuff164k").mkdir()
    wrong = ("convert-coco", "--instances", instances, "--data", tmp_path / "coco_stuff164k")
    assert f"rimjax: {tmp_path}/coco_stuff164k/images/val2017: no such" in refused(capsys, *wrong)
    (tmp_path / "coco_stuff164k").rmdir()
    assert not (tmp_path / "none").exists() and not (tmp_path / "annotations").exists()
    trees.write_coco_stuff(tmp_path)
    convert = ("convert-coco", "--data", tmp_path)
    line = refused(capsys, *convert, "--instances", tmp_path / "none.json")
    assert "none.json: no such file; COCO's is" in line
    for path in trees.list_pixel_maps(tmp_path):
        path.unlink()
    assert "get COCO-Stuff 164k's pixel maps" in refused(capsys, *convert)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    line = refused(capsys, *convert, "--instances", instances)
    assert 'pip install "rimjax[pipeline]"' in line
