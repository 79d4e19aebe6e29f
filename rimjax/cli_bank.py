"""`rimjax bank build | show | add`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from rimjax import bank as storage
from rimjax import draw
from rimjax.console import ModelOptions, StageOptions, check_outputs, compile_cache, progress, write
from rimjax.inference import check_bank
from rimjax.presets import RANDOM_WEIGHTS
from rimjax.references import build_manifest, check_names, load_bank, settings_of


@dataclass(frozen=True, kw_only=True)
class BankBuild(ModelOptions):
    """Draw classes (or take your own photographs of them) and build their reference bank; prints the bank's path.

    Example: rimjax bank build --classes "sneaker,bag" --photos "my mug=mug1.jpg,mug2.jpg"
    """

    classes: str = ""
    """Class names to draw, comma-separated."""
    photos: tuple[str, ...] = ()
    """Further classes from photographs: "name=file1,file2". The mask is the photo's alpha, or SAM's from the centre."""
    seed: int = 0
    """Of everything drawn."""
    cache_dir: Path | None = None
    """Where banks are kept (default: the user's cache folder)."""

    def run(self) -> None:
        names = self.classes.split(",") if self.classes else []
        photos = _photos(self.photos)
        check_names([*names, *photos])
        models = self.load()
        settings = replace(models.references, seed=self.seed)
        compile_cache(storage.cache_folder(self.cache_dir))
        manifest = build_manifest(names, models, settings=settings, cache_dir=self.cache_dir, references=photos, progress=progress)
        print(manifest.path)


@dataclass(frozen=True)
class BankShow:
    """List a bank's classes and draw a contact sheet: image, attention map, prompt points and mask, class by class.

    Example: rimjax bank show ~/.cache/rimjax/banks/0123456789ab.json --output sheet.png
    """

    bank: tyro.conf.Positional[Path]
    """The manifest's path."""
    output: Path = Path("bank.png")
    """The contact sheet's file."""

    def run(self) -> None:
        check_outputs(self.output)
        manifest = storage.read_manifest(self.bank)
        shards = storage.read_shards(manifest, pictures=True)
        write(self.output, draw.grid([draw.contact_sheet(shard) for shard in shards], 1))
        for shard in shards:
            print(f"{shard.name:<12} {len(shard.foreground)} images, {shard.fallbacks} masks from the attention map alone")
        print(f"preset {manifest.preset}, encoder {manifest.encoder}; drawn to {self.output}")


@dataclass(frozen=True, kw_only=True)
class BankAdd(StageOptions):
    """A new bank with more classes; what the old one holds isn't made again. Prints the new bank's path.

    Example: rimjax bank add ~/.cache/rimjax/banks/0123456789ab.json --classes coat
    """

    bank: tyro.conf.Positional[Path]
    """The manifest's path."""
    classes: str = ""
    """Class names to draw, comma-separated."""
    photos: tuple[str, ...] = ()
    """Further classes from photographs: "name=file1,file2"."""

    def run(self) -> None:
        manifest = storage.read_manifest(self.bank)
        models = self.load_preset(manifest.preset.removesuffix(RANDOM_WEIGHTS))
        check_bank(load_bank(manifest), models)
        names = self.classes.split(",") if self.classes else []
        photos = _photos(self.photos)
        check_names([*names, *photos])
        cache = self.bank.resolve().parent.parent
        compile_cache(cache)
        settings = settings_of(manifest)
        print(build_manifest(names, models, settings=settings, cache_dir=cache, references=photos, progress=progress, extend=manifest).path)


def _photos(given: Iterable[str]) -> dict[str, list[str]]:
    photos = {}
    for entry in given:
        name, _, files = entry.partition("=")
        if not name.strip() or not files:
            raise ValueError(f'--photos: expected "name=file1,file2", got {entry!r}')
        photos[name.strip()] = [file.strip() for file in files.split(",")]
    return photos


@dataclass(frozen=True)
class Bank:
    """Build, show or extend a reference bank."""

    command: Annotated[
        Annotated[BankBuild, tyro.conf.subcommand("build")]
        | Annotated[BankShow, tyro.conf.subcommand("show")]
        | Annotated[BankAdd, tyro.conf.subcommand("add")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        self.command.run()
