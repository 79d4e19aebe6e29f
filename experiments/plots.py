"""Draw charts with matplotlib, without a screen."""

from __future__ import annotations

import io
from collections.abc import Mapping

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from rimjax.evaluation import Evaluation


def create_figure(columns: int, height: float = 4.6, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """Create an empty figure of charts side by side, row by row; `height` is a row's."""
    size = (5.6 * columns, height * rows)
    canvas, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    return canvas, list(axes.flat)


def render_figure(canvas: Figure) -> Image.Image:
    """Render a figure as a picture, and close it."""
    file = io.BytesIO()
    canvas.savefig(file, format="png", dpi=110, bbox_inches="tight")
    plt.close(canvas)
    return Image.open(file)


def draw_curves(
    evaluations: Mapping[str, Mapping[float, Evaluation]], marked: Mapping[str, float] | None = None
) -> Image.Image:
    """Plot mIoU (%) with its 95 % interval against settings; dash a line at the marked value."""
    canvas, axes = create_figure(len(evaluations), 3.6)
    for axis, (name, points) in zip(axes, evaluations.items(), strict=True):
        means = [100 * point.miou for point in points.values()]
        intervals = [[100 * end for end in point.estimate_interval()] for point in points.values()]
        off = [[mean - low for mean, (low, _) in zip(means, intervals, strict=True)]]
        off.append([high - mean for mean, (_, high) in zip(means, intervals, strict=True)])
        axis.errorbar(list(points), means, off, marker="o", capsize=3)
        axis.set(xlabel=name, ylabel="mIoU (%)", xticks=list(points))
        if marked and name in marked:
            axis.axvline(marked[name], color="grey", linestyle="--", linewidth=0.8)
        axis.grid(alpha=0.3)
    return render_figure(canvas)
