"""Models keep nothing between calls, so threads get what one gets; and they can be copied."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import rimjax
from rimjax.presets import load_image_text

THREADS, ROUNDS = 4, 3
NAMES = ("bag", "coat", "ankle boot", "dress")


def make_image(index: int) -> np.ndarray:
    """Return a noisy image with a bright square of its own."""
    image = np.random.default_rng(index).integers(0, 80, (64, 48 + 8 * index, 3), np.uint8)
    image[10 : 30 + 4 * index, 8:40] += 150
    return image


POINT = np.array([[20, 20]], np.float32)
CALLS: dict[str, tuple[Callable[[], Any], Callable[[Any, int], Any]]] = {
    "masker": (
        lambda: rimjax.load_preset("mini").masker,
        lambda masker, index: masker.mask(make_image(index), POINT),
    ),
    "proposer": (
        lambda: rimjax.load_preset("mini").proposer,
        lambda proposer, index: tuple(proposer.propose(make_image(index))),
    ),
    "maskformer": (
        lambda: rimjax.load_preset("mini", proposer="mini-maskformer").proposer,
        lambda proposer, index: tuple(proposer.propose(make_image(index))),
    ),
    "encoder": (
        lambda: rimjax.load_preset("mini").encoder,
        lambda encoder, index: (encoder.encode(make_image(index)),),
    ),
    "UNet": (
        lambda: rimjax.load_preset("mini", encoder="mini-unet").encoder,
        lambda encoder, index: (encoder.encode(make_image(index)),),
    ),
    "prompts": (
        lambda: rimjax.load_preset("mini").generator,
        lambda generator, index: generator.model.prompts.encode(NAMES[index]),
    ),
    "CLIP": (
        lambda: load_image_text("mini"),
        lambda matcher, index: (matcher.embed_texts(NAMES[: 1 + index]),),
    ),
}
"""Load a model; call it for image or name 0 to 3."""


@pytest.mark.parametrize("name", CALLS)
def test_threads_get_what_one_gets(name: str) -> None:
    load, call = CALLS[name]
    model = load()
    torch.set_num_threads(1)
    with ThreadPoolExecutor(THREADS) as pool:  # at first use too, when some models are loaded
        together = list(pool.map(lambda index: call(model, index % 4), range(THREADS * ROUNDS)))
    alone = [call(model, index) for index in range(4)]
    for index, results in enumerate(together):
        for ours, theirs in zip(results, alone[index % 4], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def _pickle(models: Any) -> Any:
    return pickle.loads(pickle.dumps(models))


@pytest.mark.parametrize(
    ("duplicate", "encoder"),
    [(_pickle, "mini"), (copy.deepcopy, "mini"), (_pickle, "mini-unet")],
)
def test_used_models_can_be_copied(duplicate: Callable[[Any], Any], encoder: str) -> None:
    models = rimjax.load_preset("mini", encoder=encoder, proposer="mini-maskformer")
    image = make_image(0)
    mask, features = models.masker.mask(image, POINT), models.encoder.encode(image)
    regions = models.proposer.propose(image)
    models.generator.check("bag")
    copied = duplicate(models)
    assert copied.masker is not models.masker
    assert (copied.name, copied.references) == (models.name, models.references)
    for stage in ("generator", "masker", "proposer", "encoder"):
        assert getattr(copied, stage).fingerprint == getattr(models, stage).fingerprint
    np.testing.assert_array_equal(copied.masker.mask(image, POINT), mask)
    np.testing.assert_array_equal(copied.encoder.encode(image), features)
    np.testing.assert_array_equal(copied.proposer.propose(image).masks, regions.masks)
    copied.generator.check("bag")


def test_sams_proposer_and_clip_can_be_copied() -> None:
    proposer, matcher = rimjax.load_preset("mini").proposer, load_image_text("mini")
    masks = proposer.propose(make_image(1)).masks
    np.testing.assert_array_equal(_pickle(proposer).propose(make_image(1)).masks, masks)
    texts = matcher.embed_texts(["a bag"])
    np.testing.assert_array_equal(_pickle(matcher).embed_texts(["a bag"]), texts)
