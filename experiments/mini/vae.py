"""Train the mini VAE: 64x64 images to 16x16x4 latents.

Command:  python experiments/mini/vae.py        Hardware: 2 CPU cores, about 25 minutes.
Data:     Fashion-MNIST's training split on textured grounds, no labels. Expected: L1 about 0.08 in -1..1 pixels.
"""

import numpy as np
import torch
from common import arguments, pixels, train
from diffusers import AutoencoderKL

from rimjax.datasets import fashion_scenes

CONFIG = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": 64,
}
BATCH = 16


def main() -> None:
    options = arguments(__doc__, steps=2300)
    photos, classes = fashion_scenes.read_idx("train", options.data)
    torch.manual_seed(options.seed)
    model = AutoencoderKL(**CONFIG)

    def loss(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        images = [fashion_scenes.single(rng, photos, classes, int(rng.integers(len(photos))))[0].image for _ in range(BATCH)]
        x = pixels(np.stack(images))
        posterior = model.encode(x).latent_dist
        restored = model.decode(posterior.sample()).sample
        l1 = (restored - x).abs().mean()
        kl = posterior.kl().mean() / x[0].numel()
        colour = torch.nn.functional.avg_pool2d(restored - x, 4).abs().mean()  # tints are learnt late without a term of their own
        return {"loss": l1 + 2 * colour + 3e-4 * kl, "colour": colour.detach(), "l1": l1.detach(), "kl": kl.detach()}

    train("vae", model, loss, options, learning_rate=2e-3, weight_decay=1e-4)


if __name__ == "__main__":
    main()
