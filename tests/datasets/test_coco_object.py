"""COCO Object's label PNGs: from COCO-Stuff's pixel maps and from COCO's instance JSON, by `rimjax convert-coco`."""

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


def test_pixel_maps_hold_category_ids_less_one_and_all_else_is_background() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    found = coco.convert_stuff(values)
    assert found.dtype == np.uint8 and found.shape == (16, 16)
    flat = found.ravel().tolist()
    assert {
        one: coco.THINGS[flat[one - 1] - 1] for one in trees.COCO_CATEGORIES
    } == trees.COCO_CATEGORIES
    assert sorted(label for label in flat if label) == list(range(1, 81)), (
        "every thing has one value"
    )
    assert not any(flat[90:]), "stuff, and 255"
    assert [value for value in range(90) if not flat[value]] == [
        11,
        25,
        28,
        29,
        44,
        65,
        67,
        68,
        70,
        82,
    ], "COCO-Stuff's unused values"


def label_maps(data: Path) -> dict[str, np.ndarray]:
    paths = sorted((data / "coco_stuff164k/annotations/val2017").glob("*_instanceTrainIds.png"))
    return {
        path.name.removesuffix("_instanceTrainIds.png"): np.asarray(Image.open(path))
        for path in paths
    }


@pytest.mark.parametrize("place", [".", "coco_stuff164k"])
def test_convert_coco_from_pixel_maps_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    trees.coco_stuff(tmp_path)
    assert "no such files; `rimjax convert-coco" in refused(
        capsys, "evaluate", "--dataset", "coco-object", "--data", tmp_path
    )
    assert run("convert-coco", "--data", tmp_path / place, capsys=capsys).startswith(
        "3 label maps in "
    )
    made = label_maps(tmp_path)
    assert made.keys() == trees.STUFF.keys()
    for one, labels in trees.OBJECTS.items():
        _, expected = trees.patches((40, 80), ["person"] * len(labels), labels)
        np.testing.assert_array_equal(made[one], expected)
    folder = tmp_path / "coco_stuff164k/annotations/val2017"
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert "3 existed already" in run("convert-coco", "--data", tmp_path / place, capsys=capsys)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    dataset = datasets.load("coco-object", tmp_path)
    assert [item.id for item in dataset.items] == list(trees.STUFF) and dataset.background
    np.testing.assert_array_equal(dataset.items[1].read()[1], made["000000000285"])


def test_a_conversion_that_was_stopped_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trees.coco_stuff(tmp_path)
    path = tmp_path / "coco_stuff164k/annotations/val2017/000000000632.png"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "000000000632.png: unreadable or truncated labels" in refused(
        capsys, "convert-coco", "--data", tmp_path
    )
    assert len(label_maps(tmp_path)) == 2
    path.write_bytes(whole)
    assert "2 existed already" in run("convert-coco", "--data", tmp_path, capsys=capsys)
    assert len(label_maps(tmp_path)) == 3


def box(left: int, top: int, right: int, bottom: int) -> dict[str, Any]:
    """A polygon round pixels [top, bottom) x [left, right)."""
    corners = [left, top, right, top, right, bottom, left, bottom]
    return {
        "segmentation": [corners],
        "area": (right - left) * (bottom - top),
        "iscrowd": 0,
        "bbox": [left, top, right - left, bottom - top],
    }


def crowd(mask: np.ndarray) -> dict[str, Any]:
    """Runs of zeros and ones by turns, column by column, as COCO writes crowds."""
    counts, last = [0], 0
    for value in mask.T.ravel().tolist():
        if value != last:
            counts.append(0)
            last = value
        counts[-1] += 1
    return {
        "segmentation": {"counts": counts, "size": list(mask.shape)},
        "area": int(mask.sum()),
        "iscrowd": 1,
        "bbox": [0, 0, 1, 1],
    }


def instances(path: Path, things: list[dict[str, Any]], **changes: Any) -> Path:
    """COCO's JSON for the tree's images, all things in the first of them."""
    images = [
        {"id": int(one), "file_name": f"{one}.jpg", "height": 40, "width": 80}
        for one in trees.STUFF
    ]
    things = [
        {"id": index, "image_id": 139, **thing} for index, thing in enumerate(things, start=1)
    ]
    contents = {
        "images": images,
        "annotations": things,
        "categories": [{"id": 1, "name": "person"}],
        **changes,
    }
    path.write_text(json.dumps(contents))
    return path


def test_outlines_are_drawn_the_smaller_on_top(tmp_path: Path) -> None:
    people = np.zeros((40, 80), bool)
    people[5:39, 30:75] = True
    people[10:20, 40:50] = False
    ring = {
        **box(50, 22, 58, 30),
        "segmentation": [[50, 22, 58, 22, 58, 26, 50, 26], [50, 28, 58, 28, 58, 30, 50, 30]],
        "area": 48,
    }
    things = [
        {"category_id": 90, **box(12, 12, 16, 16)},  # a toothbrush on a person
        {"category_id": 1, **box(4, 8, 24, 36)},
        {"category_id": 13, **box(20, 10, 40, 30)},  # a stop sign over person and crowd
        {"category_id": 3, **crowd(people)},  # cars
        {"category_id": 72, **ring},  # a tv in two parts
    ]
    maps = coco.list_outline_maps(instances(tmp_path / "instances.json", things))
    assert list(maps) == list(trees.STUFF)
    expected = np.zeros((40, 80), np.uint8)
    expected[people] = 3  # 1460 pixels
    expected[8:36, 4:24] = 1  # 560
    expected[10:30, 20:40] = 12  # 400
    expected[22:26, 50:58] = expected[28:30, 50:58] = 63  # 48
    expected[12:16, 12:16] = 80  # 16
    np.testing.assert_array_equal(maps["000000000139"](), expected)
    assert not maps["000000000285"]().any(), "an image without things is all background"


def test_convert_coco_from_outlines_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pycocotools import mask as rle

    trees.coco_stuff(tmp_path)
    people = np.zeros((40, 80), np.uint8)
    people[3:30, 2:50] = 1
    packed = rle.encode(np.asfortranarray(people))
    short = {
        "segmentation": {"counts": packed["counts"].decode(), "size": [40, 80]},
        "area": 1296,
        "iscrowd": 1,
    }  # pycocotools' own form
    file = instances(
        tmp_path / "instances.json",
        [{"category_id": 1, **short}, {"category_id": 44, **box(10, 10, 20, 20)}],
    )
    words = ("convert-coco", "--data", tmp_path, "--instances", file)
    assert run(*words, capsys=capsys).startswith("3 label maps in ")
    expected = people.copy()
    expected[10:20, 10:20] = 40
    np.testing.assert_array_equal(label_maps(tmp_path)["000000000139"], expected)
    assert "3 existed already" in run(*words, capsys=capsys)
    assert len(datasets.load("coco-object", tmp_path).items) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"annotations": [{"id": 1, "image_id": 139, "category_id": 12, **box(0, 0, 4, 4)}]},
            "ids [12] aren't COCO categories",
        ),
        (
            {
                "annotations": [
                    {
                        "id": 1,
                        "image_id": 139,
                        "category_id": 1,
                        "iscrowd": 0,
                        "area": 0,
                        "segmentation": [],
                    }
                ]
            },
            "000000000139",
        ),
        (
            {
                "annotations": [
                    {"id": 1, "image_id": 139, "category_id": 1, "iscrowd": 0, "area": 4}
                ]
            },
            "000000000139",
        ),
        (
            {
                "annotations": [
                    {
                        "id": 1,
                        "image_id": 139,
                        "category_id": 1,
                        **box(0, 0, 4, 4),
                        "segmentation": 3,
                    }
                ]
            },
            "000000000139",
        ),
        ({"images": [{"id": 139, "file_name": "000000000139.jpg"}]}, "not COCO's instance JSON"),
        ({"images": [{"id": 139, "height": 40, "width": 80}]}, "not COCO's instance JSON"),
        ({"images": None}, "not COCO's instance JSON"),
        ({"annotations": "none"}, "not COCO's instance JSON"),
    ],
)
def test_instance_json_that_is_none_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    trees.coco_stuff(tmp_path)
    file = instances(tmp_path / "instances.json", [], **change)
    assert message in refused(capsys, "convert-coco", "--data", tmp_path, "--instances", file)


def test_bad_places_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = instances(tmp_path / "instances.json", [])
    assert "images/val2017: no such folder" in refused(
        capsys, "convert-coco", "--data", tmp_path / "none", "--instances", file
    )
    assert not (tmp_path / "none").exists() and not (tmp_path / "annotations").exists()
    trees.coco_stuff(tmp_path)
    assert "none.json: no such file; COCO's is" in refused(
        capsys, "convert-coco", "--data", tmp_path, "--instances", tmp_path / "none.json"
    )
    for content in (b"[]", b"{}", b"{", b"\xff\xfe", b""):
        file.write_bytes(content)
        assert "not COCO's instance JSON" in refused(
            capsys, "convert-coco", "--data", tmp_path, "--instances", file
        )
    for path in (tmp_path / "coco_stuff164k/annotations/val2017").glob("0*[0-9].png"):
        path.unlink()
    assert "get COCO-Stuff 164k's pixel maps" in refused(capsys, "convert-coco", "--data", tmp_path)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    assert 'pip install "rimjax[coco]"' in refused(
        capsys, "convert-coco", "--data", tmp_path, "--instances", file
    )
