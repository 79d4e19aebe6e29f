"""Train the mini ViT, without class labels, to say which photograph a region shows, whatever its ground, tint, size and turn.

Command:  python experiments/mini/vit.py        Hardware: 2 CPU cores, about 1 hour 45 minutes. Expected: 20-NN about 80 %.
Data:     scenes of Fashion-MNIST's training split, the last 5,000 photographs kept for validation.

DINOv2 ViT-B is distilled from a larger label-free teacher. The mini's teacher is the plainest one: the first 20 principal components
of the clean photograph, half whitened (20-NN accuracy of such codes themselves: 83 %), and 256 k-means prototypes among them. Three losses
on the last layer's keys, pooled under the item's visible mask: like DINO, they and every single token name the photograph's prototypes
through a cosine head; and the pairwise similarities among the batch's regions follow the codes'. The ground is one more prototype.
Half of the tokens of every scene are left out at random while it learns, which halves the time; the last steps see all.
"""

import numpy as np
import torch
import torch.nn.functional as F
from common import arguments, drawn, pixels, train
from PIL import Image, ImageFilter
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from transformers import Dinov2Config, Dinov2Model

from rimjax.datasets import fashion_scenes

CONFIG = {"hidden_size": 96, "num_hidden_layers": 6, "num_attention_heads": 3, "patch_size": 8, "image_size": 128}
BATCH = 32
CODE = 20
PROTOTYPES = 256
SHARPNESS = 15.0  # of the teacher; the student learns its own
WHOLE = 0.15  # share of the steps, at the end, that see all tokens
HELD_OUT = 5_000


class Student(torch.nn.Module):
    """The ViT up to its last layer's keys, and the cosine head that names prototypes from them."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = Dinov2Model(Dinov2Config(**CONFIG, attn_implementation="sdpa"))
        self.head = torch.nn.Linear(CONFIG["hidden_size"], PROTOTYPES + 1, bias=False)
        self.log_scale = torch.nn.Parameter(torch.tensor(2.3))
        unused = self.vit.encoder.layer[-1]
        self.vit.requires_grad_(True)
        for part in (unused.mlp, unused.norm2, unused.layer_scale1, unused.layer_scale2, self.vit.layernorm):
            part.requires_grad_(False)
        for part in (unused.attention.attention.query, unused.attention.attention.value, unused.attention.output):
            part.requires_grad_(False)

    def forward(self, x: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """float32[B, 3, H, W] in -1..1 to the kept patches' keys, float32[B, T, D]; kept is int64[B, T], by default all H/8 * W/8."""
        hidden = self.vit.embeddings(x)
        if kept is not None:
            hidden = torch.cat([hidden[:, :1], hidden[:, 1:].gather(1, kept[..., None].expand(-1, -1, hidden.shape[-1]))], 1)
        *layers, last = self.vit.encoder.layer
        for layer in layers:
            hidden = layer(hidden)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        return last.attention.attention.key(last.norm1(hidden))[:, 1:]

    def name(self, keys: torch.Tensor) -> torch.Tensor:
        """Keys [..., D] to log-probabilities of the prototypes [..., PROTOTYPES + 1]."""
        cosine = F.normalize(keys, dim=-1) @ F.normalize(self.head.weight, dim=-1).T
        return (self.log_scale.exp() * cosine).log_softmax(-1)


def scene(rng: np.random.Generator, photos: np.ndarray, classes: np.ndarray) -> tuple[np.ndarray, fashion_scenes.Scene]:
    """A scene as the camera, or for a lone item the diffusion model, would give it; some are softened, all lit differently."""
    made = fashion_scenes.random_scene(rng, photos, classes)
    picture = Image.fromarray(made.image)
    if len(made.items) == 1 and rng.uniform() < 0.6:
        picture = drawn(rng, picture)
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


def teacher(photos: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Every photograph's unit code [n + 1, CODE + 1] and its share of each prototype [n + 1, PROTOTYPES + 1]; the last row: ground."""
    flat = photos.reshape(len(photos), -1) / 255.0
    pca = PCA(CODE, random_state=0).fit(flat[:20_000])
    codes = pca.transform(flat) / pca.explained_variance_**0.25
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    centres = MiniBatchKMeans(PROTOTYPES, batch_size=4096, n_init=3, random_state=0).fit(codes[:-HELD_OUT]).cluster_centers_
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    likely = torch.from_numpy(SHARPNESS * codes @ centres.T).softmax(1).numpy()

    def with_ground(rows: np.ndarray) -> torch.Tensor:
        widened = np.concatenate([rows, np.zeros((len(rows), 1))], 1)
        return torch.from_numpy(np.concatenate([widened, np.eye(1, widened.shape[1], rows.shape[1])])).float()

    return with_ground(codes), with_ground(likely)


def main() -> None:
    options = arguments(__doc__, steps=4250)
    photos, classes = fashion_scenes.read_idx("train", options.data)
    codes, likely = teacher(photos)
    torch.manual_seed(options.seed)
    model = Student()

    def loss(step: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
        x, owners, weights, items = batch(rng, photos[:-HELD_OUT], classes[:-HELD_OUT], BATCH)
        kept = None
        if step < (1 - WHOLE) * options.steps:
            kept = torch.rand(BATCH, weights.shape[1]).argsort(1)[:, : weights.shape[1] // 2]
            weights = weights.gather(1, kept[owners])
            seen = weights.sum(1) > 0.1
            owners, weights, items = owners[seen], weights[seen] / weights[seen].sum(1, keepdim=True), items[seen]
        keys = model(x, kept)[owners]
        pooled = torch.einsum("mt,mtd->md", weights, keys)
        wanted = likely[items]
        regions = F.kl_div(model.name(pooled), wanted, reduction="batchmean")
        tokens = -((model.name(keys) * wanted[:, None]).sum(-1) * weights).sum(1).mean()
        unit, code = F.normalize(pooled, dim=1), codes[items]
        self_pair = torch.eye(len(unit), dtype=torch.bool)
        near = ((code @ code.T) / 0.1).masked_fill(self_pair, -1e9).softmax(1)
        found = ((unit @ unit.T) / 0.1).masked_fill(self_pair, -1e9).log_softmax(1)
        relation = F.kl_div(found, near, reduction="batchmean")
        if (step + 1) % 500 == 0:
            model.eval()
            print(f"\nstep {step + 1}: 20-NN on validation items {nearest_neighbours(model, rng, photos, classes):.3f}", flush=True)
            model.train()
        parts = {"regions": regions, "tokens": tokens, "relation": relation}
        return {"loss": regions + 0.5 * tokens + 0.5 * relation, **{k: v.detach() for k, v in parts.items()}}

    def hidden(name: str, parameter: torch.Tensor) -> bool:
        return "encoder.layer" in name and parameter.ndim == 2

    train("vit", model, loss, options, learning_rate=2e-3, weight_decay=0.05, muon=hidden)


if __name__ == "__main__":
    main()
