"""Whoever changes a step's output must raise the step's version, or caches serve stale results.

If a test here fails because an output changed on purpose: raise the step's number in
`rimjax.files.STEP_VERSIONS`, then record the new number and digest below. After training mini anew
record the digests alone: caches know models by their weights.
"""

from __future__ import annotations

import numpy as np
import pytest

import rimjax
from rimjax.datasets import load
from rimjax.files import STEP_VERSIONS
from rimjax.match import match
from rimjax.models.protocols import Models
from rimjax.steps.assemble import paint, vote
from rimjax.steps.cluster import cluster_prototypes
from rimjax.steps.localise import cut_foreground
from rimjax.steps.pool import pool_regions
from rimjax.steps.whiten import fit_whitening
from rimjax.types import ReferenceBank

RECORDED: dict[str, tuple[int, list[float]]] = {
    "draw": (1, [0.2902, 0.349, 0.3922, 1.0, 1.0, 1.0, 0.2382, 0.4079, 0.7522, 0.7277]),
    "localise": (1, [0.8177, 48.0, 69.0, 58.0, 64.0, 42.0, 55.0, 68.0, 56.0, 48.0, 78.0]),
    "propose": (1, [0.7053, 0.1294, 0.1202, 0.1139, 0.1124, 0.0847, 0.0824, 0.07]),
    "encode": (1, [0.379, 0.5856, -0.115, -0.8004, 0.1981, -0.345]),
    "pool": (1, [0.2878, 0.1853, 0.0257, -0.2192, 0.255, -0.0905, 0.2194, 0.2076]),
    "cluster": (1, [-0.2147, 0.6749, 0.3855, -0.1148, -0.4959, -0.3184, 0.998, 0.0213, 0.6006]),
    "whiten": (1, [3.2672, -0.05, -0.0421, 0.7926, -0.05, 2.8336, 0.2612, -0.1806]),
    "match": (1, [0.9221, 0.5215, 0.4339, 0.032, 0.6676, 0.5229, 0.0093, 0.0069]),
    "assemble": (1, [1, 1, 3, 3, 1, 2, 3, 3, 2, 2, 3, 3, 2, 1, 1, 1]),
}
TOLERANCE = 5e-3  # rounding on other machines stays far below


@pytest.fixture(scope="module")
def models() -> Models:
    return rimjax.load_preset("mini", steps=2)


def run_step(step: str, models: Models) -> list[float]:
    """Return some numbers of a step's output on a fixed input."""
    image = load("fashion-scenes").items[0].image()
    if step == "draw":
        drawing = models.generator.generate("bag", 1, 0)
        return [*drawing.images[0, 20:40:10, 32].ravel() / 255, *drawing.attention[0, 3, :4]]
    if step == "localise":
        distance = np.hypot(*np.mgrid[-4:5, -4:5]).astype(np.float32)
        foreground = cut_foreground(
            image,
            distance.max() - distance,
            lambda image, points: image[..., 0] > 99,
            rng=np.random.default_rng(0),
        )
        return [foreground.mask.mean(), *foreground.points.ravel()]
    if step == "propose":
        return [mask.mean() for mask in models.proposer.propose(image).masks]
    if step in ("cluster", "whiten", "match", "assemble"):
        return run_step_after_models(step)
    features = models.encoder.encode(image)
    if step == "encode":
        return [*features[3, 4, :6]]
    masks = image.transpose(2, 0, 1) > 120
    return [*np.asarray(pool_regions(features, masks).features)[:2, :4].ravel()]


def run_step_after_models(step: str) -> list[float]:
    rows = np.random.default_rng(0).normal(size=(12, 8)).astype(np.float32)
    if step == "cluster":
        return [*cluster_prototypes(rows, 3)[:, :3].ravel()]
    if step == "whiten":
        return [*np.asarray(fit_whitening([rows[:6], rows[6:]], ridge=0.5).matrix)[:2, :4].ravel()]
    if step == "match":
        bank = ReferenceBank.create(rows[4:], range(8), rows[4:], ["background", *"abcdefg"])
        return [*np.asarray(match(rows[:4], bank).scores)[:, :2].ravel()]
    masks = np.zeros((3, 4, 4), bool)
    masks[0], masks[1, 1:, 1:], masks[2, :3, 2:] = True, True, True
    scores = np.abs(rows[:3, :4])
    labels = paint(masks, [1, 2, 3], (4, 4)), vote(masks, scores, (4, 4))
    return [*np.concatenate(labels)[::2].ravel()]


@pytest.mark.parametrize("step", STEP_VERSIONS)
def test_a_changed_output_has_a_new_version(step: str, models: Models) -> None:
    version, numbers = RECORDED[step]
    same = run_step(step, models) == pytest.approx(numbers, abs=TOLERANCE)
    assert version == STEP_VERSIONS[step] and same, (
        f"the output of {step!r} changed: raise its version in rimjax.files.STEP_VERSIONS, "
        "then record it here"
    )
