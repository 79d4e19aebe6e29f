"""Count the images that mini takes for unlike its scenes: its own, photographs, made pictures.

Command:  python experiments/unfamiliar.py --photos FOLDER
              mini; 2 CPU cores, 1 minute

The photographs are those of a folder of your own, if one is given, and those that come with
scikit-learn and matplotlib; of each, four random squares of half its shorter side count as well.
The made pictures are noise, gradients, single colours and drawings.
"""

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from harness import Experiment, start
from PIL import Image, ImageDraw
from tables import write_csv

from rimjax import datasets
from rimjax.commands.options import NO_DEFAULT
from rimjax.commands.segment_files import list_pictures
from rimjax.datasets import fashion_mnist, fashion_scenes
from rimjax.images import read_image


@dataclass(frozen=True, kw_only=True)
class Unfamiliar(Experiment):
    """Options.

    Attributes:
        photos: Folder of photographs.
    """

    photos: Annotated[Path | None, NO_DEFAULT] = None


def compress(image: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=50)
    return read_image(file.getvalue())


def render_large(count: int) -> Iterator[np.ndarray]:
    """Render scenes of test-split photographs at twice the size."""
    photos, classes = fashion_mnist.load_shipped_items()
    for index in range(count):
        rng = np.random.default_rng((80, index))
        yield fashion_scenes.render_random(rng, photos, classes, 256).image


def crop(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = photo.shape[:2]
    side = min(height, width) // 2
    top, left = rng.integers(0, [height - side + 1, width - side + 1])
    return photo[top : top + side, left : left + side]


def make_pictures(rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    """Make pictures by kind, 128 pixels a side."""
    shape, ramp = (128, 128, 3), np.tile(np.linspace(0, 255, 128), (128, 1))
    noises = [rng.integers(0, 256, shape), 128 + 20 * rng.normal(size=shape)]
    noises.append(np.repeat(rng.integers(0, 256, (128, 128, 1)), 3, axis=2))
    gradients = [np.stack([ramp] * 3, -1), np.stack([ramp, ramp.T, 255 - ramp], -1)]
    plain = [np.full(shape, colour) for colour in (0, 128, 255, (200, 30, 30))]
    sheets = [Image.new("RGB", shape[:2], colour) for colour in ("white", "#78b45a", "white")]
    lines, house, text = map(ImageDraw.Draw, sheets)
    lines.ellipse((20, 20, 80, 80), outline="black", width=3)
    lines.line((0, 127, 127, 10), fill="black", width=2)
    lines.rectangle((70, 70, 120, 120), outline="black")
    house.rectangle((30, 50, 100, 110), fill="#b43c32")
    house.polygon([(20, 50), (64, 15), (110, 50)], fill="#5a281e")
    house.rectangle((55, 80, 75, 110), fill="#3c2814")
    for line in range(8):
        text.text((4, 4 + 15 * line), "The quick brown fox jumps over", fill="black")
    kinds = {"noise": noises, "gradients": gradients, "single colours": plain}
    made = {
        kind: [np.clip(picture, 0, 255).astype(np.uint8) for picture in pictures]
        for kind, pictures in kinds.items()
    }
    return made | {"drawings": [np.asarray(sheet) for sheet in sheets]}


def main(experiment: Unfamiliar) -> None:
    from matplotlib import get_data_path
    from sklearn.datasets import load_sample_images

    models, rng = experiment.load_models("rimjax"), np.random.default_rng(0)
    known = models.calibration
    if known is None or known.encoder != models.features:
        raise ValueError(
            "models must be those that were calibrated; run experiments/mini/calibrate.py"
        )
    items = datasets.load("fashion-scenes").items[: experiment.limit]
    scenes = [item.image() for item in items]
    portrait = Path(get_data_path(), "sample_data", "grace_hopper.jpg")
    bundled = [*load_sample_images().images, read_image(portrait)]
    own = [] if experiment.photos is None else list_pictures([experiment.photos])
    photographs = {
        "the folder's photographs": list(map(read_image, own)),
        "scikit-learn's and matplotlib's": bundled,
    }
    squares = {
        f"squares of {kind}": [crop(photo, rng) for photo in photos for _ in range(4)]
        for kind, photos in photographs.items()
    }
    groups = {
        "the benchmark's scenes": scenes,
        "the same, as JPEG of quality 50": list(map(compress, scenes)),
        "scenes of 256 pixels": list(render_large(len(scenes))),
        **photographs,
        **squares,
        **make_pictures(rng),
    }
    rows: list[tuple[object, ...]] = [("images", "number", "unfamiliar", "least", "median", "most")]
    for kind, images in groups.items():
        if images:
            grids = models.encoder.encode_batch(images)
            distances = np.array([known.measure_distance(grid) for grid in grids])
            ends = [round(float(each), 1) for each in np.quantile(distances, [0, 0.5, 1])]
            rows.append((kind, len(images), int((distances > known.limit).sum()), *ends))
    for row in rows:
        print(*row, sep="  ")
    grid = models.encoder.encode(scenes[0])
    begin = time.perf_counter()
    for _ in range(100):
        known.measure_distance(grid)
    print(f"limit {known.limit:.1f}; {10 * (time.perf_counter() - begin):.2f} ms an image")
    write_csv(experiment.folder, "unfamiliar", rows)


if __name__ == "__main__":
    start(main, Unfamiliar, __doc__)
