"""Every reading of Sec. 3.5 against a float64 brute force."""

from dataclasses import replace
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads
from oracle import TOLERANCE, cosine_similarity, features, make_bank, oracle_similarity

from rimjax import match as m
from rimjax.bench.match import make_features, start_from_cosines
from rimjax.match import tiling
from rimjax.match.readings import compare_rankings
from rimjax.types import ReferenceBank

TEMPERATURE, WEIGHT = 0.3, 0.7
REDUCE = {"mean": np.mean, "sum": np.sum, "max": np.max}


def make_uneven_bank(seed=0):
    """Make a bank of six classes, two of which have fewer prototypes than the others."""
    bank = make_bank(seed)
    keep = np.array([0, 1, 2, 3, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16, 17])
    return replace(bank, prototypes=bank.prototypes[keep], owners=bank.owners[keep])


def oracle_agents(regions, bank, num_agents, agent_source, background_agent):
    """List each region's agents, nearest first, and the references that they are rows of."""
    owners = np.asarray(bank.owners) if agent_source == "prototypes" else np.arange(6)
    references = np.asarray(bank.prototypes if agent_source == "prototypes" else bank.classes)
    nearness = cosine_similarity(regions, references)
    if not background_agent:
        nearness[:, owners == 0] = -np.inf
    return np.argsort(-nearness, axis=1, kind="stable")[:, :num_agents], references


def oracle_scores(regions, bank, agents, references, similarity, class_score):
    """Compute the class scores of regions through given agents."""
    own, theirs = (
        cosine_similarity(rows, references) for rows in (regions, np.asarray(bank.prototypes))
    )
    cosines = cosine_similarity(regions, np.asarray(bank.prototypes))
    scores = np.zeros((len(regions), 6))
    for i, chosen in enumerate(agents):
        s, r = (np.exp(rows[..., chosen] / TEMPERATURE) for rows in (own[i], theirs))
        relation = np.array([oracle_similarity(s, row) for row in r])
        pairs = {
            "relation": relation,
            "cosine": cosines[i],
            "combined": cosines[i] * relation,
            "weighted": cosines[i] + WEIGHT * relation,
        }[similarity]
        for c in range(6):
            scores[i, c] = REDUCE[class_score](pairs[np.asarray(bank.owners) == c])
    return scores


def run(regions, bank, **settings):
    common = {"score_map": "exp", "temperature": TEMPERATURE, "relation_weight": WEIGHT}
    return m.match(regions, bank, **common, **settings)


@pytest.mark.parametrize(
    ("similarity", "class_score", "source", "background", "columns"),
    [
        ("relation", "sum", "prototypes", False, tiling.COLUMNS),
        ("relation", "max", "classes", False, tiling.COLUMNS),
        ("cosine", "sum", "classes", True, 8),
        ("combined", "mean", "classes", True, tiling.COLUMNS),
        ("combined", "mean", "prototypes", True, 8),
        ("combined", "max", "prototypes", False, 8),
        ("weighted", "mean", "classes", False, 8),
        ("weighted", "max", "prototypes", True, tiling.COLUMNS),
    ],
)
def test_every_reading_equals_the_oracle(
    similarity, class_score, source, background, columns, monkeypatch
):
    monkeypatch.setattr(tiling, "COLUMNS", columns)
    jax.clear_caches()
    bank, (regions,) = make_uneven_bank(1), features(2, 7)
    agents, references = oracle_agents(regions, bank, 3, source, background)
    expected = oracle_scores(regions, bank, agents, references, similarity, class_score)
    settings = {
        "num_agents": 3,
        "similarity": similarity,
        "class_score": class_score,
        "agent_source": source,
        "background_agent": background,
    }
    result = run(regions, bank, **settings)
    np.testing.assert_array_equal(result.agents, agents)
    np.testing.assert_allclose(result.scores, expected, atol=TOLERANCE)
    np.testing.assert_array_equal(result.labels, expected.argmax(axis=1))
    jax.clear_caches()


@pytest.mark.parametrize("similarity", ["combined", "weighted"])
def test_top_k_are_the_best_of_all(similarity):
    bank, (regions,) = make_uneven_bank(3), features(4, 7)
    whole = run(regions, bank, similarity=similarity)
    best = run(regions, bank, similarity=similarity, top_k=3)
    np.testing.assert_array_equal(best.labels, whole.labels)
    ordered = -np.sort(-np.asarray(whole.scores), axis=1)[:, :3]
    np.testing.assert_allclose(best.scores, ordered, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("similarity", "class_score"), [("combined", "mean"), ("combined", "max"), ("weighted", "sum")]
)
def test_gradients_match_finite_differences(similarity, class_score):
    bank, (regions,) = make_uneven_bank(5), features(6, 2)
    agents = np.asarray(run(regions, bank).agents)

    def compute_scores(regions, weight, temperature):
        settings = {"score_map": "exp", "temperature": temperature, "relation_weight": weight}
        return m.match(
            regions, bank, similarity=similarity, class_score=class_score, **settings
        ).scores

    arguments = (jnp.asarray(regions), jnp.float32(WEIGHT), jnp.float32(TEMPERATURE))
    moved = run(regions * np.float32(1.001), bank)
    np.testing.assert_array_equal(moved.agents, agents)  # else the step would cross an edge
    check_grads(compute_scores, arguments, order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-3)


@pytest.mark.parametrize(
    ("similarity", "measure", "class_score"),
    [
        ("cosine", "kl", "sum"),
        ("combined", "pearson", "sum"),
        ("weighted", "kl", "mean"),
        ("weighted", "pearson", "mean"),
        ("weighted", "bhattacharyya", "max"),
    ],
)
def test_a_class_that_may_not_win_never_scores_more(similarity, measure, class_score):
    """Negative features make every cosine as low as it can be."""
    bank = make_uneven_bank(7)
    regions = -np.asarray(bank.classes)
    allowed = np.arange(6) != 3
    result = run(
        regions,
        bank,
        similarity=similarity,
        measure=measure,
        class_score=class_score,
        allowed=allowed,
    )
    scores = np.asarray(result.scores)
    assert (scores[:, 3:4] <= scores[:, allowed]).all()
    assert (np.asarray(result.labels) != 3).all()


@pytest.mark.parametrize("similarity", ["relation", "combined"])
def test_candidates_are_the_classes_that_own_the_agents(similarity):
    bank, (regions,) = make_uneven_bank(8), features(9, 20)
    bound, free = (
        run(
            regions,
            bank,
            similarity=similarity,
            agent_source="prototypes",
            num_agents=2,
            candidates=candidates,
        )
        for candidates in ("agents", "all")
    )
    owners = np.asarray(bank.owners)[np.asarray(bound.agents)]
    is_agent = (owners[:, :, None] == np.arange(6)).any(axis=1)
    np.testing.assert_array_equal(bound.scores, np.where(is_agent, free.scores, -1))


def test_the_background_is_no_agent_where_it_may_not_be():
    bank, (regions,) = make_uneven_bank(10), features(11, 12)
    for source, policy in product(("classes", "prototypes"), ("top", "random")):
        result = run(
            regions,
            bank,
            num_agents=16,
            background_agent=False,
            agent_source=source,
            agent_policy=policy,
            key=jax.random.key(0),
        )
        agents = np.asarray(result.agents)
        assert agents.shape[1] == 5  # C - 1
        owners = np.asarray(bank.owners) if source == "prototypes" else np.arange(6)
        assert (owners[agents] != 0).all()
        assert all(len(set(row)) == 5 for row in agents.tolist())


def test_with_one_class_beside_the_background_the_combined_reading_is_plain_cosine():
    """The single agent has a single ranking, alike for everything."""
    bank = make_bank(12)
    parts = bank.prototypes[:6], bank.owners[:6], bank.classes[:2], bank.names[:2]
    pair, (regions,) = ReferenceBank.create(*parts), features(13, 9)
    combined = run(regions, pair, similarity="combined", background_agent=False)
    plain = run(regions, pair, similarity="cosine")
    assert combined.agents.shape == (9, 1)
    np.testing.assert_allclose(combined.scores, plain.scores, atol=TOLERANCE)


def test_similarities_of_pairs_have_the_same_readings():
    bank, (regions,) = make_bank(14), features(15, 9)
    arrays = (regions, bank.prototypes, bank.classes)
    relation, cosine, combined, weighted = (
        np.asarray(
            m.relation_aware_similarity(*arrays, similarity=similarity, relation_weight=WEIGHT)
        )
        for similarity in ("relation", "cosine", "combined", "weighted")
    )
    np.testing.assert_allclose(cosine, cosine_similarity(regions, bank.prototypes), atol=TOLERANCE)
    np.testing.assert_allclose(combined, cosine * relation, atol=TOLERANCE)
    np.testing.assert_allclose(weighted, cosine + WEIGHT * relation, atol=TOLERANCE)


def test_another_weight_needs_no_other_compilation():
    from oracle import count_compilations

    bank, (regions,) = make_bank(16), features(17, 9)
    run(regions, bank, similarity="weighted")
    before = count_compilations()
    for weight in (0, 0.5, np.float32(2)):
        m.match(
            regions,
            bank,
            similarity="weighted",
            score_map="exp",
            temperature=TEMPERATURE,
            relation_weight=weight,
        )
    assert count_compilations() == before


@pytest.mark.parametrize(("num_agents", "method"), [(7, "lattice"), (4, "enumerate")])
@pytest.mark.parametrize("elements", [1, 35 * 18 * 5, 2**22])  # blocks of 1, of 5, all regions
def test_blocks_of_regions_as_on_a_gpu(monkeypatch, num_agents, method, elements):
    """What GPUs and TPUs compute gives a CPU's similarities; 13 regions leave a part of a block."""
    regions, prototypes, classes = make_features(0, 13, 18, 9, dim=16)
    started = start_from_cosines(regions, prototypes, classes, num_agents)
    compare = partial(compare_rankings, *map(jnp.asarray, started), method=method)
    expected = compare()
    monkeypatch.setattr(
        lax, "platform_dependent", lambda *arguments, cpu, default: default(*arguments)
    )
    np.testing.assert_allclose(compare(elements=elements), expected, atol=TOLERANCE)
