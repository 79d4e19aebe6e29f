"""`rimjax segment` on fakes: images one after another, many classes, files that aren't rimjax's."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli import refused, run
from fakes import FakeEncoder, fake_models, list_drawn, pick_colour
from PIL import Image
from scenes import NAMES, make_scene

from rimjax import files
from rimjax.commands import class_options, options, segment, segment_bank
from rimjax.datasets.dataset import READ_AHEAD
from rimjax.models.memory import BatchLimit
from rimjax.models.protocols import Models

TESTS = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch) -> Models:
    models = fake_models()
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: models)
    monkeypatch.setattr(class_options, "check_words", lambda *args: None)
    return models


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with good images a and c, and a broken one between them."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "c"):
        Image.fromarray(make_scene()[0]).save(f"{name}.png")
    Path("b.png").write_bytes(Path("a.png").read_bytes()[:60])
    return tmp_path


IMAGES = ("segment", "a.png", "b.png", "c.png", "--classes", ",".join(NAMES), "--cache-dir", "k")


def check_labels(path: str) -> None:
    with Image.open(path) as labels:
        np.testing.assert_array_equal(np.asarray(labels), make_scene()[1])


def test_a_broken_image_is_listed_and_the_others_are_segmented(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*IMAGES, "--json", "out.json")
    assert stop.value.code == 1
    for name in ("a", "c"):
        check_labels(f"{name}_labels.png")
        assert Path(f"{name}_segmented.png").is_file()
    assert not Path("b_labels.png").exists()
    report = json.loads(Path("out.json").read_text())
    assert [result["image"] for result in report["results"]] == ["a.png", "c.png"]
    assert list(report["bad_images"]) == ["b.png"]
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("rimjax: 1 of 3 images could not be used: b.png: unreadable")


def test_stop_on_error_ends_at_the_first_bad_image(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, *IMAGES, "--stop-on-error", "--json", "out.json")
    assert "b.png: unreadable or truncated" in line
    check_labels("a_labels.png")
    assert not Path("c_labels.png").exists()
    assert len(json.loads(Path("out.json").read_text())["results"]) == 1


def test_no_bank_is_drawn_where_no_image_is_good(
    folder: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("segment", "b.png", "none.png", "--classes", "apple", "--cache-dir", "k")
    line = refused(capsys, *words, status=1)
    assert "2 of 2 images could not be used: b.png: unreadable" in line
    assert "none.png: no such image file" in line and not list_drawn(models)


def test_few_images_are_read_ahead_and_results_are_written_meanwhile(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    from_read, from_segment, ahead, behind = segment.read_image, segment.segment, [], []

    def read(path: Path) -> np.ndarray:
        reads.append(path)
        return from_read(path)

    def count(*args: Any) -> object:
        ahead.append(len(reads) - 1 - len(ahead))  # the first image is read once more, before
        behind.append(len(ahead) - 1 - len(list(folder.glob("many*_labels.png"))))
        return from_segment(*args)

    monkeypatch.setattr(segment, "read_image", read)
    monkeypatch.setattr(segment, "segment", count)
    for index in range(12):
        shutil.copy("a.png", f"many{index:02}.png")
    run("segment", "many*.png", *IMAGES[4:], "--jobs", "1")
    assert len(ahead) == 12 and max(ahead) <= READ_AHEAD + 1 and max(behind) <= 3
    for index in range(12):
        check_labels(f"many{index:02}_labels.png")


def test_what_was_done_before_a_stop_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(image: np.ndarray) -> None:
        raise KeyboardInterrupt

    from_segment = segment.segment

    def segment_first(image: np.ndarray, *rest: Any) -> object:
        monkeypatch.setattr(segment, "segment", lambda *args: stop(image))
        return from_segment(image, *rest)

    monkeypatch.setattr(segment, "segment", segment_first)
    with pytest.raises(SystemExit) as ended:
        run("segment", "a.png", "c.png", *IMAGES[4:], "--json", "out.json")
    assert ended.value.code == 130
    check_labels("a_labels.png")
    assert len(json.loads(Path("out.json").read_text())["results"]) == 1


def test_labels_of_300_classes_are_a_16_bit_png(
    folder: Path, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(models.references, num_images=1, num_subcategories=1)
    small = replace(models, references=settings)
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: small)
    monkeypatch.setattr(files, "_sync", lambda path: None)  # 300 classes take seconds otherwise
    names = [f"thing {index}" for index in range(300)]
    image = np.full((40, 80, 3), 128, np.uint8)
    for index, name in enumerate(names[-8:]):
        image[5:35, 10 * index : 10 * index + 8] = pick_colour(name)
    Image.fromarray(image).save("a.png")
    run("segment", "a.png", "--classes", ",".join(names), "--cache-dir", "k", "--json", "out.json")
    with Image.open("a_labels.png") as picture:
        assert picture.mode == "I;16"
        labels = np.asarray(picture)
    assert labels.max() > 255
    report = json.loads(Path("out.json").read_text())
    for index, name in enumerate(report["names"]):
        assert report["results"][0]["shares"][name] == pytest.approx((labels == index).mean())


def test_more_classes_than_a_png_can_hold_are_refused_before_the_work(
    folder: Path,
    models: Models,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(segment_bank, "MOST_CLASSES", 2)
    line = refused(capsys, *IMAGES)
    assert "--classes must be at most 2" in line and not list_drawn(models)


@pytest.mark.parametrize("name", ["a_labels.png", "a_segmented.png", "out.json"])
@pytest.mark.parametrize("kind", ["own", "rubbish"])
def test_files_that_rimjax_did_not_write_stay_unless_told(
    folder: Path, models: Models, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    words = ("segment", "a.png", *IMAGES[4:], "--json", "out.json")
    if kind == "own" and name.endswith(".png"):
        Image.new("L", (60, 40), 1).save(name)
    else:
        Path(name).write_text('{"mine": 1}' if kind == "own" else "rubbish")
    before = Path(name).read_bytes()
    line = refused(capsys, *words)
    assert f"{name}: exists, and rimjax didn't write it" in line and "--overwrite" in line
    assert Path(name).read_bytes() == before and not list_drawn(models)
    run(*words, "--overwrite")
    assert Path(name).read_bytes() != before
    run(*words)  # its own files are replaced


def test_an_image_is_never_overwritten(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Path("a.png").read_bytes()
    words = ("segment", "a.png", *IMAGES[4:], "--output", "a.png", "--overwrite")
    assert "must not overwrite an image" in refused(capsys, *words)
    words = ("segment", "a.png", *IMAGES[4:], "--json", "a_labels.png")
    assert "--json must be a file of its own, and so must" in refused(capsys, *words)
    assert Path("a.png").read_bytes() == before


def test_a_banks_manifest_is_never_replaced(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("bank", "build", *IMAGES[4:])
    bank = next((folder / "k/banks").glob("*.json"))
    before = bank.read_bytes()
    words = ("segment", "a.png", "--bank", bank, "--json", bank)
    for line in (refused(capsys, *words), refused(capsys, *words, "--overwrite")):
        assert f"{bank}: must not be replaced, a bank or run needs it" in line
    assert bank.read_bytes() == before


def test_a_contact_sheet_replaces_only_its_own_kind(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("bank", "build", *IMAGES[4:])
    bank = next((folder / "k/banks").glob("*.json"))
    Path("bank.png").write_bytes(Path("a.png").read_bytes())
    assert "bank.png: exists, and rimjax didn't" in refused(capsys, "bank", "show", bank)
    run("bank", "show", bank, "--overwrite")
    run("bank", "show", bank)


def test_a_name_too_long_for_the_results_is_refused_before_the_work(
    folder: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{'x' * 245}.png"
    Path("a.png").rename(name)
    assert "File name too long" in refused(capsys, "segment", name, *IMAGES[4:])
    assert not list_drawn(models)


def test_a_dark_image_is_said_to_be_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(make_scene()[0] // 32).save("dark.png")
    run("segment", "dark.png", *IMAGES[4:])
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("rimjax: warning: dark.png: the picture is")]


def test_memory_that_runs_out_is_said_on_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The device is asked for 128 TiB by every image beyond the references."""

    class Large(FakeEncoder):
        def encode(self, image: np.ndarray) -> np.ndarray:
            if image.shape != make_scene()[0].shape:  # a reference
                return super().encode(image)
            allocate = jax.jit(lambda x: jnp.broadcast_to(x, (2**45,)))
            limit = BatchLimit("encoding images", "choose a smaller encoder")
            return limit.run(lambda start, size: np.asarray(allocate(0.0)), 1, batch_size=2)[0]

    large = fake_models()
    object.__setattr__(large, "encoder", Large())
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: large)
    with pytest.raises(SystemExit) as stop:
        run("segment", "a.png", *IMAGES[4:])
    lines = [line for line in capsys.readouterr().err.splitlines() if "memory" in line]
    assert stop.value.code == 2 and lines == [
        "rimjax: warning: encoding images ran out of the device's memory in a batch of 2; "
        "batches are now of 1",
        "rimjax: encoding images needs more memory than the device has free, even one at a time; "
        "choose a smaller encoder",
    ]


ASCII = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]  # tests/ported_weights would hide the package
from cli import run
from fakes import fake_models
from rimjax.commands import class_options, options
class_options.check_words = lambda *args: None
options.load_preset = lambda *args, **options: fake_models()
run("segment", "a.png", "--classes", "\\u82f9\\u679c,apple", "--cache-dir", "k", "--json", "o.json")
"""


def test_a_name_that_the_terminal_cannot_show_ends_no_run(folder: Path) -> None:
    image = make_scene()[0]
    image[5:30, 22:37] = pick_colour("苹果")  # so that the name is printed
    Image.fromarray(image).save("a.png")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONIOENCODING": "ascii"}
    script = ASCII.format(root=str(TESTS.parent), tests=str(TESTS))
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert rb"\u82f9\u679c" in done.stdout
    assert json.loads(Path("o.json").read_text(encoding="utf-8"))["names"][1] == "苹果"
