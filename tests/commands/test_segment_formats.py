"""What `rimjax segment` writes for the next tool, folders and patterns, and runs that go on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import supervision
from cli import refused, run
from fakes import fake_models
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scenes import NAMES, make_scene

from rimjax.commands import class_options, options, segment
from rimjax.show import draw

WORDS = ("--classes", ",".join(NAMES), "--cache-dir", "k")
ALL = "overlay,labels,ids,coco,coco-results,yolo"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with three scenes in photos/, one of them turned."""
    models = fake_models()
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: models)
    monkeypatch.setattr(class_options, "check_words", lambda *args: None)
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    image = Image.fromarray(make_scene()[0])
    for name in ("a", "b", "c"):
        image.save(f"photos/{name}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save("photos/c.png", exif=exif)
    return tmp_path


def read_truth(name: str = "a") -> np.ndarray:
    truth = make_scene()[1]
    return np.rot90(truth, -1) if name == "c" else truth


def test_every_format_says_the_same(folder: Path) -> None:
    run("segment", "photos", *WORDS, "--output", "out", "--format", ALL, "--json", "out.json")
    truth = make_truth_file()
    coco = COCO("out/annotations.json")
    assert {image["file_name"] for image in coco.loadImgs(coco.getImgIds())} == {
        *("../photos/a.png", "../photos/b.png", "../photos/c.png")
    }
    info = json.loads(Path("out/annotations.json").read_text())["info"]
    assert info["preset"] == fake_models().name and info["settings"]["segmentation"]
    for image in coco.loadImgs(coco.getImgIds()):
        name = Path(image["file_name"]).stem
        expected = read_truth(name)
        assert (image["height"], image["width"]) == expected.shape
        labels = Image.open(f"out/{name}_labels.png")
        assert labels.mode == "P"
        np.testing.assert_array_equal(np.asarray(labels), expected)
        colours = np.asarray(labels.convert("RGB"))
        np.testing.assert_array_equal(colours, draw.colour_labels(expected, 1 + len(NAMES)))
        ids = np.asarray(Image.open(f"out/{name}_ids.png"))
        annotations = coco.loadAnns(coco.getAnnIds(image["id"]))
        assert len(annotations) == len(np.unique(ids[ids > 0])) > 0
        painted = np.zeros_like(expected)
        for annotation in annotations:
            mask = coco.annToMask(annotation).astype(bool)
            x, y, width, height = annotation["bbox"]
            assert mask[y : y + height, x : x + width].sum() == mask.sum() == annotation["area"]
            painted[mask] = annotation["category_id"]
        np.testing.assert_array_equal(painted, expected)
        lines = Path(f"out/{name}.txt").read_text().splitlines()
        assert {int(line.split()[0]) + 1 for line in lines} == set(np.unique(expected)) - {0}
        points = np.array([float(x) for line in lines for x in line.split()[1:]])
        assert len(points) and points.min() >= 0 and points.max() <= 1
    assert f'names: ["{NAMES[0]}", "{NAMES[1]}"' in Path("out/data.yaml").read_text()
    report = json.loads(Path("out.json").read_text())
    assert len(report["results"]) == 3 and report["results"][0]["size"] == [60, 40]
    assert evaluate(truth, "out/results.json") > 0.99


def make_truth_file() -> COCO:
    """Write the scenes' truth as a COCO file with ids of its own kind."""
    run("segment", "photos", *WORDS, "--output", "first", "--format", "coco")
    content = json.loads(Path("first/annotations.json").read_text())
    for image in content["images"]:
        image["file_name"] = image["file_name"].removeprefix("../")
        image["id"] += 100
    for category in content["categories"]:
        category["id"] += 50
        category["name"] = f" {category['name'].title()}"
    for annotation in content["annotations"]:
        annotation["image_id"] += 100
        annotation["category_id"] += 50
    Path("truth.json").write_text(json.dumps(content))
    shutil.rmtree("first")
    return COCO("truth.json")


def evaluate(truth: COCO, results: str) -> float:
    """Return COCOeval's AP at IoU 0.5 after shifting nothing: ids must be the truth's."""
    words = ("segment", "photos", *WORDS, "--output", "scored", "--coco-ids", "truth.json")
    run(*words, "--format", "coco-results")
    evaluation = COCOeval(truth, truth.loadRes("scored/results.json"), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert len(json.loads(Path(results).read_text())) == len(truth.anns)
    return float(evaluation.stats[1])


def test_ids_that_a_coco_file_lacks_are_refused_before_the_work(
    capsys: pytest.CaptureFixture[str],
) -> None:
    content: dict[str, Any] = {"images": [], "categories": [], "annotations": []}
    Path("ids.json").write_text(json.dumps(content))
    words = ("segment", "photos", *WORDS, "--output", "out", "--format", "coco")
    assert "has no category" in refused(capsys, *words, "--coco-ids", "ids.json")
    content["categories"] = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    Path("ids.json").write_text(json.dumps(content))
    assert "lists no image 'a.png'" in refused(capsys, *words, "--coco-ids", "ids.json")
    Path("ids.json").write_text("[]")
    assert "ids.json: not a COCO file" in refused(capsys, *words, "--coco-ids", "ids.json")
    assert not Path("out").exists() or not list(Path("out").glob("*.png"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none*.png"], "none*.png: no picture in this pattern"),
        (["k"], "k: no picture in this folder"),
        (["photos", "--format", "labels,jpeg"], "--format must be of overlay, labels"),
        (["photos", "--opacity", "1.5"], "--opacity must be from 0 to 1"),
        (["photos", "--jobs", "0"], "--jobs must be at least 1"),
        (["photos", "--output", "one.png"], "--output must be a folder for 3 images"),
        (["photos", "other/a.png"], "got a more than once"),
        (["photos", "--format", "coco"], "--output must be a folder for coco"),
    ],
)
def test_what_cannot_be_done_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    Path("k").mkdir()
    Path("other").mkdir()
    shutil.copy("photos/a.png", "other/a.png")
    assert message in refused(capsys, "segment", *words, *WORDS)


def test_a_stopped_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("segment", "photos", *WORDS, "--output", "out", "--format", ALL, "--json", "o.json")
    run(*words[:-4], "--format", ALL, "--json", "whole.json", "--output", "whole")
    done: list[int] = []
    from_segment = segment.segment

    def segment_two(*args: Any) -> object:
        done.append(1)
        if len(done) == 3:
            raise KeyboardInterrupt
        return from_segment(*args)

    monkeypatch.setattr(segment, "segment", segment_two)
    with pytest.raises(SystemExit):
        run(*words)
    assert len(done) == 3
    with Path("out/segmented.jsonl").open("a") as file:
        file.write('{"cut short')
    run(*words)
    assert len(done) == 4, "two images are done already"
    for name in ("annotations.json", "a_labels.png", "b_ids.png", "c_segmented.png", "c.txt"):
        if name.endswith("json"):
            first, second = (json.loads(Path(f"{d}/{name}").read_text()) for d in ("whole", "out"))
            assert first["annotations"] == second["annotations"]
            assert first["images"] == second["images"]
        else:
            assert Path(f"whole/{name}").read_bytes() == Path(f"out/{name}").read_bytes()
    assert len(json.loads(Path("o.json").read_text())["results"]) == 3
    Image.fromarray(make_scene()[0][:, ::-1]).save("photos/b.png")
    Path("out/c_ids.png").unlink()
    run(*words)
    assert len(done) == 6, "another picture, and a missing file"
    np.testing.assert_array_equal(
        np.asarray(Image.open("out/b_labels.png")), make_scene()[1][:, ::-1]
    )
    run(*words, "--opacity", "0.9")
    assert len(done) == 9, "other settings"


def test_a_run_never_takes_another_runs_files_for_its_own(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Settings, class orders and pictures of the same name, there and back again."""
    truth, names = make_scene()[1], list(NAMES)
    for order in (names, names[::-1], names):
        words = ("--classes", ",".join(order), "--cache-dir", "k", "--output", "out")
        run("segment", "photos", *words)
        table = np.array([0, *(1 + order.index(name) for name in names)])
        labels = np.asarray(Image.open("out/a_labels.png"))
        np.testing.assert_array_equal(labels, table[truth])
    Path("other").mkdir()
    Image.fromarray(make_scene()[0][:, ::-1]).save("other/a.png")
    for source, expected in (("photos", truth), ("other", truth[:, ::-1]), ("photos", truth)):
        run("segment", f"{source}/a.png", *WORDS, "--output", "out")
        np.testing.assert_array_equal(np.asarray(Image.open("out/a_labels.png")), expected)
    Path("away").mkdir()
    os.chdir("away")
    words = ("--classes", ",".join(NAMES), "--cache-dir", "../k", "--output", "../out")
    printed = run("segment", "../photos/a.png", *words, capsys=capsys)
    assert "1 of 1 images were done already" in printed, "from another folder too"


def test_results_and_masks_in_a_folder_are_no_pictures(folder: Path) -> None:
    scene = Image.open("photos/a.png")
    scene.convert("RGB").save("photos/mug.jpg", quality=100, subsampling=0)
    Image.fromarray((make_scene()[1] > 0).astype(np.uint8) * 255).save("photos/mug.png")
    Path("photos/._a.png").write_bytes(b"litter")
    for _ in range(2):
        run("segment", "photos", *WORDS, "--output", "photos", "--json", "o.json")
        images = [result["image"] for result in json.loads(Path("o.json").read_text())["results"]]
        assert images == [f"photos/{name}" for name in ("a.png", "b.png", "c.png", "mug.jpg")]


def test_a_single_output_has_the_name_that_is_given(folder: Path) -> None:
    run("segment", "photos/a.png", *WORDS, "--output", "mine.png", "--format", "labels")
    np.testing.assert_array_equal(np.asarray(Image.open("mine.png")), make_scene()[1])
    run("segment", "photos/a.png", *WORDS, "--output", "run.2026", "--format", "labels")
    assert Path("run.2026/a_labels.png").is_file()


def test_an_annotation_file_serves_as_references_again(folder: Path) -> None:
    run("segment", "photos", *WORDS, "--output", "out", "--format", "coco")
    run("bank", "build", "--coco", "out/annotations.json", "--cache-dir", "k2")
    (bank,) = Path("k2/banks").glob("*.json")
    assert set(json.loads(bank.read_text())["names"]) == set(NAMES)


def test_supervision_draws_a_segmentation(folder: Path) -> None:
    import rimjax

    models, image = fake_models(), make_scene()[0]
    bank = rimjax.build_bank(list(NAMES), models, cache_dir=folder / "k")
    seg = rimjax.segment(image, bank, models)
    detections = seg.to_supervision()
    assert detections.mask is not None and len(detections) == len(seg.segments)
    for mask, part, name in zip(
        detections.mask, seg.segments, detections.data["class_name"], strict=True
    ):
        assert mask.sum() == part.area and name == seg.names[part.class_id]
        assert (seg.labels[mask] == part.class_id).all()
    drawn = supervision.MaskAnnotator().annotate(image[..., ::-1].copy(), detections)
    changed = (drawn != image[..., ::-1]).any(-1)
    np.testing.assert_array_equal(changed, seg.labels > 0)


def test_votes_and_pixels_have_connected_parts_for_segments() -> None:
    labels = np.array([[1, 1, 0, 2], [0, 0, 0, 2], [1, 0, 2, 0]], np.uint8)
    empty = np.zeros((0, 3, 4), bool)
    from rimjax import Segmentation

    names = ("background", "x", "y")
    seg = Segmentation(labels, empty, np.zeros(0, np.int32), np.zeros((0, 3), np.float32), names)
    found = [(s.class_id, s.area, s.box, s.score) for s in seg.segments]
    assert found == [
        (1, 2, (0, 0, 2, 1), None),
        (1, 1, (0, 2, 1, 3), None),
        (2, 3, (2, 0, 4, 3), None),
    ]
    assert [a["bbox"] for a in seg.to_coco()] == [[0, 0, 2, 1], [0, 2, 1, 1], [2, 0, 2, 3]]
