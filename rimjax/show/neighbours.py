"""The reference images that are nearest to a region."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, UInt8

from rimjax.match.readings import compute_cosines
from rimjax.references.contents import Manifest
from rimjax.references.packed import PackedBank
from rimjax.references.store import read_all_references, read_references
from rimjax.types import BACKGROUND, ReferenceBank, Whitening, normalise_rows


@dataclass(frozen=True, eq=False)
class Neighbour:
    """A reference image whose foreground, or background, is near to a region.

    Attributes:
        name: its class, or "background" for what surrounds its object.
        cosine: of its features and the region's.
        image: the image.
        mask: the pixels whose features were compared.
    """

    name: str
    cosine: float
    image: UInt8[np.ndarray, "H W 3"]
    mask: Bool[np.ndarray, "H W"]


def find_neighbours(
    feature: Float32[np.ndarray, " D"],
    bank: ReferenceBank,
    manifest: Manifest,
    most: int,
) -> tuple[Neighbour, ...]:
    """Find the reference images whose features are nearest to a region's, whitened likewise.

    Only their pictures are read. A packed bank has none, so nothing is found.
    """
    if isinstance(manifest, PackedBank):
        return ()
    places: list[tuple[int, int, bool]] = []  # class, image, and whether it is the background
    parts: list[np.ndarray] = []
    for label, each in enumerate(read_all_references(manifest)):
        for rows, behind in ((each.foreground, False), (each.background, True)):
            whole = np.flatnonzero(np.isfinite(rows).all(1))
            places += [(label, index, behind) for index in whole.tolist()]
            parts.append(rows[whole])
    cosines = np.asarray(
        _compare(jnp.asarray(feature), jnp.asarray(np.concatenate(parts)), bank.whitening)
    )
    neighbours = []
    for row in np.argsort(-cosines, kind="stable")[:most].tolist():
        label, index, behind = places[row]
        folder = manifest.cache / "references" / manifest.folders[label]
        each = read_references(folder, pictures=True, only=[index])
        assert each.images is not None and each.masks is not None
        name, mask = (BACKGROUND, ~each.masks[0]) if behind else (each.name, each.masks[0])
        neighbours.append(Neighbour(name, float(cosines[row]), each.images[0], mask))
    return tuple(neighbours)


@jax.jit
def _compare(
    feature: Float32[Array, " D"], rows: Float32[Array, "n D"], whitening: Whitening | None
) -> Float32[Array, " n"]:
    rows = rows if whitening is None else whitening.apply(rows)
    return compute_cosines(rows, normalise_rows(feature[None]))[:, 0]
