"""The encoder: DINOv2's last-layer keys beside transformers' torch model with the same weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from ported_weights import dinov2
from rimjax.bench.timing import Row, time_call
from rimjax.models.vit import last_layer_keys
from rimjax.models.vit_encoder import ViTEncoder


def measure_encoder(
    size: int, batch: int, small: bool, dtype: Literal["float32", "bfloat16"] = "float32"
) -> Row:
    """Time last-layer keys in JAX and in torch, on random weights.

    torch runs the whole model: its last layer's attention and MLP too, which JAX leaves out.

    Args:
        size: side of the images in pixels.
        batch: images at once.
        small: two narrow layers instead of ViT-B/14.
        dtype: what JAX computes in; torch computes in float32.

    Returns:
        Median seconds an image, and the largest difference of the keys relative to the largest key.
    """
    narrow: Any = (
        {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4} if small else {}
    )
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.Dinov2Model(transformers.Dinov2Config(image_size=518, **narrow)).eval()
    params, config = dinov2.port(
        {name: tensor.numpy() for name, tensor in model.state_dict().items()},
        num_heads=model.config.num_attention_heads,
    )
    params, config = jax.tree.map(jnp.asarray, params), replace(config, dtype=dtype)
    pixels = np.random.default_rng(0).standard_normal((batch, size, size, 3)).astype(np.float32)
    keys = jax.jit(partial(last_layer_keys, config=config))
    compiled, seconds = time_call(lambda: keys(params, pixels), 5)

    kept: list[torch.Tensor] = []
    last: Any = model.encoder.layer[-1]
    key = last.attention.attention.key
    handle = key.register_forward_hook(lambda *hooked: kept.append(hooked[2]))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().to(device)
    model.to(torch.device(device))  # pyright: ignore[reportArgumentType]

    def run_torch() -> None:
        model(images)
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        run_torch()
        expected = kept[-1][:, 1:].cpu().numpy()
        handle.remove()
        theirs = time_call(run_torch, 5)[1]
    ours = np.asarray(keys(params, pixels)).reshape(expected.shape)
    photograph = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    encoder = ViTEncoder(params, config, input_size=size)
    return {
        "size": size,
        "batch": batch,
        "torch device": device,
        "compile s": compiled,
        "seconds": seconds / batch,
        "torch seconds": theirs / batch,
        "over torch": seconds / theirs,
        "resize seconds": time_call(lambda: encoder.read_pixels(photograph), 5)[1],
        "largest difference": float(np.abs(ours - expected).max() / np.abs(expected).max()),
    }
