"""Stable Diffusion's own UNet as an encoder, without a prompt (Table 3's "SD, unconditional")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8
from PIL import Image

from rimjax.models.checkpoint import Params
from rimjax.models.deferred import DeferredGenerator
from rimjax.models.flax_diffusers import COLLECTION, Interceptor, as_in_torch
from rimjax.models.protocols import check_image, in_batches


@dataclass(frozen=True, eq=False)
class UNetEncoder:
    """Features of an image's noised latents in one block of the UNet's way up, under the empty prompt, as an `Encoder`.

    The paper says neither block nor noise. The defaults are those found best for correspondence between images (DIFT, 2023). The noise is
    the same for every image.

    Attributes:
        generator: whose weights are used; nothing is drawn.
        input_size: S; every image is resized to SxS pixels, whatever its shape.
        timestep: how far the latents are noised, of 1000 steps.
        up_block: whose output the features are, counted from the coarsest.
        batch_size: images that go through at once; a last batch that isn't full is padded.
    """

    generator: DeferredGenerator
    input_size: int = 512
    timestep: int = 261
    up_block: int = 1
    batch_size: int = 4

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights, and the settings."""
        return f"{self.generator.fingerprint}-unet-{self.input_size}-{self.timestep}-{self.up_block}"

    def encode(self, image: UInt8[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "h w D"]:
        """Features of one image.

        Raises:
            ValueError: not a uint8[H, W, 3], or a setting that the model doesn't have.
        """
        return np.asarray(self._compiled(self.generator.model.params, self._pixels(image)[None]))[0]

    def encode_batch(self, images: Sequence[np.ndarray]) -> Float32[np.ndarray, "B h w D"]:
        """Features of several images, each uint8[H, W, 3] of any size.

        Raises:
            ValueError: one of them isn't that, or there is none, or a setting that the model doesn't have.
        """
        return in_batches(lambda pixels: self._compiled(self.generator.model.params, pixels), self._pixels, images, self.batch_size)

    @cached_property
    def _compiled(self) -> Callable[[Params, np.ndarray], Array]:
        self._check_settings()
        return jax.jit(self.features)

    def features(self, params: Params, pixels: Float32[Array | np.ndarray, "B S S 3"]) -> Float32[Array, "B h w D"]:
        """Pixels in -1..1 to features."""
        from flax import linen as nn

        model = self.generator.model
        with jax.default_matmul_precision(model.config.precision):
            x = jnp.moveaxis(pixels, -1, 1).astype(model.vae.dtype)
            encoded = model.vae.apply({"params": params["vae"]}, x, method=model.vae.encode).latent_dist.mode()
            latents = jnp.moveaxis(encoded, -1, 1).astype(jnp.float32) * model.vae.config["scaling_factor"]
            kept = model.scheduler.create_state().common.alphas_cumprod[self.timestep]
            noise = jax.random.normal(jax.random.key(0), latents.shape[1:])
            noised = jnp.sqrt(kept) * latents + jnp.sqrt(1 - kept) * noise
            text = model.text_encoder(model.empty_prompt, params=params["text_encoder"])[0]
            text = jnp.broadcast_to(text, (len(pixels), *text.shape[1:]))
            groups = model.checkpoint.configs["unet"].get("norm_num_groups", 32)
            with nn.intercept_methods(as_in_torch(groups)), nn.intercept_methods(self._capture):
                _, sown = model.unet.apply({"params": params["unet"]}, noised, jnp.int32(self.timestep), text, mutable=[COLLECTION])
        (found,) = jax.tree.leaves(sown)
        return found.astype(jnp.float32)

    @property
    def _capture(self) -> Interceptor:
        def intercept(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
            output = call(*args, **kwargs)
            if context.method_name == "__call__" and context.module.name == f"up_blocks_{self.up_block}":
                context.module.sow(COLLECTION, "features", output)
            return output

        return intercept

    def _check_settings(self) -> None:
        configs = self.generator.model.checkpoint.configs
        blocks, steps = len(configs["unet"]["up_block_types"]), configs["scheduler"].get("num_train_timesteps", 1000)
        for name, count in (("up_block", blocks), ("timestep", steps)):
            if not 0 <= getattr(self, name) < count:
                raise ValueError(f"{name}: expected 0 to {count - 1}, got {getattr(self, name)}")
        step = 2 ** (len(configs["vae"]["block_out_channels"]) + len(configs["unet"]["down_block_types"]) - 2)
        if self.input_size < 1 or self.input_size % step:
            raise ValueError(f"input_size: expected a multiple of {step}, got {self.input_size}")

    def _pixels(self, image: np.ndarray) -> Float32[np.ndarray, "S S 3"]:
        check_image(image)
        resized = Image.fromarray(image).resize((self.input_size, self.input_size), Image.Resampling.BICUBIC)
        return np.asarray(resized, np.float32) / 127.5 - 1
