"""Public names of `rimjax.models.stable_diffusion`."""

from rimjax.models.stable_diffusion.sampler import DiffusionConfig, StableDiffusion, load

__all__ = ["DiffusionConfig", "StableDiffusion", "load"]
