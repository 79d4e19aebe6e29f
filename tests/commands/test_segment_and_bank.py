"""The command line on the real mini preset: results to look at and load, and clear refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli import refused, run
from PIL import Image

import rimjax
from rimjax.commands.options import ModelOptions
from rimjax.datasets import load
from rimjax.references import store
from rimjax.references.build import read_settings
from rimjax.sealed import read_sealed, seal
from rimjax.settings import CONFIGURATIONS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scene and a bank of two classes."""
    folder = tmp_path_factory.mktemp("cli")
    Image.fromarray(load("fashion-scenes").items[0].image()).save(folder / "scene.png")
    words = ("--classes", "sneaker,bag", "--images", "3", "--cache-dir", folder / "cache")
    run("bank", "build", *words)
    assert len(list((folder / "cache/banks").glob("*.json"))) == 1
    return folder


def find_bank(folder: Path) -> Path:
    return next(iter((folder / "cache" / "banks").glob("*.json")))


def test_segment_writes_overlay_labels_and_json(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, report = tmp_path / "out.png", tmp_path / "out.json"
    bank = ("--bank", find_bank(folder))
    words = (*bank, "--output", out, "--json", report)
    printed = run("segment", folder / "scene.png", *words, capsys=capsys)
    labels = np.asarray(Image.open(tmp_path / "out_labels.png"))
    assert labels.shape == (128, 128) and labels.max() <= 2 and Image.open(out).width >= 384
    contents = json.loads(report.read_text())
    result, names = contents["results"][0], contents["names"]
    assert names == ["background", "sneaker", "bag"]
    assert "configuration: rimjax" in printed and contents["configuration"] == "rimjax"
    assert contents["preset"] == "mini" and contents["versions"]["jax"]
    assert sum(result["shares"].values()) == pytest.approx(1)
    assert result["regions"] and result["size"] == [128, 128]
    keys = {"id", "class", "class_id", "score", "margin", "confidence", "area", "box"}
    assert keys == set(result["regions"][0]) and result["familiar"] is True
    for region in result["regions"]:
        assert region["margin"] >= 0 and 0 <= region["confidence"] <= 1
    for name, share in result["shares"].items():
        assert share == pytest.approx((labels == names.index(name)).mean())


def test_pictures_unlike_minis_world_are_warned_of_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        noise = rng.integers(0, 256, (100, 150, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / f"{name}.png")
    shutil.copy(folder / "scene.png", tmp_path / "c.png")
    words = ("segment", tmp_path, "--bank", find_bank(folder), "--output", tmp_path / "out")
    for _ in range(2):  # the second takes the results from the record
        run(*words, "--json", tmp_path / "out.json")
        lines = capsys.readouterr().err.splitlines()
        (line,) = [line for line in lines if "rimjax: warning" in line]
        assert "2 of 3 images are unlike" in line and "--preset paper" in line
        results = json.loads((tmp_path / "out.json").read_text())["results"]
        assert [result["familiar"] for result in results] == [False, False, True]
    run("segment", folder / "scene.png", *words[2:])
    assert "warning" not in capsys.readouterr().err


def test_thresholds_on_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("segment", folder / "scene.png", "--bank", find_bank(folder))
    report, maps = tmp_path / "out.json", {}
    for unknown in ("label", "background"):
        options = ("--min-confidence", "1", "--unknown", unknown, "--overwrite")
        out = tmp_path / f"{unknown}.png"
        printed = run(*words, *options, "--output", out, "--json", report, capsys=capsys)
        assert "configuration: rimjax" in printed
        content = json.loads(report.read_text())
        assert content["settings"]["segmentation"]["min_confidence"] == 1
        maps[unknown] = np.asarray(Image.open(tmp_path / f"{unknown}_labels.png"))
        names = ["background", "sneaker", "bag", *(["unknown"] if unknown == "label" else [])]
        assert content["names"] == names == list(content["results"][0]["shares"])
        assert all(each["class"] == "unknown" for each in content["results"][0]["regions"])
    assert set(np.unique(maps["label"])) == {0, 3} and not maps["background"].any()


def test_a_configuration_changes_a_finished_bank_only_if_given(
    folder: Path, tmp_path: Path
) -> None:
    manifest = store.read_manifest(find_bank(folder))
    own = read_settings(manifest)
    assert (own.num_subcategories, own.whiten, own.centre) == (1, 1, 0.5)
    printed = rimjax.load_preset("mini", configuration="printed")
    # The bank's own configuration, whatever the models were loaded with.
    adopted = ModelOptions().adopt_bank(manifest, printed)
    ours = CONFIGURATIONS["rimjax"].segmentation
    assert (adopted.references, adopted.segmentation) == (own, ours)
    changed = ModelOptions(configuration="printed").adopt_bank(manifest, printed)
    settings = changed.references
    assert (settings.num_subcategories, settings.whiten, settings.centre) == (8, 0, 0)
    assert changed.segmentation == CONFIGURATIONS["printed"].segmentation
    scene, paper = folder / "scene.png", ("--configuration", "paper")
    bank = ("--bank", find_bank(folder))
    run("segment", scene, *bank, *paper, "--output", tmp_path / "paper.png")
    shutil.copytree(folder / "cache", tmp_path / "cache")  # keeps other tests' cache as it is
    build = ("--classes", "sneaker,bag", "--images", "3", "--cache-dir", tmp_path / "cache")
    run("segment", scene, *build, *paper, "--output", tmp_path / "built.png")
    labels = [(tmp_path / f"{name}_labels.png").read_bytes() for name in ("paper", "built")]
    assert labels[0] == labels[1]


def test_segment_turns_images_upright_and_reads_grey(folder: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    scene = Image.open(folder / "scene.png")
    scene.crop((0, 0, 128, 96)).save(tmp_path / "turned.jpg", exif=exif)
    scene.convert("L").save(tmp_path / "grey.png")
    images = (tmp_path / "turned.jpg", tmp_path / "grey.png")
    run("segment", *images, "--bank", find_bank(folder), "--output", tmp_path / "results")
    assert Image.open(tmp_path / "results/turned_labels.png").size == (96, 128)
    assert Image.open(tmp_path / "results/grey_labels.png").size == (128, 128)


def test_bank_show_and_add(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = ("--output", tmp_path / "sheet.png")
    printed = run("bank", "show", find_bank(folder), *sheet, capsys=capsys)
    assert "sneaker: 3 images" in printed and Image.open(tmp_path / "sheet.png").height > 1000
    references = folder / "cache/references"
    before = {path.name: path.stat().st_mtime_ns for path in references.iterdir()}
    photo = np.full((80, 80, 3), 200, np.uint8)
    photo[20:60, 25:55] = (180, 20, 30)
    Image.fromarray(photo).save(tmp_path / "mug.png")
    words = ("--photos", f"mug={tmp_path / 'mug.png'}")
    path = run("bank", "add", find_bank(folder), *words, capsys=capsys).strip().splitlines()[-1]
    assert store.read_manifest(path).names == ("sneaker", "bag", "mug")
    after = {path.name: path.stat().st_mtime_ns for path in references.iterdir()}
    assert before.items() <= after.items()
    add = ("bank", "add", path, "--photos", f"cup={tmp_path / 'mug.png'}")
    other = run(*add, "--configuration", "paper", capsys=capsys).strip().splitlines()[-1]
    whitened = [store.read_manifest(bank).settings["whiten"] > 0 for bank in (path, other)]
    assert whitened == [True, False]
    Path(path).unlink()
    Path(other).unlink()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["segment", "none.png", "--classes", "bag", "--stop-on-error"],
            "none.png: no such image",
        ),
        (["segment", "SCENE"], "--classes must be given"),
        (["segment", "SCENE", "--classes", ""], "--classes must not hold a blank"),
        (["segment", "SCENE", "--classes", "bag, ,coat"], "--classes must not hold a blank"),
        (["segment", "SCENE", "--classes", "bag,Bag"], "more than once: bag"),
        (["segment", "SCENE", "--classes", "zebra"], "t-shirt, trouser"),
        (["segment", "SCENE", "--bank", "none.json"], "none.json: no such bank"),
        (
            ["segment", "SCENE", "--bank", "BANK", "--classes", "bag,sneaker"],
            "--classes must be the bank's (sneaker, bag)",
        ),
        (["segment", "SCENE", "--bank", "BANK", "--images", "4"], "--images must be left out"),
        (["segment", "SCENE", "--bank", "BANK", "--steps", "4"], "--steps must be left out"),
        (
            ["segment", "SCENE", "--bank", "BANK", "--scheduler", "pndm"],
            "--scheduler must be left out",
        ),
        (["segment", "SCENE", "--classes", "bag", "--input-size", "100"], "--input-size must be"),
        (["segment", "SCENE", "--bank", "SCENE"], "scene.png: not a bank manifest, or damaged"),
        (["evaluate", "--data", "SCENE"], "--data must be given with voc, context,"),
        (["segment", "SCENE", "--classes", "bag", "--preset", "paper"], "sam_vit_b_01ec64.pth"),
        (["segment"], "at least one image"),
        (["segment", "SCENE", "--bank", "BANK", "--min-score", "nan"], "--min-score must be a fi"),
        (
            ["segment", "SCENE", "--bank", "BANK", "--min-confidence", "90"],
            "--min-confidence must be from 0 to 1",
        ),
        (
            [
                *("segment", "SCENE", "--bank", "BANK", "--min-confidence", "0.5"),
                *("--proposer", "mini-maskformer"),
            ],
            "--min-confidence must be None",
        ),
        (
            ["segment", "SCENE", "--bank", "BANK", "--min-margin", "1", "--proposer", "pixels"],
            "--min-margin must be None where pixels are named",
        ),
        (["segment", "SCENE", "--classes", "bag", "--images", "0"], "--images must be at least 1"),
        (["bank", "build"], "at least one class name"),
        (["bank", "build", "--classes", "bag", "--photos", "mug"], "name=file1,file2"),
        (["bank", "build", "--photos", "mug=a.png,,b.png"], "name=file1,file2"),
        (
            ["bank", "build", "--photos", "mug=SCENE", "--photos", "mug=SCENE"],
            "each class once, got 'mug' twice",
        ),
        (["bank", "build", "--photos", "mug=none.jpg"], "none.jpg: no such image"),
        (["bank", "build", "--classes", "bag", "--seed", "-1"], "--seed must be in [0, 2^32)"),
        (["bank", "build", "--classes", "bag", "--seed", "9" * 20], "--seed must be in [0, 2^32)"),
        (["bank", "show", "SCENE"], "not a bank manifest"),
        (["evaluate", "--limit", "0"], "--limit must be at least 1"),
        (["evaluate", "--num-agents", "0", "--limit", "1"], "--num-agents must be in [1, 16]"),
        (["demo", "--scenes", "0"], "--scenes must be in [1, 200]"),
    ],
)
def test_bad_input_is_refused(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    places = {"SCENE": folder / "scene.png", "BANK": find_bank(folder)}
    cached = words[0] == "segment" or words[:2] == ["bank", "build"]
    cache = ["--cache-dir", tmp_path / "cache"] if cached else []
    line = refused(capsys, *(places.get(word, word) for word in words), *cache)
    assert message in line
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.png"))


def test_a_truncated_image_and_a_bank_of_another_encoder(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = folder / "scene.png"
    (tmp_path / "cut.png").write_bytes(scene.read_bytes()[:3000])
    words = ("segment", tmp_path / "cut.png", "--classes", "bag", "--cache-dir", tmp_path)
    assert "cut.png: unreadable or truncated" in refused(capsys, *words, status=1)
    assert "cut.png: unreadable or truncated" in refused(capsys, *words, "--stop-on-error")
    assert not (tmp_path / "references").exists(), "before the bank was drawn"
    fields = read_sealed(find_bank(folder)) | {"encoder": "0" * 20}
    (tmp_path / "elsewhere.json").write_text(json.dumps(seal(fields)))
    words = ("segment", scene, "--bank")
    assert "must stay in banks/, beside references/" in refused(
        capsys, *words, tmp_path / "elsewhere.json"
    )
    other = find_bank(folder).with_name("other.json")
    other.write_text(json.dumps(seal(fields)))
    try:
        assert "build the bank again with this preset" in refused(capsys, *words, other)
    finally:
        other.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"settings": {"nope": 1}}, "settings are damaged or another version's"),
        ({"settings": None}, "damaged"),
        ({"folders": [5, 6]}, "not a bank manifest"),
        ({"names": ["bag", "bag"]}, "1 distinct names"),
    ],
)
def test_a_damaged_manifest_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], damage: dict[str, object], message: str
) -> None:
    broken = folder / "cache/banks/zz-broken.json"
    broken.write_text(json.dumps(seal(read_sealed(find_bank(folder)) | damage)))
    try:
        line = refused(capsys, "segment", folder / "scene.png", "--bank", broken)
    finally:
        broken.unlink()
    assert message in line and "zz-broken.json" in line and "build the bank again" in line


def test_outputs_that_cannot_be_written_are_refused_before_the_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plain").touch()
    (tmp_path / "folder.png").mkdir()
    image, bank = folder / "scene.png", find_bank(folder)
    for words, message in (
        (("--output", tmp_path / "plain/x.png"), "isn't a writable directory"),
        (("--json", tmp_path / "folder.png"), "is a folder"),
        (("--output", tmp_path / "x.jpg"), "--output must be a PNG file"),
        (("--output", image), "--output must not overwrite an image"),
    ):
        assert message in refused(capsys, "segment", image, "--bank", bank, *words)
    assert "at least one class name" in refused(capsys, "bank", "add", bank)
    words = ("bank", "build", "--classes", "bag", "--cache-dir", tmp_path / "plain")
    assert "--cache-dir must be a folder" in refused(capsys, *words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "plain"]


def test_an_image_too_narrow_for_sam_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((10, 3000, 3), np.uint8)).save(tmp_path / "wide.png")
    words = ("segment", tmp_path / "wide.png", "--bank", find_bank(folder))
    line = refused(capsys, *words, status=1)
    assert "wide.png: image must keep a pixel" in line and "3000x10" in line
