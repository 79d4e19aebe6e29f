"""The options that say which classes a bank has: words, and references of one's own."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rimjax.commands.options import NO_DEFAULT
from rimjax.datasets.names import clean_name, parse_names
from rimjax.presets import check_words
from rimjax.references.class_prompts import parse_classes
from rimjax.references.coco import list_coco_categories, read_coco_references
from rimjax.references.photographs import expand
from rimjax.references.prompt_table import read_prompt_table
from rimjax.references.reference import Reference

_NUMBER = r"\s*-?\d+(?:\.\d+)?\s*"


Classes = tuple[dict[str, tuple[str, ...]], dict[str, list[Reference]]]
"""Classes to their prompts, and the references of those that aren't drawn."""


@dataclass(frozen=True, kw_only=True)
class ClassOptions:
    """Classes, drawn or from references.

    Attributes:
        classes: Class names, comma-separated; they are drawn unless the options below have them. A
            class may have prompts, which share its images out: "tv=a photo of a television|an old
            {telly} in a shop,bag"; braces mark the object's words. @classes.txt reads classes from
            a file, one a line, in the same form; lines that begin with # are left out.
        photos: A class from photographs, as "name=mugs/*.jpg,folder,mug1.jpg"; may be repeated. The
            object is the non-zero part of mug1.png beside mug1.jpg; else where the photograph is
            opaque; else SAM's mask at its centre, or at mug1.jpg@120,80 (x,y in pixels), or in the
            box mug1.jpg@10,20,200,180 (x0,y0,x1,y1). Numbers after an @ that ends a name are always
            coordinates; a folder called 7 is ./7 there.
        prompts: CSV file of points or boxes, with the columns class,image,x,y or
            class,image,x0,y0,x1,y1; images relative to the file.
        coco: COCO annotation file whose instances are references; images relative to the file. Its
            categories become classes: those that --classes names, or all without --classes.
    """

    classes: Annotated[str | None, NO_DEFAULT] = None
    photos: Annotated[tuple[str, ...], NO_DEFAULT, tyro.conf.UseAppendAction] = ()
    prompts: Annotated[Path | None, NO_DEFAULT] = None
    coco: Annotated[Path | None, NO_DEFAULT] = None

    @property
    def is_given(self) -> bool:
        """Whether any of these options is given."""
        return self != ClassOptions()

    def read_names(self, with_bank: bool = False) -> dict[str, tuple[str, ...]]:
        """Return the classes of --classes to their prompts.

        Raises:
            FileNotFoundError, ValueError: they are malformed, or a file of them is; or references
                are given with a finished bank.
        """
        for name in ("photos", "prompts", "coco") if with_bank else ():
            if getattr(self, name):
                raise ValueError(
                    f"{name} must be left out with --bank, which is finished; use `rimjax bank add`"
                )
        if self.classes is None:
            return {}
        names = parse_classes(self.classes)
        parse_names(names)
        return names

    def read(self, preset: str) -> Classes:
        """Return classes to their prompts, and the references of those that have some.

        Args:
            preset: its name; words that its generator doesn't know are refused before it is loaded.

        Raises:
            FileNotFoundError, ValueError: an option is malformed, or a file is missing or damaged.
        """
        names = self.read_names()
        references: dict[str, list[Reference]] = {}
        sources = [_parse_photos(self.photos)]
        if self.prompts is not None:
            sources.append(read_prompt_table(self.prompts))
        if self.coco is not None:
            sources.append(self._read_coco(self.coco, names))
        for source in sources:
            for name, listed in source.items():
                references.setdefault(name, []).extend(listed)
        references = {name: expand(listed) for name, listed in references.items()}
        names |= {name: () for name in references if name not in names}
        parse_names(names)
        check_words(
            preset,
            [words for name in names if name not in references for words in names[name] or (name,)],
        )
        return names, references

    def _read_coco(
        self, path: Path, names: dict[str, tuple[str, ...]]
    ) -> dict[str, list[Reference]]:
        if self.classes is None:
            return read_coco_references(path)
        categories = list_coco_categories(path)
        chosen = [name for name in names if name.lower() in map(str.lower, categories)]
        if not chosen:
            raise ValueError(
                f"classes must name a category of {path} ({', '.join(categories)}), got "
                f"{', '.join(names)}; leave --classes out to take all"
            )
        return read_coco_references(path, chosen)


def _parse_photos(entries: Iterable[str]) -> dict[str, list[Reference]]:
    """Return the photographs of each class in "name=file,file@x,y,..."."""
    photos: dict[str, str] = {}
    for entry in entries:
        name, _, files = entry.partition("=")
        name = clean_name(name)
        if not name or not all(file.strip() for file in files.split(",")):
            raise ValueError(f'photos must be given as "name=file1,file2", got {entry!r}')
        if name in photos:
            raise ValueError(f"photos must name each class once, got {name!r} twice")
        photos[name] = files
    return {name: expand(_split_files(files)) for name, files in photos.items()}


def _split_files(files: str) -> list[str | Reference]:
    """Split "a.jpg,b.jpg@120,80,c.jpg" into files, and references where coordinates follow an @."""
    entries: list[str | Reference] = []
    words = files.split(",")
    while words:
        word = words.pop(0).strip()
        placed = re.fullmatch(rf"(.+)@({_NUMBER})", word)
        if placed is None:
            entries.append(str(Path(word).expanduser()))
            continue
        file, numbers = placed[1], [float(placed[2])]
        while words and re.fullmatch(_NUMBER, words[0]):
            numbers.append(float(words.pop(0)))
        path = Path(file).expanduser()
        if len(numbers) not in (2, 4):
            raise ValueError(
                f"photos must have x,y or x0,y0,x1,y1 after the @ of {file}, got {len(numbers)} "
                "numbers; write a folder whose name is a number as ./7"
            )
        if path.is_dir() or not path.exists():
            raise FileNotFoundError(
                f"{path}: no such image file; only a file can have a point or box"
            )
        if len(numbers) == 2:
            entries.append(Reference(path, point=(numbers[0], numbers[1])))
        else:
            entries.append(Reference(path, box=(numbers[0], numbers[1], numbers[2], numbers[3])))
    return entries
