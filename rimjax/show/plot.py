"""Plot an explanation: agents, rankings, scores and the nearest references of a region."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rimjax.images import ImageSource, read_image
from rimjax.show.explain import Explanation, Neighbour

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_CLASSES, MOST_RANKINGS, LONGEST = 12, 6, 20  # LONGEST: letters of a name
REGION, WINNER, RUNNER_UP = "#222222", "#0072b2", "#d55e00"


def explanation(image: ImageSource, explained: Explanation) -> Image.Image:
    """Draw why a region got its name: `plot_explanation` as a picture.

    Args:
        image: the segmented image, as of `rimjax.segment`.
        explained: from `rimjax.explain`.

    Raises:
        ValueError: the image has another size than the region's mask.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(plot_explanation(image, explained))
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def plot_explanation(image: ImageSource, explained: Explanation) -> Figure:
    """Plot a region, its class scores, its agents, its rankings and the nearest references.

    Arguments and errors are those of `explanation`.
    """
    from matplotlib.figure import Figure

    pixels = read_image(image)
    if pixels.shape[:2] != explained.mask.shape:
        raise ValueError(
            f"image must have the region's size {explained.mask.shape}, got {pixels.shape[:2]}"
        )
    count = len(explained.neighbours)
    figure = Figure(figsize=(11, 9.6 if count else 7.4), layout="constrained", dpi=110)
    figure.suptitle(_title(explained), fontsize=14)
    heights = [3, 3, 1.9] if count else [1, 1]
    rows: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    region, scores = rows[0].subplots(1, 2)
    _show_masked(region, pixels, explained.mask)
    region.set_title("the region")
    _plot_scores(scores, explained)
    agents, rankings = rows[1].subplots(1, 2, width_ratios=[1, 1.1])
    _plot_agents(agents, explained)
    rows[1].legend(loc="outside lower center", ncols=3)
    _plot_rankings(rankings, explained)
    if count:
        rows[2].suptitle("nearest references, with the cosine of their features", fontsize=12)
        places = np.ravel(rows[2].subplots(1, max(count, 6)))
        for axes in places:
            axes.axis("off")
        for axes, neighbour in zip(places, explained.neighbours, strict=False):
            _show_neighbour(axes, neighbour)
    return figure


def _spell(name: str) -> str:
    """Shorten a long name, and escape the dollars that matplotlib would read as mathematics."""
    return (name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…").replace("$", r"\$")


def _title(explained: Explanation) -> str:
    title = f"{_spell(explained.name)}, region {explained.region}"
    if explained.runner_up is None:
        return title
    margin = explained.winner.score - explained.runner_up.score
    title += f": {_spell(explained.winner.name)} before {_spell(explained.runner_up.name)}"
    title += f" by {margin:.3f}"
    if explained.confidence is None:
        return title
    return f"{title}, confidence {explained.confidence:.0%}"


def _show_masked(axes: Any, pixels: np.ndarray, mask: np.ndarray) -> None:
    """Show an image that is dimmed outside of a mask, with the mask's outline."""
    dimmed = np.where(mask[..., None], pixels, pixels // 3 + 150)
    axes.imshow(dimmed.astype(np.uint8))
    if mask.any() and not mask.all():
        axes.contour(mask, [0.5], colors=["#d00000"], linewidths=1.5)
    axes.axis("off")


def _show_neighbour(axes: Any, neighbour: Neighbour) -> None:
    _show_masked(axes, neighbour.image, neighbour.mask)
    axes.set_title(f"{_spell(neighbour.name)}\n{neighbour.cosine:.2f}", fontsize=9)


def _plot_scores(axes: Any, explained: Explanation) -> None:
    """Plot the scores of the best classes."""
    names = list(explained.scores)[:MOST_CLASSES]
    values = [explained.scores[name] for name in names]
    second = explained.runner_up.name if explained.runner_up else None
    colours = [
        WINNER if name == explained.winner.name else RUNNER_UP if name == second else "#999999"
        for name in names
    ]
    finite = [value if np.isfinite(value) else 0 for value in values]
    bars = axes.barh(range(len(names)), finite, color=colours)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, fontsize=9)
    axes.set_yticks(range(len(names)), list(map(_spell, names)))
    axes.invert_yaxis()
    axes.margins(x=0.15)
    rest = len(explained.scores) - len(names)
    axes.set_title("score of every class" + (f" ({rest} more)" if rest else ""))
    _tidy(axes)


def _list_rows(explained: Explanation) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """List label, colour, cosines and probabilities of region, winner and runner-up."""
    rows = [("region", REGION, explained.cosines, explained.probabilities)]
    for colour, one in ((WINNER, explained.winner), (RUNNER_UP, explained.runner_up)):
        if one is not None:
            rows.append(
                (f"reference of {_spell(one.name)}", colour, one.cosines, one.probabilities)
            )
    return rows


def _plot_agents(axes: Any, explained: Explanation) -> None:
    """Plot the cosines to the agents."""
    rows, places = _list_rows(explained), np.arange(len(explained.agents))
    width = 0.8 / len(rows)
    for index, (label, colour, cosines, _) in enumerate(rows):
        axes.bar(places + index * width, cosines, width, label=label, color=colour)
    names = list(map(_spell, explained.agents))
    slant = 0 if sum(map(len, names)) <= 40 else 30
    axes.set_xticks(places + width * (len(rows) - 1) / 2, names, rotation=slant)
    axes.axhline(0, color="#222222", linewidth=0.8)
    axes.set_title("cosine to the region's agents")
    _tidy(axes)


def _plot_rankings(axes: Any, explained: Explanation) -> None:
    """Plot the probabilities of the region's most likely rankings."""
    shown = explained.rankings[:MOST_RANKINGS]
    axes.set_title("probability of the region's likeliest rankings")
    if not len(shown):
        axes.axis("off")
        axes.text(0.5, 0.5, "rankings aren't listed", ha="center", va="center")
        return
    rows, places = _list_rows(explained), np.arange(len(shown))
    height = 0.8 / len(rows)
    for index, (_, colour, _, probabilities) in enumerate(rows):
        axes.barh(places + index * height, probabilities[: len(shown)], height, color=colour)
    names = list(map(_spell, explained.agents))
    labels = [" > ".join(names[agent] for agent in ranking) for ranking in shown]
    axes.set_yticks(places + height * (len(rows) - 1) / 2, labels, fontsize=8)
    axes.invert_yaxis()
    _tidy(axes)


def _tidy(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
