"""Train the mini ViT, without class labels, to say which photograph a region shows, whatever its ground, tint, size and turn.

Command:  python experiments/mini/vit.py        Hardware: 2 CPU cores, about 1 hour.
Data:     scenes of Fashion-MNIST's training split, the last 5,000 photographs kept for validation. Expected: 20-NN about 56 %.

DINOv2 ViT-B is distilled from a larger label-free teacher. The mini's teacher is the plainest one: the first 20 principal components
of the clean photograph, half whitened (20-NN accuracy of such codes themselves: 82 %). Three losses on the last layer's keys, pooled
under the item's visible mask: the pairwise similarities among the batch's regions follow the codes'; a linear head restores the
code from the pooled keys; and the same head restores it from every single token. A ground has a code of its own, orthogonal to
every item's.
"""

import numpy as np
import torch
import torch.nn.functional as F
from common import arguments, pixels, train
from PIL import Image, ImageFilter
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from transformers import Dinov2Config, Dinov2Model

from rimjax.datasets import fashion_scenes

CONFIG = {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 3, "patch_size": 8, "image_size": 128}
BATCH = 24
CODE = 20
HELD_OUT = 5_000


class Student(torch.nn.Module):
    """The ViT up to its last layer's keys, and the head that reads codes off them."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = Dinov2Model(Dinov2Config(**CONFIG, attn_implementation="sdpa"))
        self.head = torch.nn.Linear(CONFIG["hidden_size"], CODE + 1)
        unused = self.vit.encoder.layer[-1]
        self.vit.requires_grad_(True)
        for part in (unused.mlp, unused.norm2, unused.layer_scale1, unused.layer_scale2, self.vit.layernorm):
            part.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32[B, 3, H, W] in -1..1 to the patches' keys, float32[B, H/8 * W/8, D]."""
        hidden = self.vit.embeddings(x)
        *layers, last = self.vit.encoder.layer
        for layer in layers:
            hidden = layer(hidden)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return last.attention.attention.key(last.norm1(hidden))[:, 1:]


def scene(rng: np.random.Generator, photos: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, fashion_scenes.Scene]:
    """A scene as the camera, or the diffusion model, would give it: a lone item often rendered at 64 pixels and enlarged, or softened."""
    made = fashion_scenes.random_scene(rng, photos, classes)
    picture = Image.fromarray(made.image)
    if len(made.items) == 1 and rng.uniform() < 0.6:
        picture = picture.resize((64, 64), Image.Resampling.BOX).resize(picture.size, Image.Resampling.BICUBIC)
    if rng.uniform() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2)))
    light = rng.uniform(0.85, 1.15) * (np.asarray(picture, np.float32) - 127.5) + 127.5 + rng.uniform(-15, 15)
    return np.clip(light, 0, 255), made


def batch(rng: np.random.Generator, photos: np.ndarray, classes: np.ndarray, size: int) -> tuple[torch.Tensor, ...]:
    """Images, and for every region its scene, its weights over the patches (summing to 1) and its photograph (-1: ground)."""
    images, owners, weights, items = [], [], [], []
    for index in range(size):
        image, made = scene(rng, photos, classes)
        images.append(image)
        for instance, item in enumerate((-1, *made.items)):
            cover = torch.from_numpy(made.instances == instance).float().view(16, 8, 16, 8).mean((1, 3)).flatten()
            if cover.sum() > 4:
                owners.append(index)
                weights.append(cover / cover.sum())
                items.append(item)
    return pixels(np.stack(images)), torch.tensor(owners), torch.stack(weights), torch.tensor(items)


@torch.inference_mode()
def nearest_neighbours(model: Student, rng: np.random.Generator, photos: np.ndarray, classes: np.ndarray) -> float:
    """Accuracy of 20 nearest neighbours on the pooled keys of validation items, the gallery being training items."""
    features, labels = [], []
    for pool, rounds in ((slice(None, -HELD_OUT), 25), (slice(-HELD_OUT, None), 8)):
        found, named = [], []
        for _ in range(rounds):
            x, owners, weights, items = batch(rng, photos[pool], classes[pool], 40)
            pooled = torch.einsum("mt,mtd->md", weights, model(x)[owners])
            found.append(pooled[items >= 0])
            named.append(classes[pool][items[items >= 0]])
        features.append(torch.cat(found).numpy())
        labels.append(np.concatenate(named))
    return KNeighborsClassifier(20, metric="cosine").fit(features[0], labels[0]).score(features[1], labels[1])


def main() -> None:
    options = arguments(__doc__, steps=3500)
    photos, classes = fashion_scenes.read_idx("train", options.data)
    flat = photos.reshape(len(photos), -1) / 255.0
    pca = PCA(CODE, random_state=0).fit(flat[:20_000])
    codes = pca.transform(flat) / pca.explained_variance_**0.25
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    codes = np.concatenate([codes, np.zeros((len(codes), 1))], 1)
    codes = torch.from_numpy(np.concatenate([codes, np.eye(1, CODE + 1, CODE)])).float()  # the last row, -1, is the ground's
    torch.manual_seed(options.seed)
    model = Student()

    def loss(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        x, owners, weights, items = batch(rng, photos[:-HELD_OUT], classes[:-HELD_OUT], BATCH)
        keys = model(x)[owners]
        pooled = torch.einsum("mt,mtd->md", weights, keys)
        target = codes[items]
        restored = 1 - F.cosine_similarity(model.head(pooled), target).mean()
        per_token = 1 - F.cosine_similarity(model.head(keys), target[:, None], dim=-1)
        tokens = (per_token * weights).sum(1).mean()
        unit = F.normalize(pooled, dim=1)
        self_pair = torch.eye(len(unit), dtype=torch.bool)
        wanted = ((target @ target.T) / 0.1).masked_fill(self_pair, -1e9).softmax(1)
        got = ((unit @ unit.T) / 0.1).masked_fill(self_pair, -1e9).log_softmax(1)
        relation = F.kl_div(got, wanted, reduction="batchmean")
        if (step + 1) % 500 == 0:
            model.eval()
            print(f"\nstep {step + 1}: 20-NN on validation items {nearest_neighbours(model, rng, photos, classes):.3f}", flush=True)
            model.train()
        parts = {"restored": restored, "tokens": tokens, "relation": relation}
        return {"loss": restored + 0.5 * tokens + 0.5 * relation, **{k: v.detach() for k, v in parts.items()}}

    train("vit", model, loss, options, learning_rate=1.5e-3, weight_decay=0.05)


if __name__ == "__main__":
    main()
