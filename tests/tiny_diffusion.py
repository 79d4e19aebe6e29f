"""A Stable Diffusion of PyTorch's models, small enough to compare with Flax's in no time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import jax
import tokenizers
import torch
import transformers

from rimjax.models.stable_diffusion.checkpoint import Checkpoint
from rimjax.weights.stable_diffusion import port_modules

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
WORDS = ("a", "photo", "of", "sneaker", "bag", "ankle", "boot", "t-shirt")


@contextmanager
def relaxed() -> Iterator[None]:
    """Run what needs a Stable Diffusion.

    diffusers' own code mixes dtypes and ranks, and models this small lose time to torch's threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    torch.set_num_threads(threads)


def tiny_tokenizer() -> Any:
    """Return a fast tokenizer that knows a few words."""
    vocabulary = {
        word: index for index, word in enumerate(["<start>", "<end>", "<unknown>", *WORDS])
    }
    core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unknown>"))
    core.normalizer = tokenizers.normalizers.Lowercase()
    core.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    special = [("<start>", 0), ("<end>", 1)]
    core.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=special
    )
    names = {
        "bos_token": "<start>",
        "eos_token": "<end>",
        "unk_token": "<unknown>",
        "pad_token": "<end>",
    }
    return transformers.PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=10, **names)


def tiny_stable_diffusion() -> dict[str, Any]:
    """Return PyTorch's unet, vae and text_encoder.

    Norms and biases are shaken out of their initial ones and zeros, so that none can be left out
    unnoticed.
    """
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=16,  # Flax's UNet knows 32 only
    )
    kind: Any = diffusers.AutoencoderKL  # its annotations allow a single block
    vae = kind(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        scaling_factor=0.5,
        sample_size=16,
    )
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 10,
    }
    text_config = transformers.CLIPTextConfig(
        vocab_size=11, bos_token_id=0, eos_token_id=1, pad_token_id=1, **sizes
    )
    models = {"unet": unet, "vae": vae, "text_encoder": transformers.CLIPTextModel(text_config)}
    for model in models.values():
        model.eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape)
        for name, parameter in model.named_parameters():
            if "attn2.to_q" in name or "attn2.to_k" in name:
                parameter *= 5  # so that the maps aren't flat
    return models


def tiny_checkpoint(models: dict[str, Any]) -> Checkpoint:
    """Port the models, with the tiny tokenizer."""
    scheduler = diffusers.DDPMScheduler(**SCHEDULE)
    return port_modules(**models, tokenizer=tiny_tokenizer(), scheduler=scheduler)
