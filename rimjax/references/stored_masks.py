"""Keep the masks of references, so that another encoder doesn't cut the images out again.

CACHE/masks/DIGEST/    an `Archive`: a mask by the digest of its image and prompt; DIGEST stands
                       for the masker
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from rimjax.files import digest
from rimjax.models.protocols import Masker, Proposals, name_source
from rimjax.regions.archive import Archive
from rimjax.regions.store import digest_image, pack_proposals, unpack_proposals


@dataclass(frozen=True)
class StoredMasks:
    """A masker whose masks are kept in a cache folder; a `Masker` itself.

    Attributes:
        masker: makes the masks that aren't there.
        cache: the cache folder.
    """

    masker: Masker
    cache: Path

    @property
    def fingerprint(self) -> str:
        """The masker's."""
        return self.masker.fingerprint

    @property
    def source(self) -> str:
        """The masker's."""
        return name_source(self.masker)

    @cached_property
    def archive(self) -> Archive:
        """Where the masks are kept."""
        return Archive(self.cache / "masks" / digest(self.masker.fingerprint))

    @property
    def takes_boxes(self) -> bool:
        """Whether the masker takes boxes."""
        return getattr(self.masker, "takes_boxes", False)

    def mask(
        self, image: np.ndarray, points: np.ndarray, box: np.ndarray | None = None
    ) -> Bool[np.ndarray, "H W"]:
        """Return the mask of the object under the points, in the box; see `Masker.mask`."""
        numbers = np.asarray(points, np.float32).tobytes()
        prompt: dict[str, np.ndarray] = {}
        if box is not None:
            prompt = {"box": box}
            numbers += b"box" + np.asarray(box, np.float32).tobytes()
        key = f"{digest_image(image)}-{hashlib.sha256(numbers).hexdigest()[:16]}"
        archive, size = self.archive, image.shape[:2]
        record = archive.get(key)
        if record is not None:
            return unpack_proposals(record, size).masks[0]
        mask = np.asarray(self.masker.mask(image, points, **prompt), bool)
        archive.put(key, pack_proposals(Proposals(mask[None]), size))
        return mask
