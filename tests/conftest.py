"""Check types and shapes at run time, and refuse silent promotion, in every test."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# The tests' processes share what XLA compiled, and so do later runs, in which the experiments'
# scripts take half of the time.
PROGRAMS = Path(__file__).parents[1] / ".pytest_cache/programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax
import pytest
from browser import browser as browser
from browser import visit as visit
from jaxtyping import install_import_hook

# Before anything of ours is imported: every annotated function checks its arguments and result.
install_import_hook(["rimjax", "ported_weights"], "typecheck.check")

TESTS = Path(__file__).parent
DRAWS = (
    "distributed",
    *("commands/", "experiments/", "presets/", "weights/", "test_docs", "test_step_versions"),
    *("references/test_class_prompts", "show/test_report"),
    *("models/test_stable_diffusion", "models/test_unet_encoder", "models/test_lowering"),
)
"""Tests that run Stable Diffusion, whose Flax modules in diffusers promote dtypes and ranks."""


@pytest.fixture
def unwritable(tmp_path: Path) -> Path:
    """Return a folder in which nothing can be written, not even by root."""
    if os.geteuid():
        (tmp_path / "locked").mkdir(mode=0o555)
        return tmp_path / "locked"
    if not Path("/proc/self").is_dir():
        pytest.skip("root can write everywhere on this system")
    return Path("/proc/self")


@pytest.fixture(autouse=True)
def refuse_promotion(request: pytest.FixtureRequest) -> Iterator[None]:
    """Refuse promotion of dtypes and ranks except where diffusers needs it."""
    if request.path.relative_to(TESTS).as_posix().startswith(DRAWS):
        yield
        return
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
