"""Train the mini MAE: fill in three quarters of a scene's patches from the rest (Table 3's MAE).

Command:  python experiments/mini/mae.py
Hardware: 2 CPU cores, about 30 minutes beside other work
Data:     scenes of Fashion-MNIST's training split without its last 5,000 photographs, which are
          kept for validation; no labels, no masks

As in the original, 75 % of the patches are hidden, and the target pixels are normalised per patch.
The encoder has the mini ViT's size.
"""

import numpy as np
import torch
from common import HELD_OUT, Losses, parse_arguments, scale_pixels, train
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from vit import CONFIG, render_view

from rimjax.datasets import fashion_mnist

BATCH = 32
MAE = CONFIG | {
    "intermediate_size": 384,
    "decoder_hidden_size": 64,
    "decoder_intermediate_size": 256,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "norm_pix_loss": True,
}


def build() -> ViTMAEForPreTraining:
    return ViTMAEForPreTraining(ViTMAEConfig(**MAE, attn_implementation="sdpa"))


def main() -> None:
    options = parse_arguments(__doc__, steps=2500)
    photos, classes = (part[:-HELD_OUT] for part in fashion_mnist.read_idx("train", options.data))
    torch.manual_seed(options.seed)
    model = build()

    def compute_losses(step: int, rng: np.random.Generator) -> Losses:
        views = [render_view(rng, photos, classes)[0] for _ in range(BATCH)]
        return {"loss": model(pixel_values=scale_pixels(np.stack(views))).loss}

    train("mae", model, compute_losses, options, learning_rate=1.5e-3, weight_decay=0.05)


if __name__ == "__main__":
    main()
