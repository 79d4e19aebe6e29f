"""`rimjax bench match | propose | encode`."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from rimjax.commands.bench_match import BenchMatch
from rimjax.commands.console import check_outputs
from rimjax.commands.options import NO_DEFAULT, Flag, default
from rimjax.files import package_versions, write_json
from rimjax.images import read_image
from rimjax.models.sam import ProposalConfig, Sam, SamPrecision, SamProposer, load
from rimjax.presets import load_preset
from rimjax.presets.catalogue import PRESETS

SIZE, SHARE = (480, 640), 0.3


@dataclass(frozen=True)
class BenchPropose:
    """Measure SAM's proposals beside segment-anything's own generator, on the same image.

    Both must find the same masks. With random weights, thresholds are lowered until a share of the
    masks passes, so that upscaling and filtering do real work.

    Example: rimjax bench propose --json propose.json

    Attributes:
        image: Image file.
        size: Height and width of a made-up image, instead of --image.
        model: SAM: mini, or the architecture of sam-vit-b, sam-vit-l or sam-vit-h.
        weights: A checkpoint of that architecture, in segment-anything's format.
        points: Side of the grid of points.
        batch: Points that segment-anything decodes at once.
        share: With random weights, share of the masks that pass the predicted IoU.
        dtype: Number format our SAM computes in; in half precision, masks that changed are counted.
        compiled: Encode images by torch.compile, compiled before the clock starts.
        json: File to write the report to as well.
    """

    image: Annotated[Path | None, NO_DEFAULT] = None
    size: tuple[int, int] = SIZE
    model: Literal["mini", "sam-vit-b", "sam-vit-l", "sam-vit-h"] = "sam-vit-b"
    weights: Annotated[Path | None, default("random, or mini's own")] = None
    points: int = 32
    batch: int = 64
    share: float = SHARE
    dtype: SamPrecision = "float32"
    compiled: Flag = False
    json: Annotated[Path | None, NO_DEFAULT] = None

    def run(self) -> None:
        from rimjax.bench.propose import lower_thresholds, measure_proposals

        if not 0 < self.share <= 1:
            raise ValueError(f"share must be in (0, 1], got {self.share}")
        if min(self.points, self.batch, *self.size) < 1:
            raise ValueError("points, batch and size must be at least 1")
        if self.image is not None and self.size != SIZE:
            raise ValueError("size must be left out with --image, whose own size counts")
        if self.share != SHARE and (self.weights is not None or self.model == "mini"):
            raise ValueError("share must be left out with trained weights, which have thresholds")
        check_outputs(self.json)
        image = make_picture(self.size) if self.image is None else read_image(self.image)
        exact, config = self._load_sam()
        if self.weights is None and self.model != "mini":
            config = lower_thresholds(exact, image, self.share, config)
        sam = exact
        if self.dtype != "float32" or self.compiled:
            state = exact.model.state_dict()
            sam = load(state, exact.config, dtype=self.dtype, compiled=self.compiled)
            sam.embed(image)  # compiles
        is_exact = self.dtype == "float32"
        row = measure_proposals(sam, image, config, self.batch, None if is_exact else exact)
        if self.weights is None and self.model != "mini" and not row["masks"]:
            raise ValueError(f"share must be larger, got {self.share}: no mask passed")
        row |= {
            "dtype": self.dtype,
            "compiled": self.compiled,
            "torch device": str(sam.model.device),
        }
        _print_proposals(row)
        _write(self.json, row)

    def _load_sam(self) -> tuple[Sam, ProposalConfig]:
        from ported_weights.checkpoints import read_state_dict

        if self.model == "mini":
            if self.weights is not None:
                raise ValueError("weights must be left out with the model mini, which has its own")
            proposer = load_preset("mini").proposer
            assert isinstance(proposer, SamProposer)
            return proposer.sam, replace(proposer.config, points_per_side=self.points)
        state = None if self.weights is None else read_state_dict(self.weights)
        paper = PRESETS["paper"]
        config = replace(paper.proposals, points_per_side=self.points)
        return load(state, paper.maskers[self.model].sam), config


@dataclass(frozen=True)
class BenchEncode:
    """Measure the encoder, DINOv2's last-layer keys, beside torch's model with equal weights.

    Example: rimjax bench encode --batch 1 --json encode.json

    Attributes:
        size: Side of the image in pixels.
        batch: Images encoded at once.
        small: A small architecture, for a quick try.
        json: File to write the report to as well.
    """

    size: int = 518
    batch: int = 1
    small: Flag = False
    json: Annotated[Path | None, NO_DEFAULT] = None

    def run(self) -> None:
        from rimjax.bench.encode import measure_encoder

        if min(self.size, self.batch) < 1 or self.size % 14:
            raise ValueError(
                f"size must be a multiple of 14 and batch at least 1, got {self.size}, {self.batch}"
            )
        check_outputs(self.json)
        row = measure_encoder(self.size, self.batch, self.small)
        per = f"batch {row['batch']}, {row['size']}x{row['size']} pixels"
        print(f"{_name_device()}; last-layer keys, {per}, median seconds an image:")
        print(
            f"  rimjax (JAX)            {row['seconds']:.3f}  compiled in {row['compile s']:.1f} s"
        )
        print(f"  transformers (torch)    {row['torch seconds']:.3f}  on {row['torch device']}")
        print(f"  rimjax over torch       {row['over torch']:.2f}")
        print(f"  reading a photograph    {row['resize seconds']:.3f}  (resize and normalise)")
        print(f"  largest difference of the keys: {row['largest difference']:.1e} of their scale")
        _write(self.json, row)


@dataclass(frozen=True)
class Bench:
    """Measure the kernels, SAM's proposals, or the encoder on this machine."""

    command: Annotated[
        Annotated[BenchMatch, tyro.conf.subcommand("match")]
        | Annotated[BenchPropose, tyro.conf.subcommand("propose")]
        | Annotated[BenchEncode, tyro.conf.subcommand("encode")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        self.command.run()


def make_picture(size: tuple[int, int]) -> np.ndarray:
    """Make a picture of soft blobs and grain, which holds regions of many sizes."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[: size[0], : size[1]] / max(size)
    picture = np.zeros((*size, 3))
    for _ in range(40):
        centre, radius = rng.uniform(0, 1, 2), rng.uniform(0.02, 0.2)
        near = (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2
        picture[near] = rng.uniform(0, 255, 3)
    return (picture + rng.normal(0, 8, picture.shape)).clip(0, 255).astype(np.uint8)


def _name_device() -> str:
    import jax

    device = jax.devices()[0]
    return f"{device.platform}: {device.device_kind}, {os.cpu_count()} cores"


def _print_proposals(row: dict[str, Any]) -> None:
    height, width = row["image"]
    device = f"torch on {row['torch device']}, {os.cpu_count()} cores"
    print(f"{device}; {width}x{height} pixels, {row['points']} points")
    agree = f"{row['masks']} masks, segment-anything's {row['segment-anything masks']}"
    if "lowest IoU" in row:
        agree += f"; lowest IoU {row['lowest IoU']:.6f}, {row['pixels that differ']} pixels differ"
    if "masks lost" in row:
        agree += f"; {row['masks lost']} lost and {row['masks added']} added in {row['dtype']}"
    print(f"  {agree}")
    for name in ("seconds", "segment-anything seconds", "segment-anything encode"):
        print(f"  {name:<28} {row[name]:>9.2f} s")
    print(f"  {'over segment-anything':<28} {row['times faster']:>9.2f} times as fast")
    for name in ("peak MiB", "segment-anything peak MiB"):
        if row[name] is not None:
            print(f"  {name:<28} {row[name]:>9.0f}")
    for name, value in row["stages"].items():
        shown = f"{value:>9.2f} s" if isinstance(value, float) else f"{value:>9}"
        print(f"    {name:<26} {shown}")


def _write(path: Path | None, row: dict[str, Any]) -> None:
    if path is not None:
        write_json(path, {"device": _name_device(), "versions": package_versions(), **row})
