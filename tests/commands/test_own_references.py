"""References and words of one's own on the command line, with the real mini models."""

from __future__ import annotations

import re
import shlex
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cli import refused, run
from own_pictures import find_box, find_scene, list_objects, save_documented_files, save_photograph
from PIL import Image

from rimjax import presets
from rimjax.references import store
from rimjax.references.contents import Manifest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/photographs.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```\n(.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("rimjax ")
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the page names."""
    return save_documented_files(tmp_path_factory.mktemp("own"))


def build(capsys: pytest.CaptureFixture[str], *words: object) -> Manifest:
    printed = run("bank", *words, capsys=capsys)
    return store.read_manifest(printed.strip().splitlines()[-1])


def test_the_page_has_each_form_and_the_readme_no_other() -> None:
    section = (ROOT / "README.md").read_text().split("\n## With your own photographs\n")[1]
    readme = section.split("```\n")[1].splitlines()
    assert len(COMMANDS) == 7 and len(readme) == 4 and set(readme) <= set(COMMANDS)


@pytest.mark.parametrize(
    ("command", "expected"),
    zip(
        COMMANDS,
        [
            {"mug": 2},
            {"sneaker": 2, "bag": 2, "mug": 3},
            {"mug": 2},
            {"cup": 2},
            {"mug": 1, "plate": 1},
            {"mug": 1, "sneaker": 2},
            {},
        ],
        strict=True,
    ),
)
def test_the_pages_commands_run(
    pictures: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    expected: dict[str, int],
) -> None:
    monkeypatch.chdir(pictures)
    words = [*shlex.split(command)[1:], "--cache-dir", "cache"]
    printed = run(*words, "--images", "2", "--steps", "2", capsys=capsys)
    if not expected:
        assert (pictures / "photo_labels.png").exists()
        return
    manifest = store.read_manifest(printed.strip().splitlines()[-1])
    counts = {group.name: len(group.foreground) for group in store.read_all_references(manifest)}
    assert counts == expected


def test_the_pages_python_runs(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(pictures)
    monkeypatch.setenv("RIMJAX_CACHE", str(tmp_path))
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    few = partial(presets.load_preset, steps=2)
    monkeypatch.setattr(presets, "load_preset", few)
    space: dict = {}
    exec(code, space)
    assert space["bank"].names == ("background", "mug", "plate", "cup")


def test_an_at_sign_before_numbers_is_a_prompt_and_else_a_name(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = find_scene(1)
    mask = list_objects(scene)[0][1]
    photo = save_photograph(tmp_path / "logo@2x.jpg", scene)
    point = np.argwhere(mask).mean(0)[::-1].round().astype(int)
    box = ",".join(map(str, find_box(mask)))
    cache = ("--cache-dir", tmp_path / "cache")
    words = f"mug={photo},{photo}@{point[0]},{point[1]},{photo}@{box},{pictures}/mug1.jpg"
    (group,) = store.read_all_references(build(capsys, "build", "--photos", words, *cache), True)
    given = np.isfinite(group.points).all(2)
    assert given.tolist() == [[True, False, False], [False, True, True], [True, False, False]]
    for ending, message in (
        ("1,2,3", "photos must have x,y or x0,y0,x1,y1 after the @ of"),
        ("1", "photos must have x,y or x0,y0,x1,y1 after the @ of"),
        ("200,5", "points must lie in the 128x128 image"),
        ("5,5,300,9", "box must lie in the 128x128 image"),
        ("9,9,5,5", "box must be (x0, y0, x1, y1) with x0 < x1"),
    ):
        line = refused(capsys, "bank", "build", "--photos", f"mug={photo}@{ending}", *cache)
        assert message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--photos", "mug=OWN/none"], "none: no such image file"),
        (["--photos", "mug=OWN/none/*.jpg"], "none/*.jpg: no picture in this pattern"),
        (["--photos", "mug=OWN/empty"], "empty: no picture in this folder"),
        (["--photos", "mug=OWN/none.jpg@1,2"], "none.jpg: no such image file"),
        (["--photos", "mug=OWN/mugs@1,2"], "only a file can have a point or box"),
        (["--prompts", "OWN/none.csv"], "none.csv: no such file; expected a CSV"),
        (["--prompts", "OWN/columns.csv"], "its first line must be class,image,x,y"),
        (["--prompts", "OWN/outside.csv"], "points must lie in the 128x128 image"),
        (["--photos", "mug=OWN/size.jpg"], "size.png: mask must have the size of"),
        (["--coco", "OWN/none.json"], "none.json: no such COCO annotation file"),
        (["--coco", "OWN/photo.png"], "photo.png: not a COCO annotation file"),
        (["--coco", "OWN/annotations.json", "--classes", "bag"], "--classes must name a category"),
        (
            ["--coco", "OWN/annotations.json", "--classes", "pan,mug"],
            "none that can be used for pan",
        ),
        (["--prompts", "OWN/twice.csv"], "class names must differ, got more than once: mug"),
        (["--classes", "@OWN/none.txt"], "none.txt: no such file"),
        (["--classes", "bag=a {bag", "--images", "2"], "one pair of braces"),
        (["--classes", "bag=bag|a {bag}|a photo of a bag", "--images", "2"], "--images must be at"),
        (["--photos", "mug=OWN/mugs", "--classes", "mug=cup"], "must have no prompts for 'mug'"),
    ],
)
@pytest.mark.parametrize("command", ["build", "segment"])
def test_bad_input_is_refused_in_a_line(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    words: list[str],
    message: str,
) -> None:
    (pictures / "empty").mkdir(exist_ok=True)
    (pictures / "columns.csv").write_text("class,file,x\nmug,mug1.jpg,1\n")
    (pictures / "twice.csv").write_text("class,image,x,y\nmug,mug1.jpg,1,2\nMUG,mug1.jpg,3,4\n")
    (pictures / "outside.csv").write_text("class,image,x,y\nmug,mug1.jpg,1,128\n")
    save_photograph(pictures / "size.jpg", find_scene(1))
    Image.fromarray(np.eye(9, dtype=bool)).save(pictures / "size.png")
    words = [word.replace("OWN", str(pictures)) for word in words]
    first = ["segment", pictures / "photo.png"] if command == "segment" else ["bank", "build"]
    output = ["--output", tmp_path / "out.png"] if command == "segment" else []
    line = refused(capsys, *first, *words, *output, "--cache-dir", tmp_path / "cache")
    assert message in line
    assert not list(tmp_path.glob("cache/banks/*")) and not (tmp_path / "out.png").exists()


def test_unknown_words_are_refused_before_the_models_are_loaded(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cache = ("--cache-dir", tmp_path)
    bank = build(capsys, "build", "--photos", f"mug={pictures}/mugs", *cache).path
    monkeypatch.setattr("rimjax.commands.options.load_preset", None)
    for words in (
        ("bank", "build", *cache),
        ("bank", "add", bank),
        ("segment", pictures / "photo.png", *cache),
    ):
        for given, word in (
            ("bag,zebra", "zebra"),
            ("bag=a photo of a {zebra}", "zebra"),
            ("bag=a {bag} on a table", "table"),
        ):
            start = time.process_time()
            line = refused(capsys, *words, "--classes", given)
            assert time.process_time() - start < 1
            assert f"ankle boot, got '{word}'; --preset paper draws others" in line


def test_words_and_references_with_a_bank(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache, fast = ("--cache-dir", tmp_path), ("--images", "3", "--steps", "2")
    (tmp_path / "classes.txt").write_text("# ours\nsack=a photo of a blue {bag}|bag\n")
    manifest = build(capsys, "build", "--classes", f"@{tmp_path}/classes.txt", *cache, *fast)
    assert manifest.prompts == {"sack": ("a photo of a blue {bag}", "bag")}
    added = build(capsys, "add", manifest.path, "--coco", pictures / "annotations.json")
    assert added.names == ("sack", "mug", "plate") and added.prompts == manifest.prompts
    photo, out = pictures / "photo.png", ("--output", tmp_path / "out.png")
    run("segment", photo, "--bank", added.path, "--classes", "sack,mug,plate", *out)
    for words, message in (
        (("--photos", f"mug={pictures}/mugs"), "--photos must be left out with --bank"),
        (("--coco", pictures / "annotations.json"), "--coco must be left out with --bank"),
        (("--classes", "sack=coat,mug,plate"), "--classes must have the bank's prompts or none"),
    ):
        assert message in refused(capsys, "segment", photo, "--bank", added.path, *words, *out)
    line = refused(capsys, "segment", photo, "--bank", added.path, "--min-confidence", "0.5", *out)
    assert "--min-confidence must be None with classes such as 'sack' that no confidence" in line
