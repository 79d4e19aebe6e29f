"""Pairs of weight vectors against the float64 oracle, for every measure, and invariants."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from oracle import TOLERANCE, oracle_lattice, oracle_probabilities, oracle_similarity

from rimjax import match as m
from rimjax.match import rankings

MEASURES = ["cosine", "bhattacharyya", "pearson", "kl"]
weights = st.floats(1e-6, 1e3)
vectors = st.integers(1, 6).flatmap(lambda n: st.lists(weights, min_size=n, max_size=n))
pairs = st.integers(1, 6).flatmap(
    lambda n: st.tuples(*[st.lists(weights, min_size=n, max_size=n)] * 2)
)
moderate = settings(max_examples=40, deadline=None)


@moderate
@given(vectors)
def test_probabilities_equal_the_oracle_in_its_order_and_sum_to_one(scores):
    probabilities = np.asarray(m.permutation_probabilities(np.array(scores)))
    np.testing.assert_allclose(
        probabilities, oracle_probabilities(scores), rtol=TOLERANCE, atol=1e-30
    )
    assert probabilities.sum() == pytest.approx(1, abs=TOLERANCE)


def test_the_papers_worked_example():
    """Eq. 8: P(chair, sofa, bench) draws chair out of all three, then sofa out of the rest."""
    sofa, bench, chair = 0.7, 0.4, 0.9
    ranking = list(itertools.permutations(("sofa", "bench", "chair"))).index(
        ("chair", "sofa", "bench")
    )
    expected = chair / (sofa + bench + chair) * sofa / (sofa + bench)
    assert float(
        m.permutation_probabilities(jnp.array([sofa, bench, chair]))[ranking]
    ) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("method", ["lattice", "enumerate"])
@pytest.mark.parametrize("n", range(1, 8))
def test_similarity_equals_the_oracle(n, method, measure):
    rng = np.random.default_rng(n)
    for s, r in (
        rng.uniform(0.1, 1, (2, n)),
        rng.uniform(0.1, 1, (2, n)) ** 6,
        (np.ones(n), np.linspace(0.1, 1, n)),
    ):
        s, r = s.astype(np.float32), r.astype(np.float32)
        expected = oracle_similarity(s, r, measure)
        assert float(m.permutation_similarity(s, r, method, measure=measure)) == pytest.approx(
            expected, abs=TOLERANCE, rel=TOLERANCE
        )


@pytest.mark.parametrize("measure", MEASURES)
def test_nearly_equal_weights(measure):
    """Pearson divides by the weights' spread: differences of 1e-5 count, rounding doesn't."""
    s, r = (1 + np.random.default_rng(3).uniform(0, 1e-5, (2, 4))).astype(np.float32)
    assert float(m.permutation_similarity(s, r, measure=measure)) == pytest.approx(
        oracle_similarity(s, r, measure), abs=TOLERANCE
    )
    tied = np.full(4, 0.3, np.float32)
    expected = {"cosine": 1, "bhattacharyya": 1, "kl": 0, "pearson": 0}[measure]
    assert float(m.permutation_similarity(tied, tied, measure=measure)) == pytest.approx(
        expected, abs=1e-6
    )
    assert float(m.permutation_similarity(tied, r, measure="pearson")) == 0


@pytest.mark.parametrize("largest", [1e-300, 1e-50, 3e-39, 3e-38, 1.0, 3e38, 1e300])
def test_weights_of_any_scale(largest):
    for weights in (
        largest * np.array([1 / 3, 1.0]),
        *([np.float32(largest) * np.array([1 / 3, 1], np.float32)] if largest < 1e39 else []),
    ):
        if weights.all():  # not flushed by float32 itself
            np.testing.assert_allclose(
                m.permutation_probabilities(weights), [0.25, 0.75], atol=1e-6
            )
            assert m.permutation_similarity(weights, np.array([1, 3])) == pytest.approx(1, abs=1e-6)
    if 1e-37 < largest < 1e39:
        weights = jnp.array([largest / 3, largest], jnp.float32)
        np.testing.assert_allclose(
            jax.jit(m.permutation_probabilities)(weights), [0.25, 0.75], atol=1e-6
        )
    assert (
        jax.jit(lambda w: m.permutation_probabilities([w, 3 * w]))(1.0)[0] == 0.25
    )  # a list of traced numbers


@pytest.mark.parametrize("method", ["lattice", "enumerate"])
@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_edges_stay_finite_and_right(n, scale, method):
    """Zeros count as 1e-18 of the largest weight, whatever the scale."""
    ties, first, rising = np.ones(n), np.eye(n)[0], np.linspace(0, 1, n)
    for s, r in itertools.product((ties, first, rising), repeat=2):
        expected = oracle_similarity(np.maximum(s, 1e-18), np.maximum(r, 1e-18))
        assert float(m.permutation_similarity(s * scale, r, method)) == pytest.approx(
            expected, abs=TOLERANCE
        )


@moderate
@given(pairs, st.randoms(use_true_random=False), st.floats(1e-3, 1e3))
def test_invariants_of_the_similarity(pair, random, scale):
    s, r = np.array(pair)
    value = float(m.permutation_similarity(s, r))
    order = random.sample(range(len(s)), len(s))
    assert -TOLERANCE <= value <= 1 + TOLERANCE
    assert float(m.permutation_similarity(r, s)) == pytest.approx(value, abs=TOLERANCE)
    assert float(m.permutation_similarity(s[order], r[order])) == pytest.approx(
        value, abs=TOLERANCE
    )
    assert float(m.permutation_similarity(s * scale, r)) == pytest.approx(value, abs=TOLERANCE)
    assert float(m.permutation_similarity(s, s)) == pytest.approx(1, abs=TOLERANCE)


@moderate
@given(vectors, st.randoms(use_true_random=False))
def test_probabilities_follow_their_items(scores, random):
    n = len(scores)
    order = random.sample(range(n), n)
    rankings = list(itertools.permutations(range(n)))
    before, after = (
        m.permutation_probabilities(np.array(scores)),
        m.permutation_probabilities(np.array(scores)[order]),
    )
    moved = [rankings.index(tuple(order[item] for item in ranking)) for ranking in rankings]
    np.testing.assert_allclose(after, np.asarray(before)[moved], rtol=TOLERANCE)


def test_sixteen_agents_hold_in_float32():
    s, r = np.random.default_rng(0).uniform(0.2, 1, (2, 16))
    expected = oracle_lattice(s, r) / np.sqrt(oracle_lattice(s, s) * oracle_lattice(r, r))
    assert 1e-3 < expected < 0.9
    assert float(m.permutation_similarity(s, r)) == pytest.approx(expected, abs=TOLERANCE)
    assert float(m.permutation_similarity(s, s)) == pytest.approx(1, abs=TOLERANCE)


@pytest.mark.parametrize("measure", MEASURES)
def test_unrolled_and_by_level_are_the_same_function(measure, monkeypatch):
    s, r = (
        list(jnp.asarray(np.random.default_rng(1).uniform(0.01, 1, (5, count)), jnp.float32))
        for count in (1, 3)
    )
    unrolled = rankings.compare_weights(s, r, measure, "lattice")
    monkeypatch.setattr(rankings, "UNROLLED", 0)
    by_level = rankings.compare_weights(s, r, measure, "lattice")
    np.testing.assert_allclose(by_level, unrolled, atol=1e-6, rtol=TOLERANCE)


@pytest.mark.parametrize("unrolled", [6, 0])
@pytest.mark.parametrize("measure", MEASURES)
def test_gradients_match_finite_differences(measure, unrolled, monkeypatch):
    monkeypatch.setattr(rankings, "UNROLLED", unrolled)
    s, r = jnp.asarray(np.random.default_rng(0).uniform(0.3, 1, (2, 3)), jnp.float32)
    function = jax.jit(
        lambda s, r: rankings.compare_weights(
            list(s[:, None]), list(r[:, None]), measure, "lattice"
        )
    )
    # Float32 differences over a step of 1e-2 carry about 1e-5 / 1e-2 of noise and as much
    # curvature, Pearson's more.
    tolerance = 3e-2 if measure == "pearson" else 5e-3
    check_grads(
        function, (s, r), order=1, modes=("fwd", "rev"), eps=1e-2, atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("s", [[0.0, 0, 0], [1, 0, 0], [1e-30, 1e-20, 1], [0.5, 0.5, 0.5]])
def test_gradients_are_finite_at_the_edges(s, measure):
    function = lambda s, r: m.permutation_similarity(s, r, measure=measure)  # noqa: E731
    gradients = jax.grad(function, argnums=(0, 1))(jnp.array(s, float), jnp.array([0.3, 0.0, 1.0]))
    assert all(np.isfinite(g).all() for g in gradients)


# From 1e-6 to 1: uniform; uniform in the exponent, so that small weights are as likely as large
# weights; and a few values that make ties.
numbers = (
    st.floats(1e-6, 1)
    | st.floats(-6, 0).map(lambda exponent: 10**exponent)
    | st.sampled_from([1e-6, 1e-3, 0.5, 1.0])
)
cases = st.integers(1, 8).flatmap(
    lambda n: st.lists(st.lists(numbers, min_size=n, max_size=n), min_size=4, max_size=4)
)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(cases)
def test_ten_thousand_cases(case):
    """Errors of at most 2e-6, and the oracle's winner wherever its margin is above 1e-5."""
    s, *references = np.array(case, np.float32)
    expected = np.array([oracle_similarity(s, r) for r in references])
    got = np.array([m.permutation_similarity(s, r) for r in references])
    assert np.abs(got - expected).max() <= 2e-6
    low, high = np.sort(expected)[-2:]
    assert high - low <= 1e-5 or got.argmax() == expected.argmax()
