"""Modules that name models import none of the heavy libraries; those load when a model is built."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "flax", "diffusers", "transformers", "segment_anything")


@pytest.mark.parametrize(
    "module",
    [
        "ported_weights.stable_diffusion",
        "ported_weights.clip",
        "rimjax.models.diffusion",
        "rimjax.models.stable_diffusion",
        "rimjax.models.sam",
        "rimjax.models.maskformer",
        "rimjax.models.image_text",
        "rimjax.weights.sources",
        "rimjax.weights.download",
    ],
)
def test_heavy_libraries_are_not_imported(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
