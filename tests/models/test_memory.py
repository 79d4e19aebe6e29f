"""Models within a device's memory: attention in blocks, halved batches."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import JaxRuntimeError
from jaxtyping import Array
from tiny_diffusion import relaxed

from ported_weights.vit import ViTConfig
from rimjax.models import attention, diffusion, vit_encoder
from rimjax.models.diffusion import DiffusionConfig, StableDiffusion
from rimjax.models.memory import BatchLimit, MemoryRunsOut
from rimjax.models.stable_diffusion import UNetEncoder, sampler
from rimjax.models.stable_diffusion.generator import DeferredGenerator, StoredWeights
from rimjax.models.vit import param_shapes
from rimjax.models.vit_encoder import ViTEncoder


@pytest.fixture(autouse=True)
def relax() -> Iterator[None]:
    with relaxed():
        yield


def exhaust_memory() -> None:
    """Ask the device for 128 TiB."""
    np.asarray(jax.jit(lambda x: jnp.broadcast_to(x, (2**45,)))(jnp.float32(0)))


def attend_exactly(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    scores = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1]))
    return np.einsum("bhnm,bmhd->bnhd", scores / scores.sum(-1, keepdims=True), v)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (12, 12), (12, 5), (7, 7)])
@pytest.mark.parametrize("max_scores", [1, 6 * 4 * 12, 2**25])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2)])
def test_attention_in_blocks_is_attention(
    n: int, m: int, max_scores: int, dtype: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "_MAX_SCORES", max_scores)
    rng = np.random.default_rng(0)
    shapes = ((2, n, 3, 8), (2, m, 3, 8), (2, m, 3, 8))
    q, k, v = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
    attended = attention.attend_in_blocks(q, k, v)
    assert attended.dtype == dtype and attended.shape == q.shape
    expected = attend_exactly(*map(np.asarray, (q, k, v)))
    np.testing.assert_allclose(np.asarray(attended, np.float64), expected, atol=tolerance)


def test_no_array_of_the_diffusion_model_holds_all_scores(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = diffusion.load(folder, DiffusionConfig(steps=1))
    ids, weights = model.prompts.encode("bag")
    keys = jax.vmap(jax.random.key)(jnp.arange(1))

    def trace() -> str:
        draw = jax.make_jaxpr(lambda *arguments: model._sample(*arguments))
        return str(draw(model.params, ids, weights, keys))

    # The UNet's two rows of four heads and the VAE's one: 8 x 8 pixels, each with all others.
    all_scores = ("f32[8,64,64]", "f32[1,64,64]")
    whole = trace()
    assert all(shape in whole for shape in all_scores)
    monkeypatch.setattr(attention, "_MAX_SCORES", 8 * 64)  # of a row of each head
    in_blocks = trace()
    assert "f32[8,1,64]" in in_blocks and "f32[1,8,64]" in in_blocks
    assert not any(shape in in_blocks for shape in all_scores)


def test_large_images_are_decoded_one_at_a_time(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32)
    model = diffusion.load(folder)
    together = jax.jit(lambda *a: model.decode(*a))(model.params, latents)
    monkeypatch.setattr(sampler, "_LARGE", 16)
    apart = jax.jit(lambda *a: model.decode(*a))(model.params, latents)
    difference = np.asarray(together).astype(int) - np.asarray(apart)
    assert np.abs(difference).max() <= 1  # another batch size, other rounding


@pytest.mark.parametrize(
    ("holds", "tried"),
    [
        (8, [(0, 8), (8, 8)]),
        (7, [(0, 8), (0, 4), (4, 4), (8, 4)]),
        (1, [(0, 8), (0, 4), (0, 2), *((start, 1) for start in range(10))]),
    ],
)
def test_batches_are_halved_until_memory_holds_them(
    holds: int, tried: list[tuple[int, int]]
) -> None:
    limit, calls = BatchLimit("drawing images", "draw smaller ones"), []

    def compute(start: int, size: int) -> list[int]:
        calls.append((start, size))
        if size > holds:
            exhaust_memory()
        return list(range(start, start + size))

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        batches = limit.run(compute, count=10, batch_size=8)
    assert list(chain(*batches))[:10] == list(range(10)) and calls == tried
    assert [str(warning.message) for warning in caught] == [
        "drawing images ran out of the device's memory in a batch of "
        f"{size}; batches are now of {size // 2}"
        for size in (8, 4, 2)
        if size > holds
    ]
    calls.clear()
    limit.run(compute, count=1, batch_size=8)  # what was learned is kept
    assert calls == [(0, tried[-1][1])]


def test_an_item_that_memory_cannot_hold_is_an_error_that_says_what_helps() -> None:
    limit = BatchLimit("drawing images", "draw smaller ones")
    expected = "drawing images needs more memory than .* one at a time; draw smaller ones$"
    with pytest.warns(MemoryRunsOut), pytest.raises(MemoryError, match=expected):
        limit.run(lambda start, size: exhaust_memory(), count=2, batch_size=2)


def test_other_errors_of_the_device_are_not_taken_for_a_lack_of_memory() -> None:
    def fail(start: int, size: int) -> None:
        raise JaxRuntimeError("INTERNAL: something else")

    with pytest.raises(JaxRuntimeError, match="something else"):
        BatchLimit("drawing", "").run(fail, count=4, batch_size=4)


def test_images_do_not_depend_on_the_batches_that_memory_holds(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = diffusion.load(folder, DiffusionConfig(steps=2, batch_size=4))
    expected = model.generate("Ankle boot", 3, seed=7)
    draw = model._draw

    def draw_one(params: Any, ids: Any, weights: Any, keys: Array) -> Any:
        if len(keys) > 1:
            exhaust_memory()
        return draw(params, ids, weights, keys)

    monkeypatch.setattr(model, "_draw", draw_one)
    with pytest.warns(MemoryRunsOut, match="drawing images ran out .* now of 1"):
        halved = model.generate("Ankle boot", 3, seed=7)
    difference = halved.images.astype(int) - expected.images
    assert np.abs(difference).max() <= 1  # another batch size, other rounding
    np.testing.assert_allclose(halved.attention, expected.attention, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "advice"), [("float32", "dtype bfloat16, or set"), ("bfloat16", "; set image_size")]
)
def test_an_image_that_memory_cannot_draw(
    dtype: Any, advice: str, folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = StableDiffusion(diffusion.load(folder).checkpoint, DiffusionConfig(dtype=dtype))
    monkeypatch.setattr(model, "_draw", lambda *arguments: exhaust_memory())
    with pytest.raises(MemoryError, match=f"drawing images needs .*{advice}.*fewer steps"):
        model.generate("bag", 1, seed=0)


def make_images(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (20, 30 + index, 3), np.uint8) for index in range(count)]


def test_vit_features_do_not_depend_on_the_batches_that_memory_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = ViTConfig(image_size=16, patch_size=4, hidden_size=8, num_layers=1, num_heads=2)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), param_shapes(config)
    )
    encoder = ViTEncoder(params, config, input_size=16, batch_size=4)
    expected, compute = encoder.encode_batch(make_images(5)), vit_encoder.last_layer_keys

    def compute_one(params: Any, pixels: Any, config: ViTConfig) -> Array:
        if len(pixels) > 1:
            exhaust_memory()
        return compute(params, pixels, config=config)

    monkeypatch.setattr(vit_encoder, "last_layer_keys", compute_one)
    encoder = replace(encoder)
    with pytest.warns(MemoryRunsOut, match="encoding images ran out"):
        halved = encoder.encode_batch(make_images(5))
    np.testing.assert_allclose(halved, expected, atol=1e-5)  # other rounding


def test_unet_features_do_not_depend_on_the_batches_that_memory_holds(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = DeferredGenerator(StoredWeights(folder), DiffusionConfig(steps=1))
    encoder = UNetEncoder(generator, input_size=16, batch_size=2)
    expected, compute = encoder.encode_batch(make_images(2)), encoder._compiled

    def compute_one(params: Any, pixels: Any) -> Array:
        if len(pixels) > 1:
            exhaust_memory()
        return compute(params, pixels)

    monkeypatch.setitem(encoder.__dict__, "_compiled", compute_one)
    with pytest.warns(MemoryRunsOut, match="encoding images ran out"):
        halved = encoder.encode_batch(make_images(2))
    np.testing.assert_allclose(halved, expected, atol=1e-3)  # other rounding
