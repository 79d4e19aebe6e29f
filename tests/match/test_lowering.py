"""Matching and pooling lower for GPU and TPU at full size. Nothing is computed."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import export

from rimjax.match import match
from rimjax.steps import pool
from rimjax.types import ReferenceBank, Regions

PLATFORMS = ("cuda", "tpu")


def lower(function: Any, *arguments: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Lower a function for both platforms; return the dtype and shape of its results."""
    exported = export.export(function, platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    return [(str(leaf.dtype), leaf.shape) for leaf in exported.out_avals]


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(("similarity", "n"), [("relation", 4), ("relation", 8), ("cosine", 4)])
def test_matching_at_the_size_of_coco(similarity: str, n: int) -> None:
    regions = jax.eval_shape(lambda x: Regions(x, None, x[:, 0] > 0), floats(256, 768))
    bank = jax.eval_shape(
        lambda rows, classes: ReferenceBank(rows, rows[:, 0].astype(jnp.int32), classes, ()),
        floats(648, 768),
        floats(81, 768),
    )
    results = lower(jax.jit(partial(match, similarity=similarity, num_agents=n)), regions, bank)
    assert results == [("int32", (256,)), ("float32", (256, 81)), ("int32", (256, n))]


def test_pooling() -> None:
    results = lower(pool._average, floats(37, 37, 768), floats(256, 37, 37))
    assert results == [("float32", (256, 768)), ("bool", (256,))]
    masks = jax.ShapeDtypeStruct((16, 512, 768), jnp.bool_)
    results = lower(pool._resize, masks, floats(37, 512), floats(37, 768))
    assert results == [("float32", (16, 37, 37))]
