"""Tiny models in the formats that weights are published in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import safetensors.torch as safetensors_torch
import torch
import transformers

from rimjax.models.random_weights import make_byte_tokenizer

VIT: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": 28,
    "patch_size": 14,
}


def dinov2_state() -> dict[str, Any]:
    """Return the state dict of a tiny Dinov2Model of transformers."""
    torch.manual_seed(0)
    return transformers.Dinov2Model(transformers.Dinov2Config(**VIT)).state_dict()


def dinov3_state() -> dict[str, Any]:
    """Return the state dict of a tiny DINOv3ViTModel of transformers."""
    torch.manual_seed(0)
    sizes = {**VIT, "intermediate_size": 256, "patch_size": 16, "num_register_tokens": 4}
    return transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes)).state_dict()


def write_stable_diffusion(folder: Path) -> None:
    """Write a tiny diffusers folder with the quirks of the published folder.

    These are float32 safetensors, position ids, and the VAE's old attention names.
    """
    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
    )
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=8, sample_size=8)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
    }
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(vocab_size=300, max_position_embeddings=10, **sizes)
    )
    for name, model in (("unet", unet), ("vae", vae), ("text_encoder", text)):
        model.save_pretrained(folder / name)
    diffusers.PNDMScheduler(beta_schedule="scaled_linear").save_pretrained(folder / "scheduler")
    make_byte_tokenizer(300, 10).save_pretrained(folder / "tokenizer")
    text_state = safetensors_torch.load_file(folder / "text_encoder/model.safetensors")
    text_state["text_model.embeddings.position_ids"] = torch.arange(10)[None]
    safetensors_torch.save_file(text_state, folder / "text_encoder/model.safetensors")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    vae_state = {}
    for key, tensor in safetensors_torch.load_file(
        folder / "vae/diffusion_pytorch_model.safetensors"
    ).items():
        for new, name in old.items():
            key = key.replace(f".{new}.", f".{name}.")
        vae_state[key] = tensor
    assert any(".proj_attn." in key for key in vae_state)
    safetensors_torch.save_file(vae_state, folder / "vae/diffusion_pytorch_model.safetensors")


def write_maskformer(folder: Path) -> None:
    """Write a tiny MaskFormer of 3 classes; its 24 queries differ in class, score and place."""
    torch.manual_seed(0)
    backbone = {
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1] * 4,
        "out_features": [f"stage{i}" for i in (1, 2, 3, 4)],
    }
    decoder: dict[str, Any] = {
        "d_model": 16,
        "encoder_layers": 0,
        "decoder_layers": 1,
        "decoder_ffn_dim": 32,
        "decoder_attention_heads": 2,
    }
    parts = {
        "backbone_config": transformers.ResNetConfig(**backbone, layer_type="basic"),
        "decoder_config": transformers.DetrConfig(**decoder, num_queries=24),
    }
    config = transformers.MaskFormerConfig(
        **parts, fpn_feature_size=64, mask_feature_size=32, num_labels=3
    )
    model = transformers.MaskFormerForInstanceSegmentation(config)
    with torch.no_grad():
        model.model.transformer_module.queries_embedder.weight.normal_()
        for name, parameter in model.named_parameters():
            if "decoder.layers" in name and "proj.weight" in name:
                parameter.normal_()
            elif name.startswith(("class_predictor", "mask_embedder")):
                parameter.normal_(std=0.0 if name.endswith("2.0.bias") else 0.4)
            elif "mask_projection.weight" in name:
                parameter -= parameter.mean((1, 2, 3), keepdim=True)  # masks that end somewhere
    model.save_pretrained(folder)


def write_clip(folder: Path) -> None:
    """Write a tiny CLIP with both towers, norms and biases shaken.

    Its byte tokenizer pads on the right, as the published tokenizer does.
    """
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    ends = {"bos_token_id": 298, "eos_token_id": 299, "pad_token_id": 299}
    text = {"vocab_size": 300, "max_position_embeddings": 16, **ends, **sizes}
    config = transformers.CLIPConfig(
        text_config=text,
        vision_config={"image_size": 32, "patch_size": 8, **sizes},
        projection_dim=24,
    )
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    model.save_pretrained(folder)
    make_byte_tokenizer(300, 16).save_pretrained(folder)
