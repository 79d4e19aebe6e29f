"""`rimjax bank build | show | add | pack`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from rimjax.commands.class_options import ClassOptions
from rimjax.commands.console import (
    check_outputs,
    keep_compilations,
    show_class_progress,
    write_picture,
)
from rimjax.commands.fill import draw_classes
from rimjax.commands.options import (
    CACHE_DEFAULT,
    Flag,
    ModelOptions,
    RayOptions,
    StageOptions,
    default,
)
from rimjax.pipeline import check_encoder
from rimjax.presets import RANDOM_WEIGHTS
from rimjax.references import store
from rimjax.references.build import build_references, load_bank, read_settings
from rimjax.references.packed import PackedBank
from rimjax.settings import check_seed
from rimjax.show import draw


@dataclass(frozen=True, kw_only=True)
class BankBuild:
    """Build the reference bank of some classes and print its path.

    Classes are drawn, or taken from your own photographs.

    Example: rimjax bank build --classes "sneaker,bag" --photos "my mug=mugs/*.jpg"

    Example: rimjax bank build --coco annotations.json

    Attributes:
        seed: Random seed, from 0 to 2^32 - 1.
        cache_dir: Folder that keeps banks.
    """

    references: ClassOptions = field(default_factory=ClassOptions)
    seed: int = 0
    cache_dir: Annotated[Path | None, CACHE_DEFAULT] = None
    cluster: RayOptions = field(default_factory=RayOptions)
    models: ModelOptions = field(default_factory=ModelOptions)

    def run(self) -> None:
        names, references = self.references.read(self.models.preset)
        check_seed(self.seed)
        workers, models = self.cluster.open(), self.models.load()
        settings = replace(models.references, seed=self.seed)
        cache = store.locate_cache(self.cache_dir)
        keep_compilations(cache)
        models = replace(models, references=settings)
        draw_classes(names, references, models, self.models.load, cache, workers)
        manifest, _ = build_references(
            names,
            models,
            settings=settings,
            cache_dir=self.cache_dir,
            references=references,
            progress=show_class_progress,
        )
        print(manifest.path)


@dataclass(frozen=True)
class BankShow:
    """List a bank's classes and draw a contact sheet of their references.

    The sheet shows each image, its attention map, its prompt points and its mask. A packed bank has
    no pictures: its settings and licences are listed instead.

    Example: rimjax bank show ~/.cache/rimjax/banks/0123456789ab.json --output sheet.png

    Example: rimjax bank show clothes.safetensors

    Attributes:
        bank: The manifest's path, or a packed bank.
        output: The contact sheet's file.
        overwrite: Replace a file that rimjax didn't write; its own are always replaced.
    """

    bank: tyro.conf.Positional[Path]
    output: Annotated[Path | None, default("bank.png; none of a packed bank")] = None
    overwrite: Flag = False

    def run(self) -> None:
        manifest = store.read_manifest(self.bank)
        if isinstance(manifest, PackedBank) and self.output is None:
            _describe_packed(manifest)
            return
        output = self.output or Path("bank.png")
        check_outputs(output, overwrite=self.overwrite)
        references = store.read_all_references(manifest, pictures=True)
        sheets = [draw.contact_sheet(group) for group in references]
        write_picture(output, draw.grid(sheets, 1))
        for group in references:
            print(draw.describe_references(group))
        print(f"preset {manifest.preset}, encoder {manifest.encoder}; drawn to {output}")


@dataclass(frozen=True, kw_only=True)
class BankAdd:
    """Build a new bank from an old bank and more classes; print its path.

    The old bank's classes aren't drawn again.

    Example: rimjax bank add ~/.cache/rimjax/banks/0123456789ab.json --classes coat

    Attributes:
        bank: The old bank's manifest.
    """

    bank: tyro.conf.Positional[Path]
    references: ClassOptions = field(default_factory=ClassOptions)
    models: StageOptions = field(default_factory=StageOptions)

    def run(self) -> None:
        manifest = store.read_manifest(self.bank)
        if isinstance(manifest, PackedBank):
            raise ValueError(
                f"{manifest.path}: a packed bank can't be extended; extend the bank that it was "
                "packed from, and pack the new one"
            )
        preset = manifest.preset.removesuffix(RANDOM_WEIGHTS)
        names, references = self.references.read(preset)
        models = self.models.load_stages(preset)
        check_encoder(load_bank(manifest), models)
        keep_compilations(manifest.cache)
        extended, _ = build_references(
            names,
            models,
            settings=self.models.adopt_bank(manifest, models).references,
            cache_dir=manifest.cache,
            references=references,
            progress=show_class_progress,
            extend=manifest,
        )
        print(extended.path)


@dataclass(frozen=True, kw_only=True)
class BankPack:
    """Pack a bank's features into one file, to use it elsewhere or to share it.

    The file stands wherever a bank's manifest does, and gives the same results to the last bit. It
    holds no pictures; it names the models that made the features, and their licences.

    Example: rimjax bank pack ~/.cache/rimjax/banks/0123456789ab.json clothes.safetensors

    Example: rimjax segment photo.png --bank clothes.safetensors

    Attributes:
        bank: The manifest's path.
        output: The packed bank, NAME.safetensors.
        overwrite: Replace a file that rimjax didn't write; packed banks are always replaced.
    """

    bank: tyro.conf.Positional[Path]
    output: tyro.conf.Positional[Path]
    overwrite: Flag = False

    def run(self) -> None:
        check_outputs(self.output, overwrite=self.overwrite)
        _describe_packed(store.pack_bank(store.read_manifest(self.bank), self.output))


def _describe_packed(bank: PackedBank) -> None:
    """Print a packed bank's classes, settings, origin and licences."""
    for group in bank.references:
        print(draw.describe_references(group))
    print(f"preset {bank.preset}, encoder {bank.encoder}, references {bank.digest}")
    settings = asdict(read_settings(bank))
    print("settings:", ", ".join(f"{name} {value}" for name, value in settings.items()))
    print("versions:", ", ".join(f"{name} {value}" for name, value in bank.versions.items()))
    for line in bank.licences:
        print(f"licence: {line}")
    size = bank.path.stat().st_size
    print(f"{bank.path}: a packed bank of {size / 1e6:.1f} MB; it holds no pictures to draw")


@dataclass(frozen=True)
class Bank:
    """Build, show, extend or pack a reference bank."""

    command: Annotated[
        Annotated[BankBuild, tyro.conf.subcommand("build")]
        | Annotated[BankShow, tyro.conf.subcommand("show")]
        | Annotated[BankAdd, tyro.conf.subcommand("add")]
        | Annotated[BankPack, tyro.conf.subcommand("pack")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        self.command.run()
