"""Stable Diffusion in Flax against PyTorch's models, with tiny random weights."""

import json
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from tiny_diffusion import SCHEDULE, WORDS, relaxed, tiny_checkpoint

from experiments.parity_diffusion import Recorder
from rimjax.models import diffusion
from rimjax.models.diffusion import DiffusionConfig, StableDiffusion
from rimjax.models.protocols import Generator
from rimjax.models.stable_diffusion.checkpoint import Checkpoint, save
from rimjax.models.stable_diffusion.config import list_drawing_settings
from rimjax.models.stable_diffusion.sampler import make_key
from rimjax.weights.stable_diffusion import port_folder

TOLERANCE = (
    1e-5  # float32 rounding through one model, relative to the largest value; typically 2e-6
)
CONFIG = DiffusionConfig(steps=3, batch_size=2, guidance=3.0)


@pytest.fixture(scope="module", autouse=True)
def relax() -> Iterator[None]:
    with relaxed():
        yield


@pytest.fixture(scope="module")
def model(folder) -> StableDiffusion:
    return diffusion.load(folder, CONFIG)


@pytest.fixture(scope="module")
def denoise(model) -> Any:
    return jax.jit(model.denoise)


@pytest.fixture(scope="module")
def drawn(model) -> Any:
    typed: Generator = model
    return typed.generate("Ankle boot", 3, seed=7)


def relative_error(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def noise(batch: int) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 4, 8, 8)).astype(np.float32)


def torch_scheduler(steps: int, order: int = 2) -> Any:
    """Return DPM-Solver++ of an order, or PNDM as Stable Diffusion 1.4 sets it (order 4)."""
    if order == 4:
        kind: Any = diffusers.PNDMScheduler
        scheduler = kind(**SCHEDULE, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
        scheduler.set_timesteps(steps)
        return scheduler
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **SCHEDULE, solver_order=order, final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(steps)
    return scheduler


def test_text_encoder_agrees_with_torch(originals, model):
    ids, _ = model.prompts.encode("ankle boot")
    theirs = originals["text_encoder"](torch.from_numpy(ids).long()).last_hidden_state
    ours = model.text_encoder(ids, params=model.params["text_encoder"])[0]
    assert relative_error(ours, theirs) <= TOLERANCE


def test_unet_agrees_with_torch(originals, model):
    x, text = noise(4), np.random.default_rng(0).standard_normal((4, 10, 32)).astype(np.float32)
    theirs = originals["unet"](torch.from_numpy(x), 321, torch.from_numpy(text)).sample
    ours, maps = jax.jit(model._predict_noise)(model.params["unet"], x, jnp.int32(321), text, None)
    assert relative_error(ours, theirs) <= TOLERANCE
    assert maps == []


def test_vae_agrees_with_torch(originals, model):
    latents = noise(2)
    theirs = (
        originals["vae"].decode(torch.from_numpy(latents) / 0.5).sample.permute(0, 2, 3, 1).numpy()
    )
    ours = np.asarray(jax.jit(model.decode)(model.params, latents))
    assert ours.dtype == np.uint8 and ours.shape == (2, 16, 16, 3)
    expected = (theirs / 2 + 0.5).clip(0, 1) * 255
    assert np.abs(ours - expected).max() <= 0.501  # only rounding to 8 bits lies between
    assert ours.std() > 10 and ((ours > 0) & (ours < 255)).mean() > 0.5


def test_trajectory_and_attention_agree_with_a_torch_loop(originals, model, denoise):
    x = noise(2)
    ids, weights = model.prompts.encode("ankle boot")
    latents, attention = denoise(model.params, ids, weights, x)

    recorder = Recorder()
    unet, scheduler = originals["unet"], torch_scheduler(CONFIG.steps)
    before = unet.attn_processors
    unet.set_attn_processor(recorder)
    unconditional, conditional = (
        originals["text_encoder"](torch.from_numpy(ids).long())
        .last_hidden_state[:, None]
        .expand(2, 2, -1, -1)
    )
    theirs, total, count = torch.from_numpy(x), torch.zeros(2, 8, 8), 0
    for timestep in scheduler.timesteps:
        without = unet(theirs, timestep, unconditional).sample
        recorder.maps.clear()  # the conditional half is what counts
        guided = without + CONFIG.guidance * (unet(theirs, timestep, conditional).sample - without)
        theirs = scheduler.step(guided, timestep, theirs).prev_sample
        for scores in recorder.maps:
            heat = scores[:, :, 4:6].mean(
                -1
            )  # the tokens: start, a, photo, of, ankle, boot, end...
            side = round(heat.shape[1] ** 0.5)
            heat = (heat / heat.amax(1, keepdim=True)).reshape(2, 1, side, side)
            total = (
                total + torch.nn.functional.interpolate(heat, size=(8, 8), mode="bilinear")[:, 0]
            )
            count += 1
    unet.set_attn_processor(before)

    assert count == CONFIG.steps * 7  # two down, one mid, four up
    assert relative_error(latents, theirs) <= 1e-3  # rounding grows along the trajectory
    np.testing.assert_allclose(np.asarray(attention), (total / count).numpy(), atol=1e-4)
    assert np.ptp(np.asarray(attention)) > 0.1, (
        "the maps are flat: the test couldn't tell them apart"
    )


class Toy(StableDiffusion):
    """A closed formula in the UNet's place leaves sampler, guidance and the averaging of maps."""

    def _predict_noise(
        self, params: Any, latents: Any, timestep: Any, text: Any, weights: Any
    ) -> Any:
        strength = jnp.repeat(jnp.array([0.6, 0.7]), len(latents) // 2)[:, None, None, None]
        late = (timestep < 600).astype(jnp.float32)
        maps = [
            jnp.zeros((2, 8, 8)).at[:, 0].set(5.0).at[:, 1].set(late),
            jnp.zeros((2, 4, 4)).at[:, :, 0].set(0.1),
        ]
        return strength * jnp.sin(latents) + timestep / 2000, maps


def offset(checkpoint: Checkpoint) -> Checkpoint:
    """Return the checkpoint with the offset of Stable Diffusion 1.4's timesteps."""
    schedule = {**checkpoint.configs["scheduler"], "steps_offset": 1}
    configs = {**checkpoint.configs, "scheduler": schedule}
    return Checkpoint(configs, checkpoint.params, checkpoint.tokenizer)


@pytest.mark.parametrize(("scheduler", "order"), [("dpmsolver++", 2), ("ddim", 1), ("pndm", 4)])
@pytest.mark.parametrize("steps", [1, 6, 20, 50])
def test_sampler_agrees_with_torch(model, scheduler, order, steps):
    config = replace(CONFIG, steps=steps, scheduler=scheduler)
    toy = Toy(offset(model.checkpoint), config)
    x = noise(2)
    ours, _ = jax.jit(toy.denoise)(model.params, *model.prompts.encode("bag"), x)
    reference = torch_scheduler(steps, order)
    theirs = torch.from_numpy(x)
    for timestep in reference.timesteps:
        without, within = (
            strength * torch.sin(theirs) + timestep / 2000 for strength in (0.6, 0.7)
        )
        theirs = reference.step(
            without + CONFIG.guidance * (within - without), timestep, theirs
        ).prev_sample
    assert relative_error(ours, theirs) <= 1e-4


def test_pndm_averages_its_timesteps_which_are_one_more(model):
    """The toy's attention at 8x8: a row at every timestep, another at those below 600."""
    toy = Toy(
        offset(model.checkpoint),
        replace(CONFIG, steps=4, scheduler="pndm", attention_resolutions=(8,)),
    )
    ids, weights = model.prompts.encode("bag")
    _, attention = toy.denoise(model.params, ids, weights, noise(2))
    timesteps = torch_scheduler(4, 4).timesteps.tolist()
    assert timesteps == [751, 501, 501, 251, 1]
    expected = np.zeros((2, 8, 8))
    expected[:, 0], expected[:, 1] = 1, 0.2 * 4 / 5
    np.testing.assert_allclose(np.asarray(attention), expected, atol=1e-6)


def test_each_tokens_map_may_be_divided_before_the_mean(originals, model):
    """Against torch's attention at a single step; "bag" is one token, so its map is the same."""
    x = noise(2)
    maps = {}
    for name in ("ankle boot", "bag"):
        ids, weights = model.prompts.encode(name)
        for normalise in ("name", "token"):
            config = replace(CONFIG, steps=1, normalise=normalise, attention_resolutions=(8,))
            drawer = StableDiffusion(model.checkpoint, config)
            maps[name, normalise] = np.asarray(drawer.denoise(model.params, ids, weights, x)[1])
    recorder, unet = Recorder(), originals["unet"]
    before = unet.attn_processors
    unet.set_attn_processor(recorder)
    ids, _ = model.prompts.encode("ankle boot")
    text = originals["text_encoder"](torch.from_numpy(ids).long()).last_hidden_state[1:]
    timestep = torch_scheduler(1).timesteps[0]
    unet(torch.from_numpy(x), timestep, text.expand(2, -1, -1))
    unet.set_attn_processor(before)
    layers = [scores for scores in recorder.maps if scores.shape[1] == 64]
    for normalise in ("name", "token"):
        total = np.zeros((2, 64))
        for scores in layers:
            tokens = scores[:, :, 4:6].numpy()
            if normalise == "token":
                tokens = tokens / tokens.max(1, keepdims=True)
            heat = tokens.mean(-1)
            total += heat / heat.max(1, keepdims=True) if normalise == "name" else heat
        expected = (total / len(layers)).reshape(2, 8, 8)
        np.testing.assert_allclose(maps["ankle boot", normalise], expected, atol=1e-5)
    assert np.abs(maps["ankle boot", "name"] - maps["ankle boot", "token"]).max() > 0.01
    np.testing.assert_allclose(maps["bag", "name"], maps["bag", "token"], atol=1e-6)


def test_attention_is_averaged_over_layers_and_steps(model):
    ids, weights = model.prompts.encode("bag")
    every, small = (
        Toy(model.checkpoint, replace(CONFIG, steps=2, attention_resolutions=sides)).denoise(
            model.params, ids, weights, noise(2)
        )[1]
        for sides in (None, (4,))
    )
    np.testing.assert_allclose(
        np.asarray(small), np.broadcast_to(np.eye(4)[0], (2, 4, 4)), atol=1e-6
    )
    ramp = np.array(
        [1, 0.75, 0.25, 0, 0, 0, 0, 0]
    )  # one column of four, bilinearly at eight, half-pixel centres
    expected = (np.eye(8)[0] + 0.1 * np.eye(8)[1])[
        :, None
    ] / 2 + ramp / 2  # 1/5 in one of two steps
    np.testing.assert_allclose(np.asarray(every), np.broadcast_to(expected, (2, 8, 8)), atol=1e-6)


def test_capture_changes_no_image(model, denoise):
    ids, weights = model.prompts.encode("ankle boot")
    captured, attention = denoise(model.params, ids, weights, noise(2))
    plain, none = denoise(model.params, ids, None, noise(2))
    assert attention is not None and none is None
    assert relative_error(captured, plain) <= 1e-5  # fused otherwise, so rounded otherwise
    images = [
        np.asarray(model.decode(model.params, latents)).astype(int) for latents in (captured, plain)
    ]
    assert np.abs(images[0] - images[1]).max() <= 1


def test_generate_keeps_its_contract(drawn):
    assert drawn.images.shape == (3, 16, 16, 3) and drawn.images.dtype == np.uint8
    assert drawn.attention.shape == (3, 8, 8) and drawn.attention.dtype == np.float32
    assert drawn.attention.min() >= 0 and drawn.attention.max() <= 1
    assert not np.array_equal(drawn.images[0], drawn.images[1])


@pytest.mark.parametrize(
    ("part", "path", "stage"),
    [("vae", ("decoder", "conv_out", "bias"), "VAE"), ("unet", ("conv_out", "bias"), "UNet")],
)
def test_nan_is_not_drawn_as_black(model, drawn, monkeypatch, part, path, stage):
    """As half precision gives it, from finite weights; the model is compiled already."""
    params = jax.tree.map(np.copy, model.checkpoint.params)
    leaf = params[part]
    for key in path:
        leaf = leaf[key]
    leaf[:] = np.inf
    monkeypatch.setitem(model.checkpoint._placed, "float32", params)
    with pytest.raises(ValueError, match=f"^{stage} must give finite numbers.*weights verify"):
        model.generate("Ankle boot", 2, seed=7)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_nan_among_the_weights_is_refused_by_name(folder, tmp_path, part):
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / part / "flax_model.safetensors"
    arrays = load_file(file)
    name = sorted(arrays)[-1]
    arrays[name] = np.full_like(arrays[name], np.nan)
    save_file(arrays, file)
    with pytest.raises(ValueError, match=f"^{file}: {name} holds NaN or infinity"):
        diffusion.load(tmp_path / "model", CONFIG)


def rewrite_header(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a safetensors file's header; the data stay."""
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])


def shift(header: dict[str, Any], which: int, by: tuple[int, int]) -> None:
    name = sorted(header, key=lambda name: header[name]["data_offsets"])[which]
    start, end = header[name]["data_offsets"]
    header[name]["data_offsets"] = [start + by[0], end + by[1]]


@pytest.mark.parametrize(
    "change",
    [
        lambda header: shift(header, 0, (-4, -4)),
        lambda header: shift(header, 1, (-4, -4)),
        lambda header: shift(header, -1, (-4, 0)),
        lambda header: header.pop(sorted(header)[0]),
        lambda header: header[sorted(header)[0]]["shape"].append(2),
    ],
    ids=["negative", "overlapping", "shape", "gapped", "longer"],
)
def test_safetensors_whose_offsets_do_not_fit_are_refused(folder, tmp_path, change):
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model/vae/flax_model.safetensors"
    rewrite_header(file, change)
    with pytest.raises(ValueError, match=f"^{file}: truncated, or not a safetensors file"):
        diffusion.load(tmp_path / "model", CONFIG)


def test_images_depend_on_seed_name_and_index_only(model, folder, drawn):
    again = model.generate("Ankle boot", 3, seed=7)
    np.testing.assert_array_equal(again.images, drawn.images)
    for other in (model.generate("Ankle boot", 2, seed=8), model.generate("bag", 2, seed=7)):
        assert np.abs(other.images.astype(int) - drawn.images[:2]).mean() > 5
    alone = diffusion.load(folder, replace(CONFIG, batch_size=1)).generate("Ankle boot", 2, seed=7)
    assert (
        np.abs(alone.images.astype(int) - drawn.images[:2]).max() <= 1
    )  # another batch size, other rounding
    np.testing.assert_allclose(alone.attention, drawn.attention[:2], atol=1e-4)


def test_published_unet_shows_all_sixteen_layers(model):
    """At 512x512 there are five maps each at 64, 32 and 16, and a map at 8 (Eq. 3's L = 16)."""
    published = {
        "sample_size": 64,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
    }
    configs = {**model.checkpoint.configs, "unet": model.checkpoint.configs["unet"] | published}
    large = StableDiffusion(Checkpoint(configs, {}, model.checkpoint.tokenizer), CONFIG)
    params = jax.eval_shape(large.unet.init_weights, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 859_520_964
    shapes = (((4, 4, 64, 64), "f4"), ((), "i4"), ((4, 77, 768), "f4"), ((77,), "f4"))
    _, maps = jax.eval_shape(
        large._predict_noise,
        params,
        *(jax.ShapeDtypeStruct(*shape) for shape in shapes),
    )
    assert (
        sorted(heat.shape for heat in maps)
        == [(2, 8, 8)] + [(2, 16, 16)] * 5 + [(2, 32, 32)] * 5 + [(2, 64, 64)] * 5
    )


def test_bfloat16_rounds_the_models_only(model):
    rounded = StableDiffusion(model.checkpoint, replace(CONFIG, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded.params)} == {jnp.dtype(jnp.bfloat16)}
    latents, attention = jax.eval_shape(
        rounded.denoise, rounded.params, *model.prompts.encode("bag"), noise(2)
    )
    assert latents.dtype == jnp.float32 and attention.dtype == jnp.float32
    exact, near = (np.asarray(m.decode(m.params, noise(2))).astype(float) for m in (model, rounded))
    assert 0 < np.abs(near - exact).mean() < 4  # 8 bits of mantissa, 256 levels


@pytest.mark.parametrize(
    ("name", "tokens"), [("bag", [4]), ("Ankle  boot", [4, 5]), ("t-shirt", [4]), (" bag ", [4])]
)
def test_weights_cover_the_names_tokens(model, name, tokens):
    ids, weights = model.prompts.encode(name)
    assert ids.shape == (2, 10) and ids.dtype == np.int32
    assert ids[0].tolist() == [0] + [1] * 9
    expected = np.zeros(10)
    expected[tokens] = 1 / len(tokens)
    np.testing.assert_allclose(weights, expected)
    assert [WORDS[index - 3] for index in ids[1][tokens]] == name.lower().split()


def test_weights_cover_the_pieces_of_a_word_in_clips_own_tokenizer(model, tmp_path):
    letters = list("abcdefghijklmnopqrstuvwxyz")
    pieces = ["sn", "sne", "ea", "ke", "ker</w>", "er</w>"]
    vocabulary = [
        *letters,
        *(letter + "</w>" for letter in letters),
        *pieces,
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (tmp_path / "vocab.json").write_text(
        json.dumps({piece: index for index, piece in enumerate(vocabulary)})
    )
    (tmp_path / "merges.txt").write_text("#version: 0.2\ns n\ne r</w>\nk er</w>\ne a\n")
    tokenizer = transformers.CLIPTokenizerFast(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")
    )
    checkpoint = Checkpoint(model.checkpoint.configs, model.checkpoint.params, tokenizer)
    ids, weights = StableDiffusion(checkpoint, replace(CONFIG, template="a {} of")).prompts.encode(
        "Sneaker"
    )
    assert [vocabulary[index] for index in ids[1]] == [
        "<|startoftext|>",
        "a</w>",
        "sn",
        "ea",
        "ker</w>",
        "o",
        "f</w>",
        "<|endoftext|>",
        "<|endoftext|>",
        "<|endoftext|>",
    ]
    np.testing.assert_allclose(weights, np.array([0, 0, 1, 1, 1, 0, 0, 0, 0, 0]) / 3, rtol=1e-6)


def test_unknown_words_are_named_with_the_known_words(model):
    with pytest.raises(
        ValueError,
        match=r"\(a, ankle, bag, boot, of, photo, sneaker, t-shirt\), got 'zebra', 'herd'$",
    ):
        model.generate("zebra bag herd", 1, seed=0)


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("bag bag bag bag bag bag", 1, "must fit a prompt of 10 tokens, got .* with 11 tokens"),
        ("  ", 1, "class_name must be a word"),
        ("bag", 0, "num_images must be at least 1"),
    ],
)
def test_bad_requests_are_refused(model, name, count, message):
    with pytest.raises(ValueError, match=message):
        model.generate(name, count, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 18}, "image_size must be a multiple of 4, got 18"),
        ({"attention_resolutions": (3,)}, r"attention_resolutions must be among \[4, 8\]"),
    ],
)
def test_settings_the_model_lacks_are_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        StableDiffusion(model.checkpoint, replace(CONFIG, **change))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="template must hold a single"):
        DiffusionConfig(template="a photo")
    with pytest.raises(ValueError, match="steps must be at least 1"):
        DiffusionConfig(steps=0)


def test_saved_checkpoints_load_the_same(model, folder, tmp_path):
    save(model.checkpoint, tmp_path)
    assert diffusion.load(tmp_path, CONFIG).fingerprint == model.fingerprint
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.json")} >= {
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
    }
    (tmp_path / "vae" / "flax_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="missing from a Stable Diffusion"):
        diffusion.load(tmp_path)


@pytest.mark.parametrize("damage", ["garbage", "code"])
def test_a_bad_tokenizer_is_named_and_its_code_not_run(
    folder, tmp_path, damage, capfd, monkeypatch
):
    shutil.copytree(folder, tmp_path / "model")
    part = tmp_path / "model" / "tokenizer"
    if damage == "garbage":
        (part / "tokenizer.json").write_text("garbage")
    else:
        (part / "evil.py").write_text("print('code ran')\nclass Evil: pass\n")
        config = json.loads((part / "tokenizer_config.json").read_text())
        config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
        (part / "tokenizer_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # any question gets a yes
    for read in (diffusion.load, lambda path: port_folder(path, tmp_path / "ported")):
        with pytest.raises(ValueError) as stop:
            read(tmp_path / "model")
        assert str(stop.value).startswith(
            f"{part}: not a Stable Diffusion tokenizer as"
        ) and "\n" not in str(stop.value)
    assert capfd.readouterr().out == ""


def test_fingerprint_follows_weights_and_drawing_settings(model):
    checkpoint = model.checkpoint
    changed = jax.tree.map(np.copy, checkpoint.params)
    changed["vae"]["post_quant_conv"]["bias"] += 1
    other = StableDiffusion(Checkpoint(checkpoint.configs, changed, checkpoint.tokenizer), CONFIG)
    prints = {
        model.fingerprint,
        other.fingerprint,
        *(
            StableDiffusion(checkpoint, replace(CONFIG, **change)).fingerprint
            for change in ({"steps": 4}, {"scheduler": "pndm"}, {"normalise": "token"})
        ),
    }
    assert len(prints) == 5
    assert "normalise" not in list_drawing_settings(CONFIG), "older drawings serve on"
    assert (
        StableDiffusion(checkpoint, replace(CONFIG, batch_size=1)).fingerprint == model.fingerprint
    )


def test_a_downloaded_folder_can_be_ported(originals, folder, tmp_path):
    for name, module in originals.items():
        module.save_pretrained(tmp_path / "source" / name)
    diffusers.PNDMScheduler(**SCHEDULE).save_pretrained(tmp_path / "source" / "scheduler")
    diffusion.load(folder).checkpoint.tokenizer.save_pretrained(tmp_path / "source" / "tokenizer")
    port_folder(tmp_path / "source", tmp_path / "ported")
    ported, loaded = (diffusion.load(path).checkpoint for path in (tmp_path / "ported", folder))
    jax.tree.map(np.testing.assert_array_equal, dict(ported.params), dict(loaded.params))
    with pytest.raises(FileNotFoundError, match="missing; a diffusers folder has"):
        port_folder(tmp_path / "none", tmp_path / "ported")


def test_weights_that_do_not_fit_are_listed(originals):
    vae: Any = diffusers.AutoencoderKL.from_config(originals["vae"].config)
    state = vae.state_dict() | {"decoder.extra.weight": torch.zeros(2, 2)}
    del state["decoder.conv_in.bias"]
    vae.state_dict = lambda: state
    with pytest.raises(
        ValueError,
        match=r"(?s)extra/kernel: the model has no such weight.*decoder/conv_in/bias: missing",
    ):
        tiny_checkpoint(originals | {"vae": vae})


def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'pip install "rimjax\[pipeline\]"'):
        diffusion.load(tmp_path)


@pytest.mark.parametrize("scheduler", ["dpmsolver++", "pndm"])
def test_64_bit_mode_changes_nothing(folder, drawn, scheduler):
    config = replace(CONFIG, scheduler=scheduler)
    if scheduler == "pndm":
        drawn = diffusion.load(folder, config).generate("Ankle boot", 3, seed=7)
    jax.config.update("jax_enable_x64", True)
    try:
        again = diffusion.load(folder, config).generate("Ankle boot", 3, seed=7)
    finally:
        jax.config.update("jax_enable_x64", False)
    assert again.attention.dtype == np.float32
    np.testing.assert_array_equal(again.images, drawn.images)
    np.testing.assert_allclose(again.attention, drawn.attention, atol=1e-6)  # float32 rounding


def test_seeds_past_32_bits_and_below_0_are_keys_too():
    keys = [jax.random.key_data(make_key(seed)).tolist() for seed in (5, 2**32 + 5, -1)]
    assert keys[0] == keys[1] == jax.random.key_data(jax.random.key(5)).tolist() != keys[2]
