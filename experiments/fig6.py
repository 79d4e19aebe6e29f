"""Figure 6 of the paper: t-SNE of region features with text references in CLIP's space and with image references in DINOv2's.

Command:  python experiments/fig6.py                                    mini, Fashion Scenes; 2 CPU cores, under 1 minute after table2.py
          python experiments/fig6.py --preset paper --dataset voc --data data --limit 300       a GPU
Paper:    text references lie apart from the regions of their class, image references among them.
A region counts if nine tenths of it are of one class. The titles say how often a region's nearest reference is its own class's.
"""

from collections.abc import Iterator

import numpy as np
from harness import Experiment, start
from plots import figure, picture
from sklearn.manifold import TSNE

from rimjax.choices import PRESETS
from rimjax.datasets import Item
from rimjax.draw import palette
from rimjax.presets import load_image_text
from rimjax.types import Regions

PURE = 0.9
MOST = 1500


def main(experiment: Experiment) -> None:
    models, classes = experiment.models(), experiment.images_of.classes
    clip, words = load_image_text(experiment.preset, experiment.weights_dir), PRESETS[experiment.preset].image_text
    texts = clip.embed_texts([words.template.format(name) for name in experiment.images_of.prompts])
    space = "the mini ViT's" if experiment.preset == "mini" else "DINOv2's"
    spaces = {
        "text references in CLIP's space": (experiment.regions(models.masker, clip.embed_regions, clip.fingerprint), texts),
        f"image references in {space} space": (experiment.regions_of(models), np.asarray(experiment.bank(models).classes)[1:]),
    }
    canvas, axes = figure(len(spaces))
    rows, colours = [], palette(1 + len(classes))[1:] / 255
    for axis, (title, (regions, references)) in zip(axes, spaces.items(), strict=True):
        features, labels = pure(regions)
        both = unit(np.concatenate([features, references]))
        points = TSNE(perplexity=min(30, len(both) / 4), metric="cosine", init="random", random_state=0).fit_transform(both)
        named = (unit(features) @ unit(references).T).argmax(1)
        right = float((named == labels).mean())
        axis.scatter(*points[: len(features)].T, c=colours[labels], s=6, linewidths=0)
        axis.scatter(*points[len(features) :].T, c=colours, s=140, marker="*", edgecolors="black", linewidths=0.8)
        axis.set(title=f"{title}\nthe nearest reference is right for {100 * right:.0f} % of {len(labels)} regions", xticks=[], yticks=[])
        owners = [*(classes[label] for label in labels), *classes]
        kinds = ["region"] * len(features) + ["reference"] * len(references)
        rows += [(title, kind, name, f"{x:.3f}", f"{y:.3f}") for kind, name, (x, y) in zip(kinds, owners, points, strict=True)]
    handles = [axes[0].plot([], [], "o", color=colour, label=name)[0] for name, colour in zip(classes, colours, strict=True)]
    if len(classes) <= 20:
        canvas.legend(handles=handles, loc="lower center", ncols=min(len(classes), 10), frameon=False, fontsize=8)
    experiment.write_picture("fig6", picture(canvas))
    experiment.write_csv("fig6", [("space", "what", "class", "x", "y"), *rows])


def pure(regions: Iterator[tuple[Item, Regions]]) -> tuple[np.ndarray, np.ndarray]:
    """Features and classes (from 0) of the regions that lie on one thing, at most MOST of them."""
    features, labels = [], []
    for item, one in regions:
        truth = item.labels()
        for feature, mask, valid in zip(one.features, one.masks, one.valid, strict=True):
            counts = np.bincount(truth[mask], minlength=256)
            owner = int(counts[:255].argmax())
            if valid and owner > 0 and counts[owner] >= PURE * counts.sum():
                features.append(feature)
                labels.append(owner - 1)
    if not features:
        raise ValueError("no region lies on one class; t-SNE needs some")
    return np.stack(features[:MOST]), np.array(labels[:MOST])


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == "__main__":
    start(main, Experiment, __doc__, dataset="voc")
