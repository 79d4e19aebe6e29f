"""The architecture of a ViT up to the keys of its last attention layer, and its weights' shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np

from ported_weights.choices import check_choices
from ported_weights.rules import build_tree

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Mean and deviation of ImageNet's red, green and blue in 0..1: DINOv2, DINOv3, MAE, MaskFormer."""


@dataclass(frozen=True)
class ViTConfig:
    """Architecture of a ViT, and how it runs. The defaults are DINOv2 ViT-B/14.

    Attributes:
        hidden_size: D.
        num_layers: number of layers; the last layer computes its keys only.
        num_heads: divides `hidden_size`.
        mlp_ratio: width of the MLPs over `hidden_size`.
        patch_size: side of a patch, pixels.
        image_size: side in pixels at which the position embedding needs no resizing; of no effect
            with rotary positions.
        layer_norm_eps: epsilon of every LayerNorm.
        layer_scale: whether each residual branch is multiplied by a learned vector (both DINOs).
        num_registers: register tokens between the class token and the patches.
        pre_norm: whether a LayerNorm stands before the first layer (CLIP).
        patch_bias: whether the patch embedding has a bias (CLIP's has none).
        qkv_bias: whether queries, keys and values have a bias.
        key_bias: whether keys have it too (DINOv3's don't).
        activation: of the MLPs; "gelu" is exact, "quick_gelu" is CLIP's x * sigmoid(1.702 x).
        position_rule: how the position embedding is resized (see
            `rimjax.models.vit.build_resize_matrix`): the rule of the checkpoint's own source.
        rope_theta: base of the periods of rotary positions (DINOv3); None: a learned position
            embedding instead.
        dtype: of activations and matrix products; LayerNorm, softmax and the residual stream are
            always float32.
        precision: of float32 matrix products; "highest" avoids TF32 and bfloat16 passes.
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
    key_bias: bool = True
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    position_rule: Literal["transformers", "facebookresearch", "registers"] = "transformers"
    rope_theta: float | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["default", "high", "highest"] = "highest"

    def __post_init__(self) -> None:
        check_choices(self)
        for name, size, divisor in (
            ("hidden_size", self.hidden_size, "num_heads"),
            ("image_size", self.image_size, "patch_size"),
        ):
            if size % getattr(self, divisor):
                expected = f"a multiple of {divisor} {getattr(self, divisor)}"
                raise ValueError(f"{name} must be {expected}, got {size}; change either")
        if self.rope_theta is not None and self.hidden_size % (4 * self.num_heads):
            expected = f"a multiple of 4 times num_heads {self.num_heads} with rotary positions"
            size = self.hidden_size
            raise ValueError(f"hidden_size must be {expected}, got {size}; change either")


def param_shapes(config: ViTConfig) -> dict[str, Any]:
    """Return the tree of parameters of a ViT as `jax.ShapeDtypeStruct` leaves, all float32."""
    size, patch, width = config.hidden_size, config.patch_size, mlp_width(config)
    shapes: dict[str, tuple[int, ...]] = {
        "class_token": (1, size),
        "patch_embedding/kernel": (patch, patch, 3, size),
    }
    if config.rope_theta is None:
        shapes["position_embedding"] = (1 + (config.image_size // patch) ** 2, size)
    if config.patch_bias:
        shapes["patch_embedding/bias"] = (size,)
    if config.num_registers:
        shapes["register_tokens"] = (config.num_registers, size)
    if config.pre_norm:
        shapes |= _norm_shapes("pre_norm", size)
    for index in range(config.num_layers):
        layer, is_last = f"layers_{index}", index == config.num_layers - 1
        shapes |= _norm_shapes(f"{layer}/norm1", size)
        for part in ("key",) if is_last else ("query", "key", "value"):
            bias = config.qkv_bias and (config.key_bias or part != "key")
            shapes |= _dense_shapes(f"{layer}/{part}", size, size, bias)
        if is_last:
            break
        shapes |= _dense_shapes(f"{layer}/out", size, size)
        shapes |= _norm_shapes(f"{layer}/norm2", size)
        shapes |= _dense_shapes(f"{layer}/fc1", size, width)
        shapes |= _dense_shapes(f"{layer}/fc2", width, size)
        if config.layer_scale:
            shapes |= {f"{layer}/scale1": (size,), f"{layer}/scale2": (size,)}
    return build_tree({k: jax.ShapeDtypeStruct(v, np.float32) for k, v in shapes.items()})


def mlp_width(config: ViTConfig) -> int:
    """Return the hidden width of a ViT's MLPs."""
    return round(config.hidden_size * config.mlp_ratio)


def _norm_shapes(path: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{path}/scale": (size,), f"{path}/bias": (size,)}


def _dense_shapes(
    path: str, inputs: int, outputs: int, bias: bool = True
) -> dict[str, tuple[int, ...]]:
    kernel: dict[str, tuple[int, ...]] = {f"{path}/kernel": (inputs, outputs)}
    return kernel | ({f"{path}/bias": (outputs,)} if bias else {})
