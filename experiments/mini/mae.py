"""Train the mini MAE: fill in three quarters of a scene's patches from the rest (Table 3's encoder by reconstruction).

Command:  python experiments/mini/mae.py        Hardware: 2 CPU cores, about 30 minutes beside other work.
Data:     scenes of Fashion-MNIST's training split, the last 5,000 photographs kept for validation; no labels, no masks.

As in the original, 75 % of the patches are hidden and the pixels of each are normalised.
The encoder has the mini ViT's size.
"""

import numpy as np
import torch
from common import arguments, pixels, train
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from vit import CONFIG, HELD_OUT, scene

from rimjax.datasets import fashion_scenes

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
    options = arguments(__doc__, steps=2500)
    photos, classes = (part[:-HELD_OUT] for part in fashion_scenes.read_idx("train", options.data))
    torch.manual_seed(options.seed)
    model = build()

    def loss(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        x = pixels(np.stack([scene(rng, photos, classes)[0] for _ in range(BATCH)]))
        return {"loss": model(pixel_values=x).loss}

    train("mae", model, loss, options, learning_rate=1.5e-3, weight_decay=0.05)


if __name__ == "__main__":
    main()
