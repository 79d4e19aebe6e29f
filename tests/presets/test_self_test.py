"""The paper preset on tiny models: its choices, its weight files, random weights."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from cli import refused, run
from flax.traverse_util import flatten_dict
from PIL import Image
from segment_anything import sam_model_registry

import rimjax
from rimjax.models import random_weights, sam
from rimjax.models.random_weights import RandomWeights
from rimjax.models.sam import ProposalConfig, SamConfig, SamMasker
from rimjax.models.stable_diffusion import DeferredGenerator, UNetEncoder
from rimjax.models.vit import ViTConfig, param_shapes
from rimjax.models.vit_encoder import ViTEncoder, save_vit
from rimjax.presets.catalogue import PRESETS, EncoderChoice, MaskerChoice
from rimjax.references import store
from rimjax.weights.sources import sources

TINY_SAM = SamConfig(64, 8, 32, 2, 2, (1,), 4, 32, decoder_heads=4, decoder_mlp_dim=64)
TINY_VIT: dict[str, Any] = {"hidden_size": 32, "num_layers": 2, "num_heads": 2}
TINY_VIT |= {"patch_size": 8, "image_size": 32}
TINY_DIFFUSION = {
    "unet": {
        **random_weights.STABLE_DIFFUSION["unet"],
        "sample_size": 8,
        "down_block_types": ["CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D"],
        "block_out_channels": [32],
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
    },
    "vae": {
        **random_weights.STABLE_DIFFUSION["vae"],
        "sample_size": 16,
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "block_out_channels": [16, 32],
        "norm_num_groups": 8,
    },
    "text_encoder": {
        **random_weights.STABLE_DIFFUSION["text_encoder"],
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 24,
        "vocab_size": 300,
    },
    "scheduler": random_weights.STABLE_DIFFUSION["scheduler"],
}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The paper preset with models that run in a moment."""
    paper = PRESETS["paper"]
    base = EncoderChoice("vit.safetensors", 32, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), TINY_VIT)
    small = replace(base, vit={**TINY_VIT, "hidden_size": 64})
    rotary = replace(base, vit={**TINY_VIT, "rope_theta": 100.0, "key_bias": False})
    tiny_paper = replace(
        paper,
        maskers={"sam-vit-b": MaskerChoice("sam.pth", TINY_SAM)},
        encoders={"dinov2-base": base, "dinov2-small": small, "dinov3-base": rotary},
        proposals=ProposalConfig(points_per_side=3),
    )
    monkeypatch.setitem(PRESETS, "paper", tiny_paper)
    monkeypatch.setattr(random_weights, "STABLE_DIFFUSION", TINY_DIFFUSION)


DINOV2 = ("dinov2-small", "dinov2-base", "dinov2-large")
DINOV3 = ("dinov3-small", "dinov3-base", "dinov3-large")
STAGES = (
    *("load SAM and the encoder", "generator.check", "generator.generate"),
    *("masker.mask", "encoder.encode_batch"),
)
SELF_TEST = ("--preset", "paper", "--random-weights", "--steps", 1, "--images", 1)


@pytest.mark.usefixtures("tiny")
def test_bank_and_segment_run_and_report_every_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build = (*SELF_TEST, "--classes", "cat", "--cache-dir", tmp_path / "cache")
    run("bank", "build", *build)
    printed = capsys.readouterr()
    manifest = store.read_manifest(printed.out.strip())
    assert manifest.names == ("cat",) and manifest.preset == "paper (random weights)"
    assert manifest.settings["num_images"] == 1
    (references,) = store.read_all_references(manifest, pictures=True)
    assert references.images is not None and references.images.shape == (1, 16, 16, 3)
    assert references.images.std() > 1
    assert "self-test: random weights: pictures, masks and labels mean nothing" in printed.err
    for stage in STAGES:
        assert f"self-test: {stage}: " in printed.err
    assert printed.err.count("peak memory so far") >= 5

    run("bank", "add", manifest.path, "--classes", "dog", "--random-weights", "--steps", "1")
    printed = capsys.readouterr()
    assert store.read_manifest(printed.out.strip()).names == ("cat", "dog")
    assert printed.err.count("generator.generate") == 1

    photo = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    run("segment", tmp_path / "photo.png", *build, "--output", tmp_path / "out.png")
    report = capsys.readouterr().err
    assert "proposer.propose" in report and "encoder.encode:" in report
    assert re.search(r"match \d", report) and "photo.png: 0 regions" not in report
    assert "generator." not in report, "a stored bank needs no Stable Diffusion"
    assert np.asarray(Image.open(tmp_path / "out_labels.png")).shape == (40, 60)


@pytest.mark.usefixtures("tiny")
def test_the_encoder_can_be_chosen() -> None:
    for name, hidden_size in ((None, 32), ("dinov2-small", 64), ("dinov3-base", 32)):
        encoder = rimjax.load_preset("paper", random_weights=True, encoder=name).encoder
        assert isinstance(encoder, ViTEncoder) and encoder.config.hidden_size == hidden_size
        assert (encoder.config.rope_theta is not None) == (name == "dinov3-base")
        assert encoder.encode(np.zeros((9, 9, 3), np.uint8)).shape == (4, 4, hidden_size)


@pytest.mark.parametrize("name", DINOV3)
def test_a_missing_dinov3_is_named_with_its_download(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--preset", "paper", "--classes", "cat", "--weights-dir", tmp_path)
    line = refused(capsys, "bank", "build", *words, "--encoder", name)
    assert f"dinov3-vit{name[7]}16.safetensors (rimjax weights download {name})" in line


@pytest.mark.usefixtures("tiny")
def test_the_generator_is_built_on_first_use_and_known_by_settings_and_weights() -> None:
    generator = rimjax.load_preset("paper", random_weights=True).generator
    assert isinstance(generator, DeferredGenerator) and "model" not in vars(generator)
    faster = replace(generator, config=replace(generator.config, steps=7))
    reseeded = replace(generator, weights=RandomWeights(1))
    assert len({faster.fingerprint, generator.fingerprint, reseeded.fingerprint}) == 3


def load_dtypes(**choices: Any) -> tuple[str, str]:
    """Return the dtypes of the paper preset's generator and encoder."""
    models = rimjax.load_preset("paper", random_weights=True, **choices)
    assert isinstance(models.encoder, ViTEncoder)
    assert isinstance(models.generator, DeferredGenerator)
    return models.generator.config.dtype, models.encoder.config.dtype


@pytest.mark.usefixtures("tiny")
def test_only_the_generator_is_in_bfloat16_on_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_dtypes() == ("float32", "float32")
    assert load_dtypes(dtype="bfloat16") == ("bfloat16", "float32")
    assert load_dtypes(encoder_dtype="bfloat16") == ("float32", "bfloat16")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert load_dtypes() == ("bfloat16", "float32")
    assert load_dtypes(dtype="float32") == ("float32", "float32")
    mini = rimjax.load_preset("mini").generator
    assert isinstance(mini, DeferredGenerator) and mini.config.dtype == "float32"


def test_the_unet_as_encoder_has_the_encoders_dtype() -> None:
    models = rimjax.load_preset("mini", encoder="mini-unet", dtype="bfloat16")
    assert isinstance(models.encoder, UNetEncoder)
    assert isinstance(models.generator, DeferredGenerator)
    assert models.generator.config.dtype == "bfloat16"
    assert models.encoder.generator.config.dtype == "float32"
    assert models.encoder.generator.weights is models.generator.weights


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("preset", "choices", "message"),
    [
        ("paper", {"encoder": "dino"}, r"encoder must be one of dinov2-base, .* got 'dino'"),
        ("mini", {"masker": "sam-vit-h"}, "masker must be one of mini in 'mini', got 'sam-vit-h'"),
        ("mini", {"random_weights": True}, "random_weights"),
        ("mini", {"steps": 0}, "steps must be at least 1, got 0"),
        ("mini", {"input_size": 100}, "input_size must be a multiple of the patch size 8, got 100"),
        ("mini", {"proposer": "cells"}, "proposer must be one of pixels, mini-maskformer"),
    ],
)
def test_bad_choices_are_refused(preset: str, choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rimjax.load_preset(preset, **choices)


@pytest.mark.usefixtures("tiny")
def test_sampler_and_input_size_can_be_chosen() -> None:
    def load(**choices: Any) -> tuple[str, int, int]:
        models = rimjax.load_preset("paper", random_weights=True, **choices)
        assert isinstance(models.generator, DeferredGenerator)
        assert isinstance(models.encoder, ViTEncoder)
        drawing = models.generator.config
        return drawing.scheduler, drawing.steps, models.encoder.input_size

    assert load() == ("dpmsolver++", 30, 32)
    assert load(scheduler="pndm") == ("pndm", 50, 32)
    assert load(scheduler="pndm", steps=7, input_size=48) == ("pndm", 7, 48)
    unet = rimjax.load_preset("mini", encoder="mini-unet", input_size=64).encoder
    assert isinstance(unet, UNetEncoder) and unet.input_size == 64
    assert unet.encode(np.zeros((9, 9, 3), np.uint8)).shape[:2] == (16, 16)


def test_the_unet_encoder_and_the_generator_share_their_weights() -> None:
    """`--encoder sd-unet --steps N` loads Stable Diffusion once."""
    models = rimjax.load_preset("mini", encoder="mini-unet", steps=3)
    assert isinstance(models.generator, DeferredGenerator)
    assert isinstance(models.encoder, UNetEncoder)
    assert models.generator.config.steps == 3
    assert models.encoder.generator.weights is models.generator.weights
    default = rimjax.load_preset("mini", encoder="mini-unet")
    assert models.encoder.fingerprint == default.encoder.fingerprint


@pytest.mark.usefixtures("tiny")
def test_weights_on_disk_are_loaded_and_checked(tmp_path: Path) -> None:
    folder = tmp_path / "paper"
    (folder / "stable-diffusion-v1-4").mkdir(parents=True)
    config, file = ViTConfig(**TINY_VIT), folder / "vit.safetensors"
    params = jax.tree.map(np.asarray, random_weights.make_vit(config, seed=3))
    save_vit(params, config, file)
    sam_on_disk = sam.load(None, TINY_SAM, seed=5)
    torch.save(sam_on_disk.model.state_dict(), folder / "sam.pth")
    models = rimjax.load_preset("paper", tmp_path)
    assert models.name == "paper"
    assert models.masker.fingerprint == SamMasker(sam_on_disk).fingerprint
    assert isinstance(models.encoder, ViTEncoder)
    jax.tree.map(np.testing.assert_array_equal, models.encoder.params, params)
    with pytest.raises(ValueError, match=r"vit\.safetensors: hidden_size must be 64, got 32"):
        rimjax.load_preset("paper", tmp_path, encoder="dinov2-small")
    registers = replace(config, num_registers=4)
    save_vit(jax.tree.map(np.asarray, random_weights.make_vit(registers)), registers, file)
    with pytest.raises(ValueError, match="num_registers must be 0, got 4"):
        rimjax.load_preset("paper", tmp_path)
    save_vit(params, config, file)
    torch.save({"model": {"weight": torch.zeros(3)}}, folder / "sam.pth")
    with pytest.raises(ValueError, match=r"sam\.pth: "):
        rimjax.load_preset("paper", tmp_path)


def list_shapes(model: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_sams_are_the_published_architectures(name: str) -> None:
    config = PRESETS["paper"].maskers[f"sam-{name.replace('_', '-')}"].sam
    with torch.device("meta"):
        assert list_shapes(sam.build(config)) == list_shapes(sam_model_registry[name]())


def get_vit_choice(name: str) -> tuple[EncoderChoice, ViTConfig]:
    """Return an encoder of the paper preset that is a ViT, and its config."""
    choice = PRESETS["paper"].encoders[name]
    assert isinstance(choice, EncoderChoice)
    return choice, ViTConfig(**choice.vit or {})


@pytest.mark.parametrize("name", [*DINOV2, *DINOV3])
def test_encoders_have_the_published_files_size(name: str) -> None:
    """The published file holds our parameters and those after the last layer's keys."""
    _, config = get_vit_choice(name)
    size = config.hidden_size
    used = sum(leaf.size for leaf in jax.tree.leaves(param_shapes(config)))
    query_value_out, mlp = 3 * (size * size + size), 8 * size * size + 5 * size
    unused = query_value_out + mlp + 7 * size  # norm2, scales, final norm, mask token
    published = sources()[name].files[0].bytes
    assert published is not None and 0 < published - 4 * (used + unused) < 60_000


def test_every_choice_has_a_source_and_fits_its_patches() -> None:
    paper = PRESETS["paper"]
    vits = [name for name, choice in paper.encoders.items() if isinstance(choice, EncoderChoice)]
    kinds = {
        "stable-diffusion": ({"stable-diffusion"}, paper.generators),
        "sam": ({"sam"}, paper.maskers),
        "vit": ({"dinov2", "dinov3", "clip", "mae"}, vits),
        "transformers": ({"transformers"}, ("maskformer", "clip-image-text")),
    }
    assert set(sources()) == {name for _, names in kinds.values() for name in names}
    for allowed, names in kinds.values():
        for name in names:
            source = sources()[name]
            assert source.kind in allowed and source.licence
            assert (source.url is None) != (source.repo is None)
            pinned = source.repo is None or len(source.revision or "") == 40
            assert pinned or name == "maskformer", "its commit isn't known"
            assert all(file.sha256 is None or len(file.sha256) == 64 for file in source.files)
    assert sources()["maskformer"].becomes == paper.proposers["maskformer"].path
    assert sources()["clip-image-text"].becomes == paper.image_text.path
    for name in vits:
        choice, config = get_vit_choice(name)
        assert choice.input_size == (32 if name in DINOV3 else 37) * config.patch_size


def flatten(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return a tree's leaves by their paths, with slashes."""
    leaves: Any = flatten_dict(params, sep="/")
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def test_random_leaves_have_the_right_size() -> None:
    config = ViTConfig(hidden_size=128, num_layers=2, num_heads=2, patch_size=8, image_size=64)
    leaves = flatten(random_weights.make_vit(config))
    # 65,536 values: a standard error of 0.3 %.
    assert leaves["layers_0/fc2/kernel"].std() == pytest.approx((4 * 128) ** -0.5, rel=0.02)
    assert leaves["patch_embedding/kernel"].std() == pytest.approx((8 * 8 * 3) ** -0.5, rel=0.03)
    assert (leaves["layers_0/norm1/scale"] == 1).all() and (leaves["layers_0/key/bias"] == 0).all()
    again = flatten(random_weights.make_vit(config))
    assert all((leaves[name] == again[name]).all() for name in leaves)
    reseeded = flatten(random_weights.make_vit(config, seed=1))
    assert (reseeded["class_token"] != leaves["class_token"]).any()


@pytest.mark.usefixtures("tiny")
def test_random_cross_attention_is_not_flat() -> None:
    """A flat map exceeds half its maximum everywhere, and so leaves no background for a bank."""
    leaves = flatten(random_weights.make_stable_diffusion().params["unet"])
    layer = "mid_block/attentions_0/transformer_blocks_0/attn2"
    assert leaves[f"{layer}/to_q/kernel"].std() == pytest.approx(9 / 32**0.5, rel=0.1)
    assert leaves[f"{layer}/to_v/kernel"].std() == pytest.approx(1 / 32**0.5, rel=0.1)


def test_the_byte_tokenizer_pads_and_decodes() -> None:
    tokenizer, text = random_weights.make_byte_tokenizer(49408, 77), "a cat, é"
    options = {"padding": "max_length", "max_length": 77, "return_offsets_mapping": True}
    encoded = tokenizer(text, **options)
    ids = encoded["input_ids"]
    assert len(tokenizer) == 49408 and len(ids) == 77
    assert ids[0] == 49406 and ids[-1] == 49407 and encoded["offset_mapping"][3] == (2, 3)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
