"""Train the mini VAE: 64x64 images to 16x16x4 latents.

Command:  python experiments/mini/vae.py
Hardware: 2 CPU cores, about 25 minutes
Data:     Fashion-MNIST's training split on textured grounds, without labels
Expected: L1 about 0.08 on pixels in -1..1
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import Losses, parse_arguments, scale_pixels, train
from diffusers import AutoencoderKL

from rimjax.datasets import fashion_mnist, fashion_scenes

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
    options = parse_arguments(__doc__, steps=2300)
    photos, classes = fashion_mnist.read_idx("train", options.data)
    torch.manual_seed(options.seed)
    model: Any = AutoencoderKL(**CONFIG)

    def compute_losses(step: int, rng: np.random.Generator) -> Losses:
        scenes = [
            fashion_scenes.render_single(rng, photos, classes, int(rng.integers(len(photos))))[0]
            for _ in range(BATCH)
        ]
        pixels = scale_pixels(np.stack([scene.image for scene in scenes]))
        posterior = model.encode(pixels).latent_dist
        restored = model.decode(posterior.sample()).sample
        l1 = (restored - pixels).abs().mean()
        kl = posterior.kl().mean() / pixels[0].numel()
        # Without a term of their own, tints are learnt late.
        colour = F.avg_pool2d(restored - pixels, 4).abs().mean()
        logged = {"colour": colour.detach(), "l1": l1.detach(), "kl": kl.detach()}
        return {"loss": l1 + 2 * colour + 3e-4 * kl, **logged}

    train("vae", model, compute_losses, options, learning_rate=2e-3, weight_decay=1e-4)


if __name__ == "__main__":
    main()
