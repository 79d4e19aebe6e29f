"""Whitening of features, and that `match` applies a bank's whitening to its regions."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from oracle import assert_same, features, make_bank, make_whitening, oracle_whitened

from rimjax import match as m
from rimjax.types import ReferenceBank, Regions


@pytest.mark.parametrize("dim", [5, 64, 768])
@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_whitened_features_equal_float64s(dim, scale):
    """Within 2e-6 of the longest feature: float32's rounding, summed over D products."""
    whitening = make_whitening(dim, dim)
    rows = np.concatenate([features(1, 30, dim=dim)[0] * np.float32(scale), np.zeros((1, dim))])
    rows = rows.astype(np.float32)
    expected = oracle_whitened(rows, whitening)
    whitened = whitening.apply(rows)
    assert whitened.dtype == jnp.float32
    longest = np.linalg.norm(expected, axis=1).max()
    np.testing.assert_allclose(whitened, expected, atol=2e-6 * max(1, longest), rtol=0)
    assert not np.asarray(whitened)[-1].any(), "a zero vector stays zero"


def test_it_is_pure_jax():
    whitening, rows = make_whitening(2, 16), jnp.asarray(features(3, 6)[0])
    expected = whitening.apply(rows)
    compiled = jax.jit(lambda whitening, rows: whitening.apply(rows))(whitening, rows)
    np.testing.assert_allclose(compiled, expected, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(whitening.apply)(rows), expected, atol=1e-6)
    batch = whitening.apply(rows.reshape(2, 3, 16))
    np.testing.assert_allclose(batch.reshape(6, 16), expected, atol=1e-6)
    check_grads(whitening.apply, (rows,), order=1, modes=("rev",), eps=1e-2, atol=1e-2, rtol=1e-2)
    slope = jax.grad(lambda rows: whitening.apply(rows).sum())(jnp.zeros((1, 16)))
    assert np.isfinite(slope).all()


def test_halves_are_computed_in_float32():
    whitening = make_whitening(2, 16)
    short = jnp.asarray(features(3, 6)[0], jnp.bfloat16)
    expected = oracle_whitened(np.asarray(short, np.float64), whitening)
    np.testing.assert_allclose(whitening.apply(short), expected, atol=1e-5)


def whitened_bank():
    """Make a bank of whitened references, and return it with and without its whitening."""
    bank, whitening = make_bank(4, classes=8), make_whitening(5, 16)
    parts = (whitening.apply(bank.prototypes), bank.owners, whitening.apply(bank.classes))
    return (
        ReferenceBank.create(*parts, bank.names, whitening=whitening),
        ReferenceBank.create(*parts, bank.names),
    )


@pytest.mark.parametrize("similarity", ["relation", "cosine"])
@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_match_whitens_the_regions(similarity, place):
    bank, plain = whitened_bank()
    (rows,) = features(6, 40)
    rows[3] = 0
    settings: dict[str, Any] = dict(similarity=similarity, score_map="shift")
    expected = m.match(oracle_whitened(rows, bank.whitening), plain, **settings)
    assert_same(m.match(place(rows), bank, **settings), expected)
    assert (np.asarray(m.match(rows, plain, **settings).labels) != expected.labels).any()
    compiled = jax.jit(lambda rows, bank: m.match(rows, bank, **settings))(rows, bank)
    assert_same(compiled, expected)
    mapped = jax.vmap(lambda row: m.match(row[None], bank, **settings).labels[0])(rows)
    np.testing.assert_array_equal(mapped, expected.labels)


def test_invalid_regions_may_hold_anything():
    bank, _ = whitened_bank()
    (rows,) = features(6, 9)
    broken, valid = rows.copy(), np.arange(9) != 4
    broken[4] = np.nan
    result, expected = m.match(Regions(broken, None, valid), bank), m.match(rows, bank)
    assert result.labels[4] == -1 and not np.asarray(result.scores)[4].any()
    np.testing.assert_array_equal(result.labels[valid], expected.labels[valid])


def test_it_is_part_of_the_banks_pytree():
    bank, _ = whitened_bank()
    assert bank.whitening is not None
    assert len(jax.tree.leaves(bank)) == 5
    halved = jax.tree.map(lambda leaf: leaf / 2, bank)
    np.testing.assert_allclose(halved.whitening.mean, np.asarray(bank.whitening.mean) / 2)
    shapes = jax.tree.map(lambda leaf: str(leaf.shape), bank)  # rebuilt from any placeholder
    assert shapes.whitening.matrix == "(16, 16)" and shapes.names == bank.names
    renamed = replace(bank, names=("background", *"abcdefg"))
    assert jax.tree.structure(renamed) != jax.tree.structure(bank)
