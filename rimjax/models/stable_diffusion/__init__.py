"""Stable Diffusion in Flax: sampler, attention capture, checkpoint, and its UNet as an encoder."""

from rimjax.models.stable_diffusion.checkpoint import Checkpoint
from rimjax.models.stable_diffusion.generator import DeferredGenerator, StoredWeights
from rimjax.models.stable_diffusion.sampler import DiffusionConfig, StableDiffusion, load
from rimjax.models.stable_diffusion.unet_encoder import UNetEncoder

__all__ = [
    "Checkpoint",
    "DeferredGenerator",
    "DiffusionConfig",
    "StableDiffusion",
    "StoredWeights",
    "UNetEncoder",
    "load",
]
