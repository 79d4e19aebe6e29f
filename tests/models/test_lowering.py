"""The paper preset's models lower for GPU and TPU, at full size and in bfloat16.

Nothing is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import ShapeDtypeStruct as Abstract
from jax import export
from tiny_diffusion import relaxed

from rimjax.models import random_weights
from rimjax.models.diffusion import DiffusionConfig, StableDiffusion
from rimjax.models.stable_diffusion.checkpoint import MODELS, Checkpoint, compute_shapes
from rimjax.models.vit import ViTConfig, last_layer_keys, param_shapes

BATCH = 8
PLATFORMS = ("cuda", "tpu")


def lowered(function: Any, *arguments: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Dtype and shape of what the function returns on both platforms."""
    exported = export.export(function, platforms=PLATFORMS)(*arguments)
    assert exported.platforms == PLATFORMS
    return [(str(leaf.dtype), leaf.shape) for leaf in exported.out_avals]


@pytest.fixture
def relax() -> Iterator[None]:
    with relaxed():
        yield


def floats(*shape: int) -> Abstract:
    return Abstract(shape, jnp.float32)


@pytest.mark.usefixtures("relax")
def test_drawing_a_class() -> None:
    """Text encoder, 30 guided steps with captured attention and VAE are a single function."""
    configs = random_weights.STABLE_DIFFUSION
    shapes = {part: compute_shapes(part, configs[part]) for part in MODELS}
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["unet"])) == 859_520_964, (
        "SD 1.4's UNet"
    )
    params = jax.tree.map(lambda leaf: Abstract(leaf.shape, jnp.bfloat16), shapes)
    checkpoint = Checkpoint(configs, {}, random_weights.make_byte_tokenizer(49408, 77))
    model = StableDiffusion(checkpoint, DiffusionConfig(batch_size=BATCH, dtype="bfloat16"))
    keys = jax.eval_shape(jax.vmap(jax.random.key), Abstract((BATCH,), jnp.int32))
    results = lowered(model._draw, params, Abstract((2, 77), jnp.int32), floats(77), keys)
    assert results == [
        ("uint8", (BATCH, 512, 512, 3)),
        ("float32", (BATCH, 64, 64)),
        ("bool", (2,)),
    ]


CLIP = {
    "patch_size": 16,
    "image_size": 224,
    "layer_norm_eps": 1e-5,
    "layer_scale": False,
    "pre_norm": True,
    "patch_bias": False,
    "activation": "quick_gelu",
}


DINOV3 = {
    "patch_size": 16,
    "image_size": 512,
    "num_registers": 4,
    "rope_theta": 100.0,
    "key_bias": False,
}


@pytest.mark.parametrize(
    ("settings", "size", "side"),
    [({}, 518, 37), (DINOV3, 512, 32), (CLIP, 592, 37)],
    ids=["DINOv2", "DINOv3", "CLIP"],
)
def test_last_layer_keys(settings: dict[str, Any], size: int, side: int) -> None:
    config = ViTConfig(**settings, dtype="bfloat16")
    keys = jax.jit(partial(last_layer_keys, config=config))
    results = lowered(keys, param_shapes(config), floats(BATCH, size, size, 3))
    assert results == [("float32", (BATCH, side, side, 768))]
