"""Classes that may not win: left out by `allowed`, by `candidates`, or without prototypes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import count_compilations, features, make_bank

from rimjax import match as m
from rimjax.match.classify import TIE
from rimjax.types import ReferenceBank, Regions, pad_regions

BANK = make_bank(50, classes=12, per_class=40)
ALLOWED = np.arange(12) % 3 != 0  # without the background and others
VALID = np.arange(30) != 7
REGIONS = Regions(features(51, 30)[0], None, VALID)
SETTINGS: list[dict[str, Any]] = [
    {},
    dict(candidates="agents"),
    dict(similarity="cosine"),
    dict(measure="kl", score_map="exp", candidates="agents"),
    dict(num_agents=7),
    dict(max_bytes=4 * (32 * 12 + 12 * 16) + 4 * 4 * 8 * 16),  # eight regions at a time
]


def choose_lowest_of_the_best(scores, may_win):
    """Return the labels that the tie rule gives: -1 where no class may win."""
    in_play = np.where(may_win, scores, -np.inf)
    best = may_win & (in_play >= in_play.max(axis=1, keepdims=True) - TIE)
    return np.where(best.any(axis=1), best.argmax(axis=1), -1)


@pytest.mark.parametrize("settings", SETTINGS)
def test_allowed_takes_the_rest_out_of_the_plain_scores(settings):
    plain = m.match(REGIONS, BANK, **settings)
    result = m.match(REGIONS, BANK, allowed=ALLOWED, **settings)
    scores = np.asarray(plain.scores)
    excluded = -np.inf if settings.get("measure") == "kl" else -1
    may_win = ALLOWED[None] & np.ones_like(scores, bool)
    if settings.get("candidates") == "agents":
        may_win &= (np.arange(12) == np.asarray(plain.agents)[:, :, None]).any(axis=1)
    expected = np.where(may_win, scores, excluded)
    np.testing.assert_allclose(np.asarray(result.scores)[VALID], expected[VALID], atol=1e-6)
    labels = choose_lowest_of_the_best(np.asarray(result.scores), may_win)
    np.testing.assert_array_equal(result.labels, np.where(VALID, labels, -1))
    np.testing.assert_array_equal(result.agents, plain.agents)
    assert not np.asarray(result.scores)[~VALID].any()
    assert (np.asarray(plain.labels) != np.asarray(result.labels)).any()  # else this shows nothing


@pytest.mark.parametrize("settings", SETTINGS)
def test_top_k_leaves_the_rest_last(settings):
    full = m.match(REGIONS, BANK, allowed=ALLOWED, **settings)
    best = m.match(REGIONS, BANK, allowed=ALLOWED, top_k=12, **settings)
    assert best.classes is not None
    classes, scores = np.asarray(best.classes)[VALID], np.asarray(best.scores)[VALID]
    won = np.asarray(full.labels)[VALID] >= 0
    np.testing.assert_array_equal(best.labels, full.labels)
    np.testing.assert_array_equal(classes[won, 0], np.asarray(full.labels)[VALID][won])
    picked = np.take_along_axis(np.asarray(full.scores)[VALID], classes, axis=1)
    np.testing.assert_allclose(scores, picked, atol=1e-6)
    in_play = scores > (-np.inf if settings.get("measure") == "kl" else -1)
    assert (np.diff(in_play.astype(int), axis=1) <= 0).all(), "allowed classes come first"
    assert in_play.sum(axis=1).max() <= ALLOWED.sum()


def test_ties_go_to_the_lowest_allowed_class():
    classes = np.eye(4, dtype=np.float32)
    names = ("background", "a", "b", "twin of b")
    bank = ReferenceBank.create(classes[[0, 1, 2, 2]], np.arange(4), classes, names)
    region = classes[2:3]
    assert m.match(region, bank).labels.tolist() == [2]
    allowed = np.array([True, True, False, True])
    best = m.match(region, bank, allowed=allowed, top_k=4)
    assert best.labels.tolist() == [3] and best.classes is not None
    assert best.classes.tolist()[0][0] == 3 and best.classes.tolist()[0][-1] == 2
    zero = np.zeros((1, 4), np.float32)  # cosine 0 to everything
    assert m.match(zero, bank, allowed=np.arange(4) > 1).labels.tolist() == [2]


def test_a_region_for_which_no_class_may_win_gets_no_label():
    rows = np.eye(3, 8, dtype=np.float32)
    bank = ReferenceBank.create(rows, np.arange(3), rows, ("background", "a", "b"))
    allowed = np.array([False, True, True])
    won = m.match(rows, bank, allowed=allowed, candidates="agents", num_agents=1)
    np.testing.assert_array_equal(won.labels, [-1, 1, 2])
    np.testing.assert_array_equal(won.scores[0], [-1, -1, -1])


def test_a_class_without_prototypes_never_wins():
    """Where it is the region's only agent, no class does."""
    rows = np.eye(3, 8, dtype=np.float32)
    bank = ReferenceBank(np.repeat(rows[1:], 2, axis=0), np.array([1, 1, 2, 2]), rows, ())
    won = m.match(rows, bank, candidates="agents", num_agents=1)
    np.testing.assert_array_equal(won.labels, [-1, 1, 2])
    np.testing.assert_array_equal(won.scores[0], [-1, -1, -1])


def test_masks_are_traced_and_need_no_compilation_of_their_own():
    plain = m.match(REGIONS, BANK, allowed=ALLOWED)
    before = count_compilations()
    other = m.match(REGIONS, BANK, allowed=~ALLOWED)
    assert count_compilations() == before
    compiled = jax.jit(lambda allowed: m.match(REGIONS, BANK, allowed=allowed).labels)
    np.testing.assert_array_equal(compiled(ALLOWED), plain.labels)
    masks = jnp.stack([ALLOWED, ~ALLOWED])
    labels = jax.vmap(lambda allowed: m.match(REGIONS, BANK, allowed=allowed).labels)(masks)
    np.testing.assert_array_equal(labels, [plain.labels, other.labels])
    assert (np.asarray(compiled(np.zeros(12, bool))) == -1).all()  # a trace can't be looked at


def test_padding_changes_nothing():
    plain = m.match(REGIONS, BANK, allowed=ALLOWED)
    padded = m.match(pad_regions(REGIONS, 64), BANK, allowed=jnp.asarray(ALLOWED))
    np.testing.assert_array_equal(padded.labels[:30], plain.labels)
    assert (np.asarray(padded.labels)[30:] == -1).all()
