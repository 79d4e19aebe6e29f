"""Stable Diffusion through Flax diffusers: images and cross-attention maps together, in one compiled function (Sec. 3.4).

diffusers and transformers are imported where a model is built, never when this module is.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32, Key, UInt8

from rimjax.models.checkpoint import Checkpoint, Params, read
from rimjax.models.flax_diffusers import COLLECTION, as_in_torch, capture, libraries, over_maximum
from rimjax.models.protocols import Generated, fingerprint

_SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


@dataclass(frozen=True)
class DiffusionConfig:
    """How images are drawn. The paper gives the model and the template; the rest is our choice.

    Attributes:
        steps: of the sampler.
        guidance: scale of classifier-free guidance; the unconditional prompt is empty.
        template: the prompt, with `{}` for the class name.
        image_size: pixels of both sides; None: the model's native size.
        attention_resolutions: average the maps of these side lengths only, e.g. (16, 32); None: every cross-attention layer (Eq. 3).
        batch_size: images drawn at once.
        scheduler: "dpmsolver++" is DPM-Solver++(2M); "ddim" its first order, which is DDIM.
        vocabulary: the class names that the model was trained on, lower case; others are refused. None: whatever the tokenizer knows.
        dtype: of weights and activations; latents and attention are float32 always.
        precision: of float32 matrix products; "highest" keeps TF32 and bfloat16 passes out.
    """

    steps: int = 30
    guidance: float = 7.5
    template: str = "a photo of {}"
    image_size: int | None = None
    attention_resolutions: tuple[int, ...] | None = None
    batch_size: int = 8
    scheduler: Literal["dpmsolver++", "ddim"] = "dpmsolver++"
    vocabulary: tuple[str, ...] | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    precision: Literal["default", "high", "highest"] = "highest"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.template.count("{}") != 1:
            raise ValueError(f"template: expected one {{}} for the class name, got {self.template!r}")


def load(directory: str | Path, config: DiffusionConfig | None = None) -> StableDiffusion:
    """The model in a folder that `checkpoint.save` wrote.

    Raises:
        FileNotFoundError: a file of the layout is missing.
        ValueError: a config, a weight file or the tokenizer is damaged.
        ImportError: diffusers, transformers or flax is missing.
    """
    libraries()  # first, so that what is missing is named, and the next imports are quiet
    return StableDiffusion(read(directory), config)


class StableDiffusion:
    """A checkpoint as a `Generator`.

    Args:
        checkpoint: configs, weights and tokenizer.
        config: how images are drawn.

    Raises:
        ValueError: image size or attention resolutions that the model doesn't have, or a slow tokenizer.
        ImportError: diffusers, transformers or flax is missing.
    """

    def __init__(self, checkpoint: Checkpoint, config: DiffusionConfig | None = None) -> None:
        library = libraries()
        self.config = config = config or DiffusionConfig()
        self.checkpoint = checkpoint
        configs, dtype = checkpoint.configs, jnp.dtype(config.dtype)
        self._text_config = library.CLIPTextConfig.from_dict(configs["text_encoder"])
        self.unet = library.FlaxUNet2DConditionModel.from_config(configs["unet"], dtype=dtype)
        self.vae = library.FlaxAutoencoderKL.from_config(configs["vae"], dtype=dtype)
        self.text_encoder = library.FlaxCLIPTextModel(self._text_config, dtype=dtype, _do_init=False)
        self.scheduler = library.FlaxDPMSolverMultistepScheduler(
            **{key: configs["scheduler"][key] for key in _SCHEDULE if key in configs["scheduler"]},
            solver_order=2 if config.scheduler == "dpmsolver++" else 1,
        )
        if not getattr(checkpoint.tokenizer, "is_fast", False):
            raise ValueError("tokenizer: expected a fast one; only they say which characters a token stands for")

        down = configs["unet"]["down_block_types"]
        factor = 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
        step = factor * 2 ** (len(down) - 1)
        size = config.image_size or configs["unet"]["sample_size"] * factor
        if size % step:
            raise ValueError(f"image_size: expected a multiple of {step}, got {size}")
        self._latent_shape = (self.unet.in_channels, size // factor, size // factor)
        sides = {size // factor >> level for level, block in enumerate(down) if block.startswith("CrossAttn")} | {size // step}
        chosen = sides if config.attention_resolutions is None else sides & set(config.attention_resolutions)
        if not chosen:
            raise ValueError(f"attention_resolutions: expected some of {sorted(sides)}, got {config.attention_resolutions}")
        self._attention_sides = tuple(sorted(chosen))
        self._draw = jax.jit(self._sample)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of weights, tokenizer, architecture and drawing settings (but the batch size, which changes nothing)."""
        from flax.traverse_util import flatten_dict

        weights: dict[str, Any] = flatten_dict(dict(self.checkpoint.params), sep="/")
        words = self.checkpoint.tokenizer.backend_tokenizer.to_str()
        return fingerprint(replace(self.config, batch_size=1), weights, configs=self.checkpoint.configs, tokenizer=words)

    @cached_property
    def params(self) -> Params:
        """All weights, on the device, in the config's dtype."""
        dtype = jnp.dtype(self.config.dtype)
        return jax.tree.map(lambda array: jnp.asarray(array, dtype), dict(self.checkpoint.params))

    def generate(self, class_name: str, num_images: int, seed: int) -> Generated:
        """Draw a class from the prompt, e.g. "a photo of sneaker".

        Image i has a key of its own, folded from the seed, the name and i: it depends neither on the other classes nor on the
        batch size (beyond rounding).

        Raises:
            ValueError: num_images < 1, or the tokenizer doesn't know the name, or the prompt is too long for the text encoder.
        """
        if num_images < 1:
            raise ValueError(f"num_images: expected at least 1, got {num_images}")
        ids, weights = self.tokenise(class_name)
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(class_name.encode()))
        size = min(self.config.batch_size, num_images)
        images, attention = [], []
        for start in range(0, num_images, size):
            keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(start, start + size))
            drawn = self._draw(self.params, ids, weights, keys)
            images.append(np.asarray(drawn[0]))
            attention.append(np.asarray(drawn[1]))
        return Generated(np.concatenate(images)[:num_images], np.concatenate(attention)[:num_images])

    def check(self, class_name: str) -> None:
        """Raise ValueError for a class name that `generate` would refuse."""
        self.tokenise(class_name)

    def tokenise(self, class_name: str) -> tuple[Int32[np.ndarray, "2 L"], Float32[np.ndarray, " L"]]:
        """Token ids of the empty prompt and of the class's; and weights that average over the tokens of the class name.

        Raises:
            ValueError: see `generate`.
        """
        if not class_name.strip():
            raise ValueError("class_name: expected a word, got a blank")
        known = self.config.vocabulary
        if known is not None and class_name.strip().lower() not in known:
            raise ValueError(f"class_name: the model doesn't know {class_name!r}; it knows: {', '.join(known)}")
        tokenizer, limit = self.checkpoint.tokenizer, self._text_config.max_position_embeddings
        prompt = self.config.template.replace("{}", class_name)
        start = self.config.template.index("{}")
        encoded = self._encode(prompt, return_offsets_mapping=True, return_special_tokens_mask=True)
        tokens = list(zip(encoded["input_ids"], encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True))
        unknown = [prompt[begin:end] for token, (begin, end), special in tokens if not special and token == tokenizer.unk_token_id]
        if unknown:
            vocabulary = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
            known = f"; it knows: {', '.join(sorted(vocabulary))}" if len(vocabulary) <= 200 else ""
            raise ValueError(f"class_name: the model doesn't know {', '.join(map(repr, unknown))}{known}")
        if len(tokens) > limit:
            raise ValueError(f"class_name: {prompt!r} has {len(tokens)} tokens, the text encoder takes {limit}; shorten it")
        inside = [begin < start + len(class_name) and end > start and not special for _, (begin, end), special in tokens]
        return np.concatenate([self.empty_prompt, [encoded["input_ids"]]]).astype(np.int32), np.array(inside, np.float32) / sum(inside)

    @property
    def empty_prompt(self) -> Int32[np.ndarray, "1 L"]:
        """Token ids of the prompt that says nothing."""
        return np.array([self._encode("")["input_ids"]], np.int32)

    def _encode(self, prompt: str, **wanted: bool) -> Any:
        length = self._text_config.max_position_embeddings
        return self.checkpoint.tokenizer(prompt, padding="max_length", max_length=length, verbose=False, **wanted)

    def denoise(
        self,
        params: Params,
        ids: Int32[Array, "2 L"],
        weights: Float32[Array, " L"] | None,
        noise: Float32[Array | np.ndarray, "K c s s"],
    ) -> tuple[Float32[Array, "K c s s"], Float32[Array, "K h h"] | None]:
        """Latents from noise, and the class's attention averaged over layers and steps (Eq. 1-3); no attention without weights."""
        batch, grid = len(noise), self._attention_sides[-1]
        text = self.text_encoder(ids, params=params["text_encoder"])[0]
        text = jnp.repeat(text, batch, axis=0)  # the unconditional half, then the conditional
        state = self.scheduler.set_timesteps(self.scheduler.create_state(), self.config.steps, noise.shape)

        def step(carry: tuple, timestep: Array) -> tuple[tuple, None]:
            latents, state, attention = carry
            twice = jnp.concatenate([latents, latents])
            predicted, maps = self._predict_noise(params["unet"], twice, timestep, text, weights)
            unconditional, conditional = jnp.split(predicted, 2)
            guided = unconditional + self.config.guidance * (conditional - unconditional)
            latents, state = self.scheduler.step(state, guided, timestep, latents, return_dict=False)
            maps = [over_maximum(one) for one in maps if one.shape[-1] in self._attention_sides]
            maps = [jax.image.resize(one, (batch, grid, grid), "bilinear") for one in maps]
            if maps:
                attention = attention + sum(maps) / len(maps)
            return (latents, state, attention), None

        start = (noise * state.init_noise_sigma, state, jnp.zeros((batch, grid, grid)))
        (latents, _, attention), _ = jax.lax.scan(step, start, state.timesteps)
        return latents, None if weights is None else attention / self.config.steps

    def decode(self, params: Params, latents: Float32[Array | np.ndarray, "K c s s"]) -> UInt8[Array, "K H W 3"]:
        """Images from latents."""
        scaled = jnp.moveaxis(latents, 1, -1) / self.vae.config["scaling_factor"]
        pixels = self.vae.apply({"params": params["vae"]}, scaled.astype(self.vae.dtype), method=self.vae.decode).sample
        pixels = jnp.moveaxis(pixels, 1, -1).astype(jnp.float32) / 2 + 0.5
        return jnp.round(pixels.clip(0, 1) * 255).astype(jnp.uint8)

    def _sample(
        self, params: Params, ids: Int32[Array, "2 L"], weights: Float32[Array, " L"], keys: Key[Array, " K"]
    ) -> tuple[UInt8[Array, "K H W 3"], Float32[Array, "K h h"] | None]:
        with jax.default_matmul_precision(self.config.precision):
            noise = jax.vmap(lambda key: jax.random.normal(key, self._latent_shape))(keys)
            latents, attention = self.denoise(params, ids, weights, noise)
            return self.decode(params, latents), attention

    def _predict_noise(
        self, params: Params, latents: Array, timestep: Array, text: Array, weights: Array | None
    ) -> tuple[Float32[Array, "N c s s"], list[Float32[Array, "K h h"]]]:
        """The UNet's output, and the conditional half's map of every cross-attention layer, in no particular order."""
        from flax import linen as nn

        groups = self.checkpoint.configs["unet"].get("norm_num_groups", 32)
        with nn.intercept_methods(as_in_torch(groups)), nn.intercept_methods(capture(weights, len(latents) // 2)):
            output, sown = self.unet.apply({"params": params}, latents, timestep, text, mutable=[COLLECTION])
        return output.sample.astype(jnp.float32), jax.tree.leaves(sown)
