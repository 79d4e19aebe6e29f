"""The command line on the real mini preset: results one can look at and load, and one clear line with exit status 2 on bad input."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli import run
from PIL import Image

import rimjax
from rimjax.references import store
from rimjax.commands import options
from rimjax.datasets import fashion_scenes
from rimjax.references.build import read_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scene on disk and a bank of two classes."""
    folder = tmp_path_factory.mktemp("cli")
    scene = next(iter(fashion_scenes.render_benchmark(1)))
    Image.fromarray(scene.image).save(folder / "scene.png")
    manifest = folder / "cache" / "banks"
    run(
        "bank",
        "build",
        "--classes",
        "sneaker,bag",
        "--images",
        "3",
        "--cache-dir",
        folder / "cache",
    )
    assert len(list(manifest.glob("*.json"))) == 1
    return folder


def bank_of(folder: Path) -> Path:
    return next(iter((folder / "cache" / "banks").glob("*.json")))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if not line.startswith(("bank:", "segment:"))]  # progress bars
    assert len(lines) == 1 and lines[0].startswith("rimjax: "), lines
    return lines[0]


def test_segment_writes_overlay_labels_and_json(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    run(
        "segment",
        folder / "scene.png",
        "--bank",
        bank_of(folder),
        "--output",
        out,
        "--json",
        tmp_path / "out.json",
    )
    labels = np.asarray(Image.open(tmp_path / "out_labels.png"))
    assert labels.shape == (128, 128) and labels.max() <= 2 and Image.open(out).width >= 384
    report = json.loads((tmp_path / "out.json").read_text())
    result = report["results"][0]
    assert (
        report["names"] == ["background", "sneaker", "bag"]
        and report["preset"] == "mini"
        and report["versions"]["jax"]
    )
    assert sum(result["shares"].values()) == pytest.approx(1)
    assert result["regions"] and {"class", "score", "area", "box"} == set(result["regions"][0])
    for name, share in result["shares"].items():
        assert share == pytest.approx((labels == report["names"].index(name)).mean())


def test_a_finished_bank_is_read_as_the_configuration_says_only_if_it_is_asked_for(
    folder: Path, tmp_path: Path
) -> None:
    manifest, models = (
        store.read_manifest(bank_of(folder)),
        rimjax.load_preset("mini", configuration="paper"),
    )
    assert options.ModelOptions().choose_settings(manifest, models) == read_settings(manifest)
    asked = options.ModelOptions(configuration="paper").choose_settings(manifest, models)
    assert (
        (asked.num_subcategories, asked.whiten)
        == (8, 0)
        != (read_settings(manifest).num_subcategories, read_settings(manifest).whiten)
    )
    run(
        "segment",
        folder / "scene.png",
        "--bank",
        bank_of(folder),
        "--configuration",
        "paper",
        "--output",
        tmp_path / "paper.png",
    )
    shutil.copytree(
        folder / "cache", tmp_path / "cache"
    )  # with what was drawn; another bank there would be another test's
    build = ("--classes", "sneaker,bag", "--images", "3", "--cache-dir", tmp_path / "cache")
    run(
        "segment",
        folder / "scene.png",
        *build,
        "--configuration",
        "paper",
        "--output",
        tmp_path / "built.png",
    )
    assert (tmp_path / "paper_labels.png").read_bytes() == (
        tmp_path / "built_labels.png"
    ).read_bytes()


def test_segment_builds_the_bank_it_is_asked_for_and_turns_images_upright(
    folder: Path, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(folder / "scene.png").crop((0, 0, 128, 96)).save(tmp_path / "turned.jpg", exif=exif)
    Image.open(folder / "scene.png").convert("L").save(tmp_path / "grey.png")
    run(
        "segment",
        tmp_path / "turned.jpg",
        tmp_path / "grey.png",
        "--bank",
        bank_of(folder),
        "--output",
        tmp_path / "made",
    )
    assert Image.open(tmp_path / "made/turned_labels.png").size == (96, 128)
    assert Image.open(tmp_path / "made/grey_labels.png").size == (128, 128)


def test_bank_show_and_add(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run(
        "bank", "show", bank_of(folder), "--output", tmp_path / "sheet.png", capsys=capsys
    )
    assert (
        "sneaker" in printed
        and "3 images" in printed
        and Image.open(tmp_path / "sheet.png").height > 1000
    )
    shards = {
        path.name: path.stat().st_mtime_ns for path in (folder / "cache/references").iterdir()
    }
    photo = np.full((80, 80, 3), 200, np.uint8)
    photo[20:60, 25:55] = (180, 20, 30)
    Image.fromarray(photo).save(tmp_path / "mug.png")
    added = (
        run(
            "bank", "add", bank_of(folder), "--photos", f"mug={tmp_path / 'mug.png'}", capsys=capsys
        )
        .strip()
        .splitlines()[-1]
    )
    manifest = store.read_manifest(added)
    assert manifest.names == ("sneaker", "bag", "mug")
    kept = {path.name: path.stat().st_mtime_ns for path in (folder / "cache/references").iterdir()}
    assert shards.items() <= kept.items()
    Path(added).unlink()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["segment", "none.png", "--classes", "bag"], "none.png: no such image"),
        (["segment", "SCENE"], "--classes"),
        (["segment", "SCENE", "--classes", ""], "blank"),
        (["segment", "SCENE", "--classes", "bag, ,coat"], "blank"),
        (["segment", "SCENE", "--classes", "bag,Bag"], "more than once"),
        (
            ["segment", "SCENE", "--classes", "zebra"],
            "doesn't know 'zebra'; it knows: t-shirt, trouser",
        ),
        (["segment", "SCENE", "--bank", "none.json"], "none.json: no such bank"),
        (
            ["segment", "SCENE", "--bank", "BANK", "--classes", "bag,sneaker"],
            "isn't the bank's list",
        ),
        (["segment", "SCENE", "SCENE", "--classes", "bag"], "same name"),
        (["segment", "SCENE", "--classes", "bag", "--preset", "paper"], "sam_vit_b_01ec64.pth"),
        (["segment"], "at least one image"),
        (["bank", "build"], "at least one class name"),
        (["bank", "build", "--classes", "bag", "--photos", "mug"], "name=file1,file2"),
        (["bank", "build", "--photos", "mug=none.jpg"], "none.jpg: no such image"),
        (["bank", "show", "SCENE"], "not a bank manifest"),
        (["evaluate", "--limit", "0"], "--limit"),
        (["demo", "--scenes", "0"], "--scenes"),
    ],
)
def test_bad_input(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    places = {"SCENE": folder / "scene.png", "BANK": bank_of(folder)}
    extra = (
        ["--cache-dir", tmp_path / "cache"]
        if words[0] == "segment" or words[:2] == ["bank", "build"]
        else []
    )
    assert said in refused(capsys, *(places.get(word, word) for word in words), *extra)
    assert not list(tmp_path.rglob("*.json")) and not list(tmp_path.rglob("*.png"))


def test_a_truncated_image_and_a_damaged_bank(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cut.png").write_bytes((folder / "scene.png").read_bytes()[:3000])
    assert "cut.png" in refused(capsys, "segment", tmp_path / "cut.png", "--classes", "bag")
    manifest = json.loads(bank_of(folder).read_text())
    (tmp_path / "wrong.json").write_text(json.dumps({**manifest, "encoder": "0" * 20}))
    assert "incomplete or damaged" in refused(
        capsys, "segment", folder / "scene.png", "--bank", tmp_path / "wrong.json"
    )
    wrong = bank_of(folder).with_name("wrong.json")
    wrong.write_text(json.dumps({**manifest, "encoder": "0" * 20}))
    try:
        assert "build it again with this preset" in refused(
            capsys, "segment", folder / "scene.png", "--bank", wrong
        )
    finally:
        wrong.unlink()


def test_doctor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("doctor", "--json", tmp_path / "doctor.json", capsys=capsys)
    assert "segment-anything" in printed and "sam_vit_b_01ec64.pth" in printed
    report = json.loads((tmp_path / "doctor.json").read_text())
    assert [item["state"] for item in report["weights"]["mini"]] == ["present"] * 3
    assert [item["state"] for item in report["weights"]["paper"]] == ["missing"] * 3


@pytest.mark.parametrize(
    "command",
    ["", "demo", "segment", "bank", "bank build", "bank show", "bank add", "evaluate", "doctor"],
)
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*command.split(), "--help")
    assert stop.value.code == 0
    assert "Example: rimjax" in capsys.readouterr().out


def test_a_missing_extra_is_named() -> None:
    hide = "import sys; sys.modules['tyro'] = None; sys.argv = ['rimjax', 'doctor']; from rimjax.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hide],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": "."},
    )
    assert (
        done.returncode == 2
        and 'pip install "rimjax[pipeline]"' in done.stderr
        and "Traceback" not in done.stderr
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"settings": {"nope": 1}}, "settings are damaged or another version's"),
        ({"settings": None}, "settings are damaged"),
        ({"shards": [5, 6]}, "not a bank manifest"),
        ({"names": ["bag", "bag"]}, "not a bank manifest"),
    ],
)
def test_a_damaged_manifest_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], damage: dict[str, object], message: str
) -> None:
    broken = folder / "cache" / "banks" / "zz-broken.json"
    broken.write_text(json.dumps(json.loads(bank_of(folder).read_text()) | damage))
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
    image = folder / "scene.png"
    for words, message in (
        (("--output", tmp_path / "plain/x.png"), "no folder that one may write to"),
        (("--json", tmp_path / "folder.png"), "is a folder"),
        (("--output", tmp_path / "x.jpg"), "written as PNG"),
        (("--output", image), "is one of the images"),
    ):
        assert message in refused(capsys, "segment", image, "--bank", bank_of(folder), *words)
    assert "at least one class name" in refused(capsys, "bank", "add", bank_of(folder))
    assert "is a file" in refused(
        capsys, "bank", "build", "--classes", "bag", "--cache-dir", tmp_path / "plain"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder.png", "plain"]


def test_an_image_too_narrow_for_sam_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((10, 3000, 3), np.uint8)).save(tmp_path / "wide.png")
    assert "wide.png: image: 3000x10" in refused(
        capsys, "segment", tmp_path / "wide.png", "--bank", bank_of(folder)
    )
