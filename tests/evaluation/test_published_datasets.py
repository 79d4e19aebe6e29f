"""`rimjax evaluate` on data sets in mmsegmentation's layouts, end to end with the fakes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import trees
from cli import refused, run
from fakes import fake_models
from PIL import Image
from trees import COCO_BASE, COCO_IDS, CONTEXT_BASE, CONTEXT_IDS, VOC_BASE, VOC_IDS

from rimjax import datasets
from rimjax.commands import class_options, options


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Banks that all tests share, since most classes are in several data sets."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def fakes_for_mini(monkeypatch: pytest.MonkeyPatch) -> None:
    models = fake_models()
    models = replace(
        models,
        references=replace(models.references, num_images=1, num_subcategories=1),
        segmentation=replace(models.segmentation, similarity="cosine"),
    )
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: models)
    monkeypatch.setattr(class_options, "check_words", lambda *args: None)


def write_tree(name: str, root: Path) -> Path:
    """Write a data set; return its folder."""
    data = trees.WRITERS[name](root)
    if name == "coco-object":
        run("convert-coco", "--data", data)
    return data


def count_pixels(name: str, data: Path, output: Path) -> np.ndarray:
    """Count a run's confusion matrix pixel by pixel, from label PNGs before and after.

    Label 0 is left out where the background is no class.
    """
    dataset = datasets.load(name, data)
    size = len(dataset.classes) + 1
    confusion = np.zeros((size, size), int)
    for item in dataset.items:
        paths = trees.locate_labels(name, data, item.id), output / f"labels/{item.id}.png"
        truth, prediction = (np.asarray(Image.open(path)).ravel().tolist() for path in paths)
        for true, predicted in zip(truth, prediction, strict=True):
            if true != 255 and (true != 0 or dataset.background):
                confusion[true, predicted] += 1
    return confusion


PRESENT = {
    "voc": {"background", "aeroplane", "diningtable", "person", "tvmonitor"},
    "context": {"background", "tvmonitor", "window", "sky", "wood"},
    "context59": {"tvmonitor", "window", "sky", "wood"},
    "coco-object": {"background", "person", "tv", "bear", "toothbrush"},
}


@pytest.mark.parametrize(
    ("name", "size"), [("voc", 1449), ("context", 5105), ("context59", 5105), ("coco-object", 5000)]
)
def test_a_published_layout_end_to_end(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], name: str, size: int
) -> None:
    data, output, file = (
        write_tree(name, tmp_path / "data"),
        tmp_path / "run",
        tmp_path / "out.json",
    )
    capsys.readouterr()
    evaluate = ("evaluate", "--dataset", name, "--data", data, "--cache-dir", cache)
    run(*evaluate, "--output", output, "--save-labels", "--json", file)
    printed = capsys.readouterr()
    count = len(datasets.load(name, data).items)
    assert f"rimjax: warning: {name} has {size} images in papers, {count} here" in printed.err
    report = json.loads(file.read_text())
    assert report["num_images"] == count and report["dataset"] == name
    confusion, first = count_pixels(name, data, output), int(name == "context59")
    hits, unions = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    present = (unions > 0) & (np.arange(len(unions)) >= first)
    assert report["miou"] == pytest.approx(np.mean(hits[present] / unions[present]), rel=1e-12)
    assert len(report["per_class"]) == len(unions) - first
    ious = {thing: iou for thing, iou in report["per_class"].items() if iou is not None}
    assert ious.keys() >= PRESENT[name]
    # Each patch has its class's own colour, so an IoU below 1 means a wrong name or number.
    things = PRESENT[name] - {"background"}
    assert {thing: ious[thing] for thing in things} == dict.fromkeys(things, 1.0)
    assert all(f"  {thing} " in printed.out for thing in PRESENT[name])
    assert "mIoU" in printed.out


@pytest.mark.parametrize("name", ["voc", "context", "coco-object"])
def test_a_copy_of_the_published_size_gives_no_warning(
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    data = write_tree(name, tmp_path / "data")
    dataset = datasets.load(name, data)
    size = dataset.published_size or 0
    missing = range(size - len(dataset.items))
    copies = (replace(dataset.items[0], id=str(index)) for index in missing)
    items = (*dataset.items, *copies)
    evaluate = ("evaluate", "--dataset", name, "--data", data, "--cache-dir", cache, "--limit", 1)
    monkeypatch.setattr(datasets, "load", lambda *args: replace(dataset, items=items))
    capsys.readouterr()
    run(*evaluate)
    assert "in papers" not in capsys.readouterr().err
    monkeypatch.setattr(datasets, "load", lambda *args: replace(dataset, items=items[1:]))
    run(*evaluate)
    assert f"has {size} images in papers, {size - 1} here" in capsys.readouterr().err


VOC_SPLIT = f"{VOC_BASE}/ImageSets/Segmentation/val.txt"
CONTEXT_SPLIT = f"{CONTEXT_BASE}/ImageSets/SegmentationContext/val.txt"
CONTEXT_LABELS = f"{CONTEXT_BASE}/SegmentationClassContext"
COCO_IMAGES, COCO_LABELS = f"{COCO_BASE}/images/val2017", f"{COCO_BASE}/annotations/val2017"
NO_COCO_IMAGES = "images/val2017: no such folder; expected a folder with coco_stuff164k"


@pytest.mark.parametrize(
    ("name", "removed", "message"),
    [
        ("voc", ".", "data: no such folder; expected the data set's, with VOCdevkit/VOC2012"),
        ("voc", VOC_SPLIT, "val.txt: no such file; expected a folder with VOCdevkit/VOC2012"),
        (
            "voc",
            f"{VOC_BASE}/JPEGImages",
            f"JPEGImages/{VOC_IDS[0]}.jpg: no such file, and 2 more",
        ),
        (
            "voc",
            f"{VOC_BASE}/SegmentationClass",
            f"SegmentationClass/{VOC_IDS[0]}.png: no such file, and 2 more",
        ),
        (
            "voc",
            f"{VOC_BASE}/SegmentationClass/{VOC_IDS[2]}.png",
            f"SegmentationClass/{VOC_IDS[2]}.png: no such file",
        ),
        ("context", ".", "data: no such folder; expected the data set's, with VOCdevkit"),
        (
            "context59",
            CONTEXT_LABELS,
            f"SegmentationClassContext/{CONTEXT_IDS[0]}.png: no such file, and 1",
        ),
        ("coco-object", ".", "data: no such folder; expected the data set's, with coco_stuff"),
        ("coco-object", COCO_IMAGES, NO_COCO_IMAGES),
        ("coco-object", COCO_LABELS, "`rimjax convert-coco --data"),
        (
            "coco-object",
            f"{COCO_LABELS}/{COCO_IDS[1]}_instanceTrainIds.png",
            "285_instanceTrainIds.png: no such file",
        ),
    ],
)
def test_a_missing_part_of_the_layout_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, removed: str, message: str
) -> None:
    data, cache_dir = write_tree(name, tmp_path / "data"), tmp_path / "cache"
    path = data / removed
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    evaluate = ("evaluate", "--dataset", name, "--data", data, "--cache-dir", cache_dir)
    assert message in refused(capsys, *evaluate)
    assert not cache_dir.exists(), "nothing is drawn for a data set that isn't there"


@pytest.mark.parametrize(
    ("name", "emptied", "message"),
    [
        ("voc", VOC_SPLIT, "val.txt: the split is empty"),
        ("context", CONTEXT_SPLIT, "val.txt: the split is empty"),
        ("coco-object", COCO_IMAGES, "images/val2017/*.jpg: the split is empty"),
    ],
)
def test_an_empty_split_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, emptied: str, message: str
) -> None:
    data, cache_dir = write_tree(name, tmp_path / "data"), tmp_path / "cache"
    path = data / emptied
    if path.is_dir():
        shutil.rmtree(path)
        path.mkdir()
    else:
        path.write_text("\n \n")
    evaluate = ("evaluate", "--dataset", name, "--data", data, "--cache-dir", cache_dir)
    assert message in refused(capsys, *evaluate)


@pytest.mark.parametrize(
    ("name", "num_classes"), [("voc", 20), ("context", 59), ("context59", 59), ("coco-object", 80)]
)
def test_labels_outside_the_class_list_are_named_before_any_work(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], name: str, num_classes: int
) -> None:
    data = write_tree(name, tmp_path / "data")
    item = datasets.load(name, data).items[-1]
    path = trees.locate_labels(name, data, item.id)
    truth, output, cache_dir = np.array(Image.open(path)), tmp_path / "run", tmp_path / "cache"
    evaluate = ("evaluate", "--dataset", name, "--data", data, "--output", output, "--cache-dir")
    for label in (num_classes + 1, 254):
        truth[0, 0] = label
        Image.fromarray(truth).save(path)
        line = refused(capsys, *evaluate, cache_dir)
        assert f"{item.id}: labels must lie in [0, {num_classes}], the classes of {name}" in line
        assert f"or be 255 where ignored, got {label}" in line
    assert not cache_dir.exists() and not output.exists(), "refused before a reference is drawn"
    truth[0, 0] = num_classes
    Image.fromarray(truth).save(path)
    run(*evaluate, cache)


def test_images_and_labels_of_different_sizes_are_named_in_one_line(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = write_tree("voc", tmp_path), tmp_path / "out.json"
    evaluate = ("evaluate", "--dataset", "voc", "--data", data, "--cache-dir", cache)
    errors: dict[str, str] = {}
    for image_id, height in zip(VOC_IDS, (56, 48, 48), strict=True):
        path = trees.locate_labels("voc", data, image_id)
        Image.fromarray(np.array(Image.open(path))[1:]).save(path)
        sizes = f"80x{height}, got 80x{height - 1}"
        errors[image_id] = f"labels must have the image's size {sizes}"
        if len(errors) < 3:
            run(*evaluate, "--json", file)
            bad_images = json.loads(file.read_text())["bad_images"]
            assert list(bad_images.items()) == list(errors.items())
    line = refused(capsys, *evaluate)
    assert f"no image could be used; {VOC_IDS[0]}: {errors[VOC_IDS[0]]}" in line


@pytest.mark.parametrize(
    ("name", "different"),
    [("voc", "aeroplane"), ("context59", "aeroplane"), ("coco-object", "airplane")],
)
def test_a_bank_of_other_classes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, different: str
) -> None:
    data = write_tree(name, tmp_path / "data")
    run("bank", "build", "--classes", "apple,plum", "--cache-dir", tmp_path / "cache")
    (bank,) = (tmp_path / "cache/banks").glob("*.json")
    line = refused(capsys, "evaluate", "--dataset", name, "--data", data, "--bank", bank)
    assert f"--bank must hold the classes of {name}, got a bank without {different}, " in line


def test_a_bank_of_the_prompts_is_used_and_another_order_is_refused(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_tree("voc", tmp_path / "data")
    prompts = datasets.load("voc", data).prompts
    for names in (prompts, prompts[::-1]):
        run("bank", "build", "--classes", ",".join(names), "--cache-dir", cache)
    banks = {
        tuple(json.loads(path.read_text())["names"]): path
        for path in (cache / "banks").glob("*.json")
    }
    evaluate = ("evaluate", "--dataset", "voc", "--data", data, "--json")
    run(*evaluate, tmp_path / "built.json", "--cache-dir", cache)
    run(*evaluate, tmp_path / "loaded.json", "--bank", banks[prompts])
    built, loaded = (
        json.loads((tmp_path / name).read_text()) for name in ("built.json", "loaded.json")
    )
    assert built["miou"] == loaded["miou"] and built["bank"] == loaded["bank"]
    line = refused(capsys, *evaluate, tmp_path / "x.json", "--bank", banks[prompts[::-1]])
    assert "got a bank in another order" in line
    only = (*evaluate, tmp_path / "only.json", "--only-bank-classes")
    run(*only, "--bank", banks[prompts[::-1]])
    swapped = json.loads((tmp_path / "only.json").read_text())
    assert swapped["classes"] == built["classes"][::-1]
    assert swapped["per_class"] == pytest.approx(built["per_class"])
    assert "--bank must be given with --only-bank-classes" in refused(capsys, *only)
