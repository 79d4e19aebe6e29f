"""The reference images that are nearest to a region."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float32, UInt8

from rimjax.match.readings import compute_cosines
from rimjax.references.contents import ClassReferences
from rimjax.types import BACKGROUND, ReferenceBank, normalise_rows


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
    references: Sequence[ClassReferences],
    most: int,
) -> tuple[Neighbour, ...]:
    """Find the reference images whose features are nearest to a region's, whitened likewise."""
    places: list[tuple[ClassReferences, int, bool]] = []
    parts: list[np.ndarray] = []
    for each in references:
        if each.images is None or each.masks is None:
            raise ValueError("references must be read with pictures=True to be shown")
        for rows, behind in ((each.foreground, False), (each.background, True)):
            whole = np.flatnonzero(np.isfinite(rows).all(1))
            places += [(each, index, behind) for index in whole.tolist()]
            parts.append(rows[whole])
    if not places:
        return ()
    kept = jnp.asarray(np.concatenate(parts))
    if bank.whitening is not None:
        kept = bank.whitening.apply(kept)
    cosines = np.asarray(compute_cosines(kept, normalise_rows(feature[None])))[:, 0]
    neighbours = []
    for row in np.argsort(-cosines, kind="stable")[:most].tolist():
        each, index, behind = places[row]
        assert each.images is not None and each.masks is not None
        name, mask = (BACKGROUND, ~each.masks[index]) if behind else (each.name, each.masks[index])
        neighbours.append(Neighbour(name, float(cosines[row]), each.images[index], mask))
    return tuple(neighbours)
