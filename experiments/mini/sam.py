"""Train the mini Sam, class-agnostic: a point (or up to five) in a scene to the mask of what it lies on, an item or the ground.

Command:  python experiments/mini/sam.py        Hardware: 2 CPU cores, about 1 hour 25 minutes beside other trainings.
Data:     scenes of Fashion-MNIST's training split, the last 5,000 photographs kept for validation. Expected: best IoU above 0.9.

As in Segment Anything: three masks a prompt, the best one is trained (focal + dice), and a head learns each mask's IoU.
"""

import numpy as np
import torch
import torch.nn.functional as F
from common import arguments, drawn, train
from PIL import Image
from segment_anything.modeling import Sam

from rimjax.choices import MINI_SAM
from rimjax.datasets import fashion_scenes
from rimjax.models import sam

BATCH = 8
PROMPTS = 6
HELD_OUT = 5_000


def prompts(rng: np.random.Generator, instances: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points xy float[PROMPTS, 5, 2], labels int[PROMPTS, 5] (1 positive, -1 none) and masks bool[PROMPTS, H, W] for one scene."""
    points, labels, masks = np.zeros((PROMPTS, 5, 2)), -np.ones((PROMPTS, 5)), []
    present = np.unique(instances)
    for row in range(PROMPTS):
        chosen = rng.choice(present) if rng.uniform() < 0.8 else 0
        mask = instances == chosen
        count = 1 if rng.uniform() < 0.65 else int(rng.integers(2, 6))
        picked = rng.choice(np.flatnonzero(mask), count)
        points[row, :count] = np.stack([picked % mask.shape[1], picked // mask.shape[1]], 1) + 0.5
        labels[row, :count] = 1
        masks.append(mask)
    return points, labels, np.stack(masks)


def seen(rng: np.random.Generator, scene: fashion_scenes.Scene) -> np.ndarray:
    """The scene's image; that of a lone item mostly as a diffusion model might have drawn it."""
    picture = Image.fromarray(scene.image)
    return np.asarray(drawn(rng, picture) if len(scene.items) == 1 and rng.uniform() < 0.7 else picture)


class Prompted(torch.nn.Module):
    """Sam on a batch of scenes, the same number of prompts for each; logits at the decoder's resolution, half the image's."""

    def __init__(self, model: Sam) -> None:
        super().__init__()
        self.sam = model

    def forward(self, images: torch.Tensor, points: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = self.sam.image_encoder(torch.stack([self.sam.preprocess(image) for image in images]))
        masks, ious = [], []
        for embedding, xy, sign in zip(embeddings, points, labels, strict=True):
            sparse, dense = self.sam.prompt_encoder(points=(xy, sign), boxes=None, masks=None)
            low, iou = self.sam.mask_decoder(
                image_embeddings=embedding[None],
                image_pe=self.sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            masks.append(low)
            ious.append(iou)
        return torch.cat(masks), torch.cat(ious)


def main() -> None:
    options = arguments(__doc__, steps=2600)
    photos, classes = fashion_scenes.read_idx("train", options.data)
    photos, classes = photos[:-HELD_OUT], classes[:-HELD_OUT]
    torch.manual_seed(options.seed)
    model = Prompted(sam.build(MINI_SAM)).train()

    def loss(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        scenes = [fashion_scenes.random_scene(rng, photos, classes) for _ in range(BATCH)]
        prompted = [prompts(rng, scene.instances) for scene in scenes]
        images = torch.from_numpy(np.stack([seen(rng, scene) for scene in scenes])).permute(0, 3, 1, 2).float()
        points = torch.from_numpy(np.stack([one[0] for one in prompted])).float()
        labels = torch.from_numpy(np.stack([one[1] for one in prompted])).int()
        truth = torch.from_numpy(np.concatenate([one[2] for one in prompted])).float()[:, None]
        low, predicted = model(images, points, labels)
        logits = F.interpolate(low, truth.shape[-2:], mode="bilinear", align_corners=False)
        target = truth.expand_as(logits)
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        probability = logits.sigmoid()
        right = probability * target + (1 - probability) * (1 - target)
        focal = ((1 - right) ** 2 * entropy).mean((2, 3))
        dice = 1 - (2 * (probability * target).sum((2, 3)) + 1) / (probability.sum((2, 3)) + target.sum((2, 3)) + 1)
        best = (20 * focal + dice).min(1)
        on = logits > 0
        iou = (on & (target > 0.5)).sum((2, 3)) / (on | (target > 0.5)).sum((2, 3)).clamp(min=1)
        scored = F.mse_loss(predicted, iou)
        chosen = iou.gather(1, predicted.argmax(1, keepdim=True)).mean()
        total = best.values.mean() + 5 * scored
        parts = {"dice": dice.min(1).values.mean(), "iou_error": scored, "best_iou": iou.max(1).values.mean(), "chosen_iou": chosen}
        return {"loss": total, **{k: v.detach() for k, v in parts.items()}}

    train("sam", model, loss, options, learning_rate=4e-4, weight_decay=0.01, ema=0.99)


if __name__ == "__main__":
    main()
