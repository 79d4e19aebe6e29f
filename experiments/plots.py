"""Charts of the experiments, through matplotlib, without a screen."""

from __future__ import annotations

import io
from collections.abc import Mapping

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rimjax.evaluate import Evaluation


def figure(columns: int, height: float = 4.6) -> tuple[Figure, list[Axes]]:
    """An empty figure of so many charts side by side."""
    made, axes = plt.subplots(1, columns, figsize=(5.6 * columns, height), squeeze=False)
    return made, list(axes[0])


def picture(made: Figure) -> Image.Image:
    """A figure as a picture; it is closed."""
    file = io.BytesIO()
    made.savefig(file, format="png", dpi=110, bbox_inches="tight")
    plt.close(made)
    return Image.open(file)


def curves(found: Mapping[str, Mapping[float, Evaluation]], marked: Mapping[str, float] | None = None) -> Image.Image:
    """mIoU (%) with its 95 % interval against a setting, a chart a setting; a dashed line stands at the marked value."""
    made, axes = figure(len(found), 3.6)
    for axis, (name, points) in zip(axes, found.items(), strict=True):
        means = [100 * one.miou for one in points.values()]
        intervals = [[100 * end for end in one.interval()] for one in points.values()]
        off = [[mean - low for mean, (low, _) in zip(means, intervals, strict=True)]]
        off.append([high - mean for mean, (_, high) in zip(means, intervals, strict=True)])
        axis.errorbar(list(points), means, off, marker="o", capsize=3)
        axis.set(xlabel=name, ylabel="mIoU (%)", xticks=list(points))
        if marked and name in marked:
            axis.axvline(marked[name], color="grey", linestyle="--", linewidth=0.8)
        axis.grid(alpha=0.3)
    return picture(made)
