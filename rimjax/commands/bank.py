"""`rimjax bank build | show | add`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from rimjax.commands.console import (
    check_outputs,
    keep_compilations,
    show_class_progress,
    write_picture,
)
from rimjax.commands.options import CACHE_DEFAULT, NO_DEFAULT, Flag, ModelOptions, StageOptions
from rimjax.datasets.names import clean_name
from rimjax.pipeline import check_encoder
from rimjax.presets import RANDOM_WEIGHTS
from rimjax.references import store
from rimjax.references.build import build_references, load_bank, parse_names
from rimjax.settings import check_seed
from rimjax.show import draw


@dataclass(frozen=True, kw_only=True)
class BankBuild:
    """Build the reference bank of some classes and print its path.

    Classes are drawn, or taken from your own photographs.

    Example: rimjax bank build --classes "sneaker,bag" --photos "my mug=mug1.jpg,mug2.jpg"

    Attributes:
        classes: Class names to draw, comma-separated.
        photos: A further class from photographs, as "name=file1,file2"; may be repeated. The object
            is where the photograph is opaque; in a photograph without transparency, SAM's mask at
            its centre.
        seed: Random seed, from 0 to 2^32 - 1.
        cache_dir: Folder that keeps banks.
    """

    classes: Annotated[str, NO_DEFAULT] = ""
    photos: Annotated[tuple[str, ...], NO_DEFAULT, tyro.conf.UseAppendAction] = ()
    seed: int = 0
    cache_dir: Annotated[Path | None, CACHE_DEFAULT] = None
    models: ModelOptions = field(default_factory=ModelOptions)

    def run(self) -> None:
        names, photos = _parse_classes(self.classes, self.photos)
        check_seed(self.seed)
        models = self.models.load()
        settings = replace(models.references, seed=self.seed)
        keep_compilations(store.locate_cache(self.cache_dir))
        manifest, _ = build_references(
            names,
            models,
            settings=settings,
            cache_dir=self.cache_dir,
            references=photos,
            progress=show_class_progress,
        )
        print(manifest.path)


@dataclass(frozen=True)
class BankShow:
    """List a bank's classes and draw a contact sheet of their references.

    The sheet shows each image, its attention map, its prompt points and its mask.

    Example: rimjax bank show ~/.cache/rimjax/banks/0123456789ab.json --output sheet.png

    Attributes:
        bank: The manifest's path.
        output: The contact sheet's file.
        overwrite: Replace a file that rimjax didn't write; its own are always replaced.
    """

    bank: tyro.conf.Positional[Path]
    output: Path = Path("bank.png")
    overwrite: Flag = False

    def run(self) -> None:
        check_outputs(self.output, overwrite=self.overwrite)
        manifest = store.read_manifest(self.bank)
        references = store.read_all_references(manifest, pictures=True)
        sheets = [draw.contact_sheet(group) for group in references]
        write_picture(self.output, draw.grid(sheets, 1))
        for group in references:
            print(draw.describe_references(group))
        print(f"preset {manifest.preset}, encoder {manifest.encoder}; drawn to {self.output}")


@dataclass(frozen=True, kw_only=True)
class BankAdd:
    """Build a new bank from an old bank and more classes; print its path.

    The old bank's classes aren't drawn again.

    Example: rimjax bank add ~/.cache/rimjax/banks/0123456789ab.json --classes coat

    Attributes:
        bank: The old bank's manifest.
        classes: Class names to draw, comma-separated.
        photos: A further class from photographs, as "name=file1,file2"; may be repeated.
    """

    bank: tyro.conf.Positional[Path]
    classes: Annotated[str, NO_DEFAULT] = ""
    photos: Annotated[tuple[str, ...], NO_DEFAULT, tyro.conf.UseAppendAction] = ()
    models: StageOptions = field(default_factory=StageOptions)

    def run(self) -> None:
        names, photos = _parse_classes(self.classes, self.photos)
        manifest = store.read_manifest(self.bank)
        models = self.models.load_stages(manifest.preset.removesuffix(RANDOM_WEIGHTS))
        check_encoder(load_bank(manifest), models)
        keep_compilations(manifest.cache)
        extended, _ = build_references(
            names,
            models,
            settings=self.models.adopt_bank(manifest, models).references,
            cache_dir=manifest.cache,
            references=photos,
            progress=show_class_progress,
            extend=manifest,
        )
        print(extended.path)


def _parse_classes(classes: str, photos: Iterable[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the names to draw, and photographs by class name."""
    names, files = classes.split(",") if classes else [], {}
    for entry in photos:
        name, _, paths = entry.partition("=")
        if not name.strip() or not all(path.strip() for path in paths.split(",")):
            raise ValueError(f'photos must be given as "name=file1,file2", got {entry!r}')
        name = clean_name(name)
        if name in files:
            raise ValueError(f"photos must name each class once, got {name!r} twice")
        files[name] = [path.strip() for path in paths.split(",")]
    parse_names([*names, *files])
    return names, files


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
