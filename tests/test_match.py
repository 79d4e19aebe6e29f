"""The matching kernels against a float64 brute-force oracle that enumerates every ranking, and what must hold of any answer."""

import itertools
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from sklearn.metrics.pairwise import cosine_similarity

from rimjax import match as m
from rimjax.match import rankings
from rimjax.types import Match, ReferenceBank, Regions

# The lattice multiplies and adds at most 2^N positive float32 terms, none cancelling: a few dozen roundings of 6e-8.
TOLERANCE = 1e-5

weights = st.floats(1e-6, 1e3)
vectors = st.integers(1, 6).flatmap(lambda n: st.lists(weights, min_size=n, max_size=n))
pairs = st.integers(1, 6).flatmap(lambda n: st.tuples(*[st.lists(weights, min_size=n, max_size=n)] * 2))
moderate = settings(max_examples=40, deadline=None)


# ---- the oracle


def oracle_probabilities(scores):
    """Eq. 7 as printed: one ranking per row, one draw per column."""
    ranked = np.asarray(scores, np.float64)[list(itertools.permutations(range(len(scores))))]
    return np.prod([ranked[:, k] / ranked[:, k:].sum(axis=1) for k in range(len(scores))], axis=0)


def oracle_similarity(s, r):
    p, q = oracle_probabilities(s), oracle_probabilities(r)
    return p @ q / np.sqrt((p @ p) * (q @ q))


def oracle_weights(cosines, score_map, temperature):
    return {"clip": np.maximum(cosines, 1e-6), "exp": np.exp(cosines / temperature), "shift": (1 + cosines) / 2}[score_map]


def oracle_relation(regions, prototypes, classes, *, num_agents=4, score_map="clip", temperature=0.1):
    region_cosines, reference_cosines = cosine_similarity(regions, classes), cosine_similarity(prototypes, classes)
    out = np.zeros((len(regions), len(prototypes)))
    for i, cosines in enumerate(region_cosines):
        agents = np.argsort(-cosines, kind="stable")[:num_agents]
        s = oracle_weights(cosines[agents], score_map, temperature)
        for j, reference in enumerate(reference_cosines):
            out[i, j] = oracle_similarity(s, oracle_weights(reference[agents], score_map, temperature))
    return out


def features(seed, *sizes, dim=16):
    """Clustered like real ones: cosines of both signs, some of them close."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=dim)
    return [(0.7 * centre + rng.normal(size=(size, dim))).astype(np.float32) for size in sizes]


def make_bank(seed=0, classes=6, per_class=3, dim=16):
    rows, spread = features(seed, classes, classes * per_class, dim=dim)
    prototypes = np.repeat(rows, per_class, axis=0) + 0.5 * spread
    return ReferenceBank.create(prototypes, np.repeat(np.arange(classes), per_class), rows, ("background", *map(str, range(1, classes))))


# ---- one pair


@moderate
@given(vectors)
def test_probabilities_equal_the_oracle_in_its_order_and_sum_to_one(scores):
    probabilities = np.asarray(m.permutation_probabilities(np.array(scores)))
    np.testing.assert_allclose(probabilities, oracle_probabilities(scores), rtol=TOLERANCE, atol=1e-30)
    assert probabilities.sum() == pytest.approx(1, abs=TOLERANCE)


def test_the_papers_worked_example():
    """Eq. 8: P(chair, sofa, bench) = s(chair) / (s(sofa) + s(bench) + s(chair)) * s(sofa) / (s(sofa) + s(bench))."""
    sofa, bench, chair = 0.7, 0.4, 0.9
    ranking = list(itertools.permutations(("sofa", "bench", "chair"))).index(("chair", "sofa", "bench"))
    expected = chair / (sofa + bench + chair) * sofa / (sofa + bench)
    assert float(m.permutation_probabilities(jnp.array([sofa, bench, chair]))[ranking]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("method", ["lattice", "enumerate"])
@pytest.mark.parametrize("n", range(1, 8))
def test_similarity_equals_the_oracle(n, method):
    rng = np.random.default_rng(n)
    for s, r in (rng.uniform(0.1, 1, (2, n)), rng.uniform(0.1, 1, (2, n)) ** 6):
        assert float(m.permutation_similarity(s, r, method)) == pytest.approx(oracle_similarity(s, r), abs=TOLERANCE)


@pytest.mark.parametrize("method", ["lattice", "enumerate"])
@pytest.mark.parametrize("n", [2, 6])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_edges_stay_finite_and_right(n, scale, method):
    """Zeros count as 1e-18 of the largest weight, whatever the scale."""
    ties, first, rising = np.ones(n), np.eye(n)[0], np.linspace(0, 1, n)
    for s, r in itertools.product((ties, first, rising), repeat=2):
        expected = oracle_similarity(np.maximum(s, 1e-18), np.maximum(r, 1e-18))
        assert float(m.permutation_similarity(s * scale, r, method)) == pytest.approx(expected, abs=TOLERANCE)


@moderate
@given(pairs, st.randoms(use_true_random=False), st.floats(1e-3, 1e3))
def test_invariants_of_the_similarity(pair, random, scale):
    s, r = np.array(pair)
    value = float(m.permutation_similarity(s, r))
    order = random.sample(range(len(s)), len(s))
    assert -TOLERANCE <= value <= 1 + TOLERANCE
    assert float(m.permutation_similarity(r, s)) == pytest.approx(value, abs=TOLERANCE)
    assert float(m.permutation_similarity(s[order], r[order])) == pytest.approx(value, abs=TOLERANCE)
    assert float(m.permutation_similarity(s * scale, r)) == pytest.approx(value, abs=TOLERANCE)
    assert float(m.permutation_similarity(s, s)) == pytest.approx(1, abs=TOLERANCE)


@moderate
@given(vectors, st.randoms(use_true_random=False))
def test_probabilities_follow_their_items(scores, random):
    n = len(scores)
    order = random.sample(range(n), n)
    rankings = list(itertools.permutations(range(n)))
    before, after = m.permutation_probabilities(np.array(scores)), m.permutation_probabilities(np.array(scores)[order])
    moved = [rankings.index(tuple(order[item] for item in ranking)) for ranking in rankings]
    np.testing.assert_allclose(after, np.asarray(before)[moved], rtol=TOLERANCE)


def oracle_lattice(s, r):
    """F(all) in float64, for more agents than can be enumerated."""
    subsets, items = np.arange(1 << len(s))[:, None], np.arange(len(s))
    member = subsets >> items & 1
    value = np.ones(len(subsets))
    for size in items + 1:
        at = member.sum(axis=1) == size
        terms = member[at] * s * r * value[subsets[at] & ~(1 << items)]
        value[at] = terms.sum(axis=1) / ((member[at] @ s) * (member[at] @ r))
    return value[-1]


def test_sixteen_agents_hold_in_float32():
    s, r = np.random.default_rng(0).uniform(0.2, 1, (2, 16))
    expected = oracle_lattice(s, r) / np.sqrt(oracle_lattice(s, s) * oracle_lattice(r, r))
    assert 1e-3 < expected < 0.9
    assert float(m.permutation_similarity(s, r)) == pytest.approx(expected, abs=TOLERANCE)
    assert float(m.permutation_similarity(s, s)) == pytest.approx(1, abs=TOLERANCE)


def test_unrolled_and_by_level_are_one_function():
    s, r = np.random.default_rng(1).uniform(0.01, 1, (2, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(rankings._inner_unrolled(s, r), m.permutation_similarity(s, r), rtol=TOLERANCE)


@pytest.mark.parametrize("function", [m.permutation_similarity, m.permutation_similarity])
def test_gradients_match_finite_differences(function):
    s, r = jnp.asarray(np.random.default_rng(0).uniform(0.3, 1, (2, 3)), jnp.float32)
    # float32 differences over a step of 1e-2 carry about 1e-5 / 1e-2 of noise and as much curvature
    check_grads(jax.jit(function), (s, r), order=1, modes=("fwd", "rev"), eps=1e-2, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("s", [[0.0, 0, 0], [1, 0, 0], [1e-30, 1e-20, 1], [0.5, 0.5, 0.5]])
def test_gradients_are_finite_at_the_edges(s):
    gradients = jax.grad(m.permutation_similarity, argnums=(0, 1))(jnp.array(s, float), jnp.array([0.3, 0.0, 1.0]))
    assert all(np.isfinite(g).all() for g in gradients)


# ---- regions against references


@pytest.mark.parametrize("method", ["lattice", "enumerate"])
@pytest.mark.parametrize(("score_map", "temperature"), [("clip", 0.1), ("exp", 0.1), ("exp", 1.0), ("shift", 0.1)])
def test_relation_equals_the_oracle(score_map, temperature, method):
    arrays = features(0, 5, 7, 9)
    got = m.relation_aware_similarity(*arrays, score_map=score_map, temperature=temperature, method=method)
    # A cosine's rounding of 1e-7 grows by up to 1/temperature in the exponent, and where clip cuts near 0
    np.testing.assert_allclose(got, oracle_relation(*arrays, score_map=score_map, temperature=temperature), atol=1e-4)


@pytest.mark.parametrize("n", range(1, 8))
def test_labels_equal_the_oracles(n):
    bank = make_bank(n, classes=8, per_class=2)
    (regions,) = features(100 + n, 8 if n < 6 else 3)
    scores = oracle_relation(regions, bank.prototypes, bank.classes, num_agents=n).reshape(len(regions), 8, 2).mean(axis=2)
    got = m.match(regions, bank, num_agents=n)
    np.testing.assert_allclose(got.scores, scores, atol=1e-4)
    if n > 1:  # a single agent has a single ranking: all classes tie
        ordered = np.sort(scores, axis=1)
        clear = ordered[:, -1] - ordered[:, -2] > 1e-5
        assert clear.any()
        np.testing.assert_array_equal(np.asarray(got.labels)[clear], scores.argmax(axis=1)[clear])


def test_a_low_temperature_neither_overflows_nor_vanishes():
    """Weights 2^-87 apart: plain exp(c / 0.01) overflows float32, and exp((c - 1) / 0.01) is zero for all of these."""
    classes = np.eye(4, dtype=np.float32)
    region = np.array([[0.10, 0.12, 0.08, 0.11]], np.float32) - 0.5
    got = m.relation_aware_similarity(region, region, classes, score_map="exp", temperature=0.01)
    np.testing.assert_allclose(got, 1, atol=TOLERANCE)
    other = m.relation_aware_similarity(region, region[:, ::-1], classes, score_map="exp", temperature=0.01)
    np.testing.assert_allclose(other, oracle_relation(region, region[:, ::-1], classes, score_map="exp", temperature=0.01), atol=1e-4)


def test_scale_type_and_class_order_change_nothing():
    regions, prototypes, classes = features(3, 6, 10, 5)
    got = m.relation_aware_similarity(regions, prototypes, classes)
    np.testing.assert_allclose(m.relation_aware_similarity(regions * 1e25, prototypes * 1e-25, classes), got, atol=1e-4)
    np.testing.assert_allclose(m.relation_aware_similarity(regions, prototypes, classes[::-1]), got, atol=1e-4)


def test_low_precision_inputs_are_computed_in_float32():
    bank = make_bank()
    short = jnp.asarray(features(3, 8)[0], jnp.bfloat16)
    got, expected = (m.match(rows, bank) for rows in (short, np.asarray(short, np.float32)))
    assert got.scores.dtype == jnp.float32
    np.testing.assert_allclose(got.scores, expected.scores, atol=TOLERANCE)
    np.testing.assert_array_equal(got.labels, expected.labels)


def test_blocks_of_references_change_nothing(monkeypatch):
    s, r = np.random.default_rng(4).uniform(0.1, 1, (3, 1)), np.random.default_rng(5).uniform(0.1, 1, (3, 23))
    whole = m._in_blocks(jnp.asarray(s), jnp.asarray(r), "lattice")
    monkeypatch.setattr(m, "_BLOCK_ELEMENTS", 8 * 6 * 5)  # five references at a time
    blocked = m._in_blocks(jnp.asarray(s), jnp.asarray(r), "lattice")
    np.testing.assert_allclose(blocked, whole, atol=TOLERANCE)


def test_agents_are_the_nearest_class_references_best_first():
    bank = make_bank(5)
    (regions,) = features(6, 8)
    cosines = cosine_similarity(regions, bank.classes)
    np.testing.assert_array_equal(m.match(regions, bank).agents, np.argsort(-cosines, axis=1)[:, :4])


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
    twin = ReferenceBank.create(classes[[0, 1, 2, 2]], np.arange(4), classes, ("background", "a", "b", "twin of b"))
    assert m.match(classes[2:3], twin).labels.tolist() == [2]
    assert m.match(*[classes[3:], bank], num_agents=1).labels.tolist() == [0]  # one agent, one ranking: everything ties


def test_zero_vectors_have_finite_gradients():
    _, prototypes, classes = features(9, 1, 6, 5)
    total = lambda *arrays: m.relation_aware_similarity(*arrays, num_agents=2).sum()  # noqa: E731
    gradients = jax.grad(total, argnums=(0, 1, 2))(jnp.zeros((2, 16)), prototypes * (np.arange(6) > 2)[:, None], classes)
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("score_map", ["clip", "exp"])
def test_gradients_through_features(score_map):
    regions, prototypes, classes = (jnp.abs(jnp.asarray(a)) for a in features(10, 2, 3, 2, dim=6))  # clear of clip's kink at 0
    function = lambda r, p, c: m.relation_aware_similarity(r, p, c, num_agents=2, score_map=score_map, temperature=0.5)  # noqa: E731
    check_grads(function, (regions, prototypes, classes), order=1, modes=("rev",), eps=1e-2, atol=1e-2, rtol=1e-2)


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
    similarity = np.asarray(m.relation_aware_similarity(regions, uneven.prototypes, uneven.classes, num_agents=2))
    expected = np.stack([similarity[:, owners == c].mean(axis=1) for c in range(4)], axis=1)
    np.testing.assert_allclose(m.match(regions, uneven, num_agents=2).scores, expected, atol=TOLERANCE)


@pytest.mark.parametrize("similarity", ["relation", "cosine"])
def test_only_agents_may_win_when_asked(similarity):
    bank = make_bank(15, classes=12, per_class=1)
    (regions,) = features(16, 8)
    free = m.match(regions, bank, num_agents=2, similarity=similarity)
    bound = m.match(regions, bank, num_agents=2, similarity=similarity, candidates="agents")
    is_agent = (np.arange(12) == np.asarray(bound.agents)[:, :, None]).any(axis=1)
    assert is_agent[np.arange(8), bound.labels].all()
    best = np.asarray(bound.scores).max(axis=1)
    np.testing.assert_allclose(np.asarray(bound.scores)[np.arange(8), bound.labels], best, atol=1e-6)
    np.testing.assert_array_equal(bound.scores, np.where(is_agent, free.scores, -1))
    if similarity == "relation":
        assert not is_agent[np.arange(8), free.labels].all()  # else this test shows nothing


def test_random_agents_differ_within_and_between_regions_and_repeat_with_the_key():
    bank = make_bank(17)
    (regions,) = features(18, 8)
    draw = lambda key, rows=regions: m.match(rows, bank, num_agents=3, agent_policy="random", key=key)  # noqa: E731
    first = draw(jax.random.key(0))
    agents = np.asarray(first.agents)
    assert all(len(set(row)) == 3 for row in agents.tolist())
    assert set(agents.ravel()) == set(range(6)) and len(set(map(tuple, agents.tolist()))) > 1
    np.testing.assert_array_equal(draw(jax.random.key(0)).scores, first.scores)
    assert (np.asarray(draw(jax.random.key(1)).agents) != agents).any()
    more = draw(jax.random.key(0), np.repeat(regions, 2, axis=0))  # other regions and other padding after the first ones
    np.testing.assert_array_equal(more.agents[:8], agents)
    # its scores are those over its agents, whichever they are
    s, *references = np.maximum(cosine_similarity([regions[0], *bank.prototypes], bank.classes)[:, agents[0]], 1e-6)
    expected = [oracle_similarity(s, r) for r in references]
    np.testing.assert_allclose(first.scores[0], np.reshape(expected, (6, 3)).mean(axis=1), atol=1e-4)


# ---- shapes, padding, tracing


def assert_same(a: Match, b: Match):
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.agents, b.agents)
    np.testing.assert_allclose(a.scores, b.scores, atol=TOLERANCE)


def test_padded_and_unpadded_give_the_same():
    bank = make_bank(19)
    (rows,) = features(20, 5)
    plain = m.match(rows, bank)
    padded = m.match(m.pad_regions(Regions(rows, None, np.ones(5, bool)), 16), bank)
    assert_same(plain, jax.tree.map(lambda leaf: leaf[:5], padded))
    assert (np.asarray(padded.labels)[5:] == -1).all() and not np.asarray(padded.scores)[5:].any()


@pytest.mark.parametrize("count", [3, 8])
def test_invalid_regions_get_no_label_whatever_they_hold(count):
    bank = make_bank(21)
    (rows,) = features(22, count)
    broken, valid = rows.copy(), np.ones(count, bool)
    broken[1], valid[1] = np.nan, False
    got, expected = m.match(Regions(broken, None, valid), bank), m.match(rows, bank)
    assert got.labels[1] == -1 and not np.asarray(got.scores[1]).any()
    assert_same(*(jax.tree.map(lambda leaf: np.asarray(leaf)[valid], result) for result in (got, expected)))


def test_no_regions_give_empty_results():
    got = m.match(np.zeros((0, 16), np.float32), make_bank())
    assert got.labels.shape == (0,) and got.scores.shape == (0, 6) and got.agents.shape == (0, 4)


def test_many_images_compile_a_handful_of_times():
    rng, compilations = np.random.default_rng(0), m._match._cache_size  # pyright: ignore[reportAttributeAccessIssue]
    before = compilations()
    for seed, count in enumerate(rng.integers(1, 33, 40)):
        bank = make_bank(23, dim=5)
        renamed = ReferenceBank(
            bank.prototypes, bank.owners, bank.classes, ("background", *(f"{seed} {name}" for name in bank.names[1:])), str(seed)
        )
        m.match(rng.normal(size=(count, 5)).astype(np.float32), renamed, num_agents=2, temperature=0.1 + seed)
    assert compilations() - before == 3  # 8, 16, 32


def test_bucket_sizes():
    assert [m.bucket_size(n) for n in (0, 1, 8, 9, 100, 1024, 1025, 5000)] == [8, 8, 8, 16, 128, 1024, 2048, 5120]


def test_padding_keeps_masks_and_refuses_to_shrink():
    regions = Regions(np.ones((3, 2), np.float32), np.ones((3, 4, 5), bool), np.ones(3, bool))
    padded = m.pad_regions(regions)
    assert padded.features.shape == (8, 2) and padded.masks is not None and padded.masks.shape == (8, 4, 5)
    assert padded.valid.tolist() == [True] * 3 + [False] * 5 and not padded.masks[3:].any()
    with pytest.raises(ValueError, match="size"):
        m.pad_regions(regions, 2)


def test_jit_equals_no_jit():
    bank = make_bank(24)
    (rows,) = features(25, 7)
    regions = Regions(rows, None, np.arange(7) != 2)
    assert_same(jax.jit(lambda regions, bank: m.match(regions, bank, num_agents=3))(regions, bank), m.match(regions, bank, num_agents=3))
    s, r = rows[:2, :3] ** 2
    with jax.disable_jit():
        eager = m.permutation_similarity(s, r)
    np.testing.assert_allclose(jax.jit(m.permutation_similarity)(s, r), eager, atol=TOLERANCE)


def test_vmap_equals_loop():
    bank = make_bank(26)
    images = np.stack(features(27, 5, 5, 5))
    mapped = jax.vmap(lambda rows: m.match(rows, bank, num_agents=3))(images)
    for i, rows in enumerate(images):
        assert_same(jax.tree.map(lambda leaf, i=i: leaf[i], mapped), m.match(rows, bank, num_agents=3))
    s, r = np.random.default_rng(0).uniform(0.1, 1, (2, 6, 3))
    looped = [m.permutation_similarity(a, b) for a, b in zip(s, r, strict=True)]
    np.testing.assert_allclose(jax.vmap(m.permutation_similarity)(s, r), looped, atol=TOLERANCE)


def test_a_bank_and_regions_are_pytrees():
    bank = make_bank()
    doubled = jax.tree.map(lambda leaf: leaf * 2, bank)
    assert isinstance(doubled, ReferenceBank) and doubled.names == bank.names and len(jax.tree.leaves(bank)) == 3


# ---- errors


def call(regions=None, prototypes=None, classes=None, **settings):
    default = features(0, 2, 5, 4)
    given = [d if a is None else a for a, d in zip((regions, prototypes, classes), default, strict=True)]
    return m.relation_aware_similarity(*given, **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_agents=0), "num_agents must be in"),
        (dict(num_agents=17), "num_agents must be in"),
        (dict(num_agents=9, method="enumerate"), "num_agents must be at most 8 .*lattice"),
        (dict(method="exact"), "method must be one of lattice, enumerate"),
        (dict(score_map="softmax"), "score_map must be one of"),
        (dict(agent_policy="best"), "agent_policy must be one of"),
        (dict(agent_policy="random"), "key must be given"),
        (dict(temperature=0.0), "temperature must be positive"),
        (dict(temperature=float("nan")), "temperature must be positive"),
        (dict(regions=np.ones(16)), "regions must have shape"),
        (dict(prototypes=np.ones((3, 7))), "prototypes must have the feature size"),
        (dict(classes=np.ones((3, 7))), "classes must have the feature size"),
        (dict(classes=np.ones((0, 16))), "classes must have shape"),
        (dict(regions=np.full((2, 16), np.nan)), "regions must be finite"),
        (dict(prototypes=np.full((2, 16), np.inf)), "prototypes must be finite"),
        (dict(classes=jnp.full((2, 16), jnp.nan)), "classes must be finite"),
        (dict(max_bytes=100), "max_bytes: P=2 regions x R=5 prototypes x C=4"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        call(**arguments)


def test_too_much_memory_is_refused_before_it_is_taken():
    huge = np.broadcast_to(np.float32(1), (2**21, 1))  # its own memory: four bytes
    with pytest.raises(ValueError, match=r"max_bytes: P=2097152 regions x R=16384 .* GiB"):
        m.relation_aware_similarity(huge, huge[: 2**14], np.ones((2, 1), np.float32))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(similarity="dot"), "similarity must be one of"),
        (dict(candidates="top"), "candidates must be one of"),
        (dict(num_agents=0), "num_agents"),
        (dict(max_bytes=10), "max_bytes: P=8 regions"),
    ],
)
def test_match_names_its_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        m.match(features(0, 2)[0], make_bank(), **arguments)


def test_nan_raises_in_match_and_passes_through_a_trace():
    rows = features(0, 2)[0]
    rows[0, 0] = np.nan
    with pytest.raises(ValueError, match="regions must be finite"):
        m.match(rows, make_bank())
    traced = jax.jit(lambda rows: m.match(rows, make_bank(), num_agents=1, similarity="cosine"))(rows)
    assert np.isnan(traced.scores[0]).all() and np.isfinite(traced.scores[1]).all()
    assert traced.labels[0] == -1 and traced.labels[1] >= 0


@pytest.mark.parametrize("bad", [[np.nan, 1], [np.inf, 1], [-0.1, 1], [[1.0, 2.0]], [], np.ones(17)])
def test_bad_weights_are_named(bad):
    with pytest.raises(ValueError, match=r"\bs\b"):
        m.permutation_similarity(np.array(bad), np.ones(2))
    with pytest.raises(ValueError, match="scores"):
        m.permutation_probabilities(np.array(bad))


def test_enumeration_refuses_nine_items():
    with pytest.raises(ValueError, match="lattice"):
        m.permutation_similarity(np.ones(9), np.ones(9), "enumerate")
    with pytest.raises(ValueError, match="same agents"):
        m.permutation_similarity(np.ones(3), np.ones(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(prototypes=np.ones(4)), "prototypes must have shape"),
        (dict(prototypes=np.ones((3, 5))), "same feature size"),
        (dict(prototypes=np.full((3, 4), np.nan)), "prototypes must be finite"),
        (dict(classes=np.full((2, 4), np.inf)), "classes must be finite"),
        (dict(owners=[0, 1]), "owners must hold one integer"),
        (dict(owners=[0.0, 1.0, 1.0]), "owners must hold one integer"),
        (dict(owners=[0, 1, 2]), "owners must lie in"),
        (dict(owners=[0, 0, 0]), "owners must give every class a prototype, none for .*cat"),
        (dict(names=("background",)), "names must hold one name"),
        (dict(names=("cat", "background")), r"names\[0\]"),
        (dict(names=("background", "background")), "names must differ"),
    ],
)
def test_a_bank_checks_its_parts(arguments, message):
    parts: dict[str, Any] = dict(prototypes=np.ones((3, 4)), owners=[0, 1, 1], classes=np.ones((2, 4)), names=("background", "cat"))
    ReferenceBank.create(**parts)
    with pytest.raises(ValueError, match=message):
        ReferenceBank.create(**parts | arguments)


def test_importing_match_loads_no_model_library():
    heavy = ("torch", "diffusers", "transformers", "flax", "sklearn", "PIL")
    code = f"import sys, rimjax.match; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
