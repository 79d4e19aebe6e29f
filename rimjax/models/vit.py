"""A Flax ViT that returns the keys of its last attention layer (Sec. 4.2).

DINOv2, DINOv3, CLIP and MAE are settings of it. The last layer's queries, values and MLP, and the
final norm, are neither computed nor among the parameters.

DINOv3's keys are those before the rotation by RoPE. The rotation depends on a patch's place alone:
after it the same content would differ from place to place, and the average under a region would
cancel features out.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Float32

from ported_weights.vit import ViTConfig, mlp_width, param_shapes
from rimjax.models.attention import attend
from rimjax.models.rope import build_rotation, rotate

__all__ = ["Params", "ViT", "ViTConfig", "build_resize_matrix", "last_layer_keys", "param_shapes"]

Params = Mapping[str, Any]


@partial(jax.jit, static_argnames="config")
def last_layer_keys(
    params: Params, pixels: Array | np.ndarray, config: ViTConfig
) -> Float32[Array, "B h w D"]:
    """Compute the keys of the last attention layer at every patch, all heads side by side.

    Class and register tokens are dropped. Compiled once for each shape of pixels.

    Args:
        params: as a module of `ported_weights` returns them.
        pixels: float[B, H, W, 3], already normalised; H and W are multiples of the patch size.
        config: the config that belongs to the parameters.

    Raises:
        ValueError: pixels have another shape.
    """
    size, shape = config.patch_size, pixels.shape
    if len(shape) != 4 or shape[3] != 3 or shape[1] % size or shape[2] % size or not pixels.size:
        expected = f"[B, H, W, 3] with H and W multiples of the patch size {size}"
        raise ValueError(f"pixels must be {expected}, got {list(shape)}")
    keys: Any = ViT(config).apply({"params": params}, pixels)
    return keys


def build_resize_matrix(native: int, size: int, rule: str) -> Float32[np.ndarray, "size native"]:
    """Return bicubic interpolation from `native` to `size` samples as a matrix; rows sum to 1.

    Pixel centres are at halves, edge samples are repeated. Each rule is that of a family of
    published checkpoints:
    "transformers" maps the grids onto each other exactly (kernel a = -0.75, no antialiasing), as
    torch's `interpolate` does;
    "facebookresearch" does so with the scale factor (size + 0.1) / native;
    "registers" is exact and antialiased, with kernel a = -0.5 as in Pillow.
    """
    scale = native / (size + 0.1) if rule == "facebookresearch" else native / size
    antialias = rule == "registers"
    stretch = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(size) + 0.5) * scale - 0.5
    reach = int(np.ceil(2 * stretch))
    taps = np.floor(centres).astype(int)[:, None] + np.arange(1 - reach, reach + 1)
    distances = np.abs(taps - centres[:, None]) / stretch
    weights = _evaluate_cubic(distances, -0.5 if antialias else -0.75)
    if antialias:
        weights *= (taps >= 0) & (taps < native)
    matrix = np.zeros((size, native))
    np.add.at(matrix, (np.arange(size)[:, None], taps.clip(0, native - 1)), weights)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def _evaluate_cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Evaluate Keys' cubic convolution kernel at distances x >= 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


class ViT(nn.Module):
    """The module behind `last_layer_keys`."""

    config: ViTConfig

    @nn.compact
    def __call__(self, pixels: Float[Array | np.ndarray, "B H W 3"]) -> Float32[Array, "B h w D"]:
        c = self.config
        patch, native = (c.patch_size, c.patch_size), c.image_size // c.patch_size
        normal = nn.initializers.normal(0.02)
        leading = self.param("class_token", normal, (1, c.hidden_size), jnp.float32)
        position = None
        if c.rope_theta is None:
            shape = (1 + native**2, c.hidden_size)
            position = self.param("position_embedding", normal, shape, jnp.float32)
            leading = leading + position[:1]
        if c.num_registers:
            shape = (c.num_registers, c.hidden_size)
            registers = self.param("register_tokens", normal, shape, jnp.float32)
            leading = jnp.concatenate([leading, registers])

        embed = nn.Conv(
            c.hidden_size,
            patch,
            patch,
            "VALID",
            use_bias=c.patch_bias,
            name="patch_embedding",
            **_list_numerics(c),
        )
        x = embed(pixels).astype(jnp.float32)
        batch, h, w, _ = x.shape
        if position is not None:
            grid = position[1:].reshape(native, native, -1)
            if (h, w) != (native, native):  # at the native size no source resizes the embedding
                rows, columns = (build_resize_matrix(native, n, c.position_rule) for n in (h, w))
                grid = jnp.einsum("hi,wj,ijd->hwd", rows, columns, grid, precision="highest")
            x = x + grid[None]
        x = x.reshape(batch, h * w, -1)
        x = jnp.concatenate([jnp.broadcast_to(leading, (batch, *leading.shape)), x], axis=1)

        if c.pre_norm:
            x = _build_norm(c, "pre_norm")(x)
        rotation = None
        if c.rope_theta is not None:
            width = c.hidden_size // c.num_heads
            rotation = build_rotation(h, w, len(leading), width, c.rope_theta)
        for index in range(c.num_layers - 1):
            x = Layer(c, name=f"layers_{index}")(x, rotation)
        keys = Layer(c, keys_only=True, name=f"layers_{c.num_layers - 1}")(x)
        return keys[:, len(leading) :].reshape(batch, h, w, -1).astype(jnp.float32)


class Layer(nn.Module):
    """A pre-norm transformer layer on float32[B, n, D], or only its keys."""

    config: ViTConfig
    keys_only: bool = False

    @nn.compact
    def __call__(
        self, x: Float32[Array, "B n D"], rotation: Float32[np.ndarray, "2 n half"] | None = None
    ) -> Float[Array, "B n D"]:
        c = self.config
        dense = partial(nn.Dense, **_list_numerics(c))
        qkv = partial(dense, c.hidden_size, use_bias=c.qkv_bias)
        to_key = partial(dense, c.hidden_size, use_bias=c.qkv_bias and c.key_bias)

        y = _build_norm(c, "norm1")(x)
        key = to_key(name="key")(y)
        if self.keys_only:
            return key
        projections = (qkv(name="query")(y), key, qkv(name="value")(y))
        q, k, v = (a.reshape(*a.shape[:2], c.num_heads, -1) for a in projections)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        y = attend(q, k, v, c.precision).reshape(x.shape)
        x = x + self._scale("scale1", dense(c.hidden_size, name="out")(y))

        y = dense(mlp_width(c), name="fc1")(_build_norm(c, "norm2")(x))
        y = nn.gelu(y, approximate=False) if c.activation == "gelu" else y * nn.sigmoid(1.702 * y)
        return x + self._scale("scale2", dense(c.hidden_size, name="fc2")(y))

    def _scale(self, name: str, branch: Float[Array, "B n D"]) -> Float32[Array, "B n D"]:
        branch = branch.astype(jnp.float32)
        if not self.config.layer_scale:
            return branch
        scale = self.param(name, nn.initializers.ones, branch.shape[-1:], jnp.float32)
        return branch * scale[None, None]


def _list_numerics(config: ViTConfig) -> dict[str, Any]:
    return {"dtype": jnp.dtype(config.dtype), "precision": config.precision}


def _build_norm(config: ViTConfig, name: str) -> nn.LayerNorm:
    epsilon = config.layer_norm_eps
    return nn.LayerNorm(epsilon, dtype=jnp.float32, use_fast_variance=False, name=name)
