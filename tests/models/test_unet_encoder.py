"""Stable Diffusion's UNet as an encoder, against PyTorch's with a hook on the same block."""

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import fakes
import jax
import numpy as np
import pytest
import scenes
import torch
from PIL import Image
from tiny_diffusion import SCHEDULE, relaxed, tiny_tokenizer

import rimjax
from rimjax.models.protocols import Encoder
from rimjax.models.stable_diffusion import (
    DeferredGenerator,
    DiffusionConfig,
    StoredWeights,
    UNetEncoder,
)
from rimjax.models.stable_diffusion import generator as generator_module
from rimjax.models.stable_diffusion.checkpoint import Checkpoint, read

TOLERANCE = 1e-4
"""Float32 rounding through three models, relative to the largest value; typically 3e-6."""
CONFIG = DiffusionConfig(steps=3)


@pytest.fixture(scope="module", autouse=True)
def relax() -> Iterator[None]:
    """Models this small lose time to XLA's optimisations, too."""
    jax.config.update("jax_disable_most_optimizations", True)
    with relaxed():
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def generator(folder) -> DeferredGenerator:
    return DeferredGenerator(StoredWeights(folder), CONFIG)


@pytest.fixture(scope="module")
def encoder(generator) -> UNetEncoder:
    return UNetEncoder(generator, input_size=16, batch_size=2)


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng((height, width)).integers(0, 256, (height, width, 3), np.uint8)


def reference(
    originals: dict[str, Any], image: np.ndarray, size: int, timestep: int, block: int
) -> np.ndarray:
    """PyTorch's, with JAX's noise."""
    pixels = (
        np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)) / 255 * 2
        - 1
    )
    latents = (
        originals["vae"]
        .encode(torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float())
        .latent_dist.mode()
    )
    latents = latents * originals["vae"].config.scaling_factor
    noise = torch.from_numpy(np.array(jax.random.normal(jax.random.key(0), latents.shape[1:])))[
        None
    ]
    times: Any = torch.tensor([timestep])
    noised = diffusers.DDPMScheduler(**SCHEDULE).add_noise(latents, noise, times)
    empty = tiny_tokenizer()("", padding="max_length", return_tensors="pt")["input_ids"]
    text = originals["text_encoder"](empty).last_hidden_state
    kept = []
    handle = (
        originals["unet"]
        .up_blocks[block]
        .register_forward_hook(lambda module, args, output: kept.append(output))
    )
    originals["unet"](noised, timestep, text)
    handle.remove()
    (features,) = kept
    return features[0].permute(1, 2, 0).numpy()


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape and ours.dtype == np.float32
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


@pytest.mark.parametrize("shape", [(16, 16), (30, 21), (9, 40)])
def test_features_are_pytorchs_of_that_block(originals, encoder, shape):
    typed: Encoder = encoder
    image = random_image(*shape)
    theirs = reference(originals, image, 16, 261, 1)
    assert theirs.shape == (8, 8, 32)
    assert relative_error(typed.encode(image), theirs) <= TOLERANCE


def test_size_time_and_block_are_the_settings(originals, generator):
    image = random_image(30, 21)
    theirs = reference(originals, image, 24, 999, 0)
    assert theirs.shape == (12, 12, 64)
    assert (
        relative_error(
            UNetEncoder(generator, input_size=24, timestep=999, up_block=0).encode(image), theirs
        )
        <= TOLERANCE
    )


def test_the_reference_tells_images_blocks_and_times_apart(originals):
    """Agreement means something: any difference moves features 100 times the tolerance."""
    image = random_image(16, 16)
    base = reference(originals, image, 16, 261, 1)
    scale = 100 * TOLERANCE * np.abs(base).max()
    assert np.abs(reference(originals, 255 - image, 16, 261, 1) - base).max() > scale
    assert np.abs(reference(originals, image, 16, 300, 1) - base).max() > scale
    assert np.abs(reference(originals, image[:, ::-1], 16, 261, 1) - base).max() > scale
    assert base.reshape(-1, 32).std(0).min() > scale / 10  # of every channel, over the places


def test_features_are_deterministic(encoder):
    image = random_image(20, 30)
    once = encoder.encode(image)
    encoder.encode(255 - image)
    np.testing.assert_array_equal(encoder.encode(image), once)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_batch_is_its_images_one_by_one(encoder, count):
    images = [random_image(16 + 3 * index, 40 - index) for index in range(count)]
    ours = encoder.encode_batch(images)
    singly = np.stack([encoder.encode(image) for image in images])
    assert relative_error(np.stack(ours), singly) <= 1e-5  # another batch size, other rounding
    assert count == 1 or np.abs(singly[0] - singly[1]).max() > 0.01 * np.abs(singly).max()


def test_an_array_of_images_is_a_batch_too(encoder):
    images = np.stack([random_image(16, 16), random_image(16, 16)[::-1]])
    np.testing.assert_array_equal(encoder.encode_batch(images), encoder.encode_batch(list(images)))


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((16, 16, 3), np.float32),
        np.zeros((16, 16), np.uint8),
        np.zeros((0, 16, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(encoder, image):
    with pytest.raises(ValueError, match="image must be uint8"):
        encoder.encode(image)
    with pytest.raises(ValueError, match="image must be uint8"):
        encoder.encode_batch([random_image(16, 16), image])


def test_an_empty_batch_is_refused(encoder):
    with pytest.raises(ValueError, match="images must hold at least one"):
        encoder.encode_batch([])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"up_block": 2}, r"up_block must be 0 to 1, got 2"),
        ({"up_block": -1}, r"up_block must be 0 to 1, got -1"),
        ({"timestep": 1000}, r"timestep must be 0 to 999, got 1000"),
        ({"timestep": -1}, r"timestep must be 0 to 999, got -1"),
        ({"input_size": 18}, r"input_size must be a multiple of 4, got 18"),
        ({"input_size": 0}, r"input_size must be a multiple of 4, got 0"),
    ],
)
def test_settings_the_model_lacks_are_refused(encoder, change, message):
    with pytest.raises(ValueError, match=message):
        replace(encoder, **change).encode(random_image(16, 16))


def test_bfloat16_is_the_models_only(folder, encoder):
    rounded = replace(
        encoder,
        generator=DeferredGenerator(StoredWeights(folder), replace(CONFIG, dtype="bfloat16")),
    )
    pixels = jax.ShapeDtypeStruct((2, 16, 16, 3), np.float32)
    shape = jax.eval_shape(rounded.compute_features, rounded.generator.model.params, pixels)
    assert (shape.shape, shape.dtype) == ((2, 8, 8, 32), np.float32)
    assert rounded.fingerprint != encoder.fingerprint


def test_fingerprint_follows_weights_and_settings_and_loads_nothing(folder, encoder, tmp_path):
    generator = DeferredGenerator(StoredWeights(folder), CONFIG)
    changes = [{}, {"input_size": 32}, {"timestep": 1}, {"up_block": 0}]
    prints = {replace(encoder, generator=generator, **change).fingerprint for change in changes}
    assert len(prints) == 4 and encoder.fingerprint in prints
    assert replace(encoder, batch_size=7).fingerprint == encoder.fingerprint
    assert "model" not in vars(generator)
    (tmp_path / "other").mkdir()
    other = DeferredGenerator(StoredWeights(tmp_path / "other"), CONFIG)
    assert replace(encoder, generator=other).fingerprint not in prints


def test_drawing_settings_dont_count_and_load_nothing_again(folder, monkeypatch):
    """As with `--encoder sd-unet --steps N`: the generator changes after the encoder has it."""
    reads = []

    def count(directory: Path) -> Checkpoint:
        reads.append(directory)
        return read(directory)

    monkeypatch.setattr(generator_module, "read", count)
    generator = DeferredGenerator(StoredWeights(folder), CONFIG)
    encoder = UNetEncoder(generator, input_size=16)
    faster = replace(generator, config=replace(CONFIG, steps=1))
    assert faster.fingerprint != generator.fingerprint
    assert replace(encoder, generator=faster).fingerprint == encoder.fingerprint
    encoder.encode(random_image(16, 16))
    faster.generate("bag", 1, seed=0)
    assert reads == [folder]
    assert faster.model.params is generator.model.params


def test_64_bit_mode_changes_nothing(folder, encoder):
    image = random_image(30, 21)
    features = encoder.encode(image)
    jax.config.update("jax_enable_x64", True)
    try:
        generator = DeferredGenerator(StoredWeights(folder), CONFIG)
        again = replace(encoder, generator=generator).encode(image)
    finally:
        jax.config.update("jax_enable_x64", False)
    assert relative_error(again, features) <= 1e-6  # float32 rounding


def build_and_segment(folder: Path, cache: Path, result: Path) -> None:
    """Write the arrays of a bank and of a segmentation with random agents."""
    generator = DeferredGenerator(StoredWeights(folder), CONFIG)
    encoder = UNetEncoder(generator, input_size=16, batch_size=2)
    models = replace(fakes.fake_models(), encoder=encoder)
    settings = replace(models.references, whiten=1.0, centre=0.5)
    bank = rimjax.build_bank(scenes.NAMES, models, settings=settings, cache_dir=cache)
    segmentation = replace(models.segmentation, agent_policy="random", num_agents=2)
    seg = rimjax.segment(scenes.make_scene()[0], bank, models, settings=segmentation)
    prototypes, classes = np.asarray(bank.prototypes), np.asarray(bank.classes)
    np.savez(result, scores=seg.scores, labels=seg.labels, prototypes=prototypes, classes=classes)


def test_bank_and_segmentation_do_not_depend_on_the_64_bit_flag(folder, tmp_path):
    paths = [folder, tmp_path / "wide", tmp_path / "wide.npz"]
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "import jax, runpy; from pathlib import Path\n"
        "assert jax.config.jax_enable_x64\n"
        f"module = runpy.run_path({__file__!r})\n"
        "module['build_and_segment'](*map(Path, sys.argv[1:]))"
    )
    flags = {"JAX_ENABLE_X64": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, "-c", script, *paths]
    wide = subprocess.Popen(command, env={**os.environ, **flags}, stderr=subprocess.PIPE)
    build_and_segment(folder, tmp_path / "narrow", tmp_path / "narrow.npz")
    errors = wide.communicate()[1].decode()
    assert wide.returncode == 0, errors
    with np.load(tmp_path / "narrow.npz") as ours, np.load(tmp_path / "wide.npz") as theirs:
        assert sorted(ours) == sorted(theirs)
        for name in ours:
            assert ours[name].dtype == theirs[name].dtype
            np.testing.assert_allclose(theirs[name], ours[name], atol=1e-5)  # float32 rounding
