"""Fashion Scenes: photographs of clothing, cut out, tinted, turned and laid on synthetic grounds.

The photographs are Fashion-MNIST's (MIT licence). The mini models learn from scenes of its training
split; the benchmark is 200 scenes of test-split photographs in the package, so that it renders the
same on every machine.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from scipy import ndimage

from rimjax.datasets.dataset import Dataset, Item
from rimjax.datasets.fashion_mnist import CLASSES, cut_out, load_shipped_items

TINTS = {
    "red": 0.0,
    "orange": 0.08,
    "yellow": 0.15,
    "green": 0.33,
    "cyan": 0.5,
    "blue": 0.62,
    "purple": 0.76,
    "pink": 0.9,
    "white": None,
}
"""Tint name -> hue in turns; None has no saturation."""

GROUNDS = ("plain", "striped", "checked", "dotted", "cloudy")

SCENE_SIZE = 128
BENCHMARK_SCENES = 200
BENCHMARK_SEED = 2024

# Longest side of an item in pixels of a 128-pixel scene, by how many items the scene holds.
_EXTENTS = {1: (80, 104), 2: (60, 76), 3: (56, 66)}
_CENTRES = {
    1: ((0.5, 0.5),),
    2: ((0.5, 0.27), (0.5, 0.73)),
    3: ((0.27, 0.27), (0.27, 0.73), (0.73, 0.5)),
}


@dataclass(frozen=True)
class Scene:
    """A rendered scene.

    Attributes:
        image: uint8[H, W, 3].
        labels: uint8[H, W], 0 = ground, 1 + class index where an item is visible.
        instances: uint8[H, W], 0 = ground, 1 + the item's position in `items` where it is visible.
        items: the photographs' indices, in the order they were laid down.
        tints: each item's tint name.
        ground: the ground's name, one of `GROUNDS`.
    """

    image: np.ndarray
    labels: np.ndarray
    instances: np.ndarray
    items: tuple[int, ...]
    tints: tuple[str, ...]
    ground: str


def _pick_colour(
    rng: np.random.Generator,
    hue: float | None,
    saturation: tuple[float, float],
    value: tuple[float, float],
) -> np.ndarray:
    saturated = 0.0 if hue is None else rng.uniform(*saturation)
    return np.array(
        colorsys.hsv_to_rgb(
            ((hue or 0.0) + rng.uniform(-0.03, 0.03)) % 1.0, saturated, rng.uniform(*value)
        )
    )


def _render_ground(rng: np.random.Generator, name: str, size: int) -> np.ndarray:
    """Render a ground, float64[size, size, 3] in 0..1: a muted colour shaded by a pattern."""
    base = _pick_colour(rng, rng.uniform(), (0.05, 0.4), (0.25, 0.75))
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 20) * size / SCENE_SIZE
    y, x = np.mgrid[:size, :size].astype(np.float64)
    along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    wave = {
        "plain": lambda: np.zeros((size, size)),
        "striped": lambda: np.sin(2 * np.pi * along / period),
        "checked": lambda: (
            np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period) * 1.5
        ),
        "dotted": lambda: (
            2.0 * ((np.sin(2 * np.pi * along / period) + np.sin(2 * np.pi * across / period)) > 1.1)
            - 0.5
        ),
        "cloudy": lambda: ndimage.zoom(
            rng.normal(size=(6, 6)), size / 6, order=1, mode="nearest", grid_mode=True
        ),
    }[name]()
    shade = rng.uniform(0.05, 0.16) * wave + rng.normal(scale=0.012, size=(size, size))
    return np.clip(base + shade[..., None], 0.0, 1.0)


def render(
    rng: np.random.Generator,
    photos: np.ndarray,
    classes: np.ndarray,
    items: tuple[int, ...],
    size: int = SCENE_SIZE,
) -> Scene:
    """Lay one to three photographs on a ground.

    Args:
        rng: random generator of ground, tints, turns (up to 10 degrees), sizes and places.
        photos: uint8[n, 28, 28].
        classes: uint8[n] class indices.
        items: indices of the photographs, in the order they are laid down.
        size: pixels a side.

    Returns:
        The scene; a later item hides what it covers of an earlier one.
    """
    ground = str(rng.choice(GROUNDS))
    canvas = _render_ground(rng, ground, size)
    labels, instances = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint8)
    tints = []
    for position, (item, centre) in enumerate(
        zip(items, rng.permutation(_CENTRES[len(items)]), strict=True), start=1
    ):
        tint = str(rng.choice(list(TINTS)))
        colour = _pick_colour(rng, TINTS[tint], (0.45, 0.85), (0.8, 1.0))
        mask = cut_out(photos[item]).astype(np.float64)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        middle = np.array([rows[0] + rows[-1], columns[0] + columns[-1]]) / 2
        zoom = (
            rng.uniform(*_EXTENTS[len(items)])
            / SCENE_SIZE
            * size
            / max(np.ptp(rows) + 1, np.ptp(columns) + 1)
        )
        turn = np.deg2rad(rng.uniform(-10, 10))
        where = (np.asarray(centre) + rng.uniform(-0.045, 0.045, 2)) * size
        inverse = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) / zoom
        reach = zoom * max(np.ptp(rows) + 1, np.ptp(columns) + 1) * 0.75
        low = np.clip(np.floor(where - reach), 0, size).astype(int)
        high = np.clip(np.ceil(where + reach), 0, size).astype(int)
        window = np.s_[low[0] : high[0], low[1] : high[1]]
        resample = partial(
            ndimage.affine_transform,
            matrix=inverse,
            offset=middle - inverse @ (where - 0.5 - low),  # pyright: ignore[reportArgumentType]
            output_shape=tuple(high - low),
            order=1,
        )
        inside = resample(mask)
        alpha = np.clip((inside - 0.5) * zoom * 0.7 + 0.5, 0.0, 1.0)[..., None]
        shaded = (0.22 + 0.78 * resample(photos[item] / 255.0))[..., None] * colour
        canvas[window] = canvas[window] * (1 - alpha) + np.clip(shaded, 0.0, 1.0) * alpha
        labels[window][inside >= 0.5] = classes[item] + 1
        instances[window][inside >= 0.5] = position
        tints.append(tint)
    image = np.round(canvas * 255).astype(np.uint8)
    return Scene(image, labels, instances, tuple(int(i) for i in items), tuple(tints), ground)


def render_random(
    rng: np.random.Generator, photos: np.ndarray, classes: np.ndarray, size: int = SCENE_SIZE
) -> Scene:
    """Render one to three random photographs; every class is equally likely."""
    count = int(rng.choice([1, 2, 3], p=[0.3, 0.35, 0.35]))
    items = tuple(
        int(rng.choice(np.flatnonzero(classes == rng.integers(len(CLASSES))))) for _ in range(count)
    )
    return render(rng, photos, classes, items, size)


def render_single(
    rng: np.random.Generator, photos: np.ndarray, classes: np.ndarray, item: int, size: int = 64
) -> tuple[Scene, str]:
    """Render one large item on a ground, with its caption."""
    return render_captioned(rng, photos, classes, (item,), size)


def render_captioned(
    rng: np.random.Generator,
    photos: np.ndarray,
    classes: np.ndarray,
    items: tuple[int, ...],
    size: int = 64,
) -> tuple[Scene, str]:
    """Render items on a ground, with the caption that the diffusion model and CLIP learn from.

    Returns:
        The scene and a caption such as "a photo of sneaker", "a photo on striped ground of red
        sneaker" or, for two items, "a photo of sneaker of blue bag". The class name comes last: the
        text encoder is causal, so attention to the class is attention to its name.
    """
    scene = render(rng, photos, classes, items, size)
    ground = f" on {scene.ground} ground" if rng.uniform() < 0.5 else ""
    named = [
        f" of {tint} {CLASSES[classes[item]]}"
        if rng.uniform() < 0.5
        else f" of {CLASSES[classes[item]]}"
        for tint, item in zip(scene.tints, items, strict=True)
    ]
    return scene, f"a photo{ground}{''.join(named)}"


@lru_cache(maxsize=1)
def render_benchmark_scene(index: int) -> Scene:
    """Render one of the benchmark's 200 scenes; each has its own seed."""
    return render_random(np.random.default_rng((BENCHMARK_SEED, index)), *load_shipped_items())


def render_benchmark(count: int = BENCHMARK_SCENES) -> Iterator[Scene]:
    """Render the benchmark's first `count` scenes."""
    return map(render_benchmark_scene, range(count))


def open_benchmark() -> Dataset:
    """Open the benchmark as a data set."""
    items = [
        Item(
            f"scene-{index:03d}",
            partial(_render_part, index, "image"),
            partial(_render_part, index, "labels"),
        )
        for index in range(BENCHMARK_SCENES)
    ]
    return Dataset("fashion-scenes", CLASSES, items)


def _render_part(index: int, part: str) -> np.ndarray:
    return getattr(render_benchmark_scene(index), part)
