"""Tiny models in the formats that weights are published in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from commands import run

from rimjax.models.random_weights import byte_tokenizer

torch = pytest.importorskip("torch", reason="published weights are PyTorch's")
diffusers = pytest.importorskip("diffusers", reason="Stable Diffusion needs diffusers")
transformers = pytest.importorskip(
    "transformers", reason="DINOv2's published model is transformers'"
)
safetensors_torch = pytest.importorskip(
    "safetensors.torch", reason="published weights are in its format"
)

VIT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "image_size": 28,
    "patch_size": 14,
}


def dinov2_state() -> dict[str, Any]:
    """Of transformers' Dinov2Model, tiny."""
    torch.manual_seed(0)
    return transformers.Dinov2Model(transformers.Dinov2Config(**VIT)).state_dict()


def write_stable_diffusion(folder: Path) -> None:
    """A tiny diffusers folder with the published one's quirks: float32 safetensors, position ids, the VAE's old attention names."""
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
    sizes = {
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
    byte_tokenizer(300, 10).save_pretrained(folder / "tokenizer")
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
    """A tiny MaskFormer of three classes, whose 24 queries differ: in what they find, how sure they are of it, and where."""
    torch.manual_seed(0)
    backbone = {
        "embedding_size": 8,
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1] * 4,
        "out_features": [f"stage{i}" for i in (1, 2, 3, 4)],
    }
    decoder = {
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
    """A tiny CLIP, both towers, norms and biases shaken, with a byte tokenizer padded on the right as the published one is."""
    torch.manual_seed(0)
    sizes = {
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
    byte_tokenizer(300, 16).save_pretrained(folder)


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    done = capsys.readouterr()
    lines = done.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("rimjax: ") and "code ran" not in done.out, (
        lines,
        done.out,
    )
    return lines[0]
