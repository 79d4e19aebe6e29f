"""Compare the confidence of mini's regions with the share that is named rightly.

Command:  python experiments/reliability.py
              mini's validation scenes 801 to 1200; 2 CPU cores, 4 minutes, then seconds

experiments/mini/calibrate.py fitted the confidences to the scenes before these, which a bank of all
ten classes named. Here the same bank names, and so do banks that lack three classes, which the
scenes still hold, and banks of two classes. Regions that are named background all have the same
confidence; they stand in a row of their own, and not in the chart. The error is the expected
calibration error: the distance of a bin's confidence from its share, averaged over regions.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from harness import Experiment, start
from plots import create_figure, render_figure
from tables import write_chart, write_csv
from true_regions import Naming, collect_true_regions
from validation import open_validation_scenes

from rimjax.commands.console import progress
from rimjax.datasets import fashion_mnist
from rimjax.models.calibration import Confidence
from rimjax.models.trust import find_confidence

SCENES = slice(800, 1200)
BINS = 10
COLUMNS = ("configuration", "classes", "regions", "count", "mean confidence", "named rightly")


def bin_regions(namings: Iterable[Naming], confidence: Confidence) -> list[tuple[float, ...]]:
    """Return count, mean confidence and share named rightly: of each bin, then of the background.

    Bins are tenths of the confidence; empty ones are left out.
    """
    estimates, rights, bins = [], [], []
    for naming in namings:
        background = naming.labels == 0
        estimate = confidence.estimate(naming.scores, naming.margins, background)
        estimates.append(estimate)
        rights.append(naming.right)
        tenths = np.minimum((estimate * BINS).astype(int), BINS - 1)
        bins.append(np.where(background, BINS, tenths))
    estimate, right, where = map(np.concatenate, (estimates, rights, bins))
    return [
        (int(mine.sum()), float(estimate[mine].mean()), float(right[mine].mean()))
        for mine in (where == index for index in range(BINS + 1))
        if mine.any()
    ]


def main(experiment: Experiment) -> None:
    if experiment.preset != "mini":
        raise ValueError(f"preset must be mini, which is calibrated, got {experiment.preset}")
    scenes = open_validation_scenes(experiment.data or fashion_mnist.DEBIAN_ROOT, SCENES.stop)
    models = experiment.load_models("rimjax")
    items = progress(scenes.items[SCENES][: experiment.limit], "regions", "scene")
    regions = collect_true_regions(items, experiment.open_regions(models), scenes.classes)
    folder = replace(experiment, validation=True).folder
    rows: list[tuple[object, ...]] = []
    canvas, axes = create_figure(2, 4.2)
    for axis, configuration in zip(axes, ("rimjax", "printed"), strict=True):
        models = experiment.load_models(configuration)
        confidence = find_confidence(models, models.segmentation)
        if confidence is None:
            raise ValueError(
                "models must be those that were calibrated; run experiments/mini/calibrate.py"
            )
        for count in (10, 7, 2):
            namings = regions.name_by_vocabularies(count, models, experiment.cache)
            *bins, last = bin_regions(namings, confidence)
            names = [*(["named a class"] * len(bins)), "named background"]
            for name, numbers in zip(names, (*bins, last), strict=True):
                rows.append((configuration, count, name, *(round(each, 4) for each in numbers)))
            total = sum(size for size, _, _ in bins)
            error = sum(size * abs(mean - share) for size, mean, share in bins) / total
            title = f"{count} of the 10 classes (error {100 * error:.1f} points)"
            axis.plot([b[1] for b in bins], [b[2] for b in bins], marker="o", label=title)
            print(f"{configuration}, {title}")
        axis.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=0.8)
        axis.set(xlabel="confidence", ylabel="share named rightly", title=configuration)
        axis.legend(title="the bank holds", loc="upper center", bbox_to_anchor=(0.5, -0.14))
        axis.grid(alpha=0.3)
    write_csv(folder, "reliability", [COLUMNS, *rows])
    write_chart(folder, "reliability", render_figure(canvas))


if __name__ == "__main__":
    start(main, Experiment, __doc__)
