"""`rimjax evaluate` on fakes and a folder of patches: pixels counted, runs resumed and refused."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trees
from cli import refused, run
from fakes import FakeGenerator, fake_models, list_drawn
from PIL import Image
from runs import read_confusions
from scenes import as_exif

from rimjax import datasets, files
from rimjax.commands import class_options, options
from rimjax.datasets import load
from rimjax.evaluation import run_folder
from rimjax.sealed import seal, unseal

COUNT = trees.NUM_NOISY


@pytest.fixture(autouse=True)
def fakes_for_mini(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: fake_models())
    monkeypatch.setattr(class_options, "check_words", lambda *args: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = "background\nred fruit: apple\nplum\nleaf\n"
    return trees.write_noisy_folder(tmp_path / "patches", names)


@pytest.fixture
def evaluate(folder: Path) -> tuple[object, ...]:
    """The command that evaluates the folder; the run's folder comes last."""
    cache_dir = folder.parent / "cache"
    return ("evaluate", "--dataset", folder, "--cache-dir", cache_dir, "--output")


@pytest.mark.parametrize("name", ["run.json", "images.jsonl", "labels/0.png"])
def test_figures_never_replace_a_runs_own_files(
    evaluate: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    output = tmp_path / "run"
    words = (*evaluate, output, "--save-labels", "--json", output / name)
    assert "--json must not be a file of the run" in refused(capsys, *words)
    assert not output.exists()
    run(*evaluate, output, "--save-labels")
    before = (output / name).read_bytes()
    refused(capsys, *words)
    refused(capsys, "evaluate", "merge", output, "--json", output / name)
    assert (output / name).read_bytes() == before


def test_figures_replace_only_figures(
    folder: Path, evaluate: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = folder / "names.txt"
    before = names.read_bytes()
    line = refused(capsys, *evaluate, tmp_path / "run", "--json", names)
    assert "names.txt: exists, and rimjax didn't write it; choose another name" in line
    assert "--overwrite" not in line and names.read_bytes() == before
    for _ in range(2):  # its own figures are replaced
        run(*evaluate, tmp_path / "run", "--json", tmp_path / "out.json")


def test_a_run_counts_what_a_plain_loop_counts(
    folder: Path, evaluate: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, file = tmp_path / "run", tmp_path / "out.json"
    printed = run(*evaluate, output, "--save-labels", "--json", file, capsys=capsys)
    assert "red fruit" in printed
    expected = np.zeros((COUNT, 4, 4), int)
    for index, confusion in enumerate(expected):
        paths = folder / f"labels/{index}.png", output / f"labels/{index}.png"
        truth, prediction = (np.asarray(Image.open(path)).ravel().tolist() for path in paths)
        for true, predicted in zip(truth, prediction, strict=True):
            if true != 255:
                confusion[true, predicted] += 1
    np.testing.assert_array_equal(read_confusions(output), expected)
    different = np.unique(expected[:, 1:, 1:].sum(0))
    assert len(different) > 3, "right and wrong pixels of several classes"
    report = json.loads(file.read_text())
    assert report["num_images"] == COUNT and report["bad_images"] == {}
    assert report["weights"]["encoder"] == "fake-encoder"
    assert list(report["per_class"]) == ["background", "red fruit", "plum", "leaf"]


KILLED = """
import os, signal, sys
from types import SimpleNamespace
sys.path.insert(0, {tests!r})
from cli import run
from fakes import fake_models
from rimjax.commands import options
from rimjax.evaluation import run_folder
options.load_preset = lambda *args, **options: fake_models()
synced = []
def sync(handle):
    os.fsync(handle)
    synced.append(handle)
    if len(synced) == 4:
        os.ftruncate(handle, os.fstat(handle).st_size - 9)
        os.kill(os.getpid(), signal.SIGKILL)
run_folder.os = SimpleNamespace(fsync=sync)
run(*{command!r})
"""


def test_a_run_killed_in_the_middle_of_a_write_resumes(
    evaluate: tuple[object, ...], tmp_path: Path
) -> None:
    run(*evaluate, tmp_path / "whole")
    command = [str(word) for word in (*evaluate, tmp_path / "run")]
    script = KILLED.format(tests=str(Path(__file__).parents[1]), command=command)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    torn = (tmp_path / "run/images.jsonl").read_bytes()
    assert torn.count(b"\n") == 3 and not torn.endswith(b"\n")
    run(*command)
    np.testing.assert_array_equal(
        read_confusions(tmp_path / "run"), read_confusions(tmp_path / "whole")
    )
    lines, finished = (tmp_path / "run/images.jsonl").read_bytes(), torn[: torn.rindex(b"\n") + 1]
    assert lines.startswith(finished), "finished images aren't evaluated again"
    assert lines.count(b"\n") == COUNT


@pytest.mark.parametrize("count", [2, 3])
def test_merged_shards_equal_a_single_run(
    evaluate: tuple[object, ...], tmp_path: Path, count: int
) -> None:
    run(*evaluate, tmp_path / "whole", "--json", tmp_path / "whole.json")
    shards = [tmp_path / f"shard-{index}" for index in range(1, count + 1)]
    for index, shard in enumerate(shards, start=1):
        run(*evaluate, shard, "--shard", f"{index}/{count}")
    expected = read_confusions(tmp_path / "whole")
    np.testing.assert_array_equal(read_confusions(*shards[::-1]), expected)
    run("evaluate", "merge", *shards, "--json", tmp_path / "merged.json")
    whole, merged = (
        json.loads((tmp_path / name).read_text()) for name in ("whole.json", "merged.json")
    )
    stages = {"load", "match", "assemble"}  # the shards found their regions stored
    assert merged.pop("timings").keys() == stages < whole.pop("timings").keys()
    assert whole == merged


def test_merge_refuses_shards_that_are_no_whole_run(
    evaluate: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = tmp_path / "a", tmp_path / "b"
    run(*evaluate, shards[0], "--shard", "1/2")
    run(*evaluate, shards[1], "--shard", "2/2", "--num-agents", 2)
    merge = ("evaluate", "merge")
    assert "must hold the run's 7 images, got 4" in refused(capsys, *merge, shards[0])
    assert "holds 0, as another" in refused(capsys, *merge, shards[0], shards[0])
    assert "num_agents must be 3, got 2" in refused(capsys, *merge, *shards)
    assert "no such file" in refused(capsys, *merge, tmp_path / "none")
    assert "at least one" in refused(capsys, *merge)


def test_a_run_resumes_only_with_its_own_settings_and_bank(
    folder: Path,
    evaluate: tuple[object, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "run"
    run(*evaluate, output)
    before = (output / "images.jsonl").read_bytes()
    line = refused(capsys, *evaluate, output, "--num-agents", 2)
    assert "other settings (settings.segmentation.num_agents must be 3, got 2)" in line
    line = refused(capsys, *evaluate, output, "--shard", "1/2")
    assert "shard must be None, got 1/2" in line
    assert "num_images must be 7, got 3" in refused(capsys, *evaluate, output, "--limit", 3)
    models, generator = fake_models(), FakeGenerator()
    monkeypatch.setattr(
        models.generator,
        "generate",
        lambda name, count, seed: generator.generate(name, count, seed + 1),
    )
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: models)
    elsewhere = ("--cache-dir", tmp_path / "elsewhere", "--output", output)
    assert "(bank must be " in refused(capsys, "evaluate", "--dataset", folder, *elsewhere)
    assert (output / "images.jsonl").read_bytes() == before


def test_a_run_resumes_only_with_the_same_versions_of_the_steps(
    evaluate: tuple[object, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(*evaluate, tmp_path / "run")
    monkeypatch.setitem(files.STEP_VERSIONS, "match", 2)
    assert "steps.match must be 1, got 2" in refused(capsys, *evaluate, tmp_path / "run")


def test_results_without_a_description_are_not_resumed(
    evaluate: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*evaluate, tmp_path / "run")
    (tmp_path / "run/run.json").unlink()
    assert "holds results but no run.json" in refused(capsys, *evaluate, tmp_path / "run")


def test_a_full_disk_is_named_and_the_run_resumes(
    evaluate: tuple[object, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fill(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "os", SimpleNamespace(fsync=fill))
        line = refused(capsys, *evaluate, tmp_path / "run")
    assert f"{tmp_path}/run/images.jsonl: can't be written (No space left on device)" in line
    assert "the results of 0 images are kept, and the same command resumes the run" in line
    run(*evaluate, tmp_path / "run")


@pytest.mark.parametrize(
    "left", [(), ("run.lock",), ("run.lock", "images.jsonl"), ("run.lock", "images.jsonl", "TMP")]
)
def test_a_run_killed_while_it_was_beginning_goes_on(
    evaluate: tuple[object, ...], tmp_path: Path, left: tuple[str, ...]
) -> None:
    (tmp_path / "run").mkdir()
    for name in left:
        (tmp_path / "run" / name.replace("TMP", f"{files._PREFIX}0.json")).touch()
    run(*evaluate, tmp_path / "run")
    assert read_confusions(tmp_path / "run").any()


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_drawn(
    evaluate: tuple[object, ...],
    unwritable: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = fake_models()
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: models)
    assert "run: can't be written (" in refused(capsys, *evaluate, unwritable / "run")
    assert not list_drawn(models)


def test_labels_of_many_classes_are_written_with_16_bits(
    folder: Path,
    evaluate: tuple[object, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset = load(str(folder))
    more = tuple(f"class {index}" for index in range(300))
    many = replace(dataset, classes=(*more, *dataset.prompts), aliases={}, items=dataset.items[:1])
    monkeypatch.setattr(datasets, "load", lambda *args: many)
    monkeypatch.setattr(files, "_sync", lambda path: None)  # 300 classes take seconds otherwise
    run(*evaluate, tmp_path / "run", "--save-labels")
    with Image.open(tmp_path / "run/labels/0.png") as labels:
        assert labels.mode == "I;16" and 300 < np.asarray(labels).max() <= 303


@pytest.mark.parametrize("name", ["run.json", "images.jsonl"])
def test_deeply_nested_json_is_named_in_one_line(
    evaluate: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run(*evaluate, tmp_path / "run")
    (tmp_path / "run" / name).write_text("[" * 100_000 + "]" * 100_000 + "\n")
    assert f"{name}: " in refused(capsys, *evaluate, tmp_path / "run")


def test_bad_images_are_named_and_evaluated_again_by_the_next_run(
    folder: Path, evaluate: tuple[object, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(*evaluate, tmp_path / "whole")
    whole = read_confusions(tmp_path / "whole")
    truncated, small, coloured = (
        folder / name for name in ("images/2.png", "labels/4.png", "labels/5.png")
    )
    contents = {path: path.read_bytes() for path in (truncated, small, coloured)}
    truncated.write_bytes(contents[truncated][:60])
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(small)
    Image.fromarray(np.zeros((45, 80, 3), np.uint8)).save(coloured)
    capsys.readouterr()
    output, file = tmp_path / "run", tmp_path / "out.json"
    run(*evaluate, output, "--json", file)
    np.testing.assert_array_equal(read_confusions(output), whole[[0, 1, 3, 6]])
    printed = capsys.readouterr().err
    assert "3 of 7 images could not be used: 2, 4, 5" in printed
    assert "labels must have the image's size 80x44, got 6x5" in printed
    bad_images = json.loads(file.read_text())["bad_images"]
    assert "truncated" in bad_images["2"] and "got 8-bit RGB" in bad_images["5"]
    for path, content in contents.items():
        path.write_bytes(content)
    run(*evaluate, output)
    np.testing.assert_array_equal(read_confusions(output), whole)


def test_damaged_exif_and_failing_decoders_end_no_run(
    folder: Path,
    evaluate: tuple[object, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(*evaluate, tmp_path / "whole")
    whole = read_confusions(tmp_path / "whole")
    with Image.open(folder / "images/2.png") as picture:
        turned = Image.fromarray(np.rot90(np.asarray(picture)))
    turned.save(folder / "images/2.png", exif=as_exif(6, broken=True))
    failing = (folder / "images/4.png", folder / "labels/5.png")
    open_image = Image.open

    def fail(path: Path, *rest: object) -> Image.Image:
        if path in failing:
            raise NotImplementedError("as the decoders of DDS and others")
        return open_image(path)

    monkeypatch.setattr(Image, "open", fail)
    run(*evaluate, tmp_path / "run")
    np.testing.assert_array_equal(read_confusions(tmp_path / "run"), whole[[0, 1, 2, 3, 6]])
    assert "2 of 7 images could not be used: 4, 5" in capsys.readouterr().err


def test_bad_options_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = ("evaluate", "--cache-dir", tmp_path / "cache", "--dataset")
    assert "--dataset must be fashion-scenes, voc" in refused(capsys, *evaluate, "cityscapes")
    assert "--data must be the folder that holds voc" in refused(capsys, *evaluate, "voc")
    line = refused(capsys, *evaluate, "context", "--data", tmp_path)
    assert "SegmentationContext/val.txt: no such file" in line
    line = refused(capsys, *evaluate, folder, "--shard", "0/2", "--output", tmp_path / "run")
    assert '--shard must be "i/n"' in line
    line = refused(capsys, *evaluate, folder, "--shard", "1/2")
    assert "--output must be given with --shard" in line
    run("bank", "build", "--classes", "apple,plum", "--cache-dir", tmp_path / "cache")
    bank = next((tmp_path / "cache/banks").glob("*.json"))
    line = refused(capsys, *evaluate, folder, "--bank", bank)
    assert "--bank must hold the classes of patches, got a bank without leaf" in line
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").touch()
    line = refused(capsys, *evaluate, folder, "--output", tmp_path / "full")
    assert "isn't the folder of a run" in line


def test_bad_labels_and_images_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate = ("evaluate", "--cache-dir", tmp_path / "cache", "--dataset", folder)
    labels = folder / "labels/2.png"
    before = labels.read_bytes()
    Image.fromarray(np.full((42, 80), 4, np.uint8)).save(labels)
    rule = "labels must lie in [0, 3], the classes of patches, or be 255 where ignored"
    assert f"2: {rule}, got 4" in refused(capsys, *evaluate)
    labels.write_bytes(before)
    for path in (folder / "images").iterdir():
        path.write_bytes(b"")
    assert "no image could be used; 0" in refused(capsys, *evaluate)


def test_the_folder_is_a_data_set(folder: Path) -> None:
    dataset = load(str(folder))
    assert dataset.classes == ("red fruit", "plum", "leaf")
    assert dataset.prompts == ("apple", "plum", "leaf") and len(dataset.items) == COUNT


@pytest.mark.parametrize(
    "field",
    [
        {"cells": [[9, 9, 1]]},
        {"cells": [[-1, 0, 1]]},
        {"cells": [[0, 1]]},
        {"cells": 5},
        {"image": ["0"]},
        {"timings": [1]},
    ],
    ids=str,
)
def test_a_line_that_is_json_but_no_result_is_named(
    evaluate: tuple[object, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    field: dict[str, object],
) -> None:
    output = tmp_path / "run"
    run(*evaluate, output)
    path = output / "images.jsonl"
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(json.dumps(seal(unseal(first) | field)).encode() + b"\n" + rest)
    for command in ((*evaluate, output), ("evaluate", "merge", output)):
        assert "line 1 is damaged; delete that line" in refused(capsys, *command)


def test_a_wrong_output_is_refused_before_anything_is_drawn(
    folder: Path,
    evaluate: tuple[object, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(*evaluate, tmp_path / "run")
    models = fake_models()
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: models)
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "notes.txt").touch()
    cache_dir = tmp_path / "empty"
    evaluate = ("evaluate", "--dataset", folder, "--cache-dir", cache_dir, "--output")
    assert "isn't the folder of a run" in refused(capsys, *evaluate, notes)
    assert "is a file" in refused(capsys, *evaluate, notes / "notes.txt")
    assert "other settings" in refused(capsys, *evaluate, tmp_path / "run", "--num-agents", 2)
    assert not list_drawn(models)
