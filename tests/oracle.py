"""Float64 brute-force oracles of the matching kernels, and synthetic features and banks."""

import itertools
import math

import numpy as np

from rimjax.match.classify import classify_regions
from rimjax.types import Match, ReferenceBank, Whitening

# The lattice multiplies and adds at most 2^N positive float32 terms, and nothing cancels: a few
# dozen roundings of 6e-8.
TOLERANCE = 1e-5


def oracle_probabilities(scores):
    """Compute Eq. 7 as printed: a ranking per row, a draw per column."""
    ranked = np.asarray(scores, np.float64)[list(itertools.permutations(range(len(scores))))]
    return np.prod([ranked[:, k] / ranked[:, k:].sum(axis=1) for k in range(len(scores))], axis=0)


def oracle_similarity(s, r, measure="cosine"):
    p, q = oracle_probabilities(s), oracle_probabilities(r)
    if measure == "bhattacharyya":
        return np.sqrt(p * q).sum()
    if measure == "kl":
        return -(p * np.log(p / q)).sum()
    if measure == "pearson":
        if len(set(s)) == 1 or len(set(r)) == 1:
            return 0.0
        p, q = p - 1 / math.factorial(len(s)), q - 1 / math.factorial(len(r))
    return p @ q / np.sqrt((p @ p) * (q @ q))


def oracle_weights(cosines, score_map, temperature):
    return {
        "clip": np.maximum(cosines, 1e-6),
        "exp": np.exp(cosines / temperature),
        "shift": (1 + cosines) / 2,
    }[score_map]


def cosine_similarity(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (
        b / np.linalg.norm(b, axis=1, keepdims=True)
    ).T


def oracle_relation(
    regions,
    prototypes,
    classes,
    *,
    num_agents=4,
    score_map="clip",
    temperature=0.1,
    measure="cosine",
):
    region_cosines, reference_cosines = (
        cosine_similarity(regions, classes),
        cosine_similarity(prototypes, classes),
    )
    out = np.zeros((len(regions), len(prototypes)))
    for i, cosines in enumerate(region_cosines):
        agents = np.argsort(-cosines, kind="stable")[:num_agents]
        s = oracle_weights(cosines[agents], score_map, temperature)
        for j, reference in enumerate(reference_cosines):
            out[i, j] = oracle_similarity(
                s, oracle_weights(reference[agents], score_map, temperature), measure
            )
    return out


def features(seed, *sizes, dim=16):
    """Make clustered features, as real ones are: cosines of both signs, some of them close."""
    rng = np.random.default_rng(seed)
    centre = rng.normal(size=dim)
    return [(0.7 * centre + rng.normal(size=(size, dim))).astype(np.float32) for size in sizes]


def make_bank(seed=0, classes=6, per_class=3, dim=16):
    rows, spread = features(seed, classes, classes * per_class, dim=dim)
    prototypes = np.repeat(rows, per_class, axis=0) + 0.5 * spread
    return ReferenceBank.create(
        prototypes,
        np.repeat(np.arange(classes), per_class),
        rows,
        ("background", *map(str, range(1, classes))),
    )


def make_whitening(seed, dim):
    """Make a realistic whitening: the inverse root of a covariance with a ridge."""
    rng = np.random.default_rng(seed)
    samples = rng.normal(size=(3 * dim, dim)) * np.geomspace(3, 0.3, dim)
    samples /= np.linalg.norm(samples, axis=1, keepdims=True)
    variances, directions = np.linalg.eigh(np.cov(samples.T))
    matrix = (directions * (variances + variances.mean()) ** -0.5) @ directions.T
    return Whitening(samples[0].astype(np.float32) / 2, matrix.astype(np.float32))


def oracle_whitened(rows, whitening):
    rows = np.asarray(rows, np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units = rows / np.where(lengths > 0, lengths, 1)
    mean, matrix = (np.asarray(part, np.float64) for part in (whitening.mean, whitening.matrix))
    return np.where(lengths > 0, (units - mean) @ matrix, 0).astype(np.float32)


def count_compilations():
    return classify_regions._cache_size()  # pyright: ignore[reportAttributeAccessIssue]


def oracle_lattice(s, r):
    """Compute F(all) in float64, for more agents than can be enumerated."""
    subsets, items = np.arange(1 << len(s))[:, None], np.arange(len(s))
    member = subsets >> items & 1
    value = np.ones(len(subsets))
    for size in items + 1:
        at = member.sum(axis=1) == size
        terms = member[at] * s * r * value[subsets[at] & ~(1 << items)]
        value[at] = terms.sum(axis=1) / ((member[at] @ s) * (member[at] @ r))
    return value[-1]


def assert_same(a: Match, b: Match):
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.agents, b.agents)
    np.testing.assert_allclose(a.scores, b.scores, atol=TOLERANCE)
