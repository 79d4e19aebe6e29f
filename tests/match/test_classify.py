"""Regions against references (Eq. 6-10), compared with a float64 oracle that enumerates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from oracle import (
    TOLERANCE,
    cosine_similarity,
    features,
    make_bank,
    oracle_relation,
    oracle_similarity,
)

from rimjax import match as m
from rimjax.match.readings import READINGS, Reading
from rimjax.types import ReferenceBank


@pytest.mark.parametrize("method", ["lattice", "enumerate"])
@pytest.mark.parametrize(
    ("score_map", "temperature"), [("clip", 0.1), ("exp", 0.1), ("exp", 1.0), ("shift", 0.1)]
)
def test_relation_equals_the_oracle(score_map, temperature, method):
    arrays = features(0, 5, 7, 9)
    got = m.relation_aware_similarity(
        *arrays, score_map=score_map, temperature=temperature, method=method
    )
    # A cosine's rounding of 1e-7 grows by up to 1/temperature in the exponent, and where clip cuts
    # near 0.
    np.testing.assert_allclose(
        got, oracle_relation(*arrays, score_map=score_map, temperature=temperature), atol=1e-4
    )


@pytest.mark.parametrize("n", range(1, 8))
def test_labels_equal_the_oracles(n):
    bank = make_bank(n, classes=8, per_class=2)
    (regions,) = features(100 + n, 8 if n < 6 else 3)
    scores = (
        oracle_relation(regions, bank.prototypes, bank.classes, num_agents=n)
        .reshape(len(regions), 8, 2)
        .mean(axis=2)
    )
    got = m.match(regions, bank, num_agents=n)
    np.testing.assert_allclose(got.scores, scores, atol=1e-4)
    if n > 1:  # a single agent has a single ranking: all classes tie
        ordered = np.sort(scores, axis=1)
        clear = ordered[:, -1] - ordered[:, -2] > 1e-5
        assert clear.any()
        np.testing.assert_array_equal(np.asarray(got.labels)[clear], scores.argmax(axis=1)[clear])


def test_a_low_temperature_neither_overflows_nor_vanishes():
    """Weights differ by up to 2^87: plain exp(c / 0.01) overflows, and exp((c - 1) / 0.01) is 0."""
    classes = np.eye(4, dtype=np.float32)
    region = np.array([[0.10, 0.12, 0.08, 0.11]], np.float32) - 0.5
    got = m.relation_aware_similarity(region, region, classes, score_map="exp", temperature=0.01)
    np.testing.assert_allclose(got, 1, atol=TOLERANCE)
    other = m.relation_aware_similarity(
        region, region[:, ::-1], classes, score_map="exp", temperature=0.01
    )
    np.testing.assert_allclose(
        other,
        oracle_relation(region, region[:, ::-1], classes, score_map="exp", temperature=0.01),
        atol=1e-4,
    )


def test_scale_type_and_class_order_change_nothing():
    regions, prototypes, classes = features(3, 6, 10, 5)
    got = m.relation_aware_similarity(regions, prototypes, classes)
    np.testing.assert_allclose(
        m.relation_aware_similarity(regions * 1e25, prototypes * 1e-25, classes), got, atol=1e-4
    )
    np.testing.assert_allclose(
        m.relation_aware_similarity(regions, prototypes, classes[::-1]), got, atol=1e-4
    )


def test_low_precision_inputs_are_computed_in_float32():
    bank = make_bank()
    short = jnp.asarray(features(3, 8)[0], jnp.bfloat16)
    got, expected = (m.match(rows, bank) for rows in (short, np.asarray(short, np.float32)))
    assert got.scores.dtype == jnp.float32
    np.testing.assert_allclose(got.scores, expected.scores, atol=TOLERANCE)
    np.testing.assert_array_equal(got.labels, expected.labels)


def test_top_k_starts_with_the_label_where_scores_tie():
    classes = np.eye(4, dtype=np.float32)
    bank = ReferenceBank.create(
        classes[[0, 1, 2, 2]], np.arange(4), classes, ("background", "a", "b", "twin of b")
    )
    best = m.match(classes[2:3], bank, top_k=2)
    assert best.labels.tolist() == [2]
    assert best.classes is not None and best.classes.tolist() == [[2, 3]]


@pytest.mark.parametrize("measure", ["bhattacharyya", "pearson", "kl"])
def test_measures_of_regions_equal_the_oracle(measure):
    arrays = features(36, 5, 7, 9)
    got = m.relation_aware_similarity(*arrays, measure=measure, score_map="shift")
    # A cosine's rounding of 1e-7, over the weights' differences of 0.1 that pearson measures
    np.testing.assert_allclose(
        got, oracle_relation(*arrays, measure=measure, score_map="shift"), atol=1e-4
    )


def test_a_class_that_may_not_win_is_below_every_divergence():
    bank = make_bank(37, classes=12, per_class=1)
    (regions,) = features(38, 8)
    result = m.match(regions, bank, measure="kl", candidates="agents", num_agents=2)
    is_agent = (np.arange(12) == np.asarray(result.agents)[:, :, None]).any(axis=1)
    assert (
        np.isneginf(np.asarray(result.scores)[~is_agent]).all()
        and np.isfinite(np.asarray(result.scores)[is_agent]).all()
    )
    assert is_agent[np.arange(8), result.labels].all()


def test_agents_are_the_nearest_class_references_best_first():
    bank = make_bank(5)
    (regions,) = features(6, 8)
    cosines = cosine_similarity(regions, bank.classes)
    np.testing.assert_array_equal(
        m.match(regions, bank).agents, np.argsort(-cosines, axis=1)[:, :4]
    )


def test_more_agents_than_classes_become_all_classes():
    bank = make_bank(7, classes=3)
    (regions,) = features(8, 5)
    capped, exact = m.match(regions, bank, num_agents=9), m.match(regions, bank, num_agents=3)
    assert capped.agents.shape == (5, 3)
    np.testing.assert_array_equal(capped.scores, exact.scores)


def test_ties_go_to_the_lowest_index():
    classes = np.eye(4, dtype=np.float32)
    bank = ReferenceBank.create(classes, np.arange(4), classes, ("background", "a", "b", "c"))
    zero = m.match(np.zeros((1, 4), np.float32), bank)  # cosine 0 to everything
    np.testing.assert_array_equal(zero.agents, [[0, 1, 2, 3]])
    assert zero.labels.tolist() == [0]
    assert m.match(np.ones((1, 4), np.float32), bank, num_agents=2).agents.tolist() == [[0, 1]]
    twin = ReferenceBank.create(
        classes[[0, 1, 2, 2]], np.arange(4), classes, ("background", "a", "b", "twin of b")
    )
    assert m.match(classes[2:3], twin).labels.tolist() == [2]
    assert m.match(*[classes[3:], bank], num_agents=1).labels.tolist() == [
        0
    ]  # a single agent has a single ranking: everything ties


def test_zero_vectors_have_finite_gradients():
    _, prototypes, classes = features(9, 1, 6, 5)
    total = lambda *arrays: m.relation_aware_similarity(*arrays, num_agents=2).sum()  # noqa: E731
    gradients = jax.grad(total, argnums=(0, 1, 2))(
        jnp.zeros((2, 16)), prototypes * (np.arange(6) > 2)[:, None], classes
    )
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("score_map", ["clip", "exp", "shift"])
def test_gradients_through_features(score_map):
    regions, prototypes, classes = (
        jnp.abs(jnp.asarray(a)) for a in features(10, 2, 3, 2, dim=6)
    )  # clear of clip's kink at 0

    def function(r, p, c):
        return m.relation_aware_similarity(
            r, p, c, num_agents=2, score_map=score_map, temperature=0.5
        )

    check_grads(
        function,
        (regions, prototypes, classes),
        order=1,
        modes=("rev",),
        eps=1e-2,
        atol=1e-2,
        rtol=1e-2,
    )


def test_cosine_mode_is_plain_cosine_matching():
    bank = make_bank(11)
    (regions,) = features(12, 20)
    expected = cosine_similarity(regions, bank.prototypes).reshape(20, 6, 3).mean(axis=2)
    got = m.match(regions, bank, num_agents=1, similarity="cosine")
    np.testing.assert_allclose(got.scores, expected, atol=1e-6)
    np.testing.assert_array_equal(got.labels, expected.argmax(axis=1))


def test_a_class_scores_the_mean_of_its_prototypes_however_many():
    bank = make_bank(13, classes=4, per_class=3)
    owners = np.array([3, 0, 1, 2, 0, 0, 3, 1, 3, 3, 3, 3])
    uneven = ReferenceBank.create(bank.prototypes, owners, bank.classes, bank.names)
    (regions,) = features(14, 5)
    similarity = np.asarray(
        m.relation_aware_similarity(regions, uneven.prototypes, uneven.classes, num_agents=2)
    )
    expected = np.stack([similarity[:, owners == c].mean(axis=1) for c in range(4)], axis=1)
    np.testing.assert_allclose(
        m.match(regions, uneven, num_agents=2).scores, expected, atol=TOLERANCE
    )


@pytest.mark.parametrize("similarity", ["relation", "cosine"])
def test_only_agents_may_win_when_asked(similarity):
    bank = make_bank(15, classes=12, per_class=1)
    (regions,) = features(16, 8)
    free = m.match(regions, bank, num_agents=2, similarity=similarity)
    bound = m.match(regions, bank, num_agents=2, similarity=similarity, candidates="agents")
    is_agent = (np.arange(12) == np.asarray(bound.agents)[:, :, None]).any(axis=1)
    assert is_agent[np.arange(8), bound.labels].all()
    best = np.asarray(bound.scores).max(axis=1)
    np.testing.assert_allclose(
        np.asarray(bound.scores)[np.arange(8), bound.labels], best, atol=1e-6
    )
    np.testing.assert_array_equal(bound.scores, np.where(is_agent, free.scores, -1))
    if similarity == "relation":
        assert not is_agent[np.arange(8), free.labels].all()  # else this test shows nothing


def test_random_agents_differ_within_and_between_regions_and_repeat_with_the_key():
    bank = make_bank(17)
    (regions,) = features(18, 8)

    def draw(key, rows=regions):
        return m.match(rows, bank, num_agents=3, agent_policy="random", key=key)

    first = draw(jax.random.key(0))
    agents = np.asarray(first.agents)
    assert all(len(set(row)) == 3 for row in agents.tolist())
    assert set(agents.ravel()) == set(range(6)) and len(set(map(tuple, agents.tolist()))) > 1
    np.testing.assert_array_equal(draw(jax.random.key(0)).scores, first.scores)
    assert (np.asarray(draw(jax.random.key(1)).agents) != agents).any()
    more = draw(
        jax.random.key(0), np.repeat(regions, 2, axis=0)
    )  # other regions and other padding after the first ones
    np.testing.assert_array_equal(more.agents[:8], agents)
    # its scores are those over its agents, whichever they are
    s, *references = np.maximum(
        cosine_similarity([regions[0], *bank.prototypes], bank.classes)[:, agents[0]], 1e-6
    )
    expected = [oracle_similarity(s, r) for r in references]
    np.testing.assert_allclose(
        first.scores[0], np.reshape(expected, (6, 3)).mean(axis=1), atol=1e-4
    )


def test_a_reading_is_an_entry_of_the_table(monkeypatch):
    squared = Reading(lambda cosines, rankings, weight: cosines() ** 2 * rankings())
    monkeypatch.setitem(READINGS, "squared", squared)
    monkeypatch.setitem(m.CHOICES, "similarity", tuple(READINGS))
    bank, (regions,) = make_bank(41), features(42, 9)
    relation = m.relation_aware_similarity(regions, bank.prototypes, bank.classes)
    pairs = cosine_similarity(regions, bank.prototypes) ** 2 * np.asarray(relation)
    result = m.match(regions, bank, similarity="squared")
    np.testing.assert_allclose(result.scores, pairs.reshape(9, 6, 3).mean(axis=2), atol=1e-6)
