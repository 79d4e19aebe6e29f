"""Measure how well thresholds tell things that no class names from things that one does.

Command:  python experiments/unknown.py
              mini; 2 CPU cores, 6 minutes, then 1

Scenes of all ten classes are named by banks that lack two, three or eight of them, ten banks each,
so that every class is left out equally often. Of the regions that get a class's name, a threshold
on score, margin or confidence leaves some unknown: of those of left-out classes as many as possible
("caught"), of those of known classes as few ("lost"; and of the rightly named ones among them).
The area under a curve is the probability that of one region of each kind the known one scores
higher: 0.5 is chance.

Curves and areas are those of validation scenes 801 to 1200, to which no confidence was fitted. The
recommended least score is chosen there: the largest multiple of 0.05 that loses at most 10 % of the
known regions, over all banks that lack two or three classes. The benchmark's 200 scenes, of other
photographs, then say what it catches and loses. Beside it stands the way out without a threshold:
a bank that holds the left-out classes as well, where a region counts as caught or lost if it gets
one of their names.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from harness import Experiment, start
from plots import create_figure, render_figure
from sklearn.metrics import roc_auc_score
from tables import write_chart, write_csv
from true_regions import Naming, TrueRegions, collect_true_regions
from validation import open_validation_scenes

from rimjax import datasets
from rimjax.commands.console import progress
from rimjax.datasets import Dataset, fashion_mnist
from rimjax.models.protocols import Models
from rimjax.models.trust import find_confidence

SCENES = slice(800, 1200)
LACKING = (2, 3, 8)
MEASURES = ("score", "margin", "confidence")
STEPS = np.arange(0, 1.1001, 0.05).round(2)
MOST_LOST = 0.1


def measure(naming: Naming, models: Models) -> dict[str, np.ndarray]:
    """Return each measure of a vocabulary's regions."""
    confidence = find_confidence(models, models.segmentation)
    if confidence is None:
        raise ValueError(
            "models must be those that were calibrated; run experiments/mini/calibrate.py"
        )
    estimate = confidence.estimate(naming.scores, naming.margins, naming.labels == 0)
    return dict(zip(MEASURES, (naming.scores, naming.margins, estimate), strict=True))


def split(namings: Sequence[Naming], models: Models, name: str) -> tuple[np.ndarray, ...]:
    """Return a measure of regions that get a class's name: left-out, known and rightly named ones.

    The last two are of the same regions: the measure, and whether the name is right.
    """
    left_out, known, right = [], [], []
    for naming in namings:
        values, named = measure(naming, models)[name], naming.labels > 0
        left_out.append(values[named & ~naming.known])
        known.append(values[named & naming.known])
        right.append(naming.right[named & naming.known])
    return np.concatenate(left_out), np.concatenate(known), np.concatenate(right)


def cut(parts: tuple[np.ndarray, ...], least: float) -> tuple[float, float, float]:
    """Return the shares caught, lost, and lost of the rightly named."""
    left_out, known, right = parts
    caught, lost, lost_right = (
        float((values < least).mean()) for values in (left_out, known, known[right])
    )
    return caught, lost, lost_right


def name_all(namings: Sequence[Naming], full: Naming) -> tuple[float, float, float]:
    """Return the shares of `cut` for regions to which a full bank gives a left-out class's name."""
    left_out, known, right = [], [], []
    for naming in namings:
        named = naming.labels > 0
        others = ~np.isin(full.labels, naming.vocabulary)
        left_out.append(others[named & ~naming.known])
        known.append(others[named & naming.known])
        right.append(others[named & naming.known & naming.right])
    caught, lost, lost_right = (
        float(np.concatenate(part).mean()) for part in (left_out, known, right)
    )
    return caught, lost, lost_right


def main(experiment: Experiment) -> None:
    if experiment.preset != "mini":
        raise ValueError(f"preset must be mini, which is calibrated, got {experiment.preset}")
    models = experiment.load_models("rimjax")
    folder = replace(experiment, validation=True).folder

    def collect(scenes: Dataset, part: slice = slice(None)) -> TrueRegions:
        items = progress(scenes.items[part][: experiment.limit], "regions", "scene")
        return collect_true_regions(items, experiment.open_regions(models), scenes.classes)

    def name(regions: TrueRegions, lacking: int) -> list[Naming]:
        count = len(regions.classes) - lacking
        return regions.name_by_vocabularies(count, models, experiment.cache)

    scenes = open_validation_scenes(experiment.data or fashion_mnist.DEBIAN_ROOT, SCENES.stop)
    regions = collect(scenes, SCENES)
    namings = {lacking: name(regions, lacking) for lacking in LACKING}
    rows: list[tuple[object, ...]] = [
        ("classes left out", "measure", "least", "caught", "lost", "lost of the rightly named")
    ]
    areas: list[tuple[object, ...]] = [("classes left out", "measure", "area under the curve")]
    canvas, axes = create_figure(len(LACKING), 4.2)
    for axis, lacking in zip(axes, LACKING, strict=True):
        for measured in MEASURES:
            left_out, known, right = split(namings[lacking], models, measured)
            truth = np.repeat([0, 1], [len(left_out), len(known)])
            area = roc_auc_score(truth, np.concatenate([left_out, known]))
            areas.append((lacking, measured, round(float(area), 3)))
            curve = [cut((left_out, known, right), least) for least in STEPS]
            rows += [
                (lacking, measured, least, *(round(share, 4) for share in shares))
                for least, shares in zip(STEPS.tolist(), curve, strict=True)
            ]
            fine = np.quantile(np.concatenate([left_out, known]), np.linspace(0, 1, 101))
            points = np.array([cut((left_out, known, right), least) for least in fine])
            axis.plot(points[:, 1], points[:, 0], label=f"{measured}, area {area:.2f}")
        axis.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=0.8)
        title = f"{lacking} of 10 classes left out"
        axis.set(xlabel="share of known regions lost", ylabel="left-out regions caught")
        axis.set(title=title)
        axis.legend(loc="lower right")
        axis.grid(alpha=0.3)
    write_csv(folder, "unknown", rows)
    write_csv(folder, "unknown-areas", areas)
    pooled = split([*namings[2], *namings[3]], models, "score")
    least = max(least for least in STEPS.tolist() if cut(pooled, least)[1] <= MOST_LOST)
    chosen: list[tuple[object, ...]] = [
        ("scenes", "classes left out", "least score", *rows[0][3:], "left-out regions", "known")
    ]
    benchmark = collect(datasets.load("fashion-scenes"))
    namings[0] = name(regions, 0)
    further = {lacking: name(benchmark, lacking) for lacking in (0, *LACKING)}
    sources = {"validation": namings, "benchmark": further}
    for source, lacking in product(sources, LACKING):
        named, full = sources[source][lacking], sources[source][0][0]
        parts = split(named, models, "score")
        sizes = (len(parts[0]), len(parts[1]))
        for way, shares in (
            (least, cut(parts, least)),
            ("none, but a full bank", name_all(named, full)),
        ):
            rounded = [round(share, 4) for share in shares]
            chosen.append((source, lacking, way, *rounded, *sizes))
    write_csv(folder, "unknown-chosen", chosen)
    for row in (*areas, *chosen):
        print(*row, sep="  ")
    write_chart(folder, "unknown", render_figure(canvas))


if __name__ == "__main__":
    start(main, Experiment, __doc__)
