"""kill -9 at random moments: the result is the same, and at most a unit a kill is done again."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest
import trees
import workers
from PIL import Image


def check_resumes(
    work: workers.Work, tmp_path: Path, robust: int, seed: int
) -> list[tuple[Path, Path]]:
    """Kill work `robust` times, up to 3 times in a row, and finish it here.

    Returns:
        The folder of an undisturbed run, and of each disturbed run.
    """
    whole, rng = tmp_path / "whole", random.Random(seed)
    whole.mkdir()
    seconds = workers.measure(work, whole)
    kills, pairs = 0, []
    while kills < robust:
        folder = tmp_path / f"killed-{len(pairs)}"
        folder.mkdir()
        here = 0
        for _ in range(rng.randint(1, 3)):
            here += workers.kill_at_random(work, folder, seconds, rng)
        work(folder)
        begun = Counter(workers.read_log(folder))
        assert begun.keys() == Counter(workers.read_log(whole)).keys()
        again = sum(begun.values()) - sum(Counter(workers.read_log(whole)).values())
        assert 0 <= again <= here, f"{here} kills, {again} units done again: {begun}"
        kills += here
        pairs.append((whole, folder))
    print(f"{kills} kills")
    return pairs


@pytest.mark.parametrize("work", [workers.build, workers.store_regions])
def test_killed_work_resumes(work: workers.Work, tmp_path: Path, robust: int) -> None:
    for whole, folder in check_resumes(work, tmp_path, robust, seed=0):
        assert workers.read_tree(folder) == workers.read_tree(whole)
        shutil.rmtree(folder)


def test_a_killed_evaluation_resumes(
    tmp_path: Path, robust: int, capfd: pytest.CaptureFixture[str]
) -> None:
    data = trees.write_noisy_folder(tmp_path / "patches", "background\napple\nplum\nleaf\n")
    workers.evaluate(data, tmp_path)  # builds the bank
    work = workers.bind_evaluation(data)
    for whole, folder in check_resumes(work, tmp_path, robust, seed=1):
        cells = []
        for run in (whole / "run", folder / "run"):
            lines = [json.loads(line) for line in (run / "images.jsonl").read_text().splitlines()]
            assert len(lines) == trees.NUM_NOISY
            cells.append({line["image"]: line["cells"] for line in lines})
            for image in cells[0]:
                Image.open(run / f"labels/{image}.png").load()
        assert cells[0] == cells[1]
        trees_of_labels = [workers.read_tree(run / "run/labels") for run in (whole, folder)]
        assert trees_of_labels[0] == trees_of_labels[1]
        shutil.rmtree(folder)
