"""Train the mini SAM, class-agnostic: points in a scene to the mask of the item or ground there.

Command:  python experiments/mini/sam.py
Hardware: 2 CPU cores, about 1 hour 25 minutes beside other trainings
Data:     scenes of Fashion-MNIST's training split without its last 5,000 photographs, which are
          kept for validation
Expected: best IoU above 0.9

A prompt has one to five points. As in Segment Anything, a prompt gets three masks, of which the
best is trained (focal + dice), and a head learns each mask's IoU.
"""

import numpy as np
import torch
import torch.nn.functional as F
from common import HELD_OUT, SHIPPED, Losses, imitate_drawing, parse_arguments, train
from PIL import Image, ImageEnhance
from safetensors.torch import load_file
from segment_anything.modeling import Sam

from rimjax.datasets import fashion_mnist, fashion_scenes
from rimjax.models import sam
from rimjax.presets.catalogue import MINI_SAM

BATCH = 8
PROMPTS = 6


def sample_prompts(
    rng: np.random.Generator, instances: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample prompts on the items and the ground of a scene.

    Returns:
        Points float[PROMPTS, 5, 2] (x, y in pixels), labels float[PROMPTS, 5] (1 positive, -1 no
        point) and masks bool[PROMPTS, H, W].
    """
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


def vary_image(rng: np.random.Generator, scene: fashion_scenes.Scene) -> np.ndarray:
    """Return a scene's image, drained of its colour in half of the cases.

    Two thirds of the drained images are grey, so that a mask may not depend on a difference of
    colour. An image of a single item mostly looks drawn by a diffusion model.
    """
    picture = Image.fromarray(scene.image)
    if len(scene.items) == 1 and rng.uniform() < 0.7:
        picture = imitate_drawing(rng, picture)
    if rng.uniform() < 0.5:
        saturation = max(0.0, rng.uniform(-1.0, 0.5))
        picture = ImageEnhance.Color(picture).enhance(saturation)
    return np.asarray(picture)


class PromptedSam(torch.nn.Module):
    """SAM on a batch of scenes with the same number of prompts each.

    Mask logits have the decoder's resolution, half the image's.
    """

    def __init__(self, model: Sam) -> None:
        super().__init__()
        self.sam = model

    def forward(
        self, images: torch.Tensor, points: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = torch.stack([self.sam.preprocess(image) for image in images])
        embeddings = self.sam.image_encoder(pixels)
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
    options = parse_arguments(__doc__, steps=2600, rate=4e-4)
    photos, classes = (part[:-HELD_OUT] for part in fashion_mnist.read_idx("train", options.data))
    torch.manual_seed(options.seed)
    model = PromptedSam(sam.build(MINI_SAM)).train()
    if options.from_shipped:
        model.sam.load_state_dict(load_file(SHIPPED / "sam.safetensors"))

    def compute_losses(step: int, rng: np.random.Generator) -> Losses:
        scenes = [fashion_scenes.render_random(rng, photos, classes) for _ in range(BATCH)]
        prompts = [sample_prompts(rng, scene.instances) for scene in scenes]
        points, labels, masks = zip(*prompts, strict=True)
        pixels = torch.from_numpy(np.stack([vary_image(rng, scene) for scene in scenes]))
        truth = torch.from_numpy(np.concatenate(masks)).float()[:, None]
        low, predicted = model(
            pixels.permute(0, 3, 1, 2).float(),
            torch.from_numpy(np.stack(points)).float(),
            torch.from_numpy(np.stack(labels)).int(),
        )
        logits = F.interpolate(low, truth.shape[-2:], mode="bilinear", align_corners=False)
        target = truth.expand_as(logits)
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        probability = logits.sigmoid()
        right = probability * target + (1 - probability) * (1 - target)
        focal = ((1 - right) ** 2 * entropy).mean((2, 3))
        total = probability.sum((2, 3)) + target.sum((2, 3))
        dice = 1 - (2 * (probability * target).sum((2, 3)) + 1) / (total + 1)
        best = (20 * focal + dice).min(1).values.mean()
        inside, true = logits > 0, target > 0.5
        iou = (inside & true).sum((2, 3)) / (inside | true).sum((2, 3)).clamp(min=1)
        iou_error = F.mse_loss(predicted, iou)
        logged = {
            "dice": dice.min(1).values.mean(),
            "iou_error": iou_error,
            "best_iou": iou.max(1).values.mean(),
            "chosen_iou": iou.gather(1, predicted.argmax(1, keepdim=True)).mean(),
        }
        logged = {key: value.detach() for key, value in logged.items()}
        return {"loss": best + 5 * iou_error, **logged}

    train("sam", model, compute_losses, options, learning_rate=options.rate, ema=0.99)


if __name__ == "__main__":
    main()
