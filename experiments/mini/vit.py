"""Train the mini ViT, without class labels, to recognise which photograph a region shows.

It learns to do so whatever the ground, tint, size and turn.

Command:  python experiments/mini/vit.py
Hardware: 2 CPU cores, about 1 hour 45 minutes
Data:     scenes of Fashion-MNIST's training split; its last 5,000 photographs are kept for
          validation
Expected: 20-NN accuracy about 80 %

DINOv2 ViT-B is distilled from a larger teacher that was trained without labels. The mini's teacher
isn't trained: it is the first 64 principal components, half whitened, of the clean photograph's
histograms of oriented gradients (20-NN accuracy of these codes: 89 %; of the pixels' components:
83 %), and 512 k-means prototypes of the codes. Three losses act on
the last layer's keys, pooled under the item's visible mask. As in DINO, a cosine head predicts the
photograph's prototypes from the pooled keys (1) and from every single token (2). The pairwise
similarities of the batch's regions follow those of the codes (3). The ground is another prototype.
During training half of the tokens of every scene are left out at random, which halves the time;
the last steps use all tokens.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import (
    HELD_OUT,
    SHIPPED,
    Losses,
    imitate_drawing,
    parse_arguments,
    restore,
    scale_pixels,
    train,
)
from PIL import Image, ImageFilter
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from tqdm import tqdm
from transformers import Dinov2Config, Dinov2Model

from ported_weights import dinov2
from rimjax.datasets import fashion_mnist, fashion_scenes
from rimjax.models.vit_encoder import load_vit

CONFIG: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "patch_size": 8,
    "image_size": 128,
}
BATCH = 32
CODE = 64
PROTOTYPES = 512
SHARPNESS = 15.0  # of the teacher; the student learns its own
WHOLE = 0.15  # share of the steps, at the end, that use all tokens


class Student(torch.nn.Module):
    """The ViT up to its last layer's keys, and the cosine head that predicts prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = Dinov2Model(Dinov2Config(**CONFIG, attn_implementation="sdpa"))
        self.head = torch.nn.Linear(CONFIG["hidden_size"], PROTOTYPES + 1, bias=False)
        self.log_scale = torch.nn.Parameter(torch.tensor(2.3))
        last: Any = self.vit.encoder.layer[-1]
        self.vit.requires_grad_(True)
        for part in (last.mlp, last.norm2, last.layer_scale1, last.layer_scale2):
            part.requires_grad_(False)
        attention = last.attention
        for part in (attention.attention.query, attention.attention.value, attention.output):
            part.requires_grad_(False)
        self.vit.layernorm.requires_grad_(False)

    def forward(self, x: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Compute the keys of patches, float32[B, T, D].

        Args:
            x: pixels in -1..1, float32[B, 3, H, W].
            kept: indices of the T patches, int64[B, T]; default: all H/8 * W/8.
        """
        hidden = self.vit.embeddings(x)
        if kept is not None:
            indices = kept[..., None].expand(-1, -1, hidden.shape[-1])
            hidden = torch.cat([hidden[:, :1], hidden[:, 1:].gather(1, indices)], 1)
        layers: list[Any] = list(self.vit.encoder.layer)
        for layer in layers[:-1]:
            hidden = layer(hidden)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
        last = layers[-1]
        return last.attention.attention.key(last.norm1(hidden))[:, 1:]

    def predict_prototypes(self, keys: torch.Tensor) -> torch.Tensor:
        """Compute the prototypes' log-probabilities [..., PROTOTYPES + 1] from keys [..., D]."""
        cosine = F.normalize(keys, dim=-1) @ F.normalize(self.head.weight, dim=-1).T
        return (self.log_scale.exp() * cosine).log_softmax(-1)


def render_view(
    rng: np.random.Generator, photos: np.ndarray, classes: np.ndarray
) -> tuple[np.ndarray, fashion_scenes.Scene]:
    """Render a scene as a camera might take it, or a diffusion model draw it if it has one item.

    Some images are softened, and the light varies in all of them.
    """
    scene = fashion_scenes.render_random(rng, photos, classes)
    picture = Image.fromarray(scene.image)
    if len(scene.items) == 1 and rng.uniform() < 0.6:
        picture = imitate_drawing(rng, picture)
    if rng.uniform() < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2)))
    contrast = rng.uniform(0.85, 1.15)
    light = contrast * (np.asarray(picture, np.float32) - 127.5) + 127.5 + rng.uniform(-15, 15)
    return np.clip(light, 0, 255), scene


def make_batch(
    rng: np.random.Generator, photos: np.ndarray, classes: np.ndarray, size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Render a batch of scenes and list their regions.

    Returns:
        Pixels float32[B, 3, H, W], and for each region its scene, its weights over the patches
        (summing to 1) and its photograph (-1: the ground).
    """
    images, owners, weights, items = [], [], [], []
    for index in range(size):
        image, scene = render_view(rng, photos, classes)
        images.append(image)
        for instance, item in enumerate((-1, *scene.items)):
            mask = torch.from_numpy(scene.instances == instance).float()
            cover = mask.view(16, 8, 16, 8).mean((1, 3)).flatten()
            if cover.sum() > 4:
                owners.append(index)
                weights.append(cover / cover.sum())
                items.append(item)
    pixels = scale_pixels(np.stack(images))
    return pixels, torch.tensor(owners), torch.stack(weights), torch.tensor(items)


@torch.inference_mode()
def measure_accuracy(
    model: Student, rng: np.random.Generator, photos: np.ndarray, classes: np.ndarray
) -> float:
    """Measure the accuracy of 20 nearest neighbours on pooled keys.

    Queries are validation items, and the gallery holds training items.
    """
    features, labels = [], []
    for part, rounds in ((slice(None, -HELD_OUT), 25), (slice(-HELD_OUT, None), 8)):
        part_features, part_labels = [], []
        for _ in range(rounds):
            pixels, owners, weights, items = make_batch(rng, photos[part], classes[part], 40)
            pooled = torch.einsum("mt,mtd->md", weights, model(pixels)[owners])
            part_features.append(pooled[items >= 0])
            part_labels.append(classes[part][items[items >= 0]])
        features.append(torch.cat(part_features).numpy())
        labels.append(np.concatenate(part_labels))
    neighbours = KNeighborsClassifier(20, metric="cosine").fit(features[0], labels[0])
    return float(neighbours.score(features[1], labels[1]))


def describe_gradients(photos: np.ndarray) -> np.ndarray:
    """Compute histograms of oriented gradients, float32[n, 7 * 7 * 8].

    Each cell of 4x4 pixels has 8 bins of undirected orientations, of which a gradient falls into
    the two nearest. Square roots are taken, so that faint seams count beside the outline.

    Args:
        photos: grey levels uint8[n, 28, 28].
    """
    histograms = np.zeros((len(photos), 28, 28, 8), np.float32)
    down, right = np.gradient(photos.astype(np.float32) / 255, axis=(1, 2))
    strength = np.hypot(down, right)
    turn = np.arctan2(down, right) % np.pi / np.pi * 8
    lower = turn.astype(int)
    pixels = np.indices(photos.shape)
    histograms[(*pixels, lower % 8)] += strength * (1 - (turn - lower))
    histograms[(*pixels, (lower + 1) % 8)] += strength * (turn - lower)
    cells = histograms.reshape(-1, 7, 4, 7, 4, 8).sum((2, 4))
    return np.sqrt(cells).reshape(len(photos), -1)


def encode_photos(photos: np.ndarray) -> np.ndarray:
    """Compute the teacher's unit codes of photographs, float[n, CODE]."""
    starts = range(5_000, len(photos), 5_000)
    gradients = np.concatenate([describe_gradients(part) for part in np.split(photos, starts)])
    pca = PCA(CODE, random_state=0).fit(gradients[:20_000])
    codes = pca.transform(gradients) / pca.explained_variance_**0.25
    return codes / np.linalg.norm(codes, axis=1, keepdims=True)


def fit_teacher(photos: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit prototypes to the photographs' codes.

    Returns:
        Each photograph's unit code [n + 1, CODE + 1], and its share of each prototype
        [n + 1, PROTOTYPES + 1]; the last row is the ground's.
    """
    codes = encode_photos(photos)
    clusters = MiniBatchKMeans(PROTOTYPES, batch_size=4096, n_init=3, random_state=0)  # pyright: ignore[reportArgumentType]
    centres = clusters.fit(codes[:-HELD_OUT]).cluster_centers_
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    shares = torch.from_numpy(SHARPNESS * codes @ centres.T).softmax(1).numpy()
    return append_ground(codes), append_ground(shares)


def append_ground(rows: np.ndarray) -> torch.Tensor:
    """Append a column and a row for the ground, 1 where they meet and 0 elsewhere."""
    widened = np.concatenate([rows, np.zeros((len(rows), 1))], 1)
    ground = np.eye(1, widened.shape[1], rows.shape[1])
    return torch.from_numpy(np.concatenate([widened, ground])).float()


def main() -> None:
    options = parse_arguments(__doc__, steps=4250, rate=2e-3)
    photos, classes = fashion_mnist.read_idx("train", options.data)
    codes, shares = fit_teacher(photos)
    torch.manual_seed(options.seed)
    model = Student()
    if options.from_shipped:
        heads = CONFIG["num_attention_heads"]
        restore(
            model.vit,
            lambda: dinov2.port(model.vit.state_dict(), num_heads=heads)[0],
            load_vit(SHIPPED / "vit.safetensors")[0],
        )

    def compute_losses(step: int, rng: np.random.Generator) -> Losses:
        pixels, owners, weights, items = make_batch(
            rng, photos[:-HELD_OUT], classes[:-HELD_OUT], BATCH
        )
        kept = None
        if step < (1 - WHOLE) * options.steps:
            patches = weights.shape[1]
            kept = torch.rand(BATCH, patches).argsort(1)[:, : patches // 2]
            weights = weights.gather(1, kept[owners])
            visible = weights.sum(1) > 0.1
            owners, weights, items = owners[visible], weights[visible], items[visible]
            weights = weights / weights.sum(1, keepdim=True)
        keys = model(pixels, kept)[owners]
        pooled = torch.einsum("mt,mtd->md", weights, keys)
        target = shares[items]
        regions = F.kl_div(model.predict_prototypes(pooled), target, reduction="batchmean")
        each_token = (model.predict_prototypes(keys) * target[:, None]).sum(-1)
        tokens = -(each_token * weights).sum(1).mean()
        unit, code = F.normalize(pooled, dim=1), codes[items]
        itself = torch.eye(len(unit), dtype=torch.bool)
        expected = ((code @ code.T) / 0.1).masked_fill(itself, -1e9).softmax(1)
        actual = ((unit @ unit.T) / 0.1).masked_fill(itself, -1e9).log_softmax(1)
        relation = F.kl_div(actual, expected, reduction="batchmean")
        if (step + 1) % 500 == 0:
            model.eval()
            accuracy = measure_accuracy(model, rng, photos, classes)
            tqdm.write(f"step {step + 1}: 20-NN on validation items {accuracy:.3f}")
            model.train()
        logged = {"regions": regions, "tokens": tokens, "relation": relation}
        logged = {key: value.detach() for key, value in logged.items()}
        return {"loss": regions + 0.5 * tokens + 0.5 * relation, **logged}

    def is_matrix_of_layer(name: str, parameter: torch.Tensor) -> bool:
        return "encoder.layer" in name and parameter.ndim == 2

    train(
        "vit",
        model,
        compute_losses,
        options,
        learning_rate=options.rate,
        weight_decay=0.05,
        uses_muon=is_matrix_of_layer,
    )


if __name__ == "__main__":
    main()
