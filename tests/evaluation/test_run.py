"""`rimjax evaluate` on fakes and a folder of patches: every way to run it counts the same pixels."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cli import refused, run
from fakes import FakeGenerator, fake_models, list_drawn, pick_colour
from PIL import Image

from rimjax.commands import options
from rimjax.datasets import load
from rimjax.evaluation import run_folder
from rimjax.evaluation.run_folder import ImageResult

NAMES = ("apple", "plum", "leaf")
COUNT = 7


@pytest.fixture
def fakes_for_mini(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: fake_models())


pytestmark = pytest.mark.usefixtures("fakes_for_mini")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven images of two patches each, some of them labelled wrongly, some pixels ignored."""
    rng, root = np.random.default_rng(0), tmp_path / "patches"
    (root / "images").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "names.txt").write_text("background\nred fruit: apple\nplum\nleaf\n")
    for index in range(COUNT):
        image, truth = (
            np.full((40 + index, 60, 3), 128, np.uint8),
            np.zeros((40 + index, 60), np.uint8),
        )
        for left, drawn in zip((5, 35), rng.choice(3, 2, replace=False), strict=True):
            image[6:30, left : left + 20] = pick_colour(NAMES[drawn])
            truth[6:30, left : left + 20] = 1 + (drawn if rng.random() < 0.7 else (drawn + 1) % 3)
        truth[rng.random(truth.shape) < 0.1] = 255
        Image.fromarray(image).save(root / f"images/{index}.png")
        Image.fromarray(truth).save(root / f"labels/{index}.png")
    return root


def evaluated(folder: Path, output: Path, *words: object) -> np.ndarray:
    """The confusion matrices of a run, image by image."""
    run(
        "evaluate",
        "--dataset",
        folder,
        "--cache-dir",
        folder.parent / "cache",
        "--output",
        output,
        *words,
    )
    about = json.loads((output / "run.json").read_text())
    return run_folder.summarise_run(about, run_folder._read_results(output)[0]).confusions


def test_a_run_counts_what_a_plain_loop_counts(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    confusions = evaluated(
        folder, tmp_path / "run", "--save-labels", "--json", tmp_path / "out.json"
    )
    assert "red fruit" in capsys.readouterr().out
    expected = np.zeros((COUNT, 4, 4), int)
    for index in range(COUNT):
        truth = np.asarray(Image.open(folder / f"labels/{index}.png")).ravel().tolist()
        found = np.asarray(Image.open(tmp_path / f"run/labels/{index}.png")).ravel().tolist()
        for t, f in zip(truth, found, strict=True):
            if t != 255:
                expected[index, t, f] += 1
    np.testing.assert_array_equal(confusions, expected)
    assert len(np.unique(expected[:, 1:, 1:].sum(0))) > 3, (
        "right and wrong pixels of several classes"
    )
    report = json.loads((tmp_path / "out.json").read_text())
    assert (
        report["num_images"] == COUNT
        and report["bad_images"] == {}
        and report["weights"]["encoder"] == "fake-encoder"
    )
    assert list(report["per_class"]) == ["background", "red fruit", "plum", "leaf"]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from cli import run
from fakes import fake_models
from rimjax.commands import options
from rimjax.evaluation import run_folder
options.load_preset = lambda *args, **options: fake_models()
synced, fsync = [], os.fsync
def kill(handle):
    fsync(handle)
    synced.append(handle)
    if len(synced) == 4:
        os.ftruncate(handle, os.fstat(handle).st_size - 9)
        os.kill(os.getpid(), signal.SIGKILL)
class Os:
    fsync = staticmethod(kill)
run_folder.os = Os
run("evaluate", "--dataset", {folder!r}, "--cache-dir", {cache!r}, "--output", {output!r})
"""


def test_a_run_killed_in_the_middle_of_a_write_goes_on(folder: Path, tmp_path: Path) -> None:
    whole = evaluated(folder, tmp_path / "whole")
    places = {
        "folder": folder,
        "cache": folder.parent / "cache",
        "output": tmp_path / "run",
        "tests": Path(__file__).parents[1],
    }
    script = KILLED.format(**{name: str(place) for name, place in places.items()})
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    torn = (tmp_path / "run/images.jsonl").read_bytes()
    assert torn.count(b"\n") == 3 and not torn.endswith(b"\n")
    np.testing.assert_array_equal(evaluated(folder, tmp_path / "run"), whole)
    lines = (tmp_path / "run/images.jsonl").read_bytes()
    assert lines.startswith(torn[: torn.rindex(b"\n") + 1]) and lines.count(b"\n") == COUNT, (
        "what was done isn't done again"
    )


def test_a_last_line_cut_anywhere_is_dropped(tmp_path: Path) -> None:
    about = {"classes": ["a"], "background": True, "num_images": 2, "shard": None}
    confusions = {"one": np.array([[3, 0], [2**33, 1]]), "two": np.array([[0, 7], [0, 0]])}
    with run_folder.open_run(tmp_path / "run", about) as (_, append):
        for name, confusion in confusions.items():
            append(ImageResult.from_confusion(name, confusion, {"match": 0.25}))
    path = tmp_path / "run/images.jsonl"
    whole = path.read_bytes()
    np.testing.assert_array_equal(
        run_folder.summarise_run(about, run_folder._read_results(tmp_path / "run")[0]).confusions,
        [*confusions.values()],
    )
    first = whole.index(b"\n") + 1
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        with run_folder.open_run(tmp_path / "run", about) as (results, append):
            assert list(results) == (["one"] if cut >= first else [])
            for name in confusions.keys() - results.keys():
                append(ImageResult.from_confusion(name, confusions[name], {"match": 0.25}))
        assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


@pytest.mark.parametrize("count", [2, 3])
def test_merged_shards_are_one_run(folder: Path, tmp_path: Path, count: int) -> None:
    whole = evaluated(folder, tmp_path / "whole", "--json", tmp_path / "whole.json")
    shards = [tmp_path / f"shard-{index}" for index in range(1, count + 1)]
    for index, shard in enumerate(shards, start=1):
        evaluated(folder, shard, "--shard", f"{index}/{count}")
    about, results = run_folder.merge_runs(shards[::-1])
    np.testing.assert_array_equal(run_folder.summarise_run(about, results).confusions, whole)
    run("evaluate", "merge", *shards, "--json", tmp_path / "merged.json")
    one, other = (
        json.loads((tmp_path / name).read_text()) for name in ("whole.json", "merged.json")
    )
    assert one.pop("timings").keys() == other.pop("timings").keys()
    assert one == other


def test_merge_refuses_what_is_no_whole_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(folder, tmp_path / "a", "--shard", "1/2")
    evaluated(folder, tmp_path / "b", "--shard", "2/2", "--num-agents", 2)
    assert "must hold the run's 7 images, got 4" in refused(
        capsys, "evaluate", "merge", tmp_path / "a"
    )
    assert "holds 0, as another" in refused(
        capsys, "evaluate", "merge", tmp_path / "a", tmp_path / "a"
    )
    assert "num_agents: 3 there, 2 here" in refused(
        capsys, "evaluate", "merge", tmp_path / "a", tmp_path / "b"
    )
    assert "no such file" in refused(capsys, "evaluate", "merge", tmp_path / "none")
    assert "at least one" in refused(capsys, "evaluate", "merge")


def test_a_run_goes_on_only_with_its_own_settings_and_bank(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = (
        "evaluate",
        "--dataset",
        folder,
        "--cache-dir",
        tmp_path / "cache",
        "--output",
        tmp_path / "run",
    )
    run(*words)
    before = (tmp_path / "run/images.jsonl").read_bytes()
    assert "other settings (settings.segmentation.num_agents: 3 there, 2 here)" in refused(
        capsys, *words, "--num-agents", 2
    )
    assert "shard: None there, 1/2 here" in refused(capsys, *words, "--shard", "1/2")
    assert "num_images: 7 there, 3 here" in refused(capsys, *words, "--limit", 3)
    drawing = fake_models()
    monkeypatch.setattr(
        drawing.generator,
        "generate",
        lambda name, count, seed: FakeGenerator().generate(name, count, seed + 1),
    )
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: drawing)
    assert "(bank: " in refused(capsys, *words[:3], "--cache-dir", tmp_path / "other", *words[5:])
    assert (tmp_path / "run/images.jsonl").read_bytes() == before


def test_a_bad_image_is_counted_and_named_and_mended_by_the_next_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = evaluated(folder, tmp_path / "whole")
    good = {
        path: path.read_bytes()
        for path in (folder / "images/2.png", folder / "labels/4.png", folder / "labels/5.png")
    }
    (folder / "images/2.png").write_bytes(good[folder / "images/2.png"][:60])
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(folder / "labels/4.png")
    Image.fromarray(np.zeros((45, 60, 3), np.uint8)).save(folder / "labels/5.png")
    capsys.readouterr()
    found = evaluated(folder, tmp_path / "run", "--json", tmp_path / "out.json")
    np.testing.assert_array_equal(found, whole[[0, 1, 3, 6]])
    said = capsys.readouterr().err
    assert (
        "3 of 7 images could not be used: 2, 4, 5" in said
        and "labels must have the image's size 60x44, got 6x5" in said
    )
    bad = json.loads((tmp_path / "out.json").read_text())["bad_images"]
    assert "truncated" in bad["2"] and "got 8-bit RGB" in bad["5"]
    for path, content in good.items():
        path.write_bytes(content)
    np.testing.assert_array_equal(evaluated(folder, tmp_path / "run"), whole)


def test_bad_input(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("evaluate", "--cache-dir", tmp_path / "cache", "--dataset")
    assert "--dataset must be fashion-scenes, voc" in refused(capsys, *words, "cityscapes")
    assert "--data must be the folder that holds voc" in refused(capsys, *words, "voc")
    assert "SegmentationContext/val.txt: no such file" in refused(
        capsys, *words, "context", "--data", tmp_path
    )
    assert '--shard must be "i/n"' in refused(
        capsys, *words, folder, "--shard", "0/2", "--output", tmp_path / "run"
    )
    assert "--output must be given with --shard" in refused(
        capsys, *words, folder, "--shard", "1/2"
    )
    run("bank", "build", "--classes", "apple,plum", "--cache-dir", tmp_path / "cache")
    bank = next((tmp_path / "cache/banks").glob("*.json"))
    assert "--bank must hold the classes of patches, got others (leaf)" in refused(
        capsys, *words, folder, "--bank", bank
    )
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    assert "isn't the folder of a run" in refused(
        capsys, *words, folder, "--output", tmp_path / "full"
    )
    Image.fromarray(np.full((42, 60), 4, np.uint8)).save(folder / "labels/2.png")
    assert (
        "2: labels must lie in [0, 3], the classes of patches, or be 255 where ignored, got 4"
        in refused(capsys, *words, folder)
    )
    for path in (folder / "images").iterdir():
        path.write_bytes(b"")
    (folder / "labels/2.png").write_bytes((folder / "labels/1.png").read_bytes())
    assert "no image could be used; 0" in refused(capsys, *words, folder)


def test_two_processes_do_not_write_to_one_run(tmp_path: Path) -> None:
    about = {"classes": ["a"], "background": True, "num_images": 1, "shard": None}
    with (
        run_folder.open_run(tmp_path, about),
        pytest.raises(ValueError, match="another process"),
        run_folder.open_run(tmp_path, about),
    ):
        pass


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    about = {"classes": ["a"], "background": True, "num_images": 1, "shard": None}
    with run_folder.open_run(tmp_path, about) as (_, append):
        append(ImageResult("one"))
    with (tmp_path / "images.jsonl").open("ab") as file:
        file.write(b"\0\0\0\n")
    with pytest.raises(ValueError, match="line 2 is damaged"), run_folder.open_run(tmp_path, about):
        pass


def test_the_folder_is_a_data_set(folder: Path) -> None:
    dataset = load(str(folder))
    assert (
        dataset.classes == ("red fruit", "plum", "leaf")
        and dataset.prompts == ("apple", "plum", "leaf")
        and len(dataset.items) == COUNT
    )


@pytest.mark.parametrize(
    "part",
    [
        '"cells":[[9,9,1]]',
        '"cells":[[-1,0,1]]',
        '"cells":[[0,1]]',
        '"cells":5',
        '"image":["0"]',
        '"timings":[1]',
    ],
)
def test_a_line_that_is_json_but_no_result_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str
) -> None:
    evaluated(folder, tmp_path / "run")
    path = tmp_path / "run/images.jsonl"
    whole = path.read_bytes()
    line = json.loads(whole.splitlines()[0]) | json.loads("{" + part + "}")
    path.write_bytes(json.dumps(line).encode() + b"\n" + whole.split(b"\n", 1)[1])
    words = (
        "evaluate",
        "--dataset",
        folder,
        "--cache-dir",
        folder.parent / "cache",
        "--output",
        tmp_path / "run",
    )
    for command in (words, ("evaluate", "merge", tmp_path / "run")):
        assert "line 1 is damaged; delete that line" in refused(capsys, *command)


def test_a_wrong_output_is_refused_before_anything_is_drawn(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evaluated(folder, tmp_path / "run")
    models = fake_models()
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: models)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/one.txt").touch()
    words = ("evaluate", "--dataset", folder, "--cache-dir", tmp_path / "empty", "--output")
    assert "isn't the folder of a run" in refused(capsys, *words, tmp_path / "notes")
    assert "is a file" in refused(capsys, *words, tmp_path / "notes/one.txt")
    assert "other settings" in refused(capsys, *words, tmp_path / "run", "--num-agents", 2)
    assert not list_drawn(models)
