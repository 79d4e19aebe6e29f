"""Train the mini MaskFormer: a scene to the masks of its items and of its ground, all at once.

Command:  python experiments/mini/maskformer.py
Hardware: one CPU core, about 14 minutes
Data:     scenes of Fashion-MNIST's training split without its last 5,000 photographs, which are
          kept for validation
Expected: loss about 0.24

It makes Table 4's other proposals. Masks carry no class: the published MaskFormer learned
COCO-Stuff's 171 classes, but only its proposals are used.
"""

from typing import Any

import numpy as np
import torch
from common import HELD_OUT, Losses, parse_arguments, scale_pixels, train
from sam import vary_image
from transformers import (
    DetrConfig,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    ResNetConfig,
)

from rimjax.datasets import fashion_mnist, fashion_scenes

BATCH = 12
BACKBONE = {
    "embedding_size": 32,
    "hidden_sizes": [32, 64, 96, 128],
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
    "out_features": ["stage1", "stage2", "stage3", "stage4"],
}
DECODER = {
    "d_model": 64,
    "encoder_layers": 0,
    "decoder_layers": 3,
    "decoder_ffn_dim": 256,
    "decoder_attention_heads": 4,
    "num_queries": 16,
    # At the usual 0.1 only dropout made the queries differ; without it they were all alike.
    "dropout": 0.0,
}


def build() -> MaskFormerForInstanceSegmentation:
    parts: dict[str, Any] = {
        "backbone_config": ResNetConfig(**BACKBONE),
        "decoder_config": DetrConfig(**DECODER),
    }
    config = MaskFormerConfig(**parts, fpn_feature_size=64, mask_feature_size=64, num_labels=1)
    model = MaskFormerForInstanceSegmentation(config)
    # Queries differ from the start, as in DETR.
    torch.nn.init.normal_(model.model.transformer_module.queries_embedder.weight)
    return model


def split_instances(scene: fashion_scenes.Scene) -> torch.Tensor:
    """Return the masks of the ground and of the visible items, float32[M, H, W]."""
    numbers = np.unique(scene.instances)
    return torch.from_numpy(np.stack([scene.instances == number for number in numbers])).float()


def main() -> None:
    options = parse_arguments(__doc__, steps=2400)
    photos, classes = (part[:-HELD_OUT] for part in fashion_mnist.read_idx("train", options.data))
    torch.manual_seed(options.seed)
    model = build()

    def compute_losses(step: int, rng: np.random.Generator) -> Losses:
        scenes = [fashion_scenes.render_random(rng, photos, classes) for _ in range(BATCH)]
        pixels = scale_pixels(np.stack([vary_image(rng, scene) for scene in scenes]))
        masks = [split_instances(scene) for scene in scenes]
        labels = [torch.zeros(len(group), dtype=torch.long) for group in masks]
        return {"loss": model(pixel_values=pixels, mask_labels=masks, class_labels=labels).loss}

    train("maskformer", model, compute_losses, options, learning_rate=5e-4, weight_decay=0.01)


if __name__ == "__main__":
    main()
