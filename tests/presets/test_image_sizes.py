"""Images of many sizes: few compilations, and hardly more time than images of a single size."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from PIL import Image

import rimjax
from rimjax.datasets import fashion_scenes
from rimjax.models.protocols import Models
from rimjax.types import ReferenceBank

COMPILED = "/jax/core/compile/backend_compile_duration"
SIDES = (100, 400)
BOUND = 60
"""25 pairs of padded side lengths from 128 to 512, a few padded numbers of regions, the rest."""


@contextmanager
def count_compilations() -> Iterator[list[str]]:
    """Yield a list that receives an entry for each compilation."""
    compiled: list[str] = []

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event == COMPILED:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


@pytest.fixture(scope="module")
def models() -> Models:
    return rimjax.load_preset("mini")


@pytest.fixture(scope="module")
def bank(models: Models, tmp_path_factory: pytest.TempPathFactory) -> ReferenceBank:
    settings = rimjax.ReferenceSettings(num_images=3)
    cache = tmp_path_factory.mktemp("cache")
    return rimjax.build_bank(["sneaker", "bag"], models, settings=settings, cache_dir=cache)


def draw_sizes(count: int) -> list[tuple[int, int]]:
    """Draw `count` different sizes (W, H)."""
    rng, sizes = np.random.default_rng(0), dict[tuple[int, int], None]()
    while len(sizes) < count:
        width, height = rng.integers(*SIDES, size=2)
        sizes[int(width), int(height)] = None
    return list(sizes)


def segment_scenes(sizes: list[tuple[int, int]], bank: ReferenceBank, models: Models) -> float:
    """Segment a scene at each size, from a cold start; return the seconds."""
    jax.clear_caches()
    scenes = list(fashion_scenes.render_benchmark(100))
    images = [
        np.asarray(Image.fromarray(scenes[index % 100].image).resize(size))
        for index, size in enumerate(sizes)
    ]
    start = time.monotonic()
    for image in images:
        seg = rimjax.segment(image, bank, models)
        assert seg.labels.shape == image.shape[:2]
    return time.monotonic() - start


def test_compilations_are_bounded_whatever_the_sizes(bank: ReferenceBank, models: Models) -> None:
    with count_compilations() as compiled:
        segment_scenes(draw_sizes(60), bank, models)
    assert 0 < len(compiled) <= BOUND


@pytest.mark.slow
def test_300_images_of_300_sizes_take_the_time_of_300_images_of_a_single_size(
    bank: ReferenceBank, models: Models
) -> None:
    sizes = draw_sizes(300)
    side = round(np.mean([width * height for width, height in sizes]) ** 0.5)
    single = segment_scenes([(side, side)] * 300, bank, models)
    with count_compilations() as compiled:
        seconds = segment_scenes(sizes, bank, models)
    print(f"{len(compiled)} compilations; {seconds / single:.2f} times of {single:.1f} s")
    assert len(compiled) <= BOUND
    assert seconds <= 1.2 * single
