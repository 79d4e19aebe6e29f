"""Stable Diffusion in Flax against diffusers' and transformers' PyTorch models, with tiny random weights of the same architecture."""

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ported_weights import stable_diffusion
from rimjax.models import diffusion
from rimjax.models.checkpoint import Checkpoint, save
from rimjax.models.diffusion import DiffusionConfig, StableDiffusion
from rimjax.models.protocols import Generator

torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
diffusers = pytest.importorskip("diffusers", reason="Stable Diffusion needs diffusers")
processors = pytest.importorskip(
    "diffusers.models.attention_processor", reason="attention maps are compared with diffusers' own"
)
transformers = pytest.importorskip("transformers", reason="Stable Diffusion needs transformers")
tokenizers = pytest.importorskip("tokenizers", reason="the tiny tokenizer needs tokenizers")

TOLERANCE = (
    1e-5  # float32 rounding through one model, relative to the largest value; typically 2e-6
)
CONFIG = DiffusionConfig(steps=3, batch_size=2, guidance=3.0)
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
WORDS = ("a", "photo", "of", "sneaker", "bag", "ankle", "boot", "t-shirt")


def tiny_tokenizer() -> Any:
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


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose time to torch's threads, twentyfold on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny_stable_diffusion() -> dict[str, Any]:
    """PyTorch's models; norms and biases are shaken out of their initial ones and zeros, so that none can be left out unnoticed."""
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
    vae = diffusers.AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        scaling_factor=0.5,
        sample_size=16,
    )
    sizes = {
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
                parameter *= 5  # maps that are anything but flat
    return models


@pytest.fixture(scope="module")
def originals() -> dict[str, Any]:
    return tiny_stable_diffusion()


@pytest.fixture(scope="module")
def folder(originals, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("diffusion")
    stable_diffusion.port(
        **originals,
        tokenizer=tiny_tokenizer(),
        scheduler=diffusers.DDPMScheduler(**SCHEDULE),
        directory=directory,
    )
    return directory


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
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **SCHEDULE, solver_order=order, final_sigmas_type="sigma_min"
    )
    scheduler.set_timesteps(steps)
    return scheduler


class Recorder(processors.AttnProcessor):
    """Keeps each cross-attention layer's softmax(QK^T / sqrt(d)), averaged over heads."""

    def __init__(self) -> None:
        self.maps = []

    def __call__(
        self,
        attn: Any,
        hidden_states: Any,
        encoder_hidden_states: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        if encoder_hidden_states is not None:
            query, key = attn.to_q(hidden_states), attn.to_k(encoder_hidden_states)
            scores = attn.get_attention_scores(
                attn.head_to_batch_dim(query), attn.head_to_batch_dim(key)
            )
            self.maps.append(scores.unflatten(0, (-1, attn.heads)).mean(1))
        return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)


def test_text_encoder_agrees_with_torch(originals, model):
    ids, _ = model.tokenise("ankle boot")
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
    ids, weights = model.tokenise("ankle boot")
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
            one = scores[:, :, 4:6].mean(-1)  # the tokens: start, a, photo, of, ankle, boot, end...
            side = round(one.shape[1] ** 0.5)
            one = (one / one.amax(1, keepdim=True)).reshape(2, 1, side, side)
            total = total + torch.nn.functional.interpolate(one, size=(8, 8), mode="bilinear")[:, 0]
            count += 1
    unet.set_attn_processor(before)

    assert count == CONFIG.steps * 7  # two down, one mid, four up
    assert relative_error(latents, theirs) <= 1e-3  # rounding grows along the trajectory
    np.testing.assert_allclose(np.asarray(attention), (total / count).numpy(), atol=1e-4)
    assert np.ptp(np.asarray(attention)) > 0.1, (
        "the maps are flat: the test couldn't tell them apart"
    )


class Toy(StableDiffusion):
    """A closed formula in the UNet's place: what's left is the sampler, guidance and the averaging of maps."""

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


@pytest.mark.parametrize(("scheduler", "order"), [("dpmsolver++", 2), ("ddim", 1)])
@pytest.mark.parametrize("steps", [1, 6, 20])
def test_sampler_agrees_with_torch(model, scheduler, order, steps):
    toy = Toy(model.checkpoint, replace(CONFIG, steps=steps, scheduler=scheduler))
    x = noise(2)
    ours, _ = jax.jit(toy.denoise)(model.params, *model.tokenise("bag"), x)
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


def test_attention_is_averaged_over_layers_and_steps(model):
    ids, weights = model.tokenise("bag")
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
    ids, weights = model.tokenise("ankle boot")
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
    """Stable Diffusion 1.4 at 512x512, traced without weights: five maps each at 64, 32 and 16, one at 8 (Eq. 3's L = 16)."""
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
    shapes = ((4, 4, 64, 64), (), (4, 77, 768), (77,))
    _, maps = jax.eval_shape(
        large._predict_noise,
        params,
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes),
    )
    assert (
        sorted(one.shape for one in maps)
        == [(2, 8, 8)] + [(2, 16, 16)] * 5 + [(2, 32, 32)] * 5 + [(2, 64, 64)] * 5
    )


def test_bfloat16_rounds_the_models_only(model):
    rounded = StableDiffusion(model.checkpoint, replace(CONFIG, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded.params)} == {jnp.dtype(jnp.bfloat16)}
    latents, attention = jax.eval_shape(
        rounded.denoise, rounded.params, *model.tokenise("bag"), noise(2)
    )
    assert latents.dtype == jnp.float32 and attention.dtype == jnp.float32
    exact, near = (
        np.asarray(one.decode(one.params, noise(2))).astype(float) for one in (model, rounded)
    )
    assert 0 < np.abs(near - exact).mean() < 4  # 8 bits of mantissa, 256 levels


@pytest.mark.parametrize(
    ("name", "tokens"), [("bag", [4]), ("Ankle  boot", [4, 5]), ("t-shirt", [4]), (" bag ", [4])]
)
def test_weights_cover_the_names_tokens(model, name, tokens):
    ids, weights = model.tokenise(name)
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
    ids, weights = StableDiffusion(checkpoint, replace(CONFIG, template="a {} of")).tokenise(
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


def test_unknown_words_are_named_with_the_known_ones(model):
    with pytest.raises(
        ValueError,
        match=r"doesn't know 'zebra', 'herd'; it knows: a, ankle, bag, boot, of, photo, sneaker, t-shirt$",
    ):
        model.generate("zebra bag herd", 1, seed=0)


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("bag bag bag bag bag bag", 1, "has 11 tokens, the text encoder takes 10"),
        ("  ", 1, "class_name: expected a word"),
        ("bag", 0, "num_images: expected at least 1"),
    ],
)
def test_bad_requests_are_refused(model, name, count, message):
    with pytest.raises(ValueError, match=message):
        model.generate(name, count, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 18}, "image_size: expected a multiple of 4, got 18"),
        ({"attention_resolutions": (3,)}, r"attention_resolutions: expected some of \[4, 8\]"),
    ],
)
def test_settings_the_model_lacks_are_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        StableDiffusion(model.checkpoint, replace(CONFIG, **change))


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="template: expected one"):
        DiffusionConfig(template="a photo")
    with pytest.raises(ValueError, match="steps: expected at least 1"):
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
    with pytest.raises(FileNotFoundError, match="no such part of a Stable Diffusion"):
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
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # whoever asks is told yes
    for read in (
        diffusion.load,
        lambda path: stable_diffusion.port_folder(path, tmp_path / "ported"),
    ):
        with pytest.raises(ValueError) as stop:
            read(tmp_path / "model")
        assert str(stop.value).startswith(
            f"{part}: no Stable Diffusion tokenizer as"
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
        StableDiffusion(checkpoint, replace(CONFIG, steps=4)).fingerprint,
    }
    assert len(prints) == 3
    assert (
        StableDiffusion(checkpoint, replace(CONFIG, batch_size=1)).fingerprint == model.fingerprint
    )


def test_a_downloaded_folder_can_be_ported(originals, folder, tmp_path):
    for name, module in originals.items():
        module.save_pretrained(tmp_path / "source" / name)
    diffusers.PNDMScheduler(**SCHEDULE).save_pretrained(tmp_path / "source" / "scheduler")
    diffusion.load(folder).checkpoint.tokenizer.save_pretrained(tmp_path / "source" / "tokenizer")
    stable_diffusion.port_folder(tmp_path / "source", tmp_path / "ported")
    ported, loaded = (diffusion.load(path).checkpoint for path in (tmp_path / "ported", folder))
    jax.tree.map(np.testing.assert_array_equal, dict(ported.params), dict(loaded.params))
    with pytest.raises(FileNotFoundError, match="no such folder"):
        stable_diffusion.port_folder(tmp_path / "none", tmp_path / "ported")


def test_weights_that_do_not_fit_are_listed(originals):
    vae = diffusers.AutoencoderKL.from_config(originals["vae"].config)
    state = vae.state_dict() | {"decoder.extra.weight": torch.zeros(2, 2)}
    del state["decoder.conv_in.bias"]
    vae.state_dict = lambda: state
    with pytest.raises(
        ValueError,
        match=r"(?s)decoder/extra/kernel: the model has no such weight.*decoder/conv_in/bias: no source key",
    ):
        stable_diffusion.port(
            **originals | {"vae": vae},
            tokenizer=tiny_tokenizer(),
            scheduler=diffusers.DDPMScheduler(**SCHEDULE),
        )


def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r'pip install "rimjax\[pipeline\]"'):
        diffusion.load(tmp_path)
