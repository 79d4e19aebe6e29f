"""Small objects in photographs of one's own: pool the whole photograph, or a crop?

Command:  python experiments/own_photographs.py
              mini; 2 CPU cores, MINUTES

References are photographs of single training-split items with their masks, test images are scenes
of other training-split items, none of which the ViT or SAM has seen; the benchmark isn't touched.
"""

import argparse
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np

import rimjax
from rimjax.datasets import Dataset, Item, fashion_mnist, fashion_scenes
from rimjax.evaluation import evaluate
from rimjax.models.protocols import Models
from rimjax.references import cut
from rimjax.types import ReferenceBank

EXTENTS = ((16, 24), (24, 36), (36, 56), (56, 76), (80, 104))
"""Longest side of an item, in 128ths of its photograph, from and to."""

MARGINS = (0.0, 1.2, 1.5, 2.0, 3.0)
"""Side of the crop over the object's longer side; 0: the whole photograph."""

PHOTOGRAPHS, SIZE, SEEDS, SCENES = 8, 512, 3, 60

Photos = tuple[np.ndarray, np.ndarray]


def take_photograph(
    photos: Photos, label: int, extent: tuple[int, int], seed: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return a photograph of an item of a class at a random place, and its mask."""
    rng = np.random.default_rng(seed)
    reach = extent[1] / 256 + 0.05
    place = tuple(rng.uniform(reach, 1 - reach, 2))
    item = int(rng.choice(np.flatnonzero(photos[1] == label)))
    with (
        mock.patch.dict(fashion_scenes._EXTENTS, {1: extent}),
        mock.patch.dict(fashion_scenes._CENTRES, {1: (place,)}),
    ):
        scene = fashion_scenes.render(rng, *photos, (item,), SIZE)
    return scene.image, scene.labels > 0


def build_bank(
    models: Models, photos: Photos, extent: tuple[int, int], margin: float, seed: int
) -> tuple[ReferenceBank, float]:
    """Build a bank from photographs; return it and the mean share that an object covers."""
    references, shares = {}, []
    for label, name in enumerate(fashion_mnist.CLASSES):
        taken = [
            take_photograph(photos, label, extent, (seed, label, i)) for i in range(PHOTOGRAPHS)
        ]
        references[name] = [rimjax.Reference(image, mask=mask) for image, mask in taken]
        shares += [mask.mean() for _, mask in taken]
    with (
        mock.patch.object(cut, "CROP_SHARE", float(margin > 0)),
        mock.patch.object(cut, "CROP_MARGIN", margin),
        TemporaryDirectory() as cache,
    ):
        bank = rimjax.build_bank([], models, cache_dir=cache, references=references)
    return bank, float(np.mean(shares))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=fashion_mnist.DEBIAN_ROOT)
    photos = [part[-5_000:] for part in fashion_mnist.read_idx("train", parser.parse_args().data)]
    own, others = ((photos[0][part], photos[1][part]) for part in (np.s_[:2500], np.s_[2500:]))

    def render(index: int, part: str) -> np.ndarray:
        rng = np.random.default_rng((78, index))
        return getattr(fashion_scenes.render_random(rng, *others), part)

    items = [
        Item(f"{i:04d}", partial(render, i, "image"), partial(render, i, "labels"))
        for i in range(SCENES)
    ]
    scenes, models = Dataset("scenes", fashion_mnist.CLASSES, items), rimjax.load_preset("mini")
    print("| share of the photograph | whole |", *(f"{margin} |" for margin in MARGINS[1:]))
    print("|---" * (1 + len(MARGINS)) + "|")
    with TemporaryDirectory() as cache:
        for extent in EXTENTS:
            cells, shares = [], []
            for margin in MARGINS:
                figures = []
                for seed in range(SEEDS):
                    bank, share = build_bank(models, own, extent, margin, seed)
                    figures.append(100 * evaluate(scenes, bank, models, cache_dir=cache).miou)
                    shares.append(share)
                spread = f"{min(figures):.1f} to {max(figures):.1f}"
                cells.append(f"{np.mean(figures):.1f} ({spread})")
            print(f"| {100 * np.mean(shares):.0f} % |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
