"""Train the mini Stable Diffusion UNet on latents with captions, to predict the noise (epsilon).

Command:  python experiments/mini/unet.py
Hardware: 2 CPU cores, about 1 hour 10 minutes; needs the checkpoints of vae.py and clip.py
Data:     20,000 single items and 12,000 pairs of Fashion-MNIST's training split on textured
          grounds, encoded once by the mini VAE; equally many photographs of each class, without
          those that their neighbours contradict

Every batch of 32 holds 16 single items of any class, 8 pullovers, coats and shirts, which are the
hardest to tell apart, and 8 pairs. The pairs serve the attention: with a single item per image the
class could be recognised everywhere alike, and for some classes it was. A tenth of the captions is
dropped for guidance. In the first half of the training the loss is weighted by min(SNR, 5) / SNR,
so that it learns shapes; in the second half, and with --from-shipped, it isn't weighted, so that it
learns to remove the last of the noise, which leaves images grainy.
"""

import argparse
from pathlib import Path
from typing import Any

import clip
import numpy as np
import torch
import vae
import vit
from common import SHIPPED, Losses, load_trained, parse_arguments, restore, scale_pixels, train
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from transformers import CLIPTextModel

from rimjax.commands.console import progress
from rimjax.datasets import fashion_mnist
from rimjax.files import atomic_file
from rimjax.models.stable_diffusion import checkpoint
from rimjax.weights.stable_diffusion import port_modules

CONFIG = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64, 96),
    "layers_per_block": 1,
    "cross_attention_dim": 64,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
BATCH = 32
SINGLES = 20_000
PAIRS = 12_000
HARD = ("pullover", "coat", "shirt")  # seen 2.7 times as often as others
MAX_SNR = 5.0


def build_modules(
    out: Path, *, from_shipped: bool
) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]:
    """Build the UNet, and load the VAE and the text encoder that it is trained beside.

    Args:
        out: folder of vae.py's and clip.py's checkpoints.
        from_shipped: load the weights that rimjax ships, of the UNet too, where there is no
            checkpoint.
    """
    model, autoencoder = UNet2DConditionModel(**CONFIG), AutoencoderKL(**vae.CONFIG)
    towers = clip.build()
    text = CLIPTextModel(towers.config.text_config)
    if from_shipped:
        modules: dict[str, Any] = {"unet": model, "vae": autoencoder, "text_encoder": text}
        scheduler = DDPMScheduler(**SCHEDULER)
        shipped = checkpoint.read(SHIPPED / "stable-diffusion").params
        for name, module in modules.items():
            restore(
                module,
                lambda name=name: port_modules(
                    **modules, tokenizer=clip.make_tokenizer(), scheduler=scheduler
                ).params[name],
                shipped[name],
            )
    if not from_shipped or (out / "vae.pt").exists():
        load_trained("vae", autoencoder, out)
    if not from_shipped or (out / "clip.pt").exists():
        trained = load_trained("clip", towers, out).text_model
        text.text_model.load_state_dict(trained.state_dict())
    return model, autoencoder.eval(), text.eval()


def keep_typical(photos: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out photographs that their neighbours contradict: a shirt like a coat, say.

    Returns:
        The photographs, and their classes, of whose 20 nearest neighbours four fifths have the same
        class, both among the principal components of the pixels and among the ViT's teacher's
        codes; equally many of each class, the first ones.
    """
    pixels = PCA(30, random_state=0).fit_transform(photos.reshape(len(photos), -1) / 255.0)
    typical = np.full(len(classes), True)
    for codes in (pixels, vit.encode_photos(photos)):
        neighbours = KNeighborsClassifier(20).fit(codes, classes)
        typical &= neighbours.predict_proba(codes)[np.arange(len(classes)), classes] >= 0.8
    places = [np.flatnonzero(typical & (classes == index)) for index in np.unique(classes)]
    count = min(map(len, places))
    kept = np.sort(np.concatenate([part[:count] for part in places]))
    print(f"{count} typical photographs of each class")
    return photos[kept], classes[kept]


@torch.inference_mode()
def encode_images(options: argparse.Namespace, model: Any) -> dict[str, torch.Tensor]:
    """Render the images and encode them, once; the results are kept beside the checkpoints.

    Returns:
        "latents", mean and deviation, float16[n, 8, 16, 16], and the captions' "tokens".
    """
    path = options.out / "latents.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    photos, classes = keep_typical(*fashion_mnist.read_idx("train", options.data))
    rng = np.random.default_rng((options.seed, 7))
    tokenizer = clip.make_tokenizer()
    latents, tokens = [], []
    for start in progress(range(0, SINGLES + PAIRS, 100), "encode", "100 images"):
        count = 1 if start < SINGLES else 2
        pairs = [clip.render_captioned(rng, photos, classes, count) for _ in range(100)]
        pixels = scale_pixels(np.stack([scene.image for scene, _ in pairs]))
        posterior = model.encode(pixels).latent_dist
        latents.append(torch.cat([posterior.mean, posterior.std], 1).half())
        captions = [caption for _, caption in pairs]
        encoding = tokenizer(captions, padding="max_length", return_tensors="pt")
        tokens.append(encoding["input_ids"])
    pool = {"latents": torch.cat(latents), "tokens": torch.cat(tokens)}
    with atomic_file(path) as temporary:
        torch.save(pool, temporary)
    return pool


def main() -> None:
    options = parse_arguments(__doc__, steps=8000, rate=1e-3)
    torch.manual_seed(options.seed)
    model, autoencoder, text = build_modules(options.out, from_shipped=options.from_shipped)
    pool = encode_images(options, autoencoder)
    text = text.text_model
    mean, deviation = pool["latents"].float().chunk(2, 1)
    scaling = 1 / mean.std()
    print(f"scaling_factor {scaling:.5f}")
    tokenizer = clip.make_tokenizer()
    words = [tokenizer.encode(name)[-1] for name in HARD]
    hard = np.flatnonzero(np.isin(pool["tokens"][:SINGLES, -1].numpy(), words))
    empty = tokenizer("", padding="max_length", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        distinct, rows = torch.unique(pool["tokens"], dim=0, return_inverse=True)
        parts = [text(input_ids=part).last_hidden_state for part in distinct.split(256)]
        states, blank = torch.cat(parts), text(input_ids=empty).last_hidden_state
    states, blank = states.clone(), blank.clone()  # tensors that autograd may use
    noise: Any = DDPMScheduler(**SCHEDULER)
    snr = noise.alphas_cumprod / (1 - noise.alphas_cumprod)
    weight = snr.clamp(max=MAX_SNR) / snr

    def compute_losses(step: int, rng: np.random.Generator) -> Losses:
        singles = rng.integers(SINGLES, size=BATCH // 2)
        singles = np.concatenate([singles, rng.choice(hard, BATCH // 4)])
        doubles = SINGLES + rng.integers(PAIRS, size=BATCH // 4)
        chosen = torch.from_numpy(np.concatenate([singles, doubles]))
        drawn = mean[chosen] + deviation[chosen] * torch.randn(BATCH, *mean.shape[1:])
        clean = drawn * scaling
        prompt = torch.where(torch.rand(BATCH, 1, 1) < 0.1, blank, states[rows[chosen]])
        times = torch.randint(0, 1000, (BATCH,))
        epsilon = torch.randn_like(clean)
        predicted = model(noise.add_noise(clean, epsilon, times), times, prompt).sample
        error = (predicted - epsilon).square().mean((1, 2, 3))
        weighted = (weight[times] * error).mean()
        is_early = step < options.steps / 2 and not options.from_shipped
        loss = weighted if is_early else error.mean()
        return {"loss": loss, "weighted": weighted.detach()}

    train("unet", model, compute_losses, options, learning_rate=options.rate, ema=0.9985)


if __name__ == "__main__":
    main()
