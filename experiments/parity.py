"""Compare the full-size models with PyTorch's, on random weights in the published shapes.

Command:  python experiments/parity.py
              all groups of comparisons: keys, dinov3, sd, trajectory, sam
          python experiments/parity.py --only keys sd
              some groups
Hardware: 2 CPU cores and 16 GiB; about 8 minutes; no download

Writes the [[parity]] entries of ported_weights/MANIFEST.toml, and exits with status 1 if an error
is above its target. Seeds are fixed. An error is the largest absolute difference, divided by the
largest absolute value of PyTorch's result.

Noise is added to weights that are initialised to constants, and the queries and keys of
cross-attention are multiplied by five, so that an ignored weight changes the result.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tomlkit
import torch
from parity_diffusion import (
    Row,
    compare_stable_diffusion,
    compare_trajectory,
    compute_error,
    draw_noise,
    shake,
)
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ViTMAEConfig,
    ViTMAEModel,
)

from ported_weights import clip, dinov2, dinov3, mae
from rimjax.models import sam
from rimjax.models.vit import last_layer_keys

OUT = Path(__file__).parents[1] / "ported_weights" / "MANIFEST.toml"
BFLOAT16 = 2e-2
"""Target of a ViT in bfloat16: a few times the spacing of its numbers below 1, 2^-8 = 4e-3."""


def compute_torch_keys(
    model: torch.nn.Module, layer: torch.nn.Module, pixels: np.ndarray, patch: int, **options: Any
) -> np.ndarray:
    """Return the output of a layer (the last key projection) at the patches, [1, h, w, D]."""
    kept: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        kept.append(output)

    handle = layer.register_forward_hook(keep)
    model(pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2), **options)
    handle.remove()
    height, width = (side // patch for side in pixels.shape[1:3])
    return kept[0][:, -height * width :].reshape(1, height, width, -1).numpy()


def fuse(state: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """Convert a DINOv2 state dict from the hub's layout to facebookresearch's."""
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
    }
    parts = {
        "norm1": "norm1",
        "norm2": "norm2",
        "attention.output.dense": "attn.proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    fused = {}
    for hub, facebook in names.items():
        keys = [key for key in state if key == hub or key.startswith(hub + ".")]
        fused |= {facebook + key[len(hub) :]: state[key] for key in keys}
    for layer in range(layers):
        hub, facebook = f"encoder.layer.{layer}.", f"blocks.{layer}."
        for leaf in ("weight", "bias"):
            for old, new in parts.items():
                fused[f"{facebook}{new}.{leaf}"] = state[f"{hub}{old}.{leaf}"]
            prefix = f"{hub}attention.attention."
            thirds = [state[f"{prefix}{part}.{leaf}"] for part in ("query", "key", "value")]
            fused[f"{facebook}attn.qkv.{leaf}"] = torch.cat(thirds)
        for index in (1, 2):
            fused[f"{facebook}ls{index}.gamma"] = state[f"{hub}layer_scale{index}.lambda1"]
    return fused


def compare_keys() -> Iterator[Row]:
    torch.manual_seed(0)
    model = shake(Dinov2Model(Dinov2Config(image_size=518)))
    layer = model.encoder.layer[-1].attention.attention.key
    params, config = dinov2.port(model.state_dict())
    title = "DINOv2 ViT-B/14, the hub's layout"
    for height, width in ((518, 518), (448, 448), (224, 322)):
        pixels = draw_noise(1, height, width, 3)
        theirs = compute_torch_keys(model, layer, pixels, 14)
        error = compute_error(last_layer_keys(params, pixels, config), theirs)
        yield title, f"{height}x{width}", "keys", error, 1e-5
        if height == 518:
            half = last_layer_keys(params, pixels, replace(config, dtype="bfloat16"))
            yield title, "518x518", "keys in bfloat16", compute_error(half, theirs), BFLOAT16
    params, config = dinov2.port(fuse(model.state_dict(), 12))
    pixels = draw_noise(1, 518, 518, 3)
    theirs = compute_torch_keys(model, layer, pixels, 14)
    error = compute_error(last_layer_keys(params, pixels, config), theirs)
    yield "DINOv2 ViT-B/14, facebookresearch's layout", "518x518", "keys", error, 1e-5

    torch.manual_seed(0)
    tower = shake(CLIPVisionModel(CLIPVisionConfig(patch_size=16)))
    layer = tower.vision_model.encoder.layers[-1].self_attn.k_proj
    params, config = clip.port(tower.state_dict())
    for size in (224, 592):
        pixels = draw_noise(1, size, size, 3)
        theirs = compute_torch_keys(tower, layer, pixels, 16, interpolate_pos_encoding=True)
        error = compute_error(last_layer_keys(params, pixels, config), theirs)
        yield "CLIP ViT-B/16", f"{size}x{size}", "keys", error, 1e-5

    torch.manual_seed(0)
    encoder = shake(ViTMAEModel(ViTMAEConfig(mask_ratio=0.0)))
    layer = encoder.encoder.layer[-1].attention.attention.key
    params, config = mae.port(encoder.state_dict())
    for size in (224, 592):
        pixels = draw_noise(1, size, size, 3)
        # MAE shuffles its patches by this noise: rising noise leaves them in order.
        rising: Any = torch.arange((size // 16) ** 2, dtype=torch.float32)[None]
        options = {"noise": rising, "interpolate_pos_encoding": True}
        theirs = compute_torch_keys(encoder, layer, pixels, 16, **options)
        error = compute_error(last_layer_keys(params, pixels, config), theirs)
        yield "MAE ViT-B/16", f"{size}x{size}", "keys", error, 1e-5


def compare_dinov3() -> Iterator[Row]:
    for name, width, layers in (("S", 384, 12), ("B", 768, 12), ("L", 1024, 24)):
        torch.manual_seed(0)
        sizes: dict[str, Any] = {"num_hidden_layers": layers, "num_attention_heads": width // 64}
        sizes |= {"hidden_size": width, "intermediate_size": 4 * width, "num_register_tokens": 4}
        model = shake(DINOv3ViTModel(DINOv3ViTConfig(**sizes)))
        params, config = dinov3.port(model.state_dict())
        layer: Any = model.layer[-1]
        for size in ((512, 512), (224, 224), (320, 448)):
            pixels = draw_noise(1, *size, 3)
            theirs = compute_torch_keys(model, layer.attention.k_proj, pixels, 16)
            error = compute_error(last_layer_keys(params, pixels, config), theirs)
            yield f"DINOv3 ViT-{name}/16", f"{size[0]}x{size[1]}", "keys", error, 1e-5


def compare_masks() -> Iterator[Row]:
    from segment_anything import SamPredictor

    loaded = sam.load(None)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    points = np.array([[200.0, 150.0], [320.0, 240.0]], np.float32)
    predictor = SamPredictor(loaded.model)
    predictor.set_image(image)
    theirs, scores, _ = predictor.predict(points, np.ones(2, np.int64), multimask_output=True)
    ours = sam.SamMasker(loaded).mask(image, points)
    share = float((ours != theirs[scores.argmax()]).mean())
    title = "SAM ViT-B through the adapter"
    yield title, "480x640", "share of pixels that differ", share, 0.0


GROUPS: dict[str, Callable[[], Iterator[Row]]] = {
    "keys": compare_keys,
    "dinov3": compare_dinov3,
    "sd": compare_stable_diffusion,
    "trajectory": compare_trajectory,
    "sam": compare_masks,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = list(GROUPS)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    about = "TOML file whose [[parity]] entries of the groups are replaced"
    parser.add_argument("--manifest", type=Path, default=OUT, help=about)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    manifest = tomlkit.parse(options.manifest.read_text() if options.manifest.exists() else "")
    old: list[Any] = [row for row in manifest.pop("parity", []) if row["group"] not in options.only]
    new: list[dict[str, Any]] = []
    print("| model | size | metric | error | target |\n|---|---|---|---|---|")
    for group in options.only:
        start = time.monotonic()
        for model, size, metric, error, target in GROUPS[group]():
            row = {"group": group, "model": model, "size": size, "metric": metric}
            new.append({**row, "error": float(f"{error:.1e}"), "target": target})
            missed = "" if error <= target else " **MISSED**"
            cells = (model, size, metric, f"{error:.1e}", f"{target:.0e}")
            print(f"| {' | '.join(cells)} |{missed}", flush=True)
        print(f"{group}: {time.monotonic() - start:.0f} s", flush=True)
        gc.collect()
    entries = tomlkit.aot()
    for row in sorted([*old, *new], key=lambda row: names.index(row["group"])):
        entries.append(tomlkit.item(dict(row)))
    manifest["parity"] = entries
    options.manifest.write_text(tomlkit.dumps(manifest))
    if any(row["error"] > row["target"] for row in new):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
