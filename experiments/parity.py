"""Are the full-size models what PyTorch computes? Random weights in the published shapes, fixed seeds, one row a comparison.

Command:  python experiments/parity.py                      every row
          python experiments/parity.py --only keys sd        rows whose group is named: keys, sd, trajectory, sam
Hardware: 2 CPU cores and 16 GiB; about 6 minutes. No download. Writes the [[parity]] entries of ported_weights/MANIFEST.toml; exits 1 if a
target is missed.

An error is the largest absolute difference over the largest absolute value of PyTorch's. Weights that training would move are shaken out of
their initial ones and zeros, and cross-attention's queries and keys are made five times larger, so that nothing can be left out unnoticed.
"""

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tomlkit
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    ViTMAEConfig,
    ViTMAEModel,
)

from ported_weights import clip, dinov2, mae, stable_diffusion
from rimjax.models import random_weights, sam
from rimjax.models.diffusion import DiffusionConfig, StableDiffusion
from rimjax.models.vit import last_layer_keys

OUT = Path(__file__).parents[1] / "ported_weights" / "MANIFEST.toml"
Row = tuple[str, str, str, float, float]


def error(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def shaken(model: torch.nn.Module) -> Any:
    model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter += 0.1 * torch.randn(parameter.shape)
        if "attn2.to_q" in name or "attn2.to_k" in name:
            parameter *= 5
    return model


def keys_in_torch(model: torch.nn.Module, layer: torch.nn.Module, pixels: np.ndarray, patch: int, **options: Any) -> np.ndarray:
    """What a layer (the last one's key projection) gives at the patches, [1, h, w, D]."""
    kept: list[torch.Tensor] = []
    handle = layer.register_forward_hook(lambda module, given, output: kept.append(output))
    model(pixel_values=torch.from_numpy(pixels).permute(0, 3, 1, 2), **options)
    handle.remove()
    return kept[0][:, 1:].reshape(1, pixels.shape[1] // patch, pixels.shape[2] // patch, -1).numpy()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def fused(state: dict[str, torch.Tensor], layers: int) -> dict[str, torch.Tensor]:
    """A DINOv2 state dict of the hub's in facebookresearch's layout."""
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.mask_token": "mask_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        "layernorm": "norm",
    }
    parts = {"norm1": "norm1", "norm2": "norm2", "attention.output.dense": "attn.proj", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    made = {}
    for hub, facebook in names.items():
        made |= {facebook + key[len(hub) :]: value for key, value in state.items() if key == hub or key.startswith(hub + ".")}
    for layer in range(layers):
        hub, facebook = f"encoder.layer.{layer}.", f"blocks.{layer}."
        for leaf in ("weight", "bias"):
            made |= {f"{facebook}{new}.{leaf}": state[f"{hub}{old}.{leaf}"] for old, new in parts.items()}
            thirds = [state[f"{hub}attention.attention.{part}.{leaf}"] for part in ("query", "key", "value")]
            made[f"{facebook}attn.qkv.{leaf}"] = torch.cat(thirds)
        made |= {f"{facebook}ls{index}.gamma": state[f"{hub}layer_scale{index}.lambda1"] for index in (1, 2)}
    return made


def keys() -> Iterator[Row]:
    torch.manual_seed(0)
    model = shaken(Dinov2Model(Dinov2Config(image_size=518)))
    params, config = dinov2.port(model.state_dict())
    for height, width in ((518, 518), (448, 448), (224, 322)):
        pixels = noise(1, height, width, 3)
        theirs = keys_in_torch(model, model.encoder.layer[-1].attention.attention.key, pixels, 14)
        yield "DINOv2 ViT-B/14, the hub's layout", f"{height}x{width}", "keys", error(last_layer_keys(params, pixels, config), theirs), 1e-5
    params, config = dinov2.port(fused(model.state_dict(), 12))
    pixels = noise(1, 518, 518, 3)
    theirs = keys_in_torch(model, model.encoder.layer[-1].attention.attention.key, pixels, 14)
    ours = last_layer_keys(params, pixels, config)
    yield "DINOv2 ViT-B/14, facebookresearch's layout", "518x518", "keys", error(ours, theirs), 1e-5

    torch.manual_seed(0)
    tower = shaken(CLIPVisionModel(CLIPVisionConfig(patch_size=16)))
    params, config = clip.port(tower.state_dict())
    for size in (224, 592):
        pixels, last = noise(1, size, size, 3), tower.vision_model.encoder.layers[-1].self_attn.k_proj
        theirs = keys_in_torch(tower, last, pixels, 16, interpolate_pos_encoding=True)
        yield "CLIP ViT-B/16", f"{size}x{size}", "keys", error(last_layer_keys(params, pixels, config), theirs), 1e-5

    torch.manual_seed(0)
    encoder = shaken(ViTMAEModel(ViTMAEConfig(mask_ratio=0.0)))
    params, config = mae.port(encoder.state_dict())
    for size in (224, 592):
        pixels, patches = noise(1, size, size, 3), (size // 16) ** 2
        order = torch.arange(patches, dtype=torch.float32)[None]  # MAE shuffles its patches by this noise: leave them in order
        last = encoder.encoder.layer[-1].attention.attention.key
        theirs = keys_in_torch(encoder, last, pixels, 16, noise=order, interpolate_pos_encoding=True)
        yield "MAE ViT-B/16", f"{size}x{size}", "keys", error(last_layer_keys(params, pixels, config), theirs), 1e-5


class Recorder(AttnProcessor):
    """Keeps each cross-attention layer's softmax(QK^T / sqrt(d)), averaged over heads."""

    def __init__(self) -> None:
        self.maps: list[torch.Tensor] = []

    def __call__(self, attn: Any, hidden_states: Any, encoder_hidden_states: Any = None, *args: Any, **kwargs: Any) -> Any:
        if encoder_hidden_states is not None:
            query, key = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states)
            scores = attn.get_attention_scores(attn.head_to_batch_dim(query), attn.head_to_batch_dim(key))
            self.maps.append(scores.unflatten(0, (-1, attn.heads)).mean(1))
        return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)


def sd() -> Iterator[Row]:
    configs = random_weights.STABLE_DIFFUSION
    torch.manual_seed(0)
    originals: dict[str, Any] = {
        "unet": shaken(UNet2DConditionModel(**configs["unet"])),
        "vae": shaken(AutoencoderKL(**configs["vae"])),
        "text_encoder": shaken(CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))),
    }
    tokenizer = random_weights.byte_tokenizer(49408, 77)
    model = StableDiffusion(
        stable_diffusion.port(**originals, tokenizer=tokenizer, scheduler=DDPMScheduler(**configs["scheduler"])), DiffusionConfig()
    )
    ids, weights = model.tokenise("cat")
    text = originals["text_encoder"](torch.from_numpy(ids).long()).last_hidden_state
    ours = model.text_encoder(ids, params=model.params["text_encoder"])[0]
    yield "SD 1.4, CLIP text encoder", "77 tokens", "hidden states", error(ours, text), 1e-5

    latents, recorder = noise(2, 4, 64, 64), Recorder()
    originals["unet"].set_attn_processor(recorder)
    theirs = originals["unet"](torch.from_numpy(latents), 321, text).sample
    at = np.flatnonzero(weights)
    maps = [scores[1:, :, at].mean(-1).numpy() for scores in recorder.maps]  # the conditional half
    del originals["unet"]
    gc.collect()
    ours, captured = jax.jit(model._predict_noise)(model.params["unet"], latents, jnp.int32(321), text.numpy(), weights)
    yield "SD 1.4, UNet", "64x64 latents", "predicted noise", error(ours, theirs), 1e-5
    found = sorted((np.asarray(one).reshape(1, -1) for one in captured), key=lambda one: (one.shape[1], one.sum()))
    wanted = sorted(maps, key=lambda one: (one.shape[1], one.sum()))
    assert len(found) == len(wanted) == 16
    worst = max(error(one, other) for one, other in zip(found, wanted, strict=True))
    yield "SD 1.4, all 16 cross-attention layers", "64x64 latents", "attention maps", worst, 1e-5

    latents = noise(1, 4, 64, 64)
    theirs = originals["vae"].decode(torch.from_numpy(latents)).sample
    decode = jax.jit(lambda params, x: model.vae.apply({"params": params}, x, method=model.vae.decode).sample)
    ours = decode(model.params["vae"], latents.transpose(0, 2, 3, 1))
    yield "SD 1.4, VAE decoder", "512x512", "image", error(ours, theirs), 1e-5


def trajectory() -> Iterator[Row]:
    """All 30 steps under guidance, both from the same noise, of the same architecture made tiny."""
    published = random_weights.STABLE_DIFFUSION
    attending, plain = {"down_block_types": ["CrossAttnDownBlock2D"] * 2, "up_block_types": ["CrossAttnUpBlock2D"] * 2}, [32, 64]
    tiny_unet = {"sample_size": 8, "block_out_channels": plain, "layers_per_block": 1, "attention_head_dim": 4, "cross_attention_dim": 32}
    ends = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2, "sample_size": 16}
    tiny_text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 300}
    torch.manual_seed(0)
    originals: dict[str, Any] = {
        "unet": shaken(UNet2DConditionModel(**published["unet"] | attending | tiny_unet)),
        "vae": shaken(AutoencoderKL(**published["vae"] | ends | {"block_out_channels": plain})),
        "text_encoder": shaken(CLIPTextModel(CLIPTextConfig(**published["text_encoder"] | tiny_text))),
    }
    tokenizer, schedule = random_weights.byte_tokenizer(300, 77), published["scheduler"]
    checkpoint = stable_diffusion.port(**originals, tokenizer=tokenizer, scheduler=DDPMScheduler(**schedule))
    model, latents = StableDiffusion(checkpoint, DiffusionConfig()), noise(2, 4, 8, 8)
    ids, weights = model.tokenise("cat")
    ours, _ = jax.jit(model.denoise)(model.params, ids, weights, latents)

    scheduler = DPMSolverMultistepScheduler(**schedule, final_sigmas_type="sigma_min", steps_offset=1)  # an offset of 0 would warn
    pipeline = StableDiffusionPipeline(
        **originals,
        tokenizer=tokenizer,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    config = model.config
    theirs = pipeline(
        config.template.format("cat"),
        num_images_per_prompt=2,
        num_inference_steps=config.steps,
        guidance_scale=config.guidance,
        latents=torch.from_numpy(latents),
        output_type="latent",
    ).images
    yield "SD's sampler, tiny models, against diffusers' pipeline", f"{config.steps} steps", "final latents", error(ours, theirs), 1e-3


def masks() -> Iterator[Row]:
    from segment_anything import SamPredictor

    torch.manual_seed(0)
    masker = sam.load(None)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    points = np.array([[200.0, 150.0], [320.0, 240.0]], np.float32)
    predictor = SamPredictor(masker.sam)
    predictor.set_image(image)
    theirs, scores, _ = predictor.predict(points, np.ones(2, np.int64), multimask_output=True)
    ours = masker.mask(image, points)
    yield "SAM ViT-B through the adapter", "480x640", "share of pixels that differ", float((ours != theirs[scores.argmax()]).mean()), 0.0


GROUPS: dict[str, Callable[[], Iterator[Row]]] = {"keys": keys, "sd": sd, "trajectory": trajectory, "sam": masks}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--manifest", type=Path, default=OUT, help="TOML file whose [[parity]] entries of the groups are replaced")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    manifest = tomlkit.parse(options.manifest.read_text() if options.manifest.exists() else "")
    kept = [row for row in manifest.pop("parity", []) if row["group"] not in options.only]
    found: list[dict[str, Any]] = []
    print("| model | size | metric | error | target |\n|---|---|---|---|---|")
    for group in options.only:
        began = time.monotonic()
        for model, size, metric, off, target in GROUPS[group]():
            found.append({"group": group, "model": model, "size": size, "metric": metric, "error": float(f"{off:.1e}"), "target": target})
            print(f"| {model} | {size} | {metric} | {off:.1e} | {target:.0e} |{'' if off <= target else ' **MISSED**'}", flush=True)
        print(f"{group}: {time.monotonic() - began:.0f} s", flush=True)
        gc.collect()
    manifest["parity"] = tomlkit.aot()
    for row in sorted([*kept, *found], key=lambda row: list(GROUPS).index(row["group"])):
        manifest["parity"].append(tomlkit.item(dict(row)))
    options.manifest.write_text(tomlkit.dumps(manifest))
    if any(row["error"] > row["target"] for row in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
