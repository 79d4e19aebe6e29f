"""The ViT's keys against transformers' PyTorch models, and DINOv2's two layouts."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from ported_weights import dinov2
from ported_weights.rules import Rule, apply, transpose_convolution, transpose_linear
from rimjax.models import vit
from rimjax.models.protocols import Encoder
from rimjax.models.vit import ViTConfig
from rimjax.models.vit_encoder import ViTEncoder, choose_grid, load_vit, save_vit

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "patch_size": 4,
    "image_size": 28,
}
TOLERANCE = (
    1e-5  # float32 rounding through three layers, relative to the largest key; typically 1e-6
)


def randomise(model: Any) -> Any:
    """Move weights far from zeros and ones, so that none can be left out unnoticed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = (
                1.0
                if name.endswith(("norm1.weight", "norm2.weight", "layrnorm.weight", "lambda1"))
                else 0.0
            )
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


@pytest.fixture(scope="module")
def reference() -> Any:
    return randomise(transformers.Dinov2Model(transformers.Dinov2Config(**SIZES)))


@pytest.fixture(scope="module")
def ported(reference: Any) -> tuple[dict, ViTConfig]:
    return dinov2.port(reference.state_dict(), num_heads=3)


def pixels(height: int, width: int) -> np.ndarray:
    return (
        np.random.default_rng(height * 100 + width)
        .standard_normal((2, height, width, 3))
        .astype(np.float32)
    )


def torch_keys(
    model: Any, layer: Any, x: np.ndarray, leading: int = 1, **options: bool
) -> np.ndarray:
    """What a torch model's linear layer for keys puts out, at the patches."""
    caught = []
    handle = layer.register_forward_hook(lambda module, inputs, output: caught.append(output))
    with torch.inference_mode():
        model(torch.from_numpy(x).permute(0, 3, 1, 2), **options)
    handle.remove()
    return caught[0][:, leading:].numpy()


def relative_error(ours: jax.Array | np.ndarray, theirs: np.ndarray) -> float:
    return float(
        np.abs(np.asarray(ours).reshape(theirs.shape) - theirs).max() / np.abs(theirs).max()
    )


@pytest.mark.parametrize("size", [(28, 28), (40, 24), (12, 60), (28, 32), (4, 4)])
def test_keys_agree_with_transformers_at_native_and_other_sizes(reference, ported, size):
    x = pixels(*size)
    theirs = torch_keys(reference, reference.encoder.layer[-1].attention.attention.key, x)
    ours = vit.last_layer_keys(ported[0], x, ported[1])
    assert ours.shape == (2, size[0] // 4, size[1] // 4, 48) and ours.dtype == jnp.float32
    assert relative_error(ours, theirs) <= TOLERANCE


def test_keys_with_registers_agree_with_transformers():
    model = randomise(
        transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=2)
        )
    )
    params, config = dinov2.port(model.state_dict(), num_heads=3)
    assert config.num_registers == 2 and config.position_rule == "registers"
    x = pixels(
        20, 44
    )  # smaller along one side, so that antialiasing matters, larger along the other
    theirs = torch_keys(model, model.encoder.layer[-1].attention.attention.key, x, leading=3)
    assert relative_error(vit.last_layer_keys(params, x, config), theirs) <= TOLERANCE


def test_clip_settings_agree_with_transformers():
    names: dict[str, Any] = {
        "hidden_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 96,
        "patch_size": 4,
        "image_size": 28,
    }
    model = randomise(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**names)))
    config = ViTConfig(
        hidden_size=48,
        num_layers=2,
        num_heads=3,
        mlp_ratio=2.0,
        patch_size=4,
        image_size=28,
        layer_norm_eps=1e-5,
        layer_scale=False,
        pre_norm=True,
        patch_bias=False,
        activation="quick_gelu",
    )
    layer = r"vision_model\.encoder\.layers\.(\d+)\."
    first_layer = layer.replace(r"\d+", "0")
    rules = [
        Rule(r"vision_model\.embeddings\.class_embedding", ("class_token",), lambda a: (a[None],)),
        Rule(r"vision_model\.embeddings\.position_embedding\.weight", ("position_embedding",)),
        Rule(
            r"vision_model\.embeddings\.patch_embedding\.weight",
            ("patch_embedding/kernel",),
            transpose_convolution,
        ),
        Rule(r"vision_model\.pre_layrnorm\.weight", ("pre_norm/scale",)),
        Rule(r"vision_model\.pre_layrnorm\.bias", ("pre_norm/bias",)),
        Rule(layer + r"layer_norm1\.weight", (r"layers_\1/norm1/scale",)),
        Rule(layer + r"layer_norm1\.bias", (r"layers_\1/norm1/bias",)),
        Rule(layer + r"self_attn\.k_proj\.weight", (r"layers_\1/key/kernel",), transpose_linear),
        Rule(layer + r"self_attn\.k_proj\.bias", (r"layers_\1/key/bias",)),
        Rule(
            first_layer + r"self_attn\.q_proj\.weight",
            (r"layers_\1/query/kernel",),
            transpose_linear,
        ),
        Rule(first_layer + r"self_attn\.q_proj\.bias", (r"layers_\1/query/bias",)),
        Rule(
            first_layer + r"self_attn\.v_proj\.weight",
            (r"layers_\1/value/kernel",),
            transpose_linear,
        ),
        Rule(first_layer + r"self_attn\.v_proj\.bias", (r"layers_\1/value/bias",)),
        Rule(
            first_layer + r"self_attn\.out_proj\.weight",
            (r"layers_\1/out/kernel",),
            transpose_linear,
        ),
        Rule(first_layer + r"self_attn\.out_proj\.bias", (r"layers_\1/out/bias",)),
        Rule(first_layer + r"layer_norm2\.weight", (r"layers_\1/norm2/scale",)),
        Rule(first_layer + r"layer_norm2\.bias", (r"layers_\1/norm2/bias",)),
        Rule(first_layer + r"mlp\.(fc[12])\.weight", (r"layers_\1/\2/kernel",), transpose_linear),
        Rule(first_layer + r"mlp\.(fc[12])\.bias", (r"layers_\1/\2/bias",)),
        Rule(
            r"vision_model\.encoder\.layers\.1\.(self_attn\.(q|v|out)_proj|layer_norm2|mlp\.fc[12])\.(weight|bias)"
        ),
        Rule(r"vision_model\.post_layernorm\.(weight|bias)"),
    ]
    params = apply(rules, model.state_dict(), vit.param_shapes(config))
    x = pixels(24, 36)
    theirs = torch_keys(
        model,
        model.vision_model.encoder.layers[-1].self_attn.k_proj,
        x,
        interpolate_pos_encoding=True,
    )
    assert relative_error(vit.last_layer_keys(params, x, config), theirs) <= TOLERANCE


@pytest.mark.parametrize("rule", ["transformers", "facebookresearch", "registers"])
@pytest.mark.parametrize("size", [3, 9, 12, 13, 37])
def test_resize_matrix_is_what_torch_does(rule, size):
    native = 12
    signal = np.random.default_rng(size).standard_normal((1, 5, native, native)).astype(np.float32)
    how: dict[str, Any] = {"size": (size, size)}
    if rule == "facebookresearch":
        how = {"scale_factor": ((size + 0.1) / native,) * 2}
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(signal), mode="bicubic", antialias=rule == "registers", **how
    ).numpy()
    matrix = vit.build_resize_matrix(native, size, rule)
    np.testing.assert_allclose(
        np.einsum("hi,wj,cij->chw", matrix, matrix, signal[0]), theirs[0], atol=5e-6
    )


def test_position_rules_agree_at_the_native_size_only(ported):
    params, config = ported
    for size, agree in [((28, 28), True), ((28, 32), False), ((12, 12), False)]:
        keys = [
            vit.last_layer_keys(params, pixels(*size), replace(config, position_rule=rule))
            for rule in ("transformers", "facebookresearch")
        ]
        assert np.array_equal(*keys) == agree


def facebook_layout(hub: dict, layers: int) -> dict:
    """The same weights as facebookresearch's `.pth` holds them: query, key and value fused."""
    moved = {
        "cls_token": hub["embeddings.cls_token"],
        "pos_embed": hub["embeddings.position_embeddings"],
        "mask_token": hub["embeddings.mask_token"],
    }
    for leaf in ("weight", "bias"):
        moved[f"patch_embed.proj.{leaf}"] = hub[f"embeddings.patch_embeddings.projection.{leaf}"]
        moved[f"norm.{leaf}"] = hub[f"layernorm.{leaf}"]
    for i in range(layers):
        old, new = f"encoder.layer.{i}.", f"blocks.{i}."
        for leaf in ("weight", "bias"):
            fused = [
                hub[f"{old}attention.attention.{part}.{leaf}"] for part in ("query", "key", "value")
            ]
            moved[f"{new}attn.qkv.{leaf}"] = torch.cat(fused)
            moved[f"{new}attn.proj.{leaf}"] = hub[f"{old}attention.output.dense.{leaf}"]
            moved |= {
                f"{new}{part}.{leaf}": hub[f"{old}{part}.{leaf}"]
                for part in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
            }
        moved |= {f"{new}ls{n}.gamma": hub[f"{old}layer_scale{n}.lambda1"] for n in (1, 2)}
    return moved


def test_facebookresearch_layout_gives_the_same_params(reference, ported):
    params, config = dinov2.port(facebook_layout(reference.state_dict(), 3), num_heads=3)
    assert config == replace(ported[1], position_rule="facebookresearch")
    jax.tree.map(np.testing.assert_array_equal, params, ported[0])


def test_config_is_inferred_from_shapes(ported):
    assert ported[1] == ViTConfig(
        hidden_size=48, num_layers=3, num_heads=3, mlp_ratio=4.0, patch_size=4, image_size=28
    )


def test_there_is_a_head_for_64_features_unless_given(reference):
    with pytest.raises(ValueError, match="num_heads must be given"):
        dinov2.port(reference.state_dict())


@pytest.mark.parametrize("layout", ["hub", "facebookresearch"])
def test_port_lists_everything_that_is_off(reference, layout):
    state = (
        dict(reference.state_dict())
        if layout == "hub"
        else facebook_layout(reference.state_dict(), 3)
    )
    norm = "encoder.layer.1.norm2.bias" if layout == "hub" else "blocks.1.norm2.bias"
    scale = "encoder.layer.0.layer_scale1.lambda1" if layout == "hub" else "blocks.0.ls1.gamma"
    fc1 = "encoder.layer.1.mlp.fc1.bias" if layout == "hub" else "blocks.1.mlp.fc1.bias"
    del state[norm]
    state["head.weight"] = torch.zeros(2, 2)
    state[scale] = state[scale][:-1]
    state[fc1] = state[fc1].half()
    with pytest.raises(ValueError) as caught:
        dinov2.port(state, num_heads=3)
    message = str(caught.value)
    assert "layers_1/norm2/bias: missing" in message
    assert "head.weight: no rules match this key" in message
    assert f"{scale} for layers_0/scale1: must be float32[48], got float32[47]" in message
    assert f"{fc1} for layers_1/fc1/bias: must be float32[192], got float16[192]" in message
    assert message.count("\n") == 4


def test_port_refuses_another_models_weights():
    with pytest.raises(
        ValueError, match="state_dict must be DINOv2 in the hub's or facebookresearch's layout"
    ):
        dinov2.port({"conv1.weight": np.zeros((8, 3, 7, 7), np.float32)})


def test_bfloat16_stays_near_float32(ported):
    params, config = ported
    x = pixels(28, 28)
    exact, rounded = (
        vit.last_layer_keys(params, x, replace(config, dtype=dtype))
        for dtype in ("float32", "bfloat16")
    )
    assert rounded.dtype == jnp.float32
    error = relative_error(rounded, np.asarray(exact))
    assert (
        1e-5 < error < 0.05
    )  # 8 bits of mantissa through three layers; if it were 0 the setting would do nothing


@pytest.mark.parametrize("shape", [(1, 30, 28, 3), (1, 28, 28, 4), (28, 28, 3), (0, 28, 28, 3)])
def test_bad_pixels_are_refused(ported, shape):
    with pytest.raises(ValueError, match="pixels must be"):
        vit.last_layer_keys(ported[0], jnp.zeros(shape), ported[1])


@pytest.fixture(scope="module")
def encoder(ported) -> ViTEncoder:
    return ViTEncoder(*ported, input_size=32, batch_size=2)


def test_encoder_resizes_and_normalises(encoder):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    small = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BICUBIC)) / 255.0
    x = ((small - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])).astype(
        np.float32
    )[None]
    expected = np.asarray(vit.last_layer_keys(encoder.params, x, encoder.config))[0]
    keys = encoder.encode(image)
    assert isinstance(keys, np.ndarray) and keys.shape == (8, 8, 48) and keys.dtype == np.float32
    assert relative_error(keys, expected) <= TOLERANCE  # normalised in float64 here


def test_batches_agree_with_single_images(encoder):
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (size, 40, 3), np.uint8) for size in (40, 33, 64)]
    together = encoder.encode_batch(images)
    assert [keys.shape for keys in together] == [(8, 8, 48)] * 3
    for image, keys in zip(images, together, strict=True):
        alone = encoder.encode(image)
        assert relative_error(keys, alone) <= TOLERANCE  # another batch size, other rounding


SHAPES = [(40, 40), (30, 60), (60, 30), (90, 10), (1, 999), (333, 500), (31, 60)]


def test_an_image_may_keep_its_shape_at_about_as_many_pixels(encoder, ported):
    keeping = replace(encoder, resize="aspect")
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in SHAPES]
    together = keeping.encode_batch(images)  # of five grids, in batches of two
    for (height, width), image, keys in zip(SHAPES, images, together, strict=True):
        rows, columns, _ = keys.shape
        assert 0.75 * 64 <= rows * columns <= 4 / 3 * 64  # the shorter side is a whole number
        least = min(rows, columns)
        exact = (rows / columns) / (height / width)
        assert least == 1 or abs(np.log(exact)) <= 2 * np.log((least + 0.5) / least)
        resized = Image.fromarray(image).resize((4 * columns, 4 * rows), Image.Resampling.BICUBIC)
        x = (np.asarray(resized) / 255.0 - encoder.mean) / np.array(encoder.std)
        expected = vit.last_layer_keys(ported[0], x[None].astype(np.float32), ported[1])
        assert relative_error(keys, np.asarray(expected)[0]) <= TOLERANCE
        assert keys.shape == keeping.encode(image).shape
    np.testing.assert_array_equal(together[0], encoder.encode_batch(images[:2])[0])
    assert together[1].shape == (*together[2].shape[1::-1], 48)


def test_images_of_any_shape_have_few_grids():
    rng = np.random.default_rng(0)
    sizes = rng.integers(200, 800, (5000, 2))  # photographs, none longer than 4 to 1
    grids = {choose_grid(int(height), int(width), 37) for height, width in sizes}
    assert len(grids) <= 2 * 37


def test_encoder_refuses_bad_input(encoder):
    with pytest.raises(ValueError, match=r"image must be uint8\[H, W, 3\]"):
        encoder.encode(np.zeros((8, 8, 3), np.float32))
    with pytest.raises(ValueError, match="images must hold at least one"):
        encoder.encode_batch([])
    with pytest.raises(ValueError, match="input_size must be a multiple"):
        replace(encoder, input_size=30)


def test_nan_is_refused_in_a_file_by_name_and_in_features(encoder, tmp_path):
    broken = jax.tree.map(np.copy, encoder.params)
    broken["class_token"][0, 0] = np.nan
    save_vit(broken, encoder.config, tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match=r"vit\.safetensors: class_token holds NaN or infinity"):
        load_vit(tmp_path / "vit.safetensors")
    for dtype, advice in (
        ("float32", "weights verify"),
        ("bfloat16", "with encoder_dtype float32"),
    ):
        half = replace(encoder, params=broken, config=replace(encoder.config, dtype=dtype))
        with pytest.raises(ValueError, match=f"encoder must give finite .* in {dtype}; .*{advice}"):
            half.encode(np.zeros((8, 8, 3), np.uint8))


def test_fingerprint_follows_weights_and_settings(encoder):
    typed: Encoder = encoder
    changed = jax.tree.map(np.copy, encoder.params)
    changed["class_token"][0, 0] += 1
    prints = {
        typed.fingerprint,
        replace(encoder, params=changed).fingerprint,
        replace(encoder, input_size=64).fingerprint,
        replace(encoder, resize="aspect").fingerprint,
    }
    assert len(prints) == 4
    assert replace(encoder, batch_size=1).fingerprint == typed.fingerprint


def test_fingerprints_stay_as_before_dinov3_so_that_banks_stay_valid():
    encoder = ViTEncoder({"class_token": np.zeros((1, 4), np.float32)}, ViTConfig())
    assert encoder.fingerprint == "1db16af4f02166c2d64d"
