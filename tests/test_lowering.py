"""Every compiled function of the paper preset, at full size and in its accelerator's dtype, lowers for GPU and TPU. Nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import ShapeDtypeStruct as Abstract
from jax import export

from rimjax.choices import PRESETS
from rimjax.models import random_weights
from rimjax.models.checkpoint import Checkpoint
from rimjax.models.diffusion import DiffusionConfig, StableDiffusion
from rimjax.models.vit import ViTConfig, last_layer_keys, param_shapes
from rimjax.pool import pool_regions

pytest.importorskip("diffusers", reason="Stable Diffusion needs diffusers")

BATCH = 8
PLATFORMS = ("cuda", "tpu")


def lowered(function: Callable[..., Any], *arguments: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Dtype and shape of what the function returns on both platforms."""
    exported = export.export(function, platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    return [(str(leaf.dtype), leaf.shape) for leaf in exported.out_avals]


def floats(*shape: int) -> Abstract:
    return Abstract(shape, jnp.float32)


def test_drawing_a_class() -> None:
    """CLIP text, 30 steps of the UNet under guidance with captured attention, VAE decoding: one function."""
    shapes = random_weights.stable_diffusion_shapes()
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["unet"])) == 859_520_964, (
        "SD 1.4's UNet"
    )
    params = jax.tree.map(lambda leaf: Abstract(leaf.shape, jnp.bfloat16), shapes)
    checkpoint = Checkpoint(
        random_weights.STABLE_DIFFUSION, {}, random_weights.byte_tokenizer(49408, 77)
    )
    model = StableDiffusion(checkpoint, DiffusionConfig(batch_size=BATCH, dtype="bfloat16"))
    keys = jax.eval_shape(jax.vmap(jax.random.key), Abstract((BATCH,), jnp.int32))
    found = lowered(model._draw, params, Abstract((2, 77), jnp.int32), floats(77), keys)
    assert found == [("uint8", (BATCH, 512, 512, 3)), ("float32", (BATCH, 64, 64))]


@pytest.mark.parametrize("name", ["dinov2-base", "clip-vit-b-16"])
def test_last_layer_keys(name: str) -> None:
    choice = PRESETS["paper"].encoders[name]
    config = ViTConfig(**choice.vit or {}, dtype="bfloat16")
    pixels = floats(BATCH, choice.input_size, choice.input_size, 3)
    assert lowered(
        jax.jit(partial(last_layer_keys, config=config)), param_shapes(config), pixels
    ) == [("float32", (BATCH, 37, 37, 768))]


def test_pooling() -> None:
    found = lowered(pool_regions, floats(37, 37, 768), Abstract((256, 480, 640), jnp.bool_))
    assert found == [("float32", (256, 768)), ("bool", (256,))]
