"""DINOv3: the ViT with rotary positions, against transformers' PyTorch model."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from published import dinov2_state
from transformers import DINOv3ViTConfig, DINOv3ViTModel
from transformers.models.dinov3_vit import modeling_dinov3_vit

from ported_weights import dinov3
from rimjax.models import vit
from rimjax.models.rope import build_rotation, rotate
from rimjax.models.vit import ViTConfig
from rimjax.models.vit_encoder import ViTEncoder, load_vit, save_vit

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "patch_size": 4,
    "num_register_tokens": 4,
}
TOLERANCE = (
    1e-5  # float32 rounding through three layers, relative to the largest key; typically 1e-6
)


@pytest.fixture(scope="module")
def reference() -> DINOv3ViTModel:
    """A tiny model whose weights are far from zeros and ones, so that none can be left out."""
    model, generator = DINOv3ViTModel(DINOv3ViTConfig(**SIZES)), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if name.endswith(("norm1.weight", "norm2.weight", "lambda1")) else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def ported(reference: DINOv3ViTModel) -> tuple[dict, ViTConfig]:
    return dinov3.port(reference.state_dict(), num_heads=3)


def pixels(height: int, width: int) -> np.ndarray:
    random = np.random.default_rng(height * 100 + width)
    return random.standard_normal((2, height, width, 3)).astype(np.float32)


def torch_keys(model: DINOv3ViTModel, x: np.ndarray) -> np.ndarray:
    """What the last layer's projection to keys puts out at the patches, before the rotation."""
    caught: list[torch.Tensor] = []
    layer: Any = model.layer[-1]
    handle = layer.attention.k_proj.register_forward_hook(lambda *call: caught.append(call[2]))
    with torch.inference_mode():
        model(torch.from_numpy(x).permute(0, 3, 1, 2))
    handle.remove()
    return caught[0][:, 5:].numpy()


def relative_error(ours: Any, theirs: np.ndarray) -> float:
    difference = np.abs(np.asarray(ours).reshape(theirs.shape) - theirs).max()
    return float(difference / np.abs(theirs).max())


@pytest.mark.parametrize("size", [(28, 28), (64, 64), (40, 24), (12, 60), (4, 8), (4, 4)])
def test_keys_agree_with_transformers_at_every_size(reference, ported, size):
    x = pixels(*size)
    ours = vit.last_layer_keys(ported[0], x, ported[1])
    assert ours.shape == (2, size[0] // 4, size[1] // 4, 48) and ours.dtype == jnp.float32
    assert relative_error(ours, torch_keys(reference, x)) <= TOLERANCE


@pytest.mark.parametrize("grid", [(1, 1), (7, 7), (3, 14), (32, 32), (40, 5)])
@pytest.mark.parametrize("width", [4, 12, 64])
def test_rotation_is_what_transformers_does(grid, width):
    rows, columns = grid
    sizes: dict[str, Any] = {"hidden_size": 2 * width, "num_attention_heads": 2}
    embedding = modeling_dinov3_vit.DINOv3ViTRopePositionEmbedding(
        DINOv3ViTConfig(**sizes, patch_size=4)
    ).eval()  # in training it would shift and scale places at random
    cos, sin = embedding(torch.zeros(1, 3, 4 * rows, 4 * columns))
    shape = (2, 2, 5 + rows * columns, width)  # batch, heads, tokens, features
    q = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    theirs = modeling_dinov3_vit.apply_rotary_pos_emb(q, q, cos, sin)[1].numpy()
    rotation = build_rotation(rows, columns, 5, width, 100.0)
    ours = np.asarray(rotate(jnp.asarray(q.numpy().transpose(0, 2, 1, 3)), rotation))
    # theirs rounds angles up to 2 pi to float32, 5e-7, and values are below 5
    np.testing.assert_allclose(ours.transpose(0, 2, 1, 3), theirs, atol=5e-6)
    np.testing.assert_array_equal(ours[:, :5], q.numpy().transpose(0, 2, 1, 3)[:, :5])


def test_keys_depend_on_places_through_attention_only(ported):
    params, config = ported
    same = jnp.ones((1, 20, 12, 3))
    one_layer = {name: leaf for name, leaf in params.items() if not name.startswith("layers_")}
    one_layer["layers_0"] = {name: params["layers_0"][name] for name in ("norm1", "key")}
    keys = np.asarray(vit.last_layer_keys(one_layer, same, replace(config, num_layers=1)))
    np.testing.assert_allclose(keys, np.broadcast_to(keys[:, :1, :1], keys.shape), atol=1e-6)
    x = pixels(20, 12)
    moved = vit.last_layer_keys(params, x, replace(config, rope_theta=50.0))
    assert relative_error(moved, np.asarray(vit.last_layer_keys(params, x, config))) > 1e-2


def test_config_is_inferred_from_shapes(ported):
    assert ported[1] == ViTConfig(
        hidden_size=48,
        num_layers=3,
        num_heads=3,
        mlp_ratio=2.0,
        patch_size=4,
        image_size=128,
        layer_norm_eps=1e-5,
        num_registers=4,
        key_bias=False,
        rope_theta=100.0,
    )
    published = DINOv3ViTConfig()
    assert (published.layer_norm_eps, published.rope_theta) == (1e-5, 100.0)
    assert (published.key_bias, published.hidden_act) == (False, "gelu")


@pytest.mark.parametrize(
    ("num_heads", "message"),
    [
        (None, "num_heads must be given: 48 features"),
        (5, "hidden_size must be a multiple of num_heads 5, got 48"),
        (8, "hidden_size must be a multiple of 4 times num_heads 8 with rotary positions, got 48"),
    ],
)
def test_wrong_numbers_of_heads_are_refused(reference, num_heads, message):
    with pytest.raises(ValueError, match=message):
        dinov3.port(reference.state_dict(), num_heads)


def test_port_lists_everything_that_is_off(reference):
    state = dict(reference.state_dict())
    del state["layer.1.norm2.bias"], state["embeddings.register_tokens"]
    state["head.weight"] = torch.zeros(2, 2)
    state["layer.0.attention.k_proj.bias"] = torch.zeros(48)
    state["layer.0.layer_scale1.lambda1"] = torch.ones(47)
    state["layer.1.mlp.up_proj.bias"] = state["layer.1.mlp.up_proj.bias"].half()
    state["layer.1.attention.q_proj.bias"] = torch.full((48,), torch.nan)
    with pytest.raises(ValueError) as caught:
        dinov3.port(state, num_heads=3)
    assert sorted(line.strip() for line in str(caught.value).splitlines()[1:]) == [
        "head.weight: no rules match this key",
        "layer.0.attention.k_proj.bias for layers_0/key/bias: the model has no such weight",
        "layer.0.layer_scale1.lambda1 for layers_0/scale1: must be float32[48], got float32[47]",
        "layer.1.attention.q_proj.bias for layers_1/query/bias: holds NaN or infinity",
        "layer.1.mlp.up_proj.bias for layers_1/fc1/bias: must be float32[96], got float16[96]",
        "layers_1/norm2/bias: missing",
        "register_tokens: missing",
    ]


def test_every_key_is_needed_but_the_final_norm_and_the_mask_token(reference):
    state, needless = reference.state_dict(), set()
    for key in state:
        rest = {name: value for name, value in state.items() if name != key}
        try:
            dinov3.port(rest, num_heads=3)
            needless.add(key)
        except ValueError as error:
            assert ": missing" in str(error) or key in str(error)
    assert needless == {"embeddings.mask_token", "norm.weight", "norm.bias"}


def test_other_models_are_refused(reference):
    gated = reference.state_dict() | {"layer.0.mlp.gate_proj.weight": torch.zeros(96, 48)}
    with pytest.raises(ValueError, match=r"must be DINOv3 ViT-S, B or L, got a gated MLP, which"):
        dinov3.port(gated, num_heads=3)
    facebook = {"storage_tokens": torch.zeros(1, 4, 48), "blocks.0.norm1.weight": torch.ones(48)}
    with pytest.raises(ValueError, match="in the hub's layout, got facebookresearch's; port the"):
        dinov3.port(facebook, num_heads=3)
    wanted = r"must be DINOv3 in the hub's layout, got one without embeddings\.patch_embeddings"
    with pytest.raises(ValueError, match=wanted):
        dinov3.port(dinov2_state(), num_heads=1)


def test_bfloat16_stays_near_float32(ported):
    params, config = ported
    x = pixels(28, 28)
    exact = np.asarray(vit.last_layer_keys(params, x, config))
    rounded = vit.last_layer_keys(params, x, replace(config, dtype="bfloat16"))
    assert rounded.dtype == jnp.float32
    # 8 bits of mantissa through three layers; if it were 0 the setting would do nothing
    assert 1e-5 < relative_error(rounded, exact) < 0.05


def test_keys_are_the_same_within_another_jit(ported):
    params, config = ported
    x = pixels(12, 20)
    nested = jax.jit(partial(vit.last_layer_keys, config=config))(params, x)
    assert relative_error(nested, np.asarray(vit.last_layer_keys(params, x, config))) <= TOLERANCE


def test_encoder_and_file(ported, tmp_path: Path):
    save_vit(ported[0], ported[1], tmp_path / "vit.safetensors")
    params, config = load_vit(tmp_path / "vit.safetensors")
    assert config == ported[1]
    jax.tree.map(np.testing.assert_array_equal, params, ported[0])
    encoder = ViTEncoder(params, config, input_size=32)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    assert encoder.encode(image).shape == (8, 8, 48)
    slower = replace(encoder, config=replace(config, rope_theta=50.0))
    assert slower.fingerprint != encoder.fingerprint
    with pytest.raises(ValueError, match="input_size must be a multiple of the patch size 4"):
        replace(encoder, input_size=30)
