"""Stable Diffusion's own UNet as an encoder, without a prompt (Table 3, "SD, unconditional")."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32

from rimjax.files import fingerprint
from rimjax.models.memory import BatchLimit, advise_on_memory
from rimjax.models.protocols import (
    CopiedByFields,
    cached_property,
    encode_in_batches,
    resize_image,
)
from rimjax.models.stable_diffusion.attention import COLLECTION, match_torch, save_memory
from rimjax.models.stable_diffusion.checkpoint import Params
from rimjax.models.stable_diffusion.generator import DeferredGenerator
from rimjax.models.stable_diffusion.sampler import make_key


@dataclass(frozen=True, eq=False)
class UNetEncoder(CopiedByFields):
    """Features of an image's noised latents in an upward block of the UNet, as an `Encoder`.

    The prompt is empty. The paper names neither block nor noise; the defaults are those that DIFT
    (2023) reports as best for correspondence between images. All images get the same noise.

    Attributes:
        generator: its weights, dtype and precision are used; nothing is drawn.
        input_size: S; every image is resized to SxS pixels, whatever its shape.
        timestep: how far the latents are noised, of 1000 steps.
        up_block: the block whose output the features are, counted from the coarsest.
        batch_size: images encoded at once, fewer where memory runs out; the last batch is padded.
    """

    generator: DeferredGenerator
    input_size: int = 512
    timestep: int = 261
    up_block: int = 1
    batch_size: int = 4

    @property
    def source(self) -> str:
        """The generator's."""
        return self.generator.source

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights and of the settings that features depend on."""
        config = self.generator.config
        numerics = [config.dtype, config.precision]
        settings = [self.input_size, self.timestep, self.up_block]
        return fingerprint(["unet", self.generator.weights.fingerprint, numerics, settings])

    def encode(self, image: np.ndarray) -> Float32[np.ndarray, "h w D"]:
        """Encode an image.

        Args:
            image: uint8[H, W, 3].

        Raises:
            ValueError: the image is something else, or the model lacks a setting.
        """
        return self.encode_batch([image])[0]

    def encode_batch(
        self, images: Sequence[np.ndarray] | np.ndarray
    ) -> list[Float32[np.ndarray, "h w D"]]:
        """Encode several images.

        Args:
            images: each uint8[H, W, 3] of any size.

        Raises:
            ValueError: an image is something else, there is none, or the model lacks a setting.
        """
        compiled = self._compiled

        def encode(pixels: np.ndarray) -> Array:
            return compiled(self.generator.model.params, pixels)

        dtype = self.generator.config.dtype
        return encode_in_batches(
            encode, self._read_pixels, images, self.batch_size, self._limit, dtype
        )

    @cached_property
    def _limit(self) -> BatchLimit:
        smaller = "choose another encoder or a smaller input_size"
        dtype = self.generator.config.dtype
        return BatchLimit("encoding images", advise_on_memory(dtype, smaller))

    @cached_property
    def _compiled(self) -> Callable[[Params, np.ndarray], Array]:
        self._check_settings()
        return jax.jit(self.compute_features)

    def compute_features(
        self, params: Params, pixels: Float32[Array | np.ndarray, "B S S 3"]
    ) -> Float32[Array, "B h w D"]:
        """Compute features of pixels in -1..1."""
        from flax import linen as nn

        model = self.generator.model
        with jax.default_matmul_precision(model.config.precision):
            x = jnp.moveaxis(jnp.asarray(pixels), -1, 1).astype(model.vae.dtype)
            encoded = model.apply_vae(params, x, model.vae.encode).latent_dist.mode()
            latents = jnp.moveaxis(encoded, -1, 1).astype(jnp.float32)
            latents = latents * model.vae.config["scaling_factor"]
            kept = model.scheduler.create_state().common.alphas_cumprod[self.timestep]
            noise = jax.random.normal(make_key(0), latents.shape[1:], jnp.float32)
            noised = jnp.sqrt(kept) * latents + jnp.sqrt(1 - kept) * noise
            empty = model.prompts.empty_prompt
            text = model.text_encoder(empty, params=params["text_encoder"])[0]
            text = jnp.broadcast_to(text, (len(pixels), *text.shape[1:]))
            variables, timestep = {"params": params["unet"]}, jnp.int32(self.timestep)
            with (
                nn.intercept_methods(match_torch(model.num_groups)),
                nn.intercept_methods(save_memory),
                nn.intercept_methods(self._capture_block),
            ):
                _, sown = model.unet.apply(variables, noised, timestep, text, mutable=[COLLECTION])
        (features,) = jax.tree.leaves(sown)
        return features.astype(jnp.float32)

    def _capture_block(self, call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        """Sow the block's output: an interceptor."""
        output = call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and module.name == f"up_blocks_{self.up_block}":
            module.sow(COLLECTION, "features", output)
        return output

    def _check_settings(self) -> None:
        configs = self.generator.model.checkpoint.configs
        blocks = len(configs["unet"]["up_block_types"])
        steps = configs["scheduler"].get("num_train_timesteps", 1000)
        for name, count in (("up_block", blocks), ("timestep", steps)):
            if not 0 <= getattr(self, name) < count:
                raise ValueError(f"{name} must be 0 to {count - 1}, got {getattr(self, name)}")
        halvings = [configs["vae"]["block_out_channels"], configs["unet"]["down_block_types"]]
        step = 2 ** (sum(map(len, halvings)) - 2)
        if self.input_size < 1 or self.input_size % step:
            raise ValueError(f"input_size must be a multiple of {step}, got {self.input_size}")

    def _read_pixels(self, image: np.ndarray) -> Float32[np.ndarray, "S S 3"]:
        return resize_image(image, self.input_size, self.input_size) / 127.5 - 1
