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

from rimjax import datasets
from rimjax.commands import options


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Banks that all tests share: most classes are in several data sets."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def fakes_for_mini(monkeypatch: pytest.MonkeyPatch) -> None:
    models = fake_models()
    models = replace(
        models, references=replace(models.references, num_images=1, num_subcategories=1)
    )
    models = replace(models, segmentation=replace(models.segmentation, similarity="cosine"))
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: models)


def tree(name: str, root: Path) -> Path:
    data = trees.LAYOUTS[name](root)
    if name == "coco-object":
        run("convert-coco", "--data", data)
    return data


def counted(name: str, data: Path, output: Path) -> np.ndarray:
    """The whole run's confusion matrix, pixel by pixel from the label PNGs that went in and came out; 0 left out where it is no class."""
    dataset = datasets.load(name, data)
    classes = len(dataset.classes) + 1
    found = np.zeros((classes, classes), int)
    for item in dataset.items:
        paths = trees.label_file(name, data, item.id), output / f"labels/{item.id}.png"
        for true, predicted in zip(
            *(np.asarray(Image.open(path)).ravel().tolist() for path in paths), strict=True
        ):
            if true != 255 and (true != 0 or dataset.background):
                found[true, predicted] += 1
    return found


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
    data, output = tree(name, tmp_path / "data"), tmp_path / "run"
    capsys.readouterr()
    words = (
        "--output",
        output,
        "--save-labels",
        "--json",
        tmp_path / "out.json",
        "--cache-dir",
        cache,
    )
    run("evaluate", "--dataset", name, "--data", data, *words)
    said = capsys.readouterr()
    count = len(datasets.load(name, data).items)
    assert f"rimjax: warning: {name} has {size} images in papers, {count} here" in said.err
    report = json.loads((tmp_path / "out.json").read_text())
    confusion = counted(name, data, output)
    hits, unions = np.diag(confusion), confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    present = (unions > 0) & (np.arange(len(unions)) >= (name == "context59"))
    assert report["miou"] == pytest.approx(np.mean(hits[present] / unions[present]), rel=1e-12)
    assert (
        report["num_images"] == count
        and report["dataset"] == name
        and len(report["per_class"]) == len(unions) - (name == "context59")
    )
    ious = {one: iou for one, iou in report["per_class"].items() if iou is not None}
    assert ious.keys() >= PRESENT[name]
    # Every patch is of one class's own colour, and references are found by colour: a class that isn't found has another's name or number.
    assert {one: ious[one] for one in PRESENT[name] - {"background"}} == {
        one: 1.0 for one in PRESENT[name] - {"background"}
    }
    assert all(f"  {one} " in said.out for one in PRESENT[name]) and "mIoU" in said.out


@pytest.mark.parametrize("name", ["voc", "context", "coco-object"])
def test_a_copy_of_the_published_size_is_no_warning(
    tmp_path: Path,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    data = tree(name, tmp_path / "data")
    dataset = datasets.load(name, data)
    published = dataset.published_size or 0
    items = (
        *dataset.items,
        *(
            replace(dataset.items[0], id=str(index))
            for index in range(published - len(dataset.items))
        ),
    )
    monkeypatch.setattr(datasets, "load", lambda *args: replace(dataset, items=items))
    capsys.readouterr()
    run("evaluate", "--dataset", name, "--data", data, "--cache-dir", cache, "--limit", 1)
    assert "in papers" not in capsys.readouterr().err
    monkeypatch.setattr(datasets, "load", lambda *args: replace(dataset, items=items[1:]))
    run("evaluate", "--dataset", name, "--data", data, "--cache-dir", cache, "--limit", 1)
    assert f"has {published} images in papers, {published - 1} here" in capsys.readouterr().err


VOC_BASE, CONTEXT_BASE, COCO_BASE = "VOCdevkit/VOC2012", "VOCdevkit/VOC2010", "coco_stuff164k"
FIRST = {
    "voc": trees.VOC_IDS[0],
    "context": trees.CONTEXT_IDS[0],
    "context59": trees.CONTEXT_IDS[0],
    "coco-object": next(iter(trees.STUFF)),
}


@pytest.mark.parametrize(
    ("name", "gone", "message"),
    [
        (
            "voc",
            ".",
            f"{VOC_BASE}/ImageSets/Segmentation/val.txt: no such file; expected a folder with VOCdevkit/VOC2012",
        ),
        (
            "voc",
            f"{VOC_BASE}/ImageSets/Segmentation/val.txt",
            "val.txt: no such file; expected a folder with VOCdevkit/VOC2012",
        ),
        (
            "voc",
            f"{VOC_BASE}/JPEGImages",
            f"JPEGImages/{FIRST['voc']}.jpg: no such file, and 2 more",
        ),
        (
            "voc",
            f"{VOC_BASE}/SegmentationClass",
            f"SegmentationClass/{FIRST['voc']}.png: no such file, and 2 more",
        ),
        (
            "voc",
            f"{VOC_BASE}/SegmentationClass/{trees.VOC_IDS[2]}.png",
            f"SegmentationClass/{trees.VOC_IDS[2]}.png: no such file",
        ),
        (
            "context",
            ".",
            f"{CONTEXT_BASE}/ImageSets/SegmentationContext/val.txt: no such file; expected a folder with VOCdevkit/VOC2010",
        ),
        (
            "context59",
            f"{CONTEXT_BASE}/SegmentationClassContext",
            f"SegmentationClassContext/{FIRST['context']}.png: no such file, and 1",
        ),
        (
            "coco-object",
            ".",
            "images/val2017: no such folder; expected a folder with coco_stuff164k",
        ),
        (
            "coco-object",
            f"{COCO_BASE}/images/val2017",
            "images/val2017: no such folder; expected a folder with coco_stuff164k",
        ),
        ("coco-object", f"{COCO_BASE}/annotations/val2017", "`rimjax convert-coco --data"),
        (
            "coco-object",
            f"{COCO_BASE}/annotations/val2017/000000000285_instanceTrainIds.png",
            "285_instanceTrainIds.png: no such file",
        ),
    ],
)
def test_a_wrong_layout_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, gone: str, message: str
) -> None:
    data = tree(name, tmp_path / "data")
    lost = data / gone
    if lost.is_dir():
        shutil.rmtree(lost)
    else:
        lost.unlink()
    assert message in refused(
        capsys, "evaluate", "--dataset", name, "--data", data, "--cache-dir", tmp_path / "cache"
    )
    assert not (tmp_path / "cache").exists(), "nothing is drawn for a data set that isn't there"


@pytest.mark.parametrize(
    ("name", "empty", "message"),
    [
        ("voc", "ImageSets/Segmentation/val.txt", "val.txt: the split is empty"),
        ("context", "ImageSets/SegmentationContext/val.txt", "val.txt: the split is empty"),
        ("coco-object", "images/val2017", "images/val2017/*.jpg: the split is empty"),
    ],
)
def test_an_empty_split_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, empty: str, message: str
) -> None:
    data = tree(name, tmp_path / "data")
    (place,) = data.glob(f"*/{empty}") if name == "coco-object" else data.glob(f"*/*/{empty}")
    if place.is_dir():
        shutil.rmtree(place)
        place.mkdir()
    else:
        place.write_text("\n \n")
    assert message in refused(
        capsys, "evaluate", "--dataset", name, "--data", data, "--cache-dir", tmp_path / "cache"
    )


@pytest.mark.parametrize(
    ("name", "most"), [("voc", 20), ("context", 59), ("context59", 59), ("coco-object", 80)]
)
def test_labels_outside_the_class_list_are_named_before_any_work(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], name: str, most: int
) -> None:
    data = tree(name, tmp_path / "data")
    item = datasets.load(name, data).items[-1]
    path = trees.label_file(name, data, item.id)
    truth = np.array(Image.open(path))
    words = ("evaluate", "--dataset", name, "--data", data, "--cache-dir")
    for worst in (most + 1, 254):
        truth[0, 0] = worst
        Image.fromarray(truth).save(path)
        line = refused(capsys, *words, tmp_path / "cache", "--output", tmp_path / "run")
        assert (
            f"{item.id}: labels must lie in [0, {most}], the classes of {name}" in line
            and f"or be 255 where ignored, got {worst}" in line
        )
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run").exists(), (
        "said before a reference is drawn"
    )
    truth[0, 0] = most
    Image.fromarray(truth).save(path)
    run(*words, cache, "--output", tmp_path / "run")


def test_images_and_labels_of_different_sizes_are_one_line(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tree("voc", tmp_path)
    words = ("evaluate", "--dataset", "voc", "--data", data, "--cache-dir", cache)
    said = [
        f"labels must have the image's size 80x{height}, got 80x{height - 1}"
        for height in (56, 48, 48)
    ]
    for count, one in enumerate(trees.VOC_IDS, start=1):
        path = trees.label_file("voc", data, one)
        Image.fromarray(np.array(Image.open(path))[1:]).save(path)
        if count < 3:
            run(*words, "--json", tmp_path / "out.json")
            bad = json.loads((tmp_path / "out.json").read_text())["bad_images"]
            assert list(bad.items()) == list(zip(trees.VOC_IDS, said, strict=True))[:count]
    assert f"no image could be used; {trees.VOC_IDS[0]}: {said[0]}" in refused(capsys, *words)


@pytest.mark.parametrize(
    ("name", "differing"),
    [("voc", "aeroplane"), ("context59", "aeroplane"), ("coco-object", "airplane")],
)
def test_a_bank_of_other_classes_is_refused(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], name: str, differing: str
) -> None:
    data = tree(name, tmp_path / "data")
    run("bank", "build", "--classes", "apple,plum", "--cache-dir", tmp_path / "cache")
    (bank,) = (tmp_path / "cache/banks").glob("*.json")
    line = refused(capsys, "evaluate", "--dataset", name, "--data", data, "--bank", bank)
    assert f"--bank must hold the classes of {name}, got others ({differing}, " in line


def test_a_bank_of_the_same_prompts_is_used_and_another_order_refused(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tree("voc", tmp_path / "data")
    prompts = datasets.load("voc", data).prompts
    for order in (prompts, prompts[::-1]):
        run("bank", "build", "--classes", ",".join(order), "--cache-dir", cache)
    banks = {
        tuple(json.loads(path.read_text())["names"]): path
        for path in (cache / "banks").glob("*.json")
    }
    words = ("evaluate", "--dataset", "voc", "--data", data, "--json")
    run(*words, tmp_path / "own.json", "--cache-dir", cache)
    run(*words, tmp_path / "given.json", "--bank", banks[prompts])
    own, given = (json.loads((tmp_path / f"{one}.json").read_text()) for one in ("own", "given"))
    assert own["miou"] == given["miou"] and own["bank"] == given["bank"]
    assert "got others (their order)" in refused(
        capsys, *words, tmp_path / "x.json", "--bank", banks[prompts[::-1]]
    )
