"""Keep images' regions on disk, so that no image is proposed or encoded twice.

    CACHE/regions/proposals-DIGEST/    masks as COCO run lengths, predicted IoUs, stability scores
    CACHE/regions/features-DIGEST/     pooled features and their validity

Each folder is an `Archive` whose records are images, by the digest of their pixels. DIGEST stands
for everything that the records depend on besides, which `about.json` lists. Proposals lie apart, so
that another encoder doesn't propose again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from rimjax.files import digest, step_versions, write_json
from rimjax.models.protocols import Models, Pixels, Proposals, Proposer
from rimjax.regions.archive import Archive, Record
from rimjax.regions.extract import FeatureGrid, encode_regions, extract, measure_stage
from rimjax.sealed import read_sealed, seal
from rimjax.types import Regions, bucket_size

EncodeRegions = Callable[[np.ndarray, np.ndarray, dict[str, float]], Regions]
"""Image uint8[H, W, 3], masks bool[M, H, W] and the timings that receive the seconds of each stage,
to regions."""

LoadRegions = Callable[[UInt8[np.ndarray, "H W 3"], dict[str, float]], Regions | FeatureGrid]
"""Image, and the timings that receive the seconds of each stage, to what `extract` returns."""

ABOUT = "about.json"


@dataclass(frozen=True)
class RegionStore:
    """Regions of images, kept in a folder.

    Attributes:
        folder: made when the first image is stored.
        proposer: proposes the regions.
        encode: computes their features.
        fingerprint: digest of what the features depend on besides image and masks.
    """

    folder: Path
    proposer: Proposer
    encode: EncodeRegions
    fingerprint: str

    @classmethod
    def open(cls, cache: Path, models: Models) -> RegionStore:
        """Open the store of the models' own regions and features (Eq. 5) in a cache folder."""
        encode = partial(encode_regions, models.encoder, antialias=models.antialias)
        return cls(cache / "regions", models.proposer, encode, models.features)

    @cached_property
    def proposals(self) -> Archive:
        """Where proposals are kept."""
        about = {"proposer": self.proposer.fingerprint, **step_versions("propose")}
        return self._open("proposals", about)

    @cached_property
    def features(self) -> Archive:
        """Where features are kept."""
        about = {
            "proposals": self.proposals.folder.name,
            "encoder": self.fingerprint,
            "layout": 2,  # with a digest of the masks
            **step_versions("encode", "pool"),
        }
        return self._open("features", about)

    def load(
        self, image: UInt8[np.ndarray, "H W 3"], timings: dict[str, float] | None = None
    ) -> Regions:
        """Return an image's regions, computing and storing what isn't there or is damaged.

        Args:
            image: RGB.
            timings: receives the seconds of "load", and of the stages that had to be computed.

        Raises:
            OSError: the folder can't be written; the message names it.
        """
        timings = {} if timings is None else timings
        key = digest_image(image)
        with measure_stage(timings, "load"):
            proposed, pooled = self.proposals.get(key), self.features.get(key)
            found = None if proposed is None else unpack_proposals(proposed, image.shape[:2])
        if found is None:
            self.proposals.check_writable()  # before minutes of proposing
            with measure_stage(timings, "propose"):
                found = self.proposer.propose(image)
            proposed = pack_proposals(found, image.shape[:2])
            self.proposals.put(key, proposed)
        assert proposed is not None
        masks = digest_masks(proposed)
        if pooled is None or not np.array_equal(pooled["masks"], masks):
            self.features.check_writable()
            regions = self.encode(image, found.masks, timings)
            arrays = {"features": regions.features, "valid": regions.valid}
            pooled = {name: np.asarray(array)[: len(found.masks)] for name, array in arrays.items()}
            self.features.put(key, {**pooled, "masks": masks})
        padding = bucket_size(len(found.masks)) - len(found.masks)
        return Regions(
            features=np.pad(pooled["features"], ((0, padding), (0, 0))),
            masks=found.masks,
            valid=np.pad(pooled["valid"], (0, padding)),
            scores=found.scores,
        )

    def has(self, image: UInt8[np.ndarray, "H W 3"]) -> bool:
        """Return whether an image's regions are stored, whole."""
        key = digest_image(image)
        return self.proposals.get(key) is not None and self.features.get(key) is not None

    def join(self) -> None:
        """Join the images that lie in files of their own; see `Archive.join`."""
        self.proposals.join()
        self.features.join()

    def _open(self, kind: str, about: Mapping[str, Any]) -> Archive:
        folder = self.folder / f"{kind}-{digest(about)}"
        archive = Archive(folder)
        try:
            read_about(archive)
        except (OSError, ValueError):
            write_json(folder / ABOUT, seal({"kind": kind, **about}))
        return archive


def load_or_extract(cache: Path | None, models: Models) -> LoadRegions:
    """Return what loads an image's regions: stored in a cache folder, or always extracted.

    Feature grids, which are named pixel by pixel, aren't stored.
    """
    if cache is None or isinstance(models.proposer, Pixels):
        return partial(extract, models)
    return RegionStore.open(cache, models).load


def list_archives(folder: Path) -> list[Archive]:
    """List the archives of a store's folder: proposals first, then features."""
    kinds = ("proposals", "features")
    found = [path for kind in kinds for path in sorted(folder.glob(f"{kind}-*")) if path.is_dir()]
    return [Archive(path) for path in found]


def read_about(archive: Archive) -> dict[str, Any]:
    """Read what an archive's records depend on.

    Raises:
        OSError, ValueError: it is missing or damaged.
    """
    return read_sealed(archive.folder / ABOUT)


def digest_image(image: UInt8[np.ndarray, "H W 3"]) -> str:
    """Return 32 hex digits that identify an image by its pixels."""
    shape = np.array(image.shape, np.int64).tobytes()
    return hashlib.sha256(shape + np.ascontiguousarray(image).data).hexdigest()[:32]


def digest_masks(proposed: Record) -> UInt8[np.ndarray, 32]:
    """Digest packed masks, which an image's features belong to."""
    content = proposed["lengths"].tobytes() + proposed["runs"].tobytes()
    return np.frombuffer(hashlib.sha256(content).digest(), np.uint8)


def pack_proposals(proposals: Proposals, size: tuple[int, int]) -> Record:
    """Pack proposals: masks as COCO run lengths, one after the other."""
    from pycocotools import mask as coco

    runs: list[Any] = [
        coco.encode(np.asfortranarray(mask, np.uint8))["counts"] for mask in proposals.masks
    ]
    missing = np.full(len(runs), np.nan, np.float32)
    return {
        "runs": np.frombuffer(b"".join(runs), np.uint8),
        "lengths": np.array([len(each) for each in runs], np.int64),
        "scores": missing if proposals.scores is None else proposals.scores,
        "stability": missing if proposals.stability is None else proposals.stability,
        "size": np.array(size, np.int64),
    }


def unpack_proposals(record: Record, size: tuple[int, int]) -> Proposals:
    """Unpack proposals of an image of a size; masks are read-only, and lie column by column."""
    masks = _decode(record["runs"].tobytes(), tuple(record["lengths"].tolist()), size)
    scores, stability = (
        None if np.isnan(record[name]).any() else record[name] for name in ("scores", "stability")
    )
    return Proposals(masks, scores, stability)


@lru_cache(maxsize=1)  # other features of the same image are often loaded next
def _decode(
    runs: bytes, lengths: tuple[int, ...], size: tuple[int, int]
) -> Bool[np.ndarray, "M H W"]:
    from pycocotools import mask as coco

    if not lengths:
        return np.zeros((0, *size), bool)
    ends = np.cumsum(lengths)
    encoded: Any = [
        {"size": size, "counts": runs[end - length : end]}
        for end, length in zip(ends, lengths, strict=True)
    ]
    masks = np.moveaxis(coco.decode(encoded), 2, 0).view(bool)
    masks.flags.writeable = False
    return masks
