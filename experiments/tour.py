"""A tour in one picture: an image, its proposals, its segmentation, and why a region got its name.

Command:  python experiments/tour.py
              mini; seconds with a kept bank, else 2 minutes of 2 CPU cores

Writes docs/tour.png. The region is the largest that isn't background.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from harness import Experiment, start
from PIL import Image
from plots import create_figure, render_figure

import rimjax
from rimjax.commands.console import show_class_progress
from rimjax.files import atomic_file
from rimjax.references.build import assemble_bank, build_references
from rimjax.show import draw


@dataclass(frozen=True, kw_only=True)
class Tour(Experiment):
    """Options.

    Attributes:
        image: Position of the image in the data set.
        out: Folder for tour.png.
    """

    image: int = 7
    out: Path | None = Path(__file__).parents[1] / "docs"


def main(experiment: Tour) -> None:
    models = experiment.load_models("rimjax")
    prompts, cache = experiment.dataset.prompts, experiment.cache_dir
    manifest, references = build_references(
        prompts, models, cache_dir=cache, progress=show_class_progress
    )
    bank = assemble_bank(references, models.references, models.features)
    image = experiment.items[experiment.image].image()
    seg = rimjax.segment(image, bank, models)
    if not seg.segments:
        raise ValueError(f"image must show one of the classes, got {experiment.image}; try another")
    region = max(seg.segments, key=lambda segment: segment.area).id - 1
    explained = rimjax.explain(seg, region, bank, models, references=manifest)
    strip = draw_strip(image, seg)
    height = round(strip.height * 1210 / strip.width)
    tour = draw.grid([strip.resize((1210, height)), draw.explanation(image, explained)], 1)
    with atomic_file(experiment.folder / "tour.png") as temporary:
        tour.save(temporary, "PNG", optimize=True)
    print(f"tour: {experiment.folder / 'tour.png'}")


def draw_strip(image: np.ndarray, seg: rimjax.Segmentation) -> Image.Image:
    """Draw an image, the outlines of its proposals, and its segmentation side by side."""
    canvas, axes = create_figure(3, 5.6)
    titles = ("1. an image", f"2. its {len(seg.masks)} proposals", "3. its segmentation")
    for axis, title, picture in zip(
        axes, titles, (image, image, draw.overlay(image, seg)), strict=True
    ):
        axis.imshow(picture)
        axis.set_title(title, fontsize=18)
        axis.axis("off")
    for mask, colour in zip(seg.masks, draw.pick_colours(len(seg.masks) + 1)[1:], strict=True):
        axes[1].contour(mask, [0.5], colors=[tuple(colour / 255)], linewidths=2)
    canvas.tight_layout()
    return render_figure(canvas).convert("RGB")


if __name__ == "__main__":
    start(main, Tour, __doc__)
