"""Random weights in the published models' shapes, to self-test the full-size path without weights.

What such models draw, mask or encode means nothing; shapes, dtypes, time and memory are real.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import numpy as np

from ported_weights.rules import build_tree, flatten_tree
from ported_weights.vit import ViTConfig, param_shapes
from rimjax.models.protocols import CopiedByFields
from rimjax.models.stable_diffusion.attention import import_libraries
from rimjax.models.stable_diffusion.checkpoint import MODELS, Checkpoint, compute_shapes

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
    "scheduler": {
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    },
}
"""Configs of Stable Diffusion 1.4 and 1.5, which share an architecture."""


@dataclass(frozen=True, eq=False)
class RandomWeights(CopiedByFields):
    """A Stable Diffusion with random weights, made on first use: a generator's `WeightSource`.

    Attributes:
        seed: the same seed gives the same weights.
    """

    seed: int = 0

    @property
    def fingerprint(self) -> str:
        """The seed identifies the weights."""
        return f"random-{self.seed}"

    def load(self) -> Checkpoint:
        """Return the checkpoint, made on the first call."""
        return self._checkpoint

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        return make_stable_diffusion(self.seed)


def make_stable_diffusion(seed: int = 0) -> Checkpoint:
    """Make a Stable Diffusion 1.4 with random float32 weights and a stand-in for its tokenizer.

    Raises:
        ImportError: diffusers, transformers or flax is missing.
    """
    params = {
        part: fill(compute_shapes(part, STABLE_DIFFUSION[part]), (seed, index))
        for index, part in enumerate(sorted(MODELS))
    }
    text = STABLE_DIFFUSION["text_encoder"]
    tokenizer = make_byte_tokenizer(text["vocab_size"], text["max_position_embeddings"])
    return Checkpoint(STABLE_DIFFUSION, params, tokenizer)


def make_vit(config: ViTConfig, seed: int = 0) -> dict[str, Any]:
    """Make random parameters for `vit.last_layer_keys`."""
    return fill(param_shapes(config), (seed,))


def fill(shapes: Mapping[str, Any], seed: tuple[int, ...]) -> dict[str, Any]:
    """Make a tree of random float32 arrays on the default device, one array at a time.

    Kernels are normal over the square root of their fan-in, biases 0, scales 1, embeddings and
    tokens normal times 0.02. Cross-attention's queries and keys are nine times larger: flat maps,
    over 0.5 of their maximum everywhere, would have no background.

    Args:
        shapes: nested dicts of leaves with `shape`.
        seed: the same seed gives the same weights.
    """
    random, flat = np.random.default_rng(seed), flatten_tree(shapes)
    paths = sorted(flat, key=lambda path: path.split("/"))
    leaves = ((path, _make_leaf(path.split("/"), flat[path].shape, random)) for path in paths)
    return build_tree({path: jax.device_put(leaf) for path, leaf in leaves})


def _make_leaf(path: list[str], shape: tuple[int, ...], random: np.random.Generator) -> np.ndarray:
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


def make_byte_tokenizer(vocabulary: int, length: int) -> Any:
    """Make a fast tokenizer with CLIP's special tokens that splits text into bytes.

    CLIP's own merges aren't part of this package.

    Args:
        vocabulary: number of ids; the last two are `<|startoftext|>` and `<|endoftext|>`.
        length: tokens of a padded prompt.
    """
    import_libraries()  # first, so that the next imports stay quiet
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    start, end = "<|startoftext|>", "<|endoftext|>"
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    words += [f"<unused-{index}>" for index in range(vocabulary - 2 - len(words))] + [start, end]
    ids = {word: index for index, word in enumerate(words)}
    core: Any = Tokenizer(models.BPE(vocab=ids, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, ids[start]), (end, ids[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        model_max_length=length,
        bos_token=start,
        eos_token=end,
        pad_token=end,
        unk_token=end,
    )
