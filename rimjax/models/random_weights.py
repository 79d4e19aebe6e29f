"""Random weights in the published models' shapes, for a self-test of the full-size path on a machine that has no weights.

What such models draw, cut out or call by name means nothing; shapes, dtypes, time and memory are those of the real thing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from rimjax.models.checkpoint import Checkpoint
from rimjax.models.flax_diffusers import libraries
from rimjax.models.vit import ViTConfig, param_shapes

STABLE_DIFFUSION: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    "vae": {
        "sample_size": 512,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "hidden_act": "quick_gelu",
    },
    "scheduler": {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}
"""Configs of Stable Diffusion 1.4 and 1.5, which are one architecture."""


def stable_diffusion(seed: int = 0) -> Checkpoint:
    """Stable Diffusion 1.4 with random weights (float32, on the default device) and a stand-in for CLIP's tokenizer.

    Raises:
        ImportError: diffusers, transformers or flax is missing.
    """
    shapes = stable_diffusion_shapes()
    params = {name: fill(shapes[name], (seed, index)) for index, name in enumerate(sorted(shapes))}
    text = STABLE_DIFFUSION["text_encoder"]
    return Checkpoint(STABLE_DIFFUSION, params, byte_tokenizer(text["vocab_size"], text["max_position_embeddings"]))


def stable_diffusion_shapes() -> dict[str, Any]:
    """The trees of "unet", "vae" and "text_encoder" as `jax.ShapeDtypeStruct` leaves; nothing is computed."""
    from flax.core import unfreeze

    library, configs = libraries(), STABLE_DIFFUSION
    text_encoder = library.FlaxCLIPTextModel(library.CLIPTextConfig.from_dict(configs["text_encoder"]), _do_init=False)
    shapes = {"text_encoder": text_encoder.params_shape_tree}
    for name, kind in (("unet", library.FlaxUNet2DConditionModel), ("vae", library.FlaxAutoencoderKL)):
        shapes[name] = jax.eval_shape(kind.from_config(configs[name]).init_weights, jax.random.key(0))
    return {name: unfreeze(tree) for name, tree in shapes.items()}


def vit(config: ViTConfig, seed: int = 0) -> dict[str, Any]:
    """Random parameters for `vit.last_layer_keys`."""
    return fill(param_shapes(config), (seed,))


def fill(shapes: Mapping[str, Any], seed: tuple[int, ...]) -> dict[str, Any]:
    """A tree of random float32 arrays on the default device, made one by one in NumPy.

    Kernels are normal over the square root of their fan-in, biases 0, scales 1, embeddings and tokens normal times 0.02.
    Cross-attention's queries and keys are nine times that: with flat maps, over 0.5 of their maximum everywhere, nothing is background.

    Args:
        shapes: nested dicts of leaves with `shape`.
        seed: the same seed gives the same weights.
    """
    from flax.traverse_util import flatten_dict, unflatten_dict

    random = np.random.default_rng(seed)
    flat: dict[tuple[str, ...], Any] = flatten_dict(dict(shapes))
    return unflatten_dict({path: jax.device_put(_leaf(path, flat[path].shape, random)) for path in sorted(flat)})


def _leaf(path: tuple[str, ...], shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
    if path[-1] == "bias":
        return np.zeros(shape, np.float32)
    if path[-1].startswith("scale"):
        return np.ones(shape, np.float32)
    deviation = 1 / math.sqrt(math.prod(shape[:-1])) if path[-1] == "kernel" else 0.02
    if "attn2" in path and path[-2] in ("to_q", "to_k"):
        deviation *= 9
    values = random.standard_normal(shape, np.float32)
    values *= np.float32(deviation)
    return values


def byte_tokenizer(vocabulary: int, length: int) -> Any:
    """A fast tokenizer with CLIP's special tokens and number of ids, which takes text byte by byte; CLIP's merges aren't here.

    Args:
        vocabulary: number of ids; the last two are `<|startoftext|>` and `<|endoftext|>`.
        length: of a padded prompt, tokens.
    """
    libraries()  # first, so that the next imports are quiet
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start, end = "<|startoftext|>", "<|endoftext|>"
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    words += [f"<unused-{index}>" for index in range(vocabulary - 2 - len(words))] + [start, end]
    ids = {word: index for index, word in enumerate(words)}
    core = Tokenizer(models.BPE(vocab=ids, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = [(start, ids[start]), (end, ids[end])]
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=special)
    names = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=length, **names)
