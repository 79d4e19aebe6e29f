"""Work for other processes on one folder: it logs each unit that it begins, and can be killed."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from cli import run
from fakes import FakeEncoder, FakeGenerator, FakeProposer, fake_models
from scenes import make_scene

import rimjax
from rimjax.commands import options
from rimjax.models.protocols import Generated, Models, Proposals
from rimjax.regions.extract import encode_regions
from rimjax.regions.store import RegionStore
from rimjax.types import Regions

NAMES = ("apple", "plum", "leaf", "sky")
Work = Callable[[Path], None]
"""Works in a folder; begun again after a kill, it goes on."""


def log(folder: Path, unit: str) -> None:
    """Append a line to the folder's log of the units that were begun."""
    with (folder / "log").open("a") as file:
        file.write(f"{unit}\n")


def read_log(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


class LoggedGenerator(FakeGenerator):
    """Logs each class that it draws."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def generate(self, class_name: str, num_images: int, seed: int) -> Generated:
        log(self.folder, class_name)
        return super().generate(class_name, num_images, seed)


class LoggedProposer(FakeProposer):
    """Logs each image that it proposes regions of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def propose(self, image: np.ndarray) -> Proposals:
        log(self.folder, f"propose {image.sum()}")
        return super().propose(image)


def make_models(folder: Path) -> Models:
    models = fake_models()
    object.__setattr__(models, "generator", LoggedGenerator(folder))
    object.__setattr__(models, "proposer", LoggedProposer(folder))
    return models


def build(folder: Path) -> None:
    """Build a bank of four classes."""
    rimjax.build_bank(NAMES, make_models(folder), cache_dir=folder / "cache")


def make_images() -> list[np.ndarray]:
    return [np.roll(make_scene()[0], 3 * index, axis=1) for index in range(6)]


def store_regions(folder: Path) -> None:
    """Store the regions of six images."""
    encoder = FakeEncoder()

    def encode(image: np.ndarray, masks: np.ndarray, timings: dict[str, float]) -> Regions:
        log(folder, f"pool {image.sum()}")
        return encode_regions(encoder, image, masks, timings)

    store = RegionStore(folder / "regions", LoggedProposer(folder), encode, "fake")
    for index, image in enumerate(make_images()):
        image[0, 0] = index  # images differ in their sum, which the log names
        store.load(image)


def evaluate(data: Path, folder: Path) -> None:
    """Evaluate a folder of images with a run that resumes."""
    words = ("--cache-dir", data.parent / "cache", "--output", folder / "run", "--save-labels")
    with mock.patch.object(options, "load_preset", lambda *args, **options: make_models(folder)):
        run("evaluate", "--dataset", data, *words)


def run_quietly(work: Work, folder: Path, ready: Any) -> None:
    """Say that the work begins, and do it without printing."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    ready.send("ready")
    ready.recv()
    work(folder)


def start(work: Work, folder: Path) -> tuple[Any, Any]:
    """Start work in a process of its own, and wait until it is about to begin.

    Its parent has imported everything, which takes seconds, but hasn't started JAX, whose threads
    would not survive a fork.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rimjax.commands.main", "rimjax.regions.store", "sklearn"])
    ours, theirs = context.Pipe()
    process = context.Process(target=run_quietly, args=(work, folder, theirs))
    process.start()
    assert ours.recv() == "ready"
    return process, ours


def measure(work: Work, folder: Path) -> float:
    """Do the work in a process of its own; return its seconds."""
    process, channel = start(work, folder)
    begin = time.monotonic()
    channel.send("go")
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - begin


def kill_at_random(work: Work, folder: Path, seconds: float, rng: random.Random) -> bool:
    """Start the work and kill it within so many seconds; return whether it was still at work."""
    process, channel = start(work, folder)
    channel.send("go")
    time.sleep(rng.uniform(0, seconds))
    process.kill()
    process.join()
    assert process.exitcode in (0, -9), process.exitcode
    return process.exitcode == -9


def read_tree(folder: Path) -> dict[str, bytes]:
    """Return the content of a folder's files, without what kills left behind, logs and locks."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    relative = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: path.read_bytes()
        for name, path in relative.items()
        if ".rimjax-tmp-" not in name and not name.endswith(("log", ".lock"))
    }


def bind_evaluation(data: Path) -> Work:
    return partial(evaluate, data)
