"""`rimjax segment` with thresholds: every output says the same of what no class fits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli import refused, run
from fakes import fake_models, pick_colour
from PIL import Image
from pycocotools.coco import COCO
from scenes import NAMES, make_scene

from rimjax.commands import class_options, options
from rimjax.show import draw

WORDS = ("segment", "photos", "--classes", ",".join(NAMES), "--cache-dir", "k", "--output", "out")
SHOWN = ("background", *NAMES, "unknown")


@pytest.fixture(autouse=True)
def truth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The labels of a scene with a patch that fits no class, which lies in photos/a.png."""
    monkeypatch.setattr(options, "load_preset", lambda *args, **stages: fake_models())
    monkeypatch.setattr(class_options, "check_words", lambda *args: None)
    monkeypatch.chdir(tmp_path)
    image, truth = make_scene()
    image[32:38, 10:50], truth[32:38, 10:50] = pick_colour("mug"), 4
    Path("photos").mkdir()
    Image.fromarray(image).save("photos/a.png")
    Image.fromarray(make_scene()[0]).save("photos/b.png")
    return truth


def test_every_output_has_the_class_unknown(truth: np.ndarray) -> None:
    formats = ("--format", "overlay,labels,ids,coco,coco-results,yolo", "--json", "out.json")
    run(*WORDS, "--min-margin", "0.1", *formats)
    labels = Image.open("out/a_labels.png")
    np.testing.assert_array_equal(np.asarray(labels), truth)
    colours = np.asarray(labels.convert("RGB"))
    np.testing.assert_array_equal(colours, draw.colour_labels(truth, SHOWN))
    ids = np.asarray(Image.open("out/a_ids.png"))
    coco = COCO("out/annotations.json")
    assert [entry["name"] for entry in coco.loadCats(coco.getCatIds())] == list(SHOWN[1:])
    by_image = {entry["file_name"]: entry["id"] for entry in coco.loadImgs(coco.getImgIds())}
    (mine,) = coco.loadAnns(coco.getAnnIds(catIds=[4]))
    assert mine["image_id"] == by_image["../photos/a.png"] and mine["area"] == (truth == 4).sum()
    np.testing.assert_array_equal(coco.annToMask(mine) > 0, truth == 4)
    results = json.loads(Path("out/results.json").read_text())
    assert sum(entry["category_id"] == 4 for entry in results) == 1
    (line,) = [line for line in Path("out/a.txt").read_text().splitlines() if line[0] == "3"]
    points = np.array(line.split()[1:], float).reshape(-1, 2) * truth.shape[::-1]
    assert points.min(0) == pytest.approx([10, 32], abs=1)
    report = json.loads(Path("out.json").read_text())
    assert report["names"] == list(SHOWN)
    first, second = report["results"]
    assert first["shares"]["unknown"] == pytest.approx((truth == 4).mean())
    assert second["shares"]["unknown"] == 0
    (region,) = [region for region in first["regions"] if region["class"] == "unknown"]
    assert region["margin"] < 0.1 and region["confidence"] is None and region["class_id"] == 4
    assert (ids[truth == 4] == region["id"]).all()


def test_the_unknown_may_be_background_instead(truth: np.ndarray) -> None:
    run(*WORDS, "--min-margin", "0.1", "--unknown", "background", "--format", "labels,coco")
    labels = np.asarray(Image.open("out/a_labels.png"))
    np.testing.assert_array_equal(labels, np.where(truth == 4, 0, truth))
    coco = COCO("out/annotations.json")
    assert len(coco.getCatIds()) == 3 and len(coco.getAnnIds()) == 6


def test_results_with_another_threshold_are_not_taken_from_the_record(truth: np.ndarray) -> None:
    run(*WORDS)
    assert set(np.unique(np.asarray(Image.open("out/a_labels.png")))) == {0, 1, 2, 3}
    run(*WORDS, "--min-margin", "0.1")
    np.testing.assert_array_equal(np.asarray(Image.open("out/a_labels.png")), truth)


def test_what_has_no_place_for_the_unknown_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    run(*WORDS, "--format", "coco")
    Path("out/annotations.json").rename("ids.json")
    ids = ("--format", "coco", "--coco-ids", "ids.json", "--min-score", "0.6")
    line = refused(capsys, *WORDS, *ids)
    assert "has no category 'unknown'" in line and "--unknown background" in line
    run(*WORDS, *ids, "--unknown", "background")
    words = ("segment", "photos", "--classes", "apple,unknown", "--cache-dir", "k")
    line = refused(capsys, *words, "--min-score", "0.6")
    assert line.startswith("rimjax: --unknown must be 'background' for a bank with a class")
    run(*words, "--output", "named")
