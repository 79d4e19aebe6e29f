"""`rimjax weights list | download | port | verify`."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

import ported_weights
from ported_weights.sources import Source, check, check_disk, fetch, missing_bytes, sha256, sources, wanted
from rimjax.presets import weights_folder


@dataclass(frozen=True)
class WeightsList:
    """List the published weights: size, licence, origin, and whether they are here.

    Example: rimjax weights list --weights-dir /data/rimjax
    """

    weights_dir: Path | None = None
    """Folder that holds the weights in `paper/` (default: RIMJAX_WEIGHTS, or the user's data folder)."""

    def run(self) -> None:
        folder = weights_folder("paper", self.weights_dir)
        for source in sources().values():
            state = "present" if (folder / source.becomes).exists() else "missing"
            known = [file.bytes for file in source.files]
            size = _size(None if None in known else sum(byte or 0 for byte in known))
            print(f"{source.name:<16} {state:<8} {size:>8}  {folder / source.becomes}\n{'':<35}{source.origin}; {source.licence}")


@dataclass(frozen=True)
class WeightsDownload:
    """Download published weights and convert them for the paper preset; says how much and under which licence first.

    The hub's settings hold (HF_HOME, HF_ENDPOINT for a mirror, HF_HUB_OFFLINE, HF_TOKEN); what its cache has isn't fetched again.

    Example: rimjax weights download sd-1.4 sam-vit-b dinov2-base --yes
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ("sd-1.4", "sam-vit-b", "dinov2-base")
    """Which, as `rimjax weights list` names them (default: the three that the paper preset needs)."""
    weights_dir: Path | None = None
    """Folder that gets the weights, in `paper/` (default: RIMJAX_WEIGHTS, or the user's data folder)."""
    yes: bool = False
    """Don't ask."""

    def run(self) -> None:
        from huggingface_hub import constants

        from ported_weights.convert import convert

        folder = weights_folder("paper", self.weights_dir)
        chosen = [source for source in _named(self.names) if not (folder / source.becomes).exists()]
        if not chosen:
            print(f"all there already, in {folder}")
            return
        needed: dict[Path, int] = {folder: 0}
        for source in chosen:
            size = missing_bytes(source)
            print(f"{source.name:<16} {_size(size):>8}  {source.origin}; licence: {source.licence}")
            needed[folder] += max(size or 0, sum(file.bytes or 0 for file in source.files))
            if source.repo is not None:
                needed[Path(constants.HF_HUB_CACHE)] = needed.get(Path(constants.HF_HUB_CACHE), 0) + (size or 0)
        check_disk(needed)
        if not self.yes and not _agreed(f"Download to {folder} under these licences? [y/N] "):
            raise ValueError(f"nothing downloaded; --yes agrees beforehand. {'. '.join(wanted(source, folder) for source in chosen)}")
        for source in chosen:
            fetched = fetch(source, folder)
            if source.kind != "sam":
                convert(source.kind, fetched, folder / source.becomes)
            print(folder / source.becomes)


@dataclass(frozen=True)
class WeightsPort:
    """Convert weights that you have: a diffusers folder, or a ViT's .safetensors, .pth or .bin; files that hold code are refused.

    Example: rimjax weights port dinov2 dinov2_vitb14_pretrain.pth ~/.local/share/rimjax/paper/dinov2-vitb14.safetensors
    """

    kind: tyro.conf.Positional[Literal["stable-diffusion", "dinov2", "clip", "mae", "transformers"]]
    """What it is; transformers: a folder of its own, such as MaskFormer's. SAM's checkpoints are used as published."""
    source: tyro.conf.Positional[Path]
    """The file, or the folder."""
    destination: tyro.conf.Positional[Path]
    """What to write, a folder for stable-diffusion and transformers; `rimjax weights list` says where the paper preset looks."""

    def run(self) -> None:
        from ported_weights.convert import VITS, convert

        convert(self.kind, self.source, self.destination)
        print(self.destination)
        if self.kind in VITS:  # keys that are missing altogether can't be seen: whoever ported it may
            config = ported_weights.load_vit(self.destination)[1]
            shape = f"{config.num_layers} layers, {config.num_heads} heads, hidden size {config.hidden_size}, patch {config.patch_size}"
            print(f"{shape}, {config.num_registers} registers, position rule {config.position_rule}")


@dataclass(frozen=True)
class WeightsVerify:
    """Compare every weight file that is here with its sha256: the package's own, published ones, and what was converted.

    Example: rimjax weights verify
    """

    weights_dir: Path | None = None
    """Folder that holds the weights in `paper/` (default: RIMJAX_WEIGHTS, or the user's data folder)."""

    def run(self) -> None:
        bad = [*_verify_mini(), *_verify_published(weights_folder("paper", self.weights_dir))]
        if bad:
            raise ValueError(f"damaged: {', '.join(bad)}; delete them and get them again")


@dataclass(frozen=True)
class Weights:
    """Get, convert and check published weights."""

    command: Annotated[
        Annotated[WeightsList, tyro.conf.subcommand("list")]
        | Annotated[WeightsDownload, tyro.conf.subcommand("download")]
        | Annotated[WeightsPort, tyro.conf.subcommand("port")]
        | Annotated[WeightsVerify, tyro.conf.subcommand("verify")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        self.command.run()


def _named(names: Iterable[str]) -> list[Source]:
    unknown = [name for name in names if name not in sources()]
    if unknown:
        raise ValueError(f"weights: expected some of {', '.join(sources())}, got {', '.join(unknown)}")
    return [sources()[name] for name in dict.fromkeys(names)]


def _size(count: int | None) -> str:
    return "? GB" if count is None else f"{count / 1e9:.2f} GB"


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _verify_mini() -> list[str]:
    root = Path(ported_weights.__file__).parent
    files = [entry for entry in tomllib.loads((root / "MANIFEST.toml").read_text())["mini"].values() if "file" in entry]
    return [line for entry in files for line in _told(root / entry["file"], sha256(root / entry["file"]) == entry["sha256"])]


def _verify_published(folder: Path) -> list[str]:
    from ported_weights.convert import damaged

    bad = []
    for source in sources().values():
        path = folder / source.becomes
        if not path.exists():
            print(f"missing   {path}")
        elif source.kind == "sam":
            try:
                check(path, source.files[0])
                bad += _told(path, True)
            except ValueError:
                bad += _told(path, False)
        elif (found := damaged(path)) is None:
            print(f"unknown   {path}: not converted by `rimjax weights`, which leaves the sha256 beside what it writes")
        else:
            bad += _told(path, not found)
    return bad


def _told(path: Path, fine: bool) -> list[str]:
    """Print a file's state; its name if it is damaged."""
    print(f"{'fine' if fine else 'damaged':<9} {path}")
    return [] if fine else [str(path)]
