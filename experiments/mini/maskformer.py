"""Train the mini MaskFormer: a scene to the masks of its items and of its ground, all at once (Table 4's other proposals).

Command:  python experiments/mini/maskformer.py        Hardware: one CPU core, about 14 minutes.
Data:     scenes of Fashion-MNIST's training split, the last 5,000 photographs kept for validation. Masks carry no class: the published one
          learned COCO-Stuff's 171, but its proposals are all that is used.
Expected: loss about 0.24.
"""

import numpy as np
import torch
from common import arguments, pixels, train
from sam import HELD_OUT, seen
from transformers import DetrConfig, MaskFormerConfig, MaskFormerForInstanceSegmentation, ResNetConfig

from rimjax.datasets import fashion_scenes

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
    "dropout": 0.0,  # at the usual 0.1 the queries told themselves apart by it, and were all alike once it was off
}


def build() -> MaskFormerForInstanceSegmentation:
    parts = {"backbone_config": ResNetConfig(**BACKBONE), "decoder_config": DetrConfig(**DECODER)}
    model = MaskFormerForInstanceSegmentation(MaskFormerConfig(**parts, fpn_feature_size=64, mask_feature_size=64, num_labels=1))
    torch.nn.init.normal_(model.model.transformer_module.queries_embedder.weight)  # unlike from the start, as in DETR
    return model


def main() -> None:
    options = arguments(__doc__, steps=2400)
    photos, classes = (part[:-HELD_OUT] for part in fashion_scenes.read_idx("train", options.data))
    torch.manual_seed(options.seed)
    model = build()

    def loss(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        scenes = [fashion_scenes.random_scene(rng, photos, classes) for _ in range(BATCH)]
        x = pixels(np.stack([seen(rng, scene) for scene in scenes]))
        masks = [torch.from_numpy(np.stack([scene.instances == one for one in np.unique(scene.instances)])).float() for scene in scenes]
        found = model(pixel_values=x, mask_labels=masks, class_labels=[torch.zeros(len(one), dtype=torch.long) for one in masks])
        return {"loss": found.loss}

    train("maskformer", model, loss, options, learning_rate=5e-4, weight_decay=0.01)


if __name__ == "__main__":
    main()
