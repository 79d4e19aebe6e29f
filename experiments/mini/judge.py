"""Train the judge of the generated images: a small network that names and outlines the item of a real photograph on a ground.

It takes no part in the method. The held-out figures ask it which class a generated image shows, and where its item is.

Command:  python experiments/mini/judge.py      Hardware: 2 CPU cores, about 20 minutes.
Expected: about 84 % of training batches named rightly, which bounds what generated images can score, and outlined at IoU 0.95.
"""

import numpy as np
import torch
from common import arguments, pixels, train

from rimjax.datasets import fashion_scenes

BATCH = 48


def block(inner: int, outer: int) -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Conv2d(inner, outer, 3, padding=1), torch.nn.GroupNorm(8, outer), torch.nn.ReLU())


class Judge(torch.nn.Module):
    """64x64 images to class logits [B, 10] and the item's mask logits [B, 64, 64]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (16, 32, 64, 96)
        self.down = torch.nn.ModuleList(block(a, b) for a, b in zip((3, *widths), widths, strict=False))
        self.up = torch.nn.ModuleList(block(a + b, b) for a, b in ((96, 64), (64, 32), (32, 16)))
        self.name = torch.nn.Linear(96 * 16, len(fashion_scenes.CLASSES))
        self.outline = torch.nn.Conv2d(16, 1, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        skips = []
        for stage in self.down:
            x = stage(x)
            skips.append(x)
            x = torch.nn.functional.max_pool2d(x, 2)
        logits = self.name(x.flatten(1))
        x = skips.pop()
        for stage in self.up:
            x = torch.nn.functional.interpolate(x, scale_factor=2)
            x = stage(torch.cat([x, skips.pop()], 1))
        return logits, self.outline(x)[:, 0]


def main() -> None:
    options = arguments(__doc__, steps=1200)
    photos, classes = fashion_scenes.read_idx("train", options.data)
    torch.manual_seed(options.seed)
    model = Judge()

    def loss(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        items = rng.integers(len(photos), size=BATCH)
        scenes = [fashion_scenes.single(rng, photos, classes, int(item))[0] for item in items]
        target = torch.from_numpy(classes[items].astype(np.int64))
        mask = torch.from_numpy(np.stack([scene.instances > 0 for scene in scenes])).float()
        logits, outline = model(pixels(np.stack([scene.image for scene in scenes])))
        named = torch.nn.functional.cross_entropy(logits, target)
        outlined = torch.nn.functional.binary_cross_entropy_with_logits(outline, mask)
        on = outline > 0
        iou = ((on & (mask > 0)).sum((1, 2)) / (on | (mask > 0)).sum((1, 2))).mean()
        return {"loss": named + outlined, "top1": (logits.argmax(1) == target).float().mean(), "iou": iou}

    train("judge", model, loss, options, learning_rate=2e-3, ema=0.99)


if __name__ == "__main__":
    main()
