"""Measure the mini models on test-split photographs, and write ported_weights/mini/heldout.json.

Command:  python experiments/mini/heldout.py
Hardware: 2 CPU cores, about 6 minutes; needs judge.py's checkpoint

(a) Share of generated images that the judge, trained on real training-split photographs, assigns to
    the class asked for.
(b) Best IoU of a proposal with an item's visible mask, mean over the items of the benchmark's first
    100 scenes, as they are and in grey.
(c) Accuracy of 20 nearest neighbours on pooled keys under true masks; the gallery holds
    training-split items, the queries are test-split items.
(d) Mean IoU of the reference foreground masks with the outlines that the judge draws in the same
    generated images.
The judge's own scores on test-split photographs bound (a) and (d), and stand beside them.
"""

from pathlib import Path

import numpy as np
import torch
from common import load_trained, parse_arguments, scale_pixels
from judge import Judge
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

import rimjax
from rimjax.commands.console import progress, show_class_progress
from rimjax.datasets import fashion_mnist, fashion_scenes
from rimjax.files import write_json
from rimjax.models.protocols import Models
from rimjax.references.build import build_references
from rimjax.references.store import read_all_references
from rimjax.steps.pool import pool_regions

OUT = Path(__file__).parents[2] / "ported_weights/mini/heldout.json"


def compute_iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / max((first | second).sum(), 1))


@torch.inference_mode()
def judge_images(judge: Judge, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the class index and the outline of the item in each 64x64 image."""
    logits, outlines = judge(scale_pixels(images))
    return logits.argmax(1).numpy(), (outlines > 0).numpy()


def measure_judge(judge: Judge) -> dict[str, float]:
    photos, classes = fashion_mnist.load_shipped_items()
    scenes = [
        fashion_scenes.render_single(np.random.default_rng((5, item)), photos, classes, item)[0]
        for item in range(len(photos))
    ]
    named, outlines = judge_images(judge, np.stack([scene.image for scene in scenes]))
    overlaps = [
        compute_iou(outline, scene.instances > 0)
        for outline, scene in zip(outlines, scenes, strict=True)
    ]
    accuracy = float((named == classes).mean())
    return {"judge_accuracy": accuracy, "judge_iou": float(np.mean(overlaps))}


def measure_references(judge: Judge, models: Models, cache: Path) -> dict[str, object]:
    """Measure (a) and (d)."""
    shares, overlaps, fallbacks = {}, [], 0
    manifest, _ = build_references(
        fashion_mnist.CLASSES, models, cache_dir=cache, progress=show_class_progress
    )
    for index, references in enumerate(read_all_references(manifest, pictures=True)):
        assert references.images is not None and references.masks is not None
        named, outlines = judge_images(judge, references.images)
        shares[references.name] = float((named == index).mean())
        pairs = zip(references.masks, outlines, strict=True)
        overlaps += [compute_iou(mask, outline) for mask, outline in pairs]
        fallbacks += references.fallbacks
    return {
        "a_generated_as_asked": float(np.mean(list(shares.values()))),
        "a_per_class": shares,
        "d_reference_mask_iou": float(np.mean(overlaps)),
        "fallback_masks": fallbacks,
    }


def measure_proposals(models: Models, count: int = 100) -> dict[str, float]:
    """Measure (b)."""
    figures: dict[str, float] = {}
    for prefix in ("", "grey_"):
        best, counts = [], []
        scenes = fashion_scenes.render_benchmark(count)
        for scene in progress(scenes, f"{prefix}proposals", "scene", count):
            picture = Image.fromarray(scene.image)
            picture = picture.convert("L").convert("RGB") if prefix else picture
            masks = models.proposer.propose(np.asarray(picture)).masks
            counts.append(len(masks))
            for position in range(1, len(scene.items) + 1):
                visible = scene.instances == position
                best.append(max((compute_iou(mask, visible) for mask in masks), default=0.0))
        figures[f"b_{prefix}best_iou"] = float(np.mean(best))
        figures[f"b_{prefix}recall_at_0.75"] = float(np.mean(np.array(best) > 0.75))
        figures[f"{prefix}proposals"] = float(np.mean(counts))
    return figures


def pool_items(
    models: Models, rng: np.random.Generator, photos: np.ndarray, classes: np.ndarray, scenes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return features under the true masks of random scenes' items, and the items' classes."""
    features, labels = [], []
    for _ in progress(range(scenes), "neighbours", "scene"):
        scene = fashion_scenes.render_random(rng, photos, classes)
        positions = range(1, len(scene.items) + 1)
        masks = np.stack([scene.instances == position for position in positions])
        regions = pool_regions(models.encoder.encode(scene.image), masks)
        valid = np.asarray(regions.valid)[: len(masks)]
        features.append(np.asarray(regions.features)[: len(masks)][valid])
        labels.append(classes[list(scene.items)][valid])
    return np.concatenate(features), np.concatenate(labels)


def measure_neighbours(
    models: Models, gallery: tuple[np.ndarray, np.ndarray], counts: tuple[int, int] = (1500, 400)
) -> dict[str, float]:
    """Measure (c), with some scenes of the gallery's items and some of the test split's."""
    known = pool_items(models, np.random.default_rng(11), *gallery, counts[0])
    queries = fashion_mnist.load_shipped_items()
    asked = pool_items(models, np.random.default_rng(12), *queries, counts[1])
    neighbours = KNeighborsClassifier(20, metric="cosine").fit(*known)
    return {"c_20nn_accuracy": float(neighbours.score(*asked))}


def main() -> None:
    options = parse_arguments(__doc__)
    models = rimjax.load_preset("mini")
    judge = load_trained("judge", Judge(), options.out)
    figures = {
        **measure_judge(judge),
        **measure_references(judge, models, options.out / "bank"),
        **measure_proposals(models),
        **measure_neighbours(models, fashion_mnist.read_idx("train", options.data)),
    }
    write_json(OUT, figures)
    print(OUT.read_text())


if __name__ == "__main__":
    main()
