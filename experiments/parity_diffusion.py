"""Parity of Stable Diffusion with diffusers' and transformers' own models; see parity.py."""

import gc
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from transformers import CLIPTextConfig, CLIPTextModel

from rimjax.models import random_weights
from rimjax.models.diffusion import DiffusionConfig, StableDiffusion
from rimjax.weights.stable_diffusion import port_modules

Row = tuple[str, str, str, float, float]
"""Model, size, metric, error, target."""


def compute_error(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def shake(model: torch.nn.Module) -> Any:
    model.eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter += 0.1 * torch.randn(parameter.shape)
        if "attn2.to_q" in name or "attn2.to_k" in name:
            parameter *= 5
    return model


def draw_noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


class Recorder(AttnProcessor):
    """Keeps each cross-attention layer's softmax(QK^T / sqrt(d)), averaged over heads."""

    def __init__(self) -> None:
        self.maps: list[torch.Tensor] = []

    def __call__(
        self,
        attn: Any,
        hidden_states: Any,
        encoder_hidden_states: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if encoder_hidden_states is not None:
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            scores = attn.get_attention_scores(query, key)
            self.maps.append(scores.unflatten(0, (-1, attn.heads)).mean(1))
        return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)


def compare_stable_diffusion() -> Iterator[Row]:
    configs = random_weights.STABLE_DIFFUSION
    torch.manual_seed(0)
    originals: dict[str, Any] = {
        "unet": shake(UNet2DConditionModel(**configs["unet"])),
        "vae": shake(AutoencoderKL(**configs["vae"])),
        "text_encoder": shake(CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))),
    }
    tokenizer = random_weights.make_byte_tokenizer(49408, 77)
    scheduler = DDPMScheduler(**configs["scheduler"])
    checkpoint = port_modules(**originals, tokenizer=tokenizer, scheduler=scheduler)
    model = StableDiffusion(checkpoint, DiffusionConfig())
    ids, weights = model.prompts.encode("cat")
    text = originals["text_encoder"](torch.from_numpy(ids).long()).last_hidden_state
    ours = model.text_encoder(ids, params=model.params["text_encoder"])[0]
    error = compute_error(ours, text)
    yield "SD 1.4, CLIP text encoder", "77 tokens", "hidden states", error, 1e-5

    latents, recorder = draw_noise(2, 4, 64, 64), Recorder()
    originals["unet"].set_attn_processor(recorder)
    theirs = originals["unet"](torch.from_numpy(latents), 321, text).sample
    tokens = np.flatnonzero(weights)
    # the conditional half
    maps = [scores[1:, :, tokens].mean(-1).numpy() for scores in recorder.maps]
    del originals["unet"]
    gc.collect()
    predict = jax.jit(model._predict_noise)
    inputs = (latents, jnp.int32(321), text.numpy(), weights)
    ours, captured = predict(model.params["unet"], *inputs)
    error = compute_error(ours, theirs)
    yield "SD 1.4, UNet", "64x64 latents", "predicted noise", error, 1e-5

    def sort(maps: list[np.ndarray]) -> list[np.ndarray]:
        return sorted(maps, key=lambda flat: (flat.shape[1], flat.sum()))

    pairs = list(
        zip(sort([np.asarray(m).reshape(1, -1) for m in captured]), sort(maps), strict=True)
    )
    assert len(pairs) == 16
    error = max(compute_error(*pair) for pair in pairs)
    title = "SD 1.4, all 16 cross-attention layers"
    yield title, "64x64 latents", "attention maps", error, 1e-5

    latents = draw_noise(1, 4, 64, 64)
    theirs = originals["vae"].decode(torch.from_numpy(latents)).sample

    @jax.jit
    def decode(params: Any, x: Any) -> Any:
        return model.apply_vae(params, x, model.vae.decode).sample

    error = compute_error(decode(model.params, latents.transpose(0, 2, 3, 1)), theirs)
    yield "SD 1.4, VAE decoder", "512x512", "image", error, 1e-5


def compare_trajectory() -> Iterator[Row]:
    """Compare all 30 steps under guidance, from the same noise, on a tiny architecture."""
    published = random_weights.STABLE_DIFFUSION
    unet = {
        "down_block_types": ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2,
        "sample_size": 8,
        "block_out_channels": [32, 64],
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
    }
    vae = {
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "sample_size": 16,
        "block_out_channels": [32, 64],
    }
    text: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 300,
    }
    torch.manual_seed(0)
    originals: dict[str, Any] = {
        "unet": shake(UNet2DConditionModel(**published["unet"] | unet)),
        "vae": shake(AutoencoderKL(**published["vae"] | vae)),
        "text_encoder": shake(CLIPTextModel(CLIPTextConfig(**published["text_encoder"] | text))),
    }
    tokenizer = random_weights.make_byte_tokenizer(300, 77)
    schedule = published["scheduler"]
    scheduler = DDPMScheduler(**schedule)
    checkpoint = port_modules(**originals, tokenizer=tokenizer, scheduler=scheduler)
    model, latents = StableDiffusion(checkpoint, DiffusionConfig()), draw_noise(2, 4, 8, 8)
    ids, weights = model.prompts.encode("cat")
    ours, _ = jax.jit(model.denoise)(model.params, ids, weights, latents)

    parts: dict[str, Any] = {
        **originals,
        "tokenizer": tokenizer,
        "scheduler": DPMSolverMultistepScheduler(
            **schedule,
            final_sigmas_type="sigma_min",
            steps_offset=1,  # an offset of 0 would warn
        ),
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    config = model.config
    output: Any = pipeline(
        config.template.format("cat"),
        num_images_per_prompt=2,
        num_inference_steps=config.steps,
        guidance_scale=config.guidance,
        latents=torch.from_numpy(latents),
        output_type="latent",
    )
    title = "SD's sampler, tiny models, against diffusers' pipeline"
    error = compute_error(ours, output.images)
    yield title, f"{config.steps} steps", "final latents", error, 1e-3
