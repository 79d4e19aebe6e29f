"""Train the mini Stable Diffusion UNet on (latent, caption) pairs, epsilon prediction, one caption in ten dropped for guidance.

Command:  python experiments/mini/unet.py       Hardware: 2 CPU cores, about 1 hour 10 minutes; needs vae.py's and clip.py's checkpoints.
Data:     20,000 single items and 12,000 pairs of Fashion-MNIST's training split on textured grounds, encoded once by the mini VAE.

The pairs are there for the attention: with one item an image the class could be told everywhere alike, and for some classes it was.
The first half of the training weights the loss by min(SNR, 5) / SNR and so spends itself on shapes; the second half, unweighted, learns to
take away the last of the noise, without which the images are grainy.
"""

import argparse

import clip
import numpy as np
import torch
import vae
from common import arguments, pixels, train, trained
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from tqdm import tqdm

from rimjax.datasets import fashion_scenes

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
SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
BATCH = 32
POOL = 20_000
PAIRS = 12_000
SNR = 5.0


@torch.inference_mode()
def encoded(options: argparse.Namespace, model: AutoencoderKL) -> dict[str, torch.Tensor]:
    """The pool's latents (mean and deviation, float16) and caption tokens; made once and kept beside the checkpoints."""
    path = options.out / "latents.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    photos, classes = fashion_scenes.read_idx("train", options.data)
    rng = np.random.default_rng((options.seed, 7))
    words = clip.tokenizer()
    latents, tokens = [], []
    for start in tqdm(range(0, POOL + PAIRS, 100), desc="encode", mininterval=20):
        pairs = [clip.captioned(rng, photos, classes, 1 if start < POOL else 2) for _ in range(100)]
        posterior = model.encode(pixels(np.stack([scene.image for scene, _ in pairs]))).latent_dist
        latents.append(torch.cat([posterior.mean, posterior.std], 1).half())
        tokens.append(words([caption for _, caption in pairs], padding="max_length", return_tensors="pt")["input_ids"])
    pool = {"latents": torch.cat(latents), "tokens": torch.cat(tokens)}
    torch.save(pool, path)
    return pool


def main() -> None:
    options = arguments(__doc__, steps=8000)
    pool = encoded(options, trained("vae", AutoencoderKL(**vae.CONFIG), options.out))
    mean, deviation = pool["latents"].float().chunk(2, 1)
    scaling = 1 / mean.std()
    print(f"scaling_factor {scaling:.5f}")
    text = trained("clip", clip.build(), options.out).text_model
    with torch.inference_mode():
        distinct, where = torch.unique(pool["tokens"], dim=0, return_inverse=True)
        states = torch.cat([text(input_ids=part).last_hidden_state for part in distinct.split(256)])
        blank = text(input_ids=clip.tokenizer()("", padding="max_length", return_tensors="pt")["input_ids"]).last_hidden_state
    states, blank = states.clone(), blank.clone()
    noise = DDPMScheduler(**SCHEDULER)
    snr = noise.alphas_cumprod / (1 - noise.alphas_cumprod)
    weight = snr.clamp(max=SNR) / snr
    torch.manual_seed(options.seed)
    model = UNet2DConditionModel(**CONFIG)

    def loss(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        singles, doubles = rng.integers(POOL, size=BATCH // 2), POOL + rng.integers(PAIRS, size=BATCH // 2)
        chosen = torch.from_numpy(np.concatenate([singles, doubles]))
        clean = (mean[chosen] + deviation[chosen] * torch.randn(BATCH, *mean.shape[1:])) * scaling
        prompt = torch.where(torch.rand(BATCH, 1, 1) < 0.1, blank, states[where[chosen]])
        times = torch.randint(0, 1000, (BATCH,))
        epsilon = torch.randn_like(clean)
        predicted = model(noise.add_noise(clean, epsilon, times), times, prompt).sample
        error = (predicted - epsilon).square().mean((1, 2, 3))
        weighted = (weight[times] * error).mean()
        return {"loss": weighted if step < options.steps / 2 else error.mean(), "weighted": weighted.detach()}

    train("unet", model, loss, options, learning_rate=1e-3, ema=0.9985)


if __name__ == "__main__":
    main()
