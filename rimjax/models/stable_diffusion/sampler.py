"""Stable Diffusion in Flax: images and cross-attention maps from one compiled function (Sec. 3.4).

diffusers and transformers are imported when a model is built, not when this module is.
"""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int32, Key, UInt8

from ported_weights.rules import flatten_tree
from rimjax.files import fingerprint
from rimjax.models.memory import BatchLimit, advise_on_memory
from rimjax.models.protocols import Generated, advise_on_numbers, cached_property
from rimjax.models.stable_diffusion.attention import (
    COLLECTION,
    capture_attention,
    divide_by_maximum,
    import_libraries,
    match_torch,
    save_memory,
)
from rimjax.models.stable_diffusion.checkpoint import Checkpoint, Params, read
from rimjax.models.stable_diffusion.config import DiffusionConfig, list_drawing_settings
from rimjax.models.stable_diffusion.prompts import PromptEncoder
from rimjax.models.stable_diffusion.schedule import build_scheduler, start_schedule

_LARGE = 512
"""Side, in pixels, from which the VAE decodes one image at a time: each takes 1 GiB in between."""


def load(directory: str | Path, config: DiffusionConfig | None = None) -> StableDiffusion:
    """Load the model in a folder that `checkpoint.save` wrote.

    Raises:
        FileNotFoundError: a file of the folder is missing.
        ValueError: a config, a weight file or the tokenizer is damaged.
        ImportError: diffusers, transformers or flax is missing.
    """
    import_libraries()  # first, so that the error names what is missing and imports stay quiet
    return StableDiffusion(read(directory), config)


class StableDiffusion:
    """A checkpoint as a `Generator`.

    Args:
        checkpoint: configs, weights and tokenizer.
        config: how images are drawn.

    Raises:
        ValueError: the model doesn't have this image size or these attention resolutions, or the
            tokenizer is slow.
        ImportError: diffusers, transformers or flax is missing.
    """

    def __init__(self, checkpoint: Checkpoint, config: DiffusionConfig | None = None) -> None:
        library = import_libraries()
        self.config = config = config or DiffusionConfig()
        self.checkpoint = checkpoint
        configs, dtype = checkpoint.configs, jnp.dtype(config.dtype)
        text_config = library.CLIPTextConfig.from_dict(configs["text_encoder"])
        self.unet = library.FlaxUNet2DConditionModel.from_config(configs["unet"], dtype=dtype)
        self.vae = library.FlaxAutoencoderKL.from_config(configs["vae"], dtype=dtype)
        self.text_encoder = library.FlaxCLIPTextModel(text_config, dtype=dtype, _do_init=False)
        self.scheduler = build_scheduler(library, config.scheduler, configs["scheduler"])
        self.prompts = PromptEncoder(
            checkpoint.tokenizer,
            text_config.max_position_embeddings,
            config.template,
            config.vocabulary,
        )
        self.num_groups: int = configs["unet"].get("norm_num_groups", 32)

        blocks = configs["unet"]["down_block_types"]
        factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
        step = factor * 2 ** (len(blocks) - 1)
        size = config.image_size or configs["unet"]["sample_size"] * factor
        if size % step:
            raise ValueError(f"image_size must be a multiple of {step}, got {size}")
        self._image_size = size
        self._latent_shape = (self.unet.in_channels, size // factor, size // factor)
        attending = [level for level, block in enumerate(blocks) if block.startswith("CrossAttn")]
        sides = {size // factor >> level for level in attending} | {size // step}
        wanted = config.attention_resolutions
        chosen = sides if wanted is None else sides & set(wanted)
        if not chosen:
            raise ValueError(f"attention_resolutions must be among {sorted(sides)}, got {wanted}")
        self._attention_sides = tuple(sorted(chosen))
        self._draw = jax.jit(self._sample)
        smaller = "set image_size smaller (fewer steps need no less)"
        self._limit = BatchLimit("drawing images", advise_on_memory(config.dtype, smaller))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.checkpoint, self.config)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of weights, tokenizer, architecture and drawing settings."""
        settings = {
            "configs": dict(self.checkpoint.configs),
            "drawing": list_drawing_settings(self.config),
            "tokenizer": self.checkpoint.tokenizer.backend_tokenizer.to_str(),
        }
        return fingerprint(settings, flatten_tree(self.checkpoint.params))

    @property
    def params(self) -> Params:
        """All weights, on the device, in the config's dtype."""
        return self.checkpoint.place(self.config.dtype)

    def check(self, class_name: str) -> None:
        """Raise ValueError for a class name that `generate` would refuse."""
        self.prompts.encode(class_name)

    def generate(self, class_name: str, num_images: int, seed: int) -> Generated:
        """Draw a class from the prompt, e.g. "a photo of sneaker".

        Image i has its own key, folded from the seed, the name and i: it depends neither on the
        other classes nor on the batch size (beyond rounding). Batches are halved for good when the
        device's memory runs out, with a `MemoryRunsOut` warning.

        Raises:
            MemoryError: memory doesn't hold the drawing of a single image.
            ValueError: num_images < 1, the model doesn't know the name, or the prompt is too long
                for the text encoder.
        """
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {num_images}")
        ids, weights = self.prompts.encode(class_name)
        key = jax.random.fold_in(make_key(seed), zlib.crc32(class_name.encode()))

        def draw(start: int, size: int) -> tuple[np.ndarray, ...]:
            indices = jnp.arange(start, start + size, dtype=jnp.uint32)
            keys = jax.vmap(partial(jax.random.fold_in, key))(indices)
            *arrays, broken = map(np.asarray, self._draw(self.params, ids, weights, keys))
            self._check_stages(broken)
            return tuple(arrays)

        size = min(self.config.batch_size, num_images)
        batches = self._limit.run(draw, num_images, size)
        images, attention = map(np.concatenate, zip(*batches, strict=True))
        return Generated(images[:num_images], attention[:num_images])

    def denoise(
        self,
        params: Params,
        ids: Int32[Array | np.ndarray, "2 L"],
        weights: Float32[Array | np.ndarray, " L"] | None,
        noise: Float32[Array | np.ndarray, "K c s s"],
    ) -> tuple[Float32[Array, "K c s s"], Float32[Array, "K h h"] | None]:
        """Turn noise into latents, and average the class's attention over layers and steps.

        Args:
            params: as `params`.
            ids: tokens of the empty prompt and of the class's prompt.
            weights: of the class's tokens; None: return no attention.
            noise: standard normal.

        Returns:
            The latents, and the attention maps (Eq. 1-3).
        """
        batch, grid = len(noise), self._attention_sides[-1]
        text = self.text_encoder(ids, params=params["text_encoder"])[0]
        text = jnp.repeat(text, batch, axis=0)  # the unconditional half, then the conditional
        state = start_schedule(self.scheduler, self.config.steps, noise.shape)

        def step(carry: Any, timestep: Any) -> tuple[Any, None]:
            latents, state, attention = carry
            twice = jnp.concatenate([latents, latents])
            time = timestep.astype(jnp.int32)
            predicted, maps = self._predict_noise(params["unet"], twice, time, text, weights)
            unconditional, conditional = jnp.split(predicted, 2)
            guided = unconditional + self.config.guidance * (conditional - unconditional)
            latents, state = self.scheduler.step(
                state, guided, timestep, latents, return_dict=False
            )
            maps = [m for m in maps if m.shape[-1] in self._attention_sides]
            if self.config.normalise == "name":
                maps = [divide_by_maximum(m) for m in maps]
            maps = [jax.image.resize(m, (batch, grid, grid), "bilinear") for m in maps]
            if maps:
                attention = attention + sum(maps) / len(maps)
            return (latents, state, attention), None

        attention = jnp.zeros((batch, grid, grid), jnp.float32)
        start = (noise * state.init_noise_sigma, state, attention)
        (latents, _, attention), _ = jax.lax.scan(step, start, state.timesteps)
        return latents, None if weights is None else attention / len(state.timesteps)

    def decode(
        self, params: Params, latents: Float32[Array | np.ndarray, "K c s s"]
    ) -> UInt8[Array, "K H W 3"]:
        """Decode latents to images; NaN becomes black."""
        return _round_pixels(self._decode_pixels(params, latents))

    def _decode_pixels(
        self, params: Params, latents: Float32[Array | np.ndarray, "K c s s"]
    ) -> Float32[Array, "K H W 3"]:
        """Decode latents to pixels, about 0..1; large images one at a time."""
        scaled = jnp.moveaxis(latents, 1, -1) / self.vae.config["scaling_factor"]
        scaled = scaled.astype(self.vae.dtype)

        def decode(latents: Float[Array, "k s s c"]) -> Float[Array, "k 3 H W"]:
            return self.apply_vae(params, latents, self.vae.decode).sample

        if self._image_size >= _LARGE:
            pixels = jax.lax.map(lambda one: decode(one[None])[0], scaled)
        else:
            pixels = decode(scaled)
        return jnp.moveaxis(pixels, 1, -1).astype(jnp.float32) / 2 + 0.5

    def apply_vae(self, params: Params, x: Float[Array, "K h w c"], method: Any) -> Any:
        """Return what `vae.decode` gives for latents, or `vae.encode` for pixels in -1..1.

        Args:
            params: as `params`.
            x: latents; the encoder takes pixels as [K, 3, H, W].
            method: `vae.decode` or `vae.encode`.
        """
        from flax import linen as nn

        with nn.intercept_methods(save_memory):
            return self.vae.apply({"params": params["vae"]}, x, method=method)

    def _sample(
        self,
        params: Params,
        ids: Int32[Array, "2 L"],
        weights: Float32[Array, " L"],
        keys: Key[Array, " K"],
    ) -> tuple[UInt8[Array, "K H W 3"], Float32[Array, "K h h"] | None, Bool[Array, " 2"]]:
        """Return images, attention, and which of UNet and VAE gave NaN or infinity."""
        with jax.default_matmul_precision(self.config.precision):
            noise = jax.vmap(
                partial(jax.random.normal, shape=self._latent_shape, dtype=jnp.float32)
            )
            latents, attention = self.denoise(params, ids, weights, noise(keys))
            pixels = self._decode_pixels(params, latents)
            broken = jnp.stack([~jnp.isfinite(stage).all() for stage in (latents, pixels)])
            return _round_pixels(pixels), attention, broken

    def _check_stages(self, broken: Bool[np.ndarray, " 2"]) -> None:
        """Raise ValueError, naming the stage, where NaN or infinity would become black images."""
        if broken.any():
            stage = "UNet" if broken[0] else "VAE"  # the VAE's input is the UNet's output
            raise ValueError(
                f"{stage} must give finite numbers, got NaN or infinity in {self.config.dtype}; "
                + advise_on_numbers(self.config.dtype)
            )

    def _predict_noise(
        self,
        params: Params,
        latents: Float32[Array | np.ndarray, "N c s s"],
        timestep: Int32[Array, ""],
        text: Float[Array | np.ndarray, "N L e"],
        weights: Float32[Array | np.ndarray, " L"] | None,
    ) -> tuple[Float32[Array, "N c s s"], list[Any]]:
        """Return the UNet's output, and each cross-attention layer's map, in no fixed order.

        The maps, float32[K, h, h], are those of the conditional half of the batch.
        """
        from flax import linen as nn

        by_token = self.config.normalise == "token"
        capture = capture_attention(weights, len(latents) // 2, by_token)
        with (
            nn.intercept_methods(match_torch(self.num_groups)),
            nn.intercept_methods(capture),
            nn.intercept_methods(save_memory),
        ):
            variables = {"params": params}
            output, sown = self.unet.apply(variables, latents, timestep, text, mutable=[COLLECTION])
        return output.sample.astype(jnp.float32), jax.tree.leaves(sown)


def _round_pixels(pixels: Float32[Array, "K H W 3"]) -> UInt8[Array, "K H W 3"]:
    return jnp.round(pixels.clip(0, 1) * 255).astype(jnp.uint8)


def make_key(seed: int) -> Key[Array, ""]:
    """Return a random key; the same with and without JAX's 64-bit mode."""
    return jax.random.key(np.uint32(seed % 2**32))
