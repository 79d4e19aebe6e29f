"""`rimjax weights list | download | port | verify`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

import ported_weights
from rimjax.files import sha256
from rimjax.presets import locate_weights
from rimjax.weights.download import (
    check_disk,
    count_missing_bytes,
    describe_manual_download,
    fetch,
)
from rimjax.weights.sources import Source, check_file, sources


@dataclass(frozen=True, kw_only=True)
class WeightsOptions:
    """Where the published weights lie.

    Attributes:
        weights_dir: Folder whose subfolder `paper` holds the weights; RIMJAX_WEIGHTS sets it too.
    """

    weights_dir: Annotated[
        Path | None,
        tyro.conf.arg(metavar="DIR", help_behavior_hint="(default: the user's data folder)"),
    ] = None

    @property
    def folder(self) -> Path:
        """The folder of the paper preset's weights."""
        return locate_weights("paper", self.weights_dir)


@dataclass(frozen=True)
class WeightsList(WeightsOptions):
    """List the published weights: name, whether they are present, size, path, origin and licence.

    Example: rimjax weights list --weights-dir /data/rimjax
    """

    def run(self) -> None:
        """Print a line or two for each model."""
        for source in sources().values():
            path = self.folder / source.becomes
            state = "present" if path.exists() else "missing"
            is_known = all(file.bytes is not None for file in source.files)
            size = _format_size(source.known_bytes if is_known else None)
            print(f"{source.name:<16} {state:<8} {size:>8}  {path}")
            print(f"{'':<35}{source.origin}; {source.licence}")


@dataclass(frozen=True)
class WeightsDownload(WeightsOptions):
    """Download published weights and convert them for the paper preset.

    Sizes and licences are shown first. The Hugging Face hub's settings apply (HF_HOME; HF_ENDPOINT
    for a mirror; HF_HUB_OFFLINE; HF_TOKEN), and files in its cache aren't downloaded again.

    Example: rimjax weights download sd-1.4 sam-vit-b dinov2-base --yes

    Attributes:
        names: Names from `rimjax weights list`; the default is all that the paper preset needs.
        yes: Agree to the licences without being asked.
    """

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME ...]")] = (
        "sd-1.4",
        "sam-vit-b",
        "dinov2-base",
    )
    yes: tyro.conf.FlagCreatePairsOff[bool] = False

    def run(self) -> None:
        """Ask, download, convert, and print the path of each result."""
        from huggingface_hub import constants

        from rimjax.models.weight_record import write_record
        from rimjax.weights.convert import convert

        folder = self.folder
        chosen = [s for s in _select(self.names) if not (folder / s.becomes).exists()]
        if not chosen:
            print(f"all present already, in {folder}")
            return
        hub = Path(constants.HF_HUB_CACHE)
        needed = dict.fromkeys((folder, hub), 0)
        for source in chosen:
            size = count_missing_bytes(source)
            licence = f"licence: {source.licence}"
            print(f"{source.name:<16} {_format_size(size):>8}  {source.origin}; {licence}")
            needed[folder] += max(size or 0, source.known_bytes)
            needed[hub] += 0 if source.repo is None else size or 0
        check_disk(needed)
        question = f"Download to {folder} under these licences? [y/N] "
        if not self.yes and not _ask(question):
            advice = ". ".join(describe_manual_download(source, folder) for source in chosen)
            raise ValueError(f"nothing downloaded; --yes agrees to the licences. {advice}")
        for source in chosen:
            downloaded = fetch(source, folder)
            if source.kind == "sam":
                write_record(downloaded, downloaded)
            else:
                convert(source.kind, downloaded, folder / source.becomes)
            print(folder / source.becomes)


@dataclass(frozen=True)
class WeightsPort:
    """Convert weights that you downloaded yourself; files that hold code are refused.

    SAM's checkpoints need no conversion: they are used as published.

    Example: rimjax weights port dinov2 dinov2_vitb14_pretrain.pth dinov2-vitb14.safetensors

    Attributes:
        kind: The model; "transformers" is for a folder that stays in torch, such as MaskFormer's.
        source: A diffusers or transformers folder; for the others a .safetensors, .pth or .bin
            file.
        destination: File or folder to write; `rimjax weights list` shows where the paper preset
            looks.
    """

    kind: tyro.conf.Positional[
        Literal["stable-diffusion", "dinov2", "dinov3", "clip", "mae", "transformers"]
    ]
    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    destination: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DESTINATION")]

    def run(self) -> None:
        """Convert, and print the architecture of a ViT."""
        from rimjax.models.vit_encoder import load_vit
        from rimjax.weights.convert import VITS, convert

        convert(self.kind, self.source, self.destination)
        print(self.destination)
        if self.kind in VITS:  # whole missing layers can't be detected: show what there is
            c = load_vit(self.destination)[1]
            rotary = c.rope_theta is not None
            print(
                f"{c.num_layers} layers, {c.num_heads} heads, hidden size {c.hidden_size}, "
                f"patch {c.patch_size}, {c.num_registers} registers, "
                f"{'rotary positions' if rotary else f'position rule {c.position_rule}'}"
            )


@dataclass(frozen=True)
class WeightsVerify(WeightsOptions):
    """Compare every weight file with its sha256: the package's own, published, and converted files.

    Example: rimjax weights verify
    """

    def run(self) -> None:
        """Print each file's state; raise ValueError if a file is damaged."""
        damaged = [*_verify_mini(), *_verify_published(self.folder)]
        if damaged:
            raise ValueError(f"damaged: {', '.join(damaged)}; delete them and get them again")


@dataclass(frozen=True)
class Weights:
    """List, download, convert or verify published weights."""

    command: Annotated[
        Annotated[WeightsList, tyro.conf.subcommand("list")]
        | Annotated[WeightsDownload, tyro.conf.subcommand("download")]
        | Annotated[WeightsPort, tyro.conf.subcommand("port")]
        | Annotated[WeightsVerify, tyro.conf.subcommand("verify")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Run the chosen command."""
        self.command.run()


def _select(names: Iterable[str]) -> list[Source]:
    unknown = [name for name in names if name not in sources()]
    if unknown:
        expected = f"weights must be among {', '.join(sources())}"
        raise ValueError(f"{expected}, got {', '.join(unknown)}")
    return [sources()[name] for name in dict.fromkeys(names)]


def _format_size(count: int | None) -> str:
    return "? GB" if count is None else f"{count / 1e9:.2f} GB"


def _ask(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _verify_mini() -> list[str]:
    from rimjax.models.weight_record import list_shipped

    root = Path(ported_weights.__file__).parent
    files = list_shipped(root)
    reports = (_report(root / file, sha256(root / file) == files[file]) for file in files)
    return [path for report in reports for path in report]


def _verify_published(folder: Path) -> list[str]:
    from rimjax.models.weight_record import find_damaged

    damaged = []
    for source in sources().values():
        path = folder / source.becomes
        if not path.exists():
            print(f"missing   {path}")
        elif source.kind == "sam":
            try:
                check_file(path, source.files[0])
                damaged += _report(path, True)
            except ValueError:
                damaged += _report(path, False)
        elif (files := find_damaged(path)) is None:
            print(f"unknown   {path}: no record of its sha256, which `rimjax weights` writes")
        else:
            damaged += _report(path, not files)
    return damaged


def _report(path: Path, is_intact: bool) -> list[str]:
    """Print a file's state; return its name in a list if it is damaged."""
    print(f"{'fine' if is_intact else 'damaged':<9} {path}")
    return [] if is_intact else [str(path)]
