"""Keep images' regions on disk, so that no sweep proposes or encodes an image twice.

<cache>/regions/<proposals digest>/<image digest>.npz    masks, packed as bits, and scores
<cache>/regions/<features digest>/<image digest>.npz     features and their validity
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from rimjax.files import atomic_file, check_writable, digest, step_versions
from rimjax.models.protocols import Proposer
from rimjax.types import AnyArray, Regions

Arrays = dict[str, np.ndarray]
PoolFeatures = Callable[[np.ndarray, np.ndarray], tuple[AnyArray, AnyArray]]
"""Image uint8[H, W, 3] and masks bool[M, H, W] to features f32[P, D] and their validity bool[P]."""


@dataclass(frozen=True)
class RegionStore:
    """Regions of images, kept in a folder.

    Attributes:
        folder: created when the first image is stored.
        proposer: proposes the regions.
        pool: computes their features.
        fingerprint: digest of what the features depend on besides image and masks.
    """

    folder: Path
    proposer: Proposer
    pool: PoolFeatures
    fingerprint: str

    def load(self, image: UInt8[np.ndarray, "H W 3"]) -> Regions:
        """Return an image's regions, computing and storing what isn't there or is damaged.

        Raises:
            OSError: the folder can't be written; the message names it.
        """
        shape = np.array(image.shape, np.int64).tobytes()
        name = f"{hashlib.sha256(shape + image.tobytes()).hexdigest()[:24]}.npz"
        proposals = digest([self.proposer.fingerprint, step_versions("propose")])
        features = digest([proposals, self.fingerprint, step_versions("encode", "pool")])

        def propose() -> Arrays:
            masks, scores = self.proposer.propose(image)
            rows = masks.reshape(len(masks), math.prod(masks.shape[1:]))
            scores = np.full(len(masks), np.nan, np.float32) if scores is None else scores
            return {"bits": np.packbits(rows, axis=1), "scores": scores}

        stored = _load_or_compute(self.folder / proposals / name, ("bits", "scores"), propose)
        bits, scores = stored["bits"], stored["scores"]
        pixels = np.unpackbits(bits, axis=1, count=image.shape[0] * image.shape[1])
        masks = pixels.astype(bool).reshape(len(bits), *image.shape[:2])

        def pool() -> Arrays:
            features, valid = self.pool(image, masks)
            return {"features": np.asarray(features), "valid": np.asarray(valid)}

        arrays = _load_or_compute(self.folder / features / name, ("features", "valid"), pool)
        return Regions(masks=masks, scores=None if np.isnan(scores).any() else scores, **arrays)


def _load_or_compute(path: Path, names: tuple[str, ...], compute: Callable[[], Arrays]) -> Arrays:
    if path.exists():
        try:
            with np.load(path) as stored:
                return {name: stored[name] for name in names}
        except Exception:  # NumPy and zipfile raise nearly anything on damaged files
            pass
    check_writable(path.parent)  # before minutes of proposing
    arrays = compute()
    with atomic_file(path) as temporary:
        np.savez_compressed(temporary, **{name: arrays[name] for name in names})  # pyright: ignore[reportArgumentType]
    return arrays
