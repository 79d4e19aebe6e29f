"""Blocks of regions and prototypes change nothing but memory."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import assert_same, cosine_similarity, features, make_bank

from rimjax import match as m
from rimjax.match.classify import MatchOptions, Scalars, classify_regions
from rimjax.match.tiling import Tiling
from rimjax.types import ReferenceBank, Regions


def large_bank(classes=150, prototypes=400):
    """Make a bank larger than a block, with unordered owners and two classes without prototypes."""
    rows, more, (owners,) = (
        *features(31, classes, prototypes),
        np.random.default_rng(32).integers(1, classes - 1, (1, prototypes)),
    )
    return ReferenceBank(jnp.asarray(more), jnp.asarray(owners), jnp.asarray(rows), ())


# Bytes: room for the largest result below, and for eight regions at a time.
LITTLE = 4 * (50 * 400 + 150 * 16) + 4 * 4 * 8 * 150


@pytest.mark.parametrize("num_agents", [4, 7])
def test_blocks_change_no_similarity(num_agents):
    bank = large_bank()
    (regions,) = features(33, 50)
    whole, blocked = (
        m.relation_aware_similarity(
            regions, bank.prototypes, bank.classes, num_agents=num_agents, max_bytes=limit
        )
        for limit in (1 << 30, LITTLE)
    )
    np.testing.assert_allclose(blocked, whole, atol=1e-6)


@pytest.mark.parametrize("candidates", ["all", "agents"])
@pytest.mark.parametrize("similarity", ["relation", "cosine"])
def test_blocks_change_no_class_scores(similarity, candidates):
    bank = large_bank()
    (regions,) = features(34, 50)
    settings = dict(similarity=similarity, candidates=candidates)
    whole, blocked = (
        m.match(regions, bank, max_bytes=limit, **settings) for limit in (1 << 30, LITTLE)
    )
    assert_same(whole, blocked)
    assert (np.asarray(whole.scores)[:, [0, -1]] == -1).all(), (
        "classes without prototypes can't win"
    )
    if similarity == "cosine" and candidates == "all":
        cosines, owners = cosine_similarity(regions, bank.prototypes), np.asarray(bank.owners)
        expected = np.stack(
            [cosines[:, owners == c].mean(axis=1) for c in sorted(set(owners.tolist()))], axis=1
        )
        np.testing.assert_allclose(
            np.asarray(whole.scores)[:, sorted(set(owners.tolist()))], expected, atol=1e-6
        )


def test_the_compiled_program_keeps_to_its_blocks():
    options, tiling = MatchOptions(top_k=5), Tiling(elements=8 * 400)
    lowered = classify_regions.lower(
        jnp.ones((4000, 16)), np.ones(4000, bool), large_bank(), None, Scalars(), options, tiling
    )
    assert measure_temporary(lowered.compile()) < 1 << 20, "P x R would be 6.4 MB, P x C 2.4 MB"


@pytest.mark.parametrize("candidates", ["all", "agents"])
def test_top_k_are_the_best_of_all_the_winner_first(candidates):
    bank = large_bank()
    (regions,) = features(35, 50)
    valid = np.arange(50) != 3
    full = m.match(Regions(regions, None, valid), bank, candidates=candidates)
    for limit in (1 << 30, LITTLE):
        best = m.match(
            Regions(regions, None, valid), bank, candidates=candidates, top_k=6, max_bytes=limit
        )
        np.testing.assert_array_equal(best.labels, full.labels)
        np.testing.assert_array_equal(
            np.asarray(best.classes)[valid, 0], np.asarray(full.labels)[valid]
        )
        picked = np.take_along_axis(np.asarray(full.scores), np.asarray(best.classes), axis=1)
        np.testing.assert_allclose(best.scores, picked, atol=1e-6)
        np.testing.assert_allclose(
            np.sort(best.scores)[:, ::-1], np.sort(full.scores)[:, :-7:-1], atol=1e-6
        )
    assert m.match(regions, make_bank(), top_k=99).scores.shape == (50, 6)


def test_gradients_through_blocks():
    bank = large_bank(classes=140, prototypes=200)
    (regions,) = features(39, 20)
    weights = jnp.asarray(np.random.default_rng(40).normal(size=(20, 200)))

    def gradients(limit):
        def total(*arrays):
            scores = m.relation_aware_similarity(*arrays, num_agents=2, max_bytes=limit)
            return (weights * scores).sum()

        return jax.grad(total, argnums=(0, 1, 2))(
            jnp.asarray(regions), bank.prototypes, bank.classes
        )

    little = (
        4 * (20 * 200 + 140 * 16) + 4 * 4 * 8 * 140
    )  # eight regions, and 128 prototypes, at a time
    for whole, blocked in zip(gradients(1 << 30), gradients(little), strict=True):
        np.testing.assert_allclose(
            blocked, whole, atol=1e-4
        )  # sums of up to 4000 gradients, in another order
        assert np.abs(whole).max() > 1e-2


def measure_temporary(compiled):
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes


class Measured(Exception):
    """Raised instead of a result: bytes of temporary arrays, as compiled."""


@pytest.mark.parametrize(
    ("settings", "times"),
    # XLA decides on its own which operations it fuses, hence the factors; level by level every
    # member's array is gathered anew.
    [
        (dict(num_agents=4), 2),
        (dict(num_agents=7), 3),
        (dict(num_agents=12), 3),
        (dict(similarity="cosine"), 2),
    ],
)
def test_temporary_arrays_keep_to_max_bytes(settings, times, monkeypatch):
    prototypes, classes, rows = (jnp.asarray(part) for part in features(3, 4000, 20, 64))
    bank = replace(
        make_bank(classes=20),
        prototypes=prototypes,
        classes=classes,
        owners=jnp.arange(4000, dtype=jnp.int32) % 20,
    )
    limit = 1_000_000

    def measured(*arguments):
        compiled = classify_regions.lower(*arguments).compile()
        raise Measured(measure_temporary(compiled))

    monkeypatch.setattr(m, "classify_regions", measured)
    with pytest.raises(Measured) as stop:
        m.match(rows, bank, max_bytes=limit, **settings)
    assert 0 < stop.value.args[0] <= times * limit
