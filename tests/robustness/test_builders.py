"""Many builders in one cache folder at once: each gets the same bank, and no file is damaged."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import workers
from fakes import fake_models

import rimjax
from rimjax.evaluation.run_folder import ImageResult, open_run
from rimjax.models.vit_encoder import load_vit
from rimjax.models.weight_record import find_damaged
from rimjax.references import store
from rimjax.weights.convert import convert

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The cache of a single builder."""
    folder = tmp_path_factory.mktemp("alone")
    workers.build(folder)
    return workers.read_tree(folder / "cache")


def check_cache(cache: Path, expected: dict[str, bytes]) -> None:
    assert workers.read_tree(cache) == expected
    assert not list(cache.rglob(".rimjax-tmp-*")), "every loser has tidied up"
    (manifest,) = (cache / "banks").glob("*.json")
    for group in store.read_all_references(store.read_manifest(manifest), pictures=True):
        assert group.images is not None


def run_at_once(works: Sequence[threading.Thread]) -> None:
    for thread in works:
        thread.start()
    for thread in works:
        thread.join()


@pytest.mark.parametrize("count", [2, 8])
def test_builders_of_other_processes(
    tmp_path: Path, robust: int, expected: dict[str, bytes], count: int
) -> None:
    for index in range(max(1, robust // 8)):  # each starts processes
        folder = tmp_path / str(index)
        folder.mkdir()
        started = [workers.start(workers.build, folder) for _ in range(count)]
        for _, channel in started:
            channel.send("go")
        for process, _ in started:
            process.join()
        assert [process.exitcode for process, _ in started] == [0] * count
        check_cache(folder / "cache", expected)


@pytest.mark.parametrize("count", [2, 8])
def test_builders_of_other_threads(
    tmp_path: Path, robust: int, expected: dict[str, bytes], count: int
) -> None:
    for index in range(robust):
        barrier, cache, banks = threading.Barrier(count), tmp_path / str(index), []

        def build(barrier: threading.Barrier, cache: Path, banks: list) -> None:
            models, generate = fake_models(), fake_models().generator.generate

            def wait(name: str, num_images: int, seed: int) -> object:
                barrier.wait(60)  # all have found nothing, and write the same class at once
                return generate(name, num_images, seed)

            models.generator.generate = wait  # pyright: ignore[reportAttributeAccessIssue]
            banks.append(rimjax.build_bank(workers.NAMES, models, cache_dir=cache))

        arguments = (barrier, cache, banks)
        run_at_once([threading.Thread(target=build, args=arguments) for _ in range(count)])
        assert len(banks) == count
        for bank in banks:
            np.testing.assert_array_equal(bank.prototypes, banks[0].prototypes)
        check_cache(cache, expected)


CONTAINER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import workers
assert os.getpid() == 1, os.getpid()
folder = Path({folder!r})
(folder / sys.argv[1]).touch()
while len(list(folder.glob("ready*"))) < 2:
    time.sleep(0.001)
workers.build(folder)
"""


def can_unshare() -> bool:
    try:
        return not subprocess.run(
            ["unshare", "--pid", "--fork", "true"], capture_output=True
        ).returncode
    except OSError:
        return False


@pytest.mark.skipif(not can_unshare(), reason="`unshare --pid --fork` isn't allowed here")
def test_builders_that_are_both_process_1(
    tmp_path: Path, robust: int, expected: dict[str, bytes]
) -> None:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    for index in range(max(1, robust // 8)):  # each starts Python twice
        folder = tmp_path / str(index)
        folder.mkdir()
        script = CONTAINER.format(tests=str(TESTS), folder=str(folder))
        command = ["unshare", "--pid", "--fork", sys.executable, "-c", script]
        processes = [
            subprocess.Popen([*command, f"ready{number}"], env=environment, stderr=subprocess.PIPE)
            for number in range(2)
        ]
        for process in processes:
            _, errors = process.communicate()
            assert process.returncode == 0, errors.decode()
        check_cache(folder / "cache", expected)


def test_a_run_has_one_writer_among_threads(tmp_path: Path, robust: int) -> None:
    description = {"classes": ["a"], "background": True, "num_images": 1, "shard": None}
    for index in range(3 * robust):
        folder, barrier, refusals = tmp_path / str(index), threading.Barrier(8), []

        def write(folder: Path, barrier: threading.Barrier, refusals: list) -> None:
            barrier.wait(60)
            try:
                with open_run(folder, description) as (_, append):
                    append(ImageResult("image"))
            except ValueError as error:
                refusals.append(str(error))

        arguments = (folder, barrier, refusals)
        run_at_once([threading.Thread(target=write, args=arguments) for _ in range(8)])
        assert len(refusals) < 8 and not [x for x in refusals if "another process is" not in x]
        lines = (folder / "images.jsonl").read_text().splitlines()
        assert len(lines) == 8 - len(refusals) and len(set(lines)) == 1
        assert not list(folder.glob(".rimjax-tmp-*"))


def test_ported_weights_have_one_writer_among_threads(tmp_path: Path, robust: int) -> None:
    """Four sources for one destination: its content and its record come from the same."""
    import torch
    from published import dinov2_state

    sources = []
    for index in range(4):
        state = {name: tensor + index for name, tensor in dinov2_state().items()}
        torch.save(state, tmp_path / f"{index}.pth")
        sources.append(tmp_path / f"{index}.pth")
    for index in range(max(1, robust // 8)):  # each reads and writes whole models
        barrier, refusals = threading.Barrier(4), []
        destination = tmp_path / f"ported-{index}.safetensors"

        def port(
            barrier: threading.Barrier, refusals: list, destination: Path, source: Path
        ) -> None:
            barrier.wait(60)
            try:
                convert("dinov2", source, destination)
            except ValueError as error:
                refusals.append(str(error))

        arguments = (barrier, refusals, destination)
        run_at_once([threading.Thread(target=port, args=(*arguments, file)) for file in sources])
        assert len(refusals) == 3, "the first has won"
        words = ("another process is writing it", "exists already")
        assert all(any(word in text for word in words) for text in refusals)
        load_vit(destination)
        assert find_damaged(destination) == []
        assert len(list(tmp_path.glob(f"*ported-{index}*"))) == 2, "weights and record"
