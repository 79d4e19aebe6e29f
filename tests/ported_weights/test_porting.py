"""CLIP and MAE ported from all their layouts, against transformers' PyTorch models."""

import copy
import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from ported_weights import clip, dinov2, mae
from ported_weights.rules import Rule, apply
from rimjax.models import vit

PORTS = {"clip": clip.port, "mae": mae.port}
SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "patch_size": 4,
    "image_size": 20,
}
TOLERANCE = (
    1e-5  # float32 rounding through three layers, relative to the largest key; typically 1e-6
)


def randomised(model: Any) -> Any:
    """Set weights that can't be left out unnoticed and that float16 holds exactly."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(
                (centre + 0.2 * torch.randn(parameter.shape, generator=generator)).half()
            )
    return model.eval()


def build(name: str) -> Any:
    """A tiny model of transformers' class of that name."""
    if name.startswith("ViTMAE"):
        decoder: dict[str, Any] = {
            "decoder_hidden_size": 16,
            "decoder_num_hidden_layers": 1,
            "decoder_num_attention_heads": 2,
        }
        config = transformers.ViTMAEConfig(
            **SIZES, **decoder, decoder_intermediate_size=16, mask_ratio=0.0
        )
    elif name == "CLIPModel":
        text = {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "vocab_size": 20,
        }
        config = transformers.CLIPConfig(text_config=text, vision_config=SIZES, projection_dim=8)
    else:
        config = transformers.CLIPVisionConfig(**SIZES, projection_dim=8)
    return randomised(getattr(transformers, name)(config))


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {
        name: build(name)
        for name in ("CLIPVisionModel", "CLIPModel", "ViTMAEModel", "ViTMAEForPreTraining")
    }


def torch_keys(model: Any, x: np.ndarray) -> np.ndarray:
    """What the last layer's projection to keys puts out at the patches, float32[B, h * w, D]."""
    images = torch.from_numpy(x).permute(0, 3, 1, 2)
    tower = {
        "CLIPModel": "vision_model",
        "CLIPVisionModel": "vision_model",
        "ViTMAEForPreTraining": "vit",
    }.get(type(model).__name__)
    tower = getattr(model, tower) if tower else model
    if type(model).__name__.startswith("CLIP"):
        layer, options = tower.encoder.layers[-1].self_attn.k_proj, {}
    else:  # nothing is masked, and patches whose noise rises stay in order
        count = x.shape[1] * x.shape[2] // 16
        layer, options = (
            tower.encoder.layer[-1].attention.attention.key,
            {"noise": torch.arange(count).float().expand(len(x), -1)},
        )
    caught = []
    handle = layer.register_forward_hook(lambda module, inputs, output: caught.append(output))
    with torch.inference_mode():
        tower(images, interpolate_pos_encoding=True, **options)
    handle.remove()
    return caught[0][:, 1:].numpy()


@pytest.mark.parametrize("size", [(20, 20), (28, 12)])
@pytest.mark.parametrize(
    "name", ["CLIPVisionModel", "CLIPModel", "ViTMAEModel", "ViTMAEForPreTraining"]
)
def test_keys_agree_with_transformers_at_the_native_and_another_size(models, name, size):
    params, config = PORTS["mae" if "MAE" in name else "clip"](
        models[name].state_dict(), num_heads=3
    )
    x = np.random.default_rng(sum(size)).standard_normal((2, *size, 3)).astype(np.float32)
    theirs = torch_keys(models[name], x)
    ours = np.asarray(vit.last_layer_keys(params, x, config))
    assert ours.shape == (2, size[0] // 4, size[1] // 4, 48)
    error = np.abs(ours.reshape(theirs.shape) - theirs).max() / np.abs(theirs).max()
    assert error <= TOLERANCE


def test_configs_are_those_of_the_sources(models):
    common = {
        "hidden_size": 48,
        "num_layers": 3,
        "num_heads": 3,
        "mlp_ratio": 2.0,
        "patch_size": 4,
        "image_size": 20,
        "layer_scale": False,
    }
    hub_clip, hub_mae = models["CLIPVisionModel"], models["ViTMAEModel"]
    expected = vit.ViTConfig(
        **common, layer_norm_eps=1e-5, pre_norm=True, patch_bias=False, activation="quick_gelu"
    )
    assert clip.port(hub_clip.state_dict(), 3)[1] == expected
    assert (hub_clip.config.layer_norm_eps, hub_clip.config.hidden_act) == (1e-5, "quick_gelu")
    assert mae.port(hub_mae.state_dict(), 3)[1] == vit.ViTConfig(**common, layer_norm_eps=1e-12)
    assert (hub_mae.config.layer_norm_eps, hub_mae.config.hidden_act) == (1e-12, "gelu")


def fused(hub: dict, prefix: str, names: tuple[str, str, str], leaf: str) -> Any:
    return torch.cat([hub[f"{prefix}{name}.{leaf}"] for name in names])


def openai_layout(hub: dict) -> dict:
    """Return a CLIPModel's weights as in OpenAI's archive.

    Queries, keys and values are fused, matrices are float16, and settings stand beside them.
    """
    vision = "vision_model."
    moved = {
        "visual.class_embedding": hub[vision + "embeddings.class_embedding"],
        "visual.positional_embedding": hub[vision + "embeddings.position_embedding.weight"],
        "visual.conv1.weight": hub[vision + "embeddings.patch_embedding.weight"].half(),
        "visual.proj": hub["visual_projection.weight"].T.half(),
        "text_projection": hub["text_projection.weight"].T.half(),
        "logit_scale": hub["logit_scale"],
        "token_embedding.weight": hub["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": hub["text_model.embeddings.position_embedding.weight"],
        **{
            name: torch.tensor(number)
            for name, number in (
                ("input_resolution", 20),
                ("context_length", 77),
                ("vocab_size", 20),
            )
        },
    }
    for leaf in ("weight", "bias"):
        moved[f"visual.ln_pre.{leaf}"] = hub[f"{vision}pre_layrnorm.{leaf}"]
        moved[f"visual.ln_post.{leaf}"] = hub[f"{vision}post_layernorm.{leaf}"]
        moved[f"ln_final.{leaf}"] = hub[f"text_model.final_layer_norm.{leaf}"]
        for tower, new_tower, layers in (
            ("vision_model", "visual.transformer", 3),
            ("text_model", "transformer", 1),
        ):
            for i in range(layers):
                old, new = f"{tower}.encoder.layers.{i}.", f"{new_tower}.resblocks.{i}."
                parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
                moved[f"{new}attn.in_proj_{leaf}"] = fused(hub, old, parts, leaf).half()
                moved[f"{new}attn.out_proj.{leaf}"] = hub[f"{old}self_attn.out_proj.{leaf}"].half()
                moved[f"{new}mlp.c_fc.{leaf}"] = hub[f"{old}mlp.fc1.{leaf}"].half()
                moved[f"{new}mlp.c_proj.{leaf}"] = hub[f"{old}mlp.fc2.{leaf}"].half()
                moved |= {f"{new}ln_{n}.{leaf}": hub[f"{old}layer_norm{n}.{leaf}"] for n in (1, 2)}
    return moved


def facebook_layout(hub: dict) -> dict:
    """A ViTMAEModel's weights as facebookresearch's `mae_pretrain_vit_base.pth` holds them."""
    moved = {
        "cls_token": hub["embeddings.cls_token"],
        "pos_embed": hub["embeddings.position_embeddings"],
    }
    parts = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
    renamed = {
        "attn.proj": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    for leaf in ("weight", "bias"):
        moved[f"patch_embed.proj.{leaf}"] = hub[f"embeddings.patch_embeddings.projection.{leaf}"]
        moved[f"norm.{leaf}"] = hub[f"layernorm.{leaf}"]
        for i in range(3):
            old, new = f"encoder.layer.{i}.", f"blocks.{i}."
            moved[f"{new}attn.qkv.{leaf}"] = fused(hub, old, parts, leaf)
            moved |= {
                f"{new}{name}.{leaf}": hub[f"{old}{was}.{leaf}"] for name, was in renamed.items()
            }
    return moved


@pytest.fixture(scope="module")
def layouts(models) -> dict[str, dict]:
    """The state dict of each family in each layout."""
    states = {
        "clip hub": dict(models["CLIPModel"].state_dict()),
        "clip openai": openai_layout(models["CLIPModel"].state_dict()),
        "mae hub": dict(models["ViTMAEModel"].state_dict()),
        "mae facebookresearch": facebook_layout(models["ViTMAEModel"].state_dict()),
    }
    states["clip hub"]["vision_model.embeddings.position_ids"] = torch.arange(26)[
        None
    ]  # transformers no longer saves it
    return states


def assert_same(ours: dict, theirs: dict) -> None:
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_openais_layout_gives_the_same_params(layouts):
    hub, openai = (clip.port(layouts[f"clip {name}"], num_heads=3) for name in ("hub", "openai"))
    assert openai[1] == hub[1]
    assert_same(openai[0], hub[0])
    assert {leaf.dtype for leaf in jax.tree.leaves(openai[0])} == {np.dtype(np.float32)}


def test_facebookresearchs_layout_gives_the_same_params(layouts):
    hub, facebook = (
        mae.port(layouts[f"mae {name}"], num_heads=3) for name in ("hub", "facebookresearch")
    )
    assert facebook[1] == replace(hub[1], layer_norm_eps=1e-6)
    assert_same(facebook[0], hub[0])
    whole = layouts["mae facebookresearch"] | {
        "mask_token": torch.zeros(1, 1, 16),
        "decoder_blocks.0.norm1.bias": torch.zeros(16),
    }
    assert_same(mae.port(whole, num_heads=3)[0], hub[0])


@pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
        ),
    ],
)
def test_parameters_of_a_model_in_use_can_be_ported(models, layouts, device):
    """On its device, and with gradients."""
    used = copy.deepcopy(models["CLIPModel"]).to(device).requires_grad_()
    assert_same(
        clip.port(used.state_dict(keep_vars=True), num_heads=3)[0],
        clip.port(layouts["clip hub"], num_heads=3)[0],
    )


@pytest.mark.parametrize("name", ["CLIPVisionModel", "CLIPVisionModelWithProjection"])
def test_the_vision_tower_alone_gives_the_same_params_as_the_whole_model(models, name):
    whole = models["CLIPModel"].state_dict()
    tower = {key: value for key, value in whole.items() if key.startswith("vision_model.")}
    if name == "CLIPVisionModelWithProjection":
        tower["visual_projection.weight"] = whole["visual_projection.weight"]
    assert tower.keys() == build(name).state_dict().keys()
    assert_same(clip.port(tower, num_heads=3)[0], clip.port(whole, num_heads=3)[0])


def test_heads_of_64_features_unless_the_published_model_has_others(layouts):
    def widths(hidden: int) -> dict:
        """Return a whole facebookresearch checkpoint of a single layer."""
        return {
            "cls_token": np.zeros((1, 1, hidden), np.float32),
            "pos_embed": np.zeros((1, 5, hidden), np.float32),
            "patch_embed.proj.weight": np.zeros((hidden, 3, 2, 2), np.float32),
            "patch_embed.proj.bias": np.zeros(hidden, np.float32),
            "blocks.0.norm1.weight": np.ones(hidden, np.float32),
            "blocks.0.norm1.bias": np.zeros(hidden, np.float32),
            "blocks.0.attn.qkv.weight": np.zeros((3 * hidden, hidden), np.float32),
            "blocks.0.attn.qkv.bias": np.zeros(3 * hidden, np.float32),
        }

    assert [mae.port(widths(hidden))[1].num_heads for hidden in (64, 128, 1280)] == [1, 2, 16]
    with pytest.raises(ValueError, match="num_heads must be given"):
        clip.port(layouts["clip hub"])


# Layout: a key to remove, the leaf that depends on it alone, and a key to shorten.
BROKEN = {
    "clip hub": (
        "vision_model.encoder.layers.1.layer_norm2.bias",
        "layers_1/norm2/bias",
        "vision_model.encoder.layers.0.mlp.fc1.bias",
    ),
    "clip openai": (
        "visual.transformer.resblocks.1.ln_2.bias",
        "layers_1/norm2/bias",
        "visual.transformer.resblocks.0.mlp.c_fc.bias",
    ),
    "mae hub": (
        "encoder.layer.1.layernorm_after.bias",
        "layers_1/norm2/bias",
        "encoder.layer.0.intermediate.dense.bias",
    ),
    "mae facebookresearch": ("blocks.1.norm2.bias", "layers_1/norm2/bias", "blocks.0.mlp.fc1.bias"),
}


@pytest.mark.parametrize("layout", BROKEN)
def test_missing_and_unknown_keys_and_shapes_off_by_one_are_listed(layouts, layout):
    gone, leaf, short = BROKEN[layout]
    port, state = PORTS[layout.split()[0]], layouts[layout]
    problems = {
        f"{leaf}: missing": {key: value for key, value in state.items() if key != gone},
        "head.weight: no rules match this key": state | {"head.weight": torch.zeros(2, 2)},
        f"{short} for layers_0/fc1/bias: must be float32[96], got float32[95]": state
        | {short: state[short][:-1]},
        f"{short} for layers_0/fc1/bias: must be float32[96], got float64[96]": state
        | {short: state[short].double()},
    }
    for problem, broken in problems.items():
        with pytest.raises(ValueError) as caught:
            port(broken, num_heads=3)
        assert str(caught.value).splitlines()[1:] == [f"  {problem}"]


@pytest.mark.parametrize("layout", BROKEN)
def test_every_key_that_matters_is_needed_and_no_other(layouts, layout):
    """Without a key porting raises, or the last layer's keys don't depend on it."""
    port, state = PORTS[layout.split()[0]], layouts[layout]
    params = port(state, num_heads=3)[0]
    needless = 0
    for key in state:
        rest = {name: value for name, value in state.items() if name != key}
        try:
            others = port(rest, num_heads=3)[0]
        except ValueError as error:
            assert ": missing" in str(error) or key in str(error)
        else:
            assert_same(others, params)
            needless += 1
    # The last norm, in CLIP the position_ids or the projection, and all outside of the tower.
    beside = (
        sum(not key.startswith(("visual.", "vision_model.")) for key in state)
        if "clip" in layout
        else 0
    )
    assert needless == beside + 2 + ("clip" in layout)


@pytest.mark.parametrize("layout", BROKEN)
def test_the_last_layer_is_whole_though_little_of_it_is_used(layouts, layout):
    port, state = PORTS[layout.split()[0]], layouts[layout]
    names = [
        key for key in state if ".2." in key and not key.startswith(("text_model", "transformer"))
    ]
    assert len(names) >= 12
    for key in names:
        wanted = list(state[key].shape)
        with pytest.raises(ValueError, match=re.escape(key) + "|: missing"):
            port({name: value for name, value in state.items() if name != key}, num_heads=3)
        with pytest.raises(ValueError, match=re.escape(key) + "(:| for )"):
            port(state | {key: np.zeros([wanted[0] + 1, *wanted[1:]], np.float32)}, num_heads=3)


def test_another_architecture_is_refused(layouts, models):
    resnet = {
        "visual.layer1.0.conv1.weight": np.zeros((8, 3, 1, 1), np.float32),
        "logit_scale": np.zeros((), np.float32),
    }
    for state in (resnet, layouts["mae hub"]):
        with pytest.raises(
            ValueError,
            match=r"must be a ViT of CLIP .* without vision_model\.embeddings\.patch_embedding",
        ):
            clip.port(state)
    with pytest.raises(
        ValueError, match=r"must be MAE .* without embeddings\.patch_embeddings\.projection\.weight"
    ):
        mae.port(layouts["clip hub"])
    scales = {f"blocks.{i}.ls{n}.gamma": torch.ones(48) for i in range(3) for n in (1, 2)}
    with pytest.raises(ValueError, match=r"blocks\.0\.ls1\.gamma: no rules match this key"):
        mae.port(layouts["mae facebookresearch"] | scales, num_heads=3)  # DINOv2, by its keys
    with pytest.raises(ValueError, match="layers_0/scale1: missing"):
        dinov2.port(layouts["mae facebookresearch"], num_heads=3)


@pytest.mark.parametrize("shape", [(48, 3, 16), (47, 3, 4, 4), (48, 3, 4, 0)])
def test_a_patch_embedding_that_makes_no_model_is_named(layouts, shape):
    with pytest.raises(ValueError, match=r"state_dict: patch_embed\.proj\.weight"):
        mae.port(
            layouts["mae facebookresearch"]
            | {"patch_embed.proj.weight": np.zeros(shape, np.float32)},
            num_heads=3,
        )


@pytest.mark.parametrize(
    "value",
    [torch.tensor([1.5, -3.0]), np.array([1.5, -3.0]), jnp.array([1.5, -3.0])],
    ids=["torch", "numpy", "jax"],
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_widened_only_where_asked(value, dtype):
    half = (
        value.to(getattr(torch, dtype))
        if isinstance(value, torch.Tensor)
        else value.astype(jnp.dtype(dtype))
    )
    shapes = {"a": jax.ShapeDtypeStruct((2,), jnp.float32)}
    widened = apply([Rule("a", ("a",))], {"a": half}, shapes, widen_halves=True)["a"]
    assert widened.dtype == np.float32 and widened.tolist() == [1.5, -3.0]
    with pytest.raises(ValueError, match="a: "):
        apply([Rule("a", ("a",))], {"a": half}, shapes)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_registers": 2, "position_rule": "registers"},
        {"pre_norm": True, "patch_bias": False, "layer_scale": False},
        {"qkv_bias": False, "num_layers": 1, "mlp_ratio": 2.5},
        {"rope_theta": 100.0, "key_bias": False, "num_registers": 4},
    ],
)
def test_shapes_are_those_of_the_flax_module(change):
    sizes = {"hidden_size": 48, "num_layers": 3, "num_heads": 3, "patch_size": 4, "image_size": 20}
    config = vit.ViTConfig(**sizes | change)
    pixels = jax.ShapeDtypeStruct((1, 20, 20, 3), np.float32)
    module = jax.eval_shape(vit.ViT(config).init, jax.random.key(0), pixels)
    assert vit.param_shapes(config) == module["params"]
