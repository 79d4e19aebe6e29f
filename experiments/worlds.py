"""Synthetic features like DINOv2's, for what mini can't show about the readings of Sec. 3.5.

Mini's features are weak and their cosines partly negative. Here D = 768, all cosines are positive
with a large part that all features share, classes come in groups of akin classes, the noise within
classes is anisotropic, classes have sub-clusters of which the drawn images cover some only, regions
hold a share of a neighbour's feature, and real images are shifted against drawn ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rimjax.references.contents import ClassReferences

DIM = 768  # of ViT-B
IMAGES = 32  # drawn of each class
REGIONS = 2000
BACKGROUND_SHARE = 0.2  # of the regions
# Directions differ in variance, and noise keeps to fewer of them than classes do.
CLASS_DECAY, NOISE_DECAY = 0.4, 0.6


@dataclass(frozen=True)
class World:
    """Strengths of the parts that features are made of; each part is a vector of about this length.

    Attributes:
        classes: number of classes without the background.
        common: part that all features share.
        group: part that akin classes share.
        own: part of a class alone.
        sub: part of a sub-cluster.
        noise: anisotropic part of an image.
        covered: share of a class's sub-clusters that drawn images show.
        mixed: the largest share of a neighbour's feature in a region's.
        shift: part of all real images; each class's real images have another of half the length.
        fresh: share of the variance of real images' noise that lies along directions of its own,
            which drawn images don't show.
        group_size: classes in a group.
        subclusters: of a class.
    """

    classes: int
    common: float = 1.0
    group: float = 0.4
    own: float = 0.6
    sub: float = 0.5
    noise: float = 0.7
    covered: float = 0.7
    mixed: float = 0.35
    shift: float = 0.3
    fresh: float = 0.5
    group_size: int = 5
    subclusters: int = 8


WORLDS = {
    "21 classes, mild": World(20, noise=0.6, mixed=0.3),
    "21 classes, hard": World(20, own=0.4, noise=1.0, mixed=0.45, shift=0.4),
    "60 classes, hard": World(59, own=0.4, noise=0.9, mixed=0.45, shift=0.4),
    "81 classes, mild": World(80, mixed=0.3),
    "81 classes, hard": World(80, own=0.4, noise=0.9, mixed=0.45, shift=0.4),
    "81 classes, large common part": World(
        80, common=2.0, own=0.4, noise=0.9, mixed=0.45, shift=0.4
    ),
    "81 classes, akin": World(80, group=0.8, own=0.3, noise=0.8, mixed=0.4),
    "81 classes, strong sub-clusters": World(80, own=0.4, sub=0.9, noise=0.6, covered=0.5),
    "81 classes, strong shift": World(80, own=0.45, noise=0.8, shift=0.9),
}


def make_world(world: World, seed: int) -> tuple[list[ClassReferences], np.ndarray, np.ndarray]:
    """Make a world's references, and its regions with their true classes.

    Returns:
        The references of each class, the regions' features f32[P, D], and their classes i32[P], 0
        for the background.
    """
    rng = np.random.default_rng(seed)

    basis = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]

    def draw(*shape: int, decay: float = CLASS_DECAY) -> np.ndarray:
        """Draw vectors of about length 1 whose deviation falls along the basis."""
        spread = np.arange(1.0, DIM + 1) ** -decay
        return rng.standard_normal((*shape, DIM)) * (spread / (spread**2).sum() ** 0.5) @ basis.T

    def make_noise(count: int) -> np.ndarray:
        return world.noise * draw(count, decay=NOISE_DECAY)

    turned = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]  # the directions of fresh noise

    def make_real_noise(count: int) -> np.ndarray:
        known, fresh = make_noise(count), make_noise(count) @ turned
        return (1 - world.fresh) ** 0.5 * known + world.fresh**0.5 * fresh

    groups = draw(-(-world.classes // world.group_size))
    common = world.common * draw()
    centres = np.empty((1 + world.classes, world.subclusters, DIM))
    centres[1:] = (
        world.group * groups[np.arange(world.classes) // world.group_size, None]
        + world.own * draw(world.classes, 1)
        + world.sub * draw(world.classes, world.subclusters)
    )
    # The background is many things: its sub-clusters lie as far apart as classes do.
    centres[0] = (world.own**2 + world.group**2) ** 0.5 * draw(world.subclusters)
    centres += common
    shift = world.shift * (draw() + 0.5 * draw(1 + world.classes, 1))
    covered = max(1, round(world.covered * world.subclusters))

    references = []
    for c in range(1, 1 + world.classes):
        seen = rng.permutation(world.subclusters)[:covered]
        parts = centres[c, rng.choice(seen, IMAGES)], centres[0, rng.integers(0, covered, IMAGES)]
        foreground, background = ((part + make_noise(IMAGES)).astype(np.float32) for part in parts)
        references.append(_keep_features(f"class {c}", foreground, background))

    labels = rng.integers(1, 1 + world.classes, REGIONS).astype(np.int32)
    labels[rng.random(REGIONS) < BACKGROUND_SHARE] = 0
    shares = world.mixed * rng.random((REGIONS, 1))
    neighbours = np.where(rng.random(REGIONS) < 0.5, 0, rng.permutation(labels))
    own, others = (
        (centres + shift)[classes, rng.integers(0, world.subclusters, REGIONS)]
        + make_real_noise(REGIONS)
        for classes in (labels, neighbours)
    )
    return references, ((1 - shares) * own + shares * others).astype(np.float32), labels


def _keep_features(name: str, foreground: np.ndarray, background: np.ndarray) -> ClassReferences:
    empty = np.zeros((len(foreground), 1, 1))
    return ClassReferences(
        name=name,
        images=None,
        masks=None,
        attention=empty.astype(np.float32),
        points=np.zeros((len(foreground), 1, 2), np.float32),
        fallbacks=0,
        foreground=foreground,
        background=background,
        whole=(foreground + background) / 2,
    )
