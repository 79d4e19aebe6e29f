"""The mini models' held-out figures, on test-split photographs only, written to ported_weights/mini/heldout.json.

Command:  python experiments/mini/heldout.py    Hardware: 2 CPU cores, about 6 minutes; needs judge.py's checkpoint.

(a) share of generated images that the judge, trained on real training-split cut-outs, assigns to the class asked for
(b) mean over the items of the benchmark's first 100 scenes of the best IoU of a proposal with the item's visible mask
(c) accuracy of 20 nearest neighbours on pooled keys: gallery of training-split items, queries of test-split items, true masks
(d) mean IoU of the reference foreground masks with the outlines that the judge draws in the same generated images
The judge's own scores on test-split photographs stand beside (a) and (d), since they bound them.
"""

import json
from pathlib import Path

import numpy as np
import torch
from common import arguments, pixels, trained
from judge import Judge
from sklearn.neighbors import KNeighborsClassifier
from tqdm import tqdm

import rimjax
from rimjax.bank import read_shards
from rimjax.datasets import fashion_scenes
from rimjax.inference import describe
from rimjax.pool import pool_regions
from rimjax.presets import Models
from rimjax.references import build_manifest

OUT = Path(__file__).parents[2] / "ported_weights/mini/heldout.json"


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


@torch.inference_mode()
def judged(judge: Judge, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class index and outline of the item in each 64x64 image."""
    logits, outlines = judge(pixels(images))
    return logits.argmax(1).numpy(), (outlines > 0).numpy()


def judge_itself(judge: Judge) -> dict[str, float]:
    photos, classes = fashion_scenes.shipped_items()
    scenes = [fashion_scenes.single(np.random.default_rng((5, item)), photos, classes, item)[0] for item in range(len(photos))]
    named, outlines = judged(judge, np.stack([scene.image for scene in scenes]))
    outlined = np.mean([iou(outline, scene.instances > 0) for outline, scene in zip(outlines, scenes, strict=True)])
    return {"judge_accuracy": float((named == classes).mean()), "judge_iou": float(outlined)}


def generated(judge: Judge, models: Models, cache: Path) -> dict[str, object]:
    shares, overlaps, fallbacks = {}, [], 0
    shards = read_shards(build_manifest(fashion_scenes.CLASSES, models, cache_dir=cache, progress=tqdm), pictures=True)
    for index, shard in enumerate(shards):
        assert shard.images is not None and shard.masks is not None
        named, outlines = judged(judge, shard.images)
        shares[shard.name] = float((named == index).mean())
        overlaps += [iou(mask, outline) for mask, outline in zip(shard.masks, outlines, strict=True)]
        fallbacks += shard.fallbacks
    return {
        "a_generated_as_asked": float(np.mean(list(shares.values()))),
        "a_per_class": shares,
        "d_reference_mask_iou": float(np.mean(overlaps)),
        "fallback_masks": fallbacks,
    }


def proposals(models: Models) -> dict[str, float]:
    best, counts = [], []
    for scene in tqdm(fashion_scenes.benchmark(100), total=100, desc="proposals"):
        masks = np.asarray(describe(scene.image, models).masks)
        counts.append(len(masks))
        for position in range(1, len(scene.items) + 1):
            best.append(max((iou(mask, scene.instances == position) for mask in masks), default=0.0))
    return {
        "b_best_iou": float(np.mean(best)),
        "b_recall_at_0.75": float(np.mean(np.array(best) > 0.75)),
        "proposals": float(np.mean(counts)),
    }


def neighbours(models: Models, gallery: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    def pooled(rng: np.random.Generator, photos: np.ndarray, classes: np.ndarray, scenes: int) -> tuple[np.ndarray, np.ndarray]:
        features, labels = [], []
        for _ in tqdm(range(scenes), desc="neighbours"):
            scene = fashion_scenes.random_scene(rng, photos, classes)
            masks = np.stack([scene.instances == position for position in range(1, len(scene.items) + 1)])
            rows, valid = pool_regions(models.encoder.encode(scene.image), masks)
            features.append(np.asarray(rows)[np.asarray(valid)])
            labels.append(classes[list(scene.items)][np.asarray(valid)])
        return np.concatenate(features), np.concatenate(labels)

    known = pooled(np.random.default_rng(11), *gallery, 1500)
    asked = pooled(np.random.default_rng(12), *fashion_scenes.shipped_items(), 400)
    return {"c_20nn_accuracy": float(KNeighborsClassifier(20, metric="cosine").fit(*known).score(*asked))}


def main() -> None:
    options = arguments(__doc__, steps=0)
    models = rimjax.load_preset("mini")
    judge = trained("judge", Judge(), options.out)
    figures = {
        **judge_itself(judge),
        **generated(judge, models, options.out / "bank"),
        **proposals(models),
        **neighbours(models, fashion_scenes.read_idx("train", options.data)),
    }
    OUT.write_text(json.dumps(figures, indent=1) + "\n")
    print(OUT.read_text())


if __name__ == "__main__":
    main()
