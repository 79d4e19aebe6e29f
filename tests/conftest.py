"""Check types and shapes at run time, and refuse silent promotion, in every test."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import jax
import pytest
from jaxtyping import install_import_hook

# Before anything of ours is imported: every annotated function checks its arguments and result.
install_import_hook(["rimjax", "ported_weights"], "typecheck.check")

DRAWS = ("commands", "experiments", "presets", "test_step_versions.py")
"""Tests that run Stable Diffusion, whose Flax modules in diffusers promote dtypes and ranks."""


@pytest.fixture(autouse=True)
def refuse_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Refuse promotion of dtypes and ranks except where diffusers needs it."""
    if any(part in DRAWS for part in request.path.parts):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
