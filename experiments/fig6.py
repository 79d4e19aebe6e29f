"""Figure 6 of the paper: t-SNE of region features with text and with image references.

Command:  python experiments/fig6.py
              mini, Fashion Scenes; 2 CPU cores, under 1 minute after table2.py
          python experiments/fig6.py --preset paper --dataset voc --data data --limit 300
              a GPU

Paper: text references lie apart from the regions of their class, image references among them

Shows regions of which nine tenths of the pixels belong to one class. The titles give the share of
regions whose nearest reference is that of their own class.
"""

from collections.abc import Sequence

import numpy as np
from harness import Experiment, start
from plots import create_figure, render_figure
from sklearn.manifold import TSNE
from tables import write_chart, write_csv
from text_regions import open_text_regions

from rimjax.commands.console import progress
from rimjax.datasets import Item
from rimjax.presets import load_image_text
from rimjax.presets.catalogue import PRESETS
from rimjax.regions.store import LoadRegions
from rimjax.show.draw import pick_colours
from rimjax.types import Regions

PURE = 0.9
MOST = 1500


def main(experiment: Experiment) -> None:
    models, classes = experiment.load_models(), experiment.dataset.classes
    clip = load_image_text(experiment.preset, experiment.weights_dir)
    template = PRESETS[experiment.preset].image_text.template
    texts = clip.embed_texts([template.format(prompt) for prompt in experiment.dataset.prompts])
    text_regions = open_text_regions(experiment, models, clip)
    references = np.asarray(experiment.build_bank(models).classes)[1:]
    space = "the mini ViT's" if experiment.preset == "mini" else "DINOv2's"
    spaces = {
        "text references in CLIP's space": (text_regions, texts),
        f"image references in {space} space": (experiment.open_regions(models), references),
    }
    canvas, axes = create_figure(len(spaces))
    rows, colours = [], pick_colours(1 + len(classes))[1:] / 255
    for axis, (title, (load, references)) in zip(axes, spaces.items(), strict=True):
        features, labels = select_pure(experiment.items, load)
        both = normalise(np.concatenate([features, references]))
        options = {"metric": "cosine", "init": "random", "random_state": 0}
        points = TSNE(perplexity=min(30, len(both) / 4), **options).fit_transform(both)
        nearest = (normalise(features) @ normalise(references).T).argmax(1)
        right = float((nearest == labels).mean())
        axis.scatter(*points[: len(features)].T, c=colours[labels], s=6, linewidths=0)
        axis.scatter(
            *points[len(features) :].T,
            c=colours,
            s=140,
            marker="*",
            edgecolors="black",
            linewidths=0.8,
        )
        share = f"right for {100 * right:.0f} % of {len(labels)} regions"
        axis.set(title=f"{title}\nthe nearest reference is {share}", xticks=[], yticks=[])
        owners = [*(classes[label] for label in labels), *classes]
        kinds = ["region"] * len(features) + ["reference"] * len(references)
        rows += [
            (title, kind, name, f"{x:.3f}", f"{y:.3f}")
            for kind, name, (x, y) in zip(kinds, owners, points, strict=True)
        ]
    handles = [
        axes[0].plot([], [], "o", color=colour, label=name)[0]
        for name, colour in zip(classes, colours, strict=True)
    ]
    if len(classes) <= 20:
        columns = min(len(classes), 10)
        canvas.legend(handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=8)
    write_chart(experiment.folder, "fig6", render_figure(canvas))
    write_csv(experiment.folder, "fig6", [("space", "what", "class", "x", "y"), *rows])


def select_pure(items: Sequence[Item], load: LoadRegions) -> tuple[np.ndarray, np.ndarray]:
    """Return features and classes (from 0) of regions that lie on one class, at most MOST."""
    features, labels = [], []
    for item in progress(items, "regions", "image"):
        truth, regions = item.labels(), load(item.image(), {})
        assert isinstance(regions, Regions) and regions.masks is not None
        rows = zip(regions.features, regions.masks, regions.valid, strict=False)  # without padding
        for feature, mask, valid in rows:
            counts = np.bincount(truth[mask], minlength=256)
            owner = int(counts[:255].argmax())
            if valid and owner > 0 and counts[owner] >= PURE * counts.sum():
                features.append(feature)
                labels.append(owner - 1)
    if not features:
        raise ValueError("regions must lie on one class for t-SNE, got none that do")
    return np.stack(features[:MOST]), np.array(labels[:MOST])


def normalise(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


if __name__ == "__main__":
    start(main, Experiment, __doc__, dataset="voc")
