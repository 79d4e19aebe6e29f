"""One Flax ViT that returns the keys of its last attention layer (Sec. 4.2); DINOv2, CLIP and MAE are settings of it.

Keys, not outputs: the last layer's queries, values and MLP, and the final norm, are neither computed nor among the parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Float32, UInt8
from PIL import Image

from rimjax.models.protocols import check_image, fingerprint, in_batches

Params = Mapping[str, Any]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ViTConfig:
    """Architecture of a ViT, and how it is run. The defaults are DINOv2 ViT-B/14.

    Attributes:
        hidden_size: D.
        num_layers: the last is run up to its keys.
        num_heads: divides `hidden_size`.
        mlp_ratio: width of the MLPs over `hidden_size`.
        patch_size: pixels, of both sides.
        image_size: pixels of both sides at which the position embedding needs no resizing.
        layer_norm_eps: of every LayerNorm.
        layer_scale: whether each residual branch is multiplied by a learned vector (DINOv2).
        num_registers: register tokens between the class token and the patches.
        pre_norm: a LayerNorm before the first layer (CLIP).
        patch_bias: whether the patch embedding has a bias (CLIP's has none).
        qkv_bias: whether queries, keys and values have one.
        activation: of the MLPs; "gelu" is the exact one, "quick_gelu" CLIP's x * sigmoid(1.702 x).
        position_rule: how the position embedding is resized, see `resize_matrix`: the rule of the checkpoint's own source.
        dtype: of activations and matrix products; LayerNorm, softmax and the residual stream are float32 always.
        precision: of float32 matrix products; "highest" keeps TF32 and bfloat16 passes out.
    """

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    patch_size: int = 14
    image_size: int = 518
    layer_norm_eps: float = 1e-6
    layer_scale: bool = True
    num_registers: int = 0
    pre_norm: bool = False
    patch_bias: bool = True
    qkv_bias: bool = True
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    position_rule: Literal["transformers", "facebookresearch", "registers"] = "transformers"
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["default", "high", "highest"] = "highest"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads: expected a divisor of hidden_size {self.hidden_size}, got {self.num_heads}")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size: expected a multiple of patch_size {self.patch_size}, got {self.image_size}")


@partial(jax.jit, static_argnames="config")
def last_layer_keys(params: Params, pixels: Float[Array | np.ndarray, "B H W 3"], config: ViTConfig) -> Float32[Array, "B h w D"]:
    """Keys of the last attention layer, all heads side by side, at every patch; class and register tokens are dropped.

    Compiled once for each shape of pixels.

    Args:
        params: as a `ported_weights` module returns them.
        pixels: already normalised; H and W are multiples of the patch size, at any size.
        config: what the parameters belong to.

    Raises:
        ValueError: pixels have another shape.
    """
    size = config.patch_size
    if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.shape[1] % size or pixels.shape[2] % size or not pixels.size:
        raise ValueError(f"pixels: expected [B, H, W, 3] with H and W multiples of the patch size {size}, got {list(pixels.shape)}")
    return ViT(config).apply({"params": params}, pixels)  # pyright: ignore[reportReturnType]


def param_shapes(config: ViTConfig) -> Params:
    """The tree of parameters that `last_layer_keys` wants, as `jax.ShapeDtypeStruct` leaves."""
    pixels = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
    return jax.eval_shape(ViT(config).init, jax.random.key(0), pixels)["params"]


def resize_matrix(native: int, size: int, rule: str) -> Float32[np.ndarray, "size native"]:
    """Bicubic interpolation of a row of `native` samples at `size` places, as a matrix; rows sum to 1.

    Half-pixel centres, edge samples repeated. The rules, each that of a family of published checkpoints:
    "transformers" maps the grids onto each other exactly (kernel a = -0.75, no antialiasing), as torch's `interpolate` does;
    "facebookresearch" does so with the scale factor (size + 0.1) / native;
    "registers" is exact and antialiased, and its kernel is a = -0.5 as in Pillow.
    """
    scale = native / (size + 0.1) if rule == "facebookresearch" else native / size
    antialias = rule == "registers"
    stretch = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(size) + 0.5) * scale - 0.5
    reach = int(np.ceil(2 * stretch))
    taps = np.floor(centres).astype(int)[:, None] + np.arange(1 - reach, reach + 1)
    weights = _cubic(np.abs(taps - centres[:, None]) / stretch, -0.5 if antialias else -0.75)
    if antialias:
        weights *= (taps >= 0) & (taps < native)
    matrix = np.zeros((size, native))
    np.add.at(matrix, (np.arange(size)[:, None], taps.clip(0, native - 1)), weights)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """Keys' cubic convolution kernel at distances x >= 0."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


class ViT(nn.Module):
    """The module behind `last_layer_keys`."""

    config: ViTConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float32[Array, "B h w D"]:
        c = self.config
        patch, native = (c.patch_size, c.patch_size), c.image_size // c.patch_size
        normal = nn.initializers.normal(0.02)
        position = self.param("position_embedding", normal, (1 + native**2, c.hidden_size))
        leading = self.param("class_token", normal, (1, c.hidden_size)) + position[:1]
        if c.num_registers:
            leading = jnp.concatenate([leading, self.param("register_tokens", normal, (c.num_registers, c.hidden_size))])

        embed = nn.Conv(c.hidden_size, patch, patch, "VALID", use_bias=c.patch_bias, **_compute(c), name="patch_embedding")
        x = embed(pixels).astype(jnp.float32)
        batch, h, w, _ = x.shape
        grid = position[1:].reshape(native, native, -1)
        if (h, w) != (native, native):  # at the native size every source takes the embedding as it is
            rows, columns = resize_matrix(native, h, c.position_rule), resize_matrix(native, w, c.position_rule)
            grid = jnp.einsum("hi,wj,ijd->hwd", rows, columns, grid, precision="highest")
        x = x + grid
        x = jnp.concatenate([jnp.broadcast_to(leading, (batch, *leading.shape)), x.reshape(batch, h * w, -1)], axis=1)

        if c.pre_norm:
            x = _norm(c, "pre_norm")(x)
        for index in range(c.num_layers - 1):
            x = Layer(c, name=f"layers_{index}")(x)
        keys = Layer(c, keys_only=True, name=f"layers_{c.num_layers - 1}")(x)
        return keys[:, len(leading) :].reshape(batch, h, w, -1).astype(jnp.float32)


class Layer(nn.Module):
    """A pre-norm transformer layer on float32[B, n, D], or only its keys."""

    config: ViTConfig
    keys_only: bool = False

    @nn.compact
    def __call__(self, x: Float32[Array, "B n D"]) -> Float[Array, "B n D"]:
        c = self.config
        dense = partial(nn.Dense, **_compute(c))
        qkv = partial(dense, c.hidden_size, use_bias=c.qkv_bias)

        y = _norm(c, "norm1")(x)
        key = qkv(name="key")(y)
        if self.keys_only:
            return key
        q, k, v = (a.reshape(*a.shape[:2], c.num_heads, -1) for a in (qkv(name="query")(y), key, qkv(name="value")(y)))
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision=c.precision, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits / np.sqrt(q.shape[-1]).astype(np.float32)).astype(c.dtype)
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision=c.precision).reshape(x.shape)
        x = x + self._scaled("scale1", dense(c.hidden_size, name="out")(y))

        y = dense(round(c.hidden_size * c.mlp_ratio), name="fc1")(_norm(c, "norm2")(x))
        y = nn.gelu(y, approximate=False) if c.activation == "gelu" else y * nn.sigmoid(1.702 * y)
        return x + self._scaled("scale2", dense(c.hidden_size, name="fc2")(y))

    def _scaled(self, name: str, branch: Float[Array, "B n D"]) -> Float32[Array, "B n D"]:
        branch = branch.astype(jnp.float32)
        return branch * self.param(name, nn.initializers.ones, branch.shape[-1:]) if self.config.layer_scale else branch


def _compute(config: ViTConfig) -> dict[str, Any]:
    return {"dtype": jnp.dtype(config.dtype), "precision": config.precision}


def _norm(config: ViTConfig, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(config.layer_norm_eps, dtype=jnp.float32, use_fast_variance=False, name=name)


@dataclass(frozen=True, eq=False)
class ViTEncoder:
    """A ViT's last-layer keys as an `Encoder`: images are resized (Pillow's bicubic) to a square and normalised.

    Attributes:
        params: of the ViT.
        config: of the ViT.
        input_size: S; every image is resized to SxS pixels, whatever its shape.
        mean: of red, green and blue in 0..1, subtracted.
        std: of the same, divided by.
        batch_size: images that go through the model at once; a last batch that isn't full is padded.

    Raises:
        ValueError: S isn't a multiple of the patch size, or batch_size < 1.
    """

    params: Params
    config: ViTConfig
    input_size: int = 518
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.input_size < 1 or self.input_size % self.config.patch_size:
            raise ValueError(f"input_size: expected a multiple of the patch size {self.config.patch_size}, got {self.input_size}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {self.batch_size}")

    @cached_property
    def fingerprint(self) -> str:
        """Digest of weights, architecture and input settings."""
        weights = {name: np.asarray(array) for name, array in flatten_dict(self.params, sep="/").items()}
        return fingerprint(self.config, weights, input_size=self.input_size, mean=self.mean, std=self.std)

    def encode(self, image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "h w D"]:
        """Keys of one image, h = w = S / patch size.

        Raises:
            ValueError: not a uint8[H, W, 3].
        """
        return np.asarray(last_layer_keys(self._on_device, self._pixels(image)[None], self.config))[0]

    def encode_batch(self, images: Sequence[np.ndarray]) -> Float32[np.ndarray, "B h w D"]:
        """Keys of several images, each uint8[H, W, 3] of any size.

        Raises:
            ValueError: one of them isn't that, or there is none.
        """
        return in_batches(lambda pixels: last_layer_keys(self._on_device, pixels, self.config), self._pixels, images, self.batch_size)

    @cached_property
    def _on_device(self) -> Params:
        return jax.device_put(self.params)

    def _pixels(self, image: np.ndarray) -> Float32[np.ndarray, "S S 3"]:
        check_image(image)
        resized = Image.fromarray(image).resize((self.input_size, self.input_size), Image.Resampling.BICUBIC)
        return (np.asarray(resized, np.float32) / 255 - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
