"""Check the arguments of flow 1 before any work is done."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rimjax.datasets.names import clean_keys, clean_name, parse_names
from rimjax.images import SupportsArray, SupportsRead
from rimjax.match.checks import describe
from rimjax.models.protocols import Models
from rimjax.references.class_prompts import check_prompts
from rimjax.references.photographs import expand, link
from rimjax.references.reference import Reference
from rimjax.settings import ReferenceSettings


def check_call(
    names: Any, models: Any, settings: Any, references: Any, points: Any
) -> tuple[dict[str, tuple[str, ...]], dict[str, list[Reference]]]:
    """Check the arguments of `build_bank`.

    Returns:
        Each class to its prompts, none for a class that is drawn from its name or isn't drawn, in
        the bank's order; and the references of the classes that aren't drawn.

    Raises:
        FileNotFoundError: a photograph isn't there.
        ValueError: an argument is of another type; the message names it. Or names are blank or
            repeated, a folder has no photograph, or points don't fit the references.
    """
    if not isinstance(models, Models):
        raise ValueError(
            f"models must be Models, got {describe(models)}; pass the class names first, then the "
            "models that load_preset returns"
        )
    if isinstance(names, str | bytes) or not isinstance(names, Iterable):
        raise ValueError(
            f"names must be a list of class names, got {describe(names)}; write it in brackets, "
            'as in ["bag"]'
        )
    given = dict(names) if isinstance(names, Mapping) else {}
    names = list(names)
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise ValueError(
            f'names must be texts, got {describe(wrong[0])}; pass class names such as "bag"'
        )
    if not isinstance(settings, ReferenceSettings | None):
        raise ValueError(
            f"settings must be ReferenceSettings, got {describe(settings)}; leave them out for "
            "the preset's"
        )
    pictures = clean_keys("references", _list_entries("references", references, "pictures"))
    placed: dict[str, list[tuple[float, float]]] = {}
    for name, rows in _list_entries("points", points, "points (x, y)").items():
        placed[name] = []
        for row in rows:
            try:
                x, y = row
                placed[name].append((float(x), float(y)))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"points must hold points (x, y), got {describe(row)} for {name!r}; pass two "
                    "numbers for each photograph"
                ) from error
    placed = clean_keys("points", placed)
    if unknown := sorted(placed.keys() - pictures.keys()):
        raise ValueError(f"points must name classes of references, got {', '.join(unknown)}")
    prompts = {clean_name(name): check_prompts(name, given[name]) for name in given}
    listed = {clean_name(name) for name in names}
    order = [*names, *(name for name in pictures if name not in listed)]
    classes = {clean_name(name): prompts.get(clean_name(name), ()) for name in order}
    if order:
        parse_names(order)
    _check_drawing(classes, pictures.keys(), settings or models.references)
    found = {name: expand(entries, placed.get(name)) for name, entries in pictures.items()}
    return classes, link(found)


def _check_drawing(
    classes: Mapping[str, tuple[str, ...]], given: Collection[str], settings: ReferenceSettings
) -> None:
    """Check that prompts fit the classes and their number of images."""
    for name, prompts in classes.items():
        if name in given and prompts:
            raise ValueError(
                f"names must have no prompts for {name!r}, which has references and isn't drawn; "
                "leave one of them out"
            )
        if name not in given and not prompts and re.search("[{}]", name):
            raise ValueError(
                f"names must be without braces, got {name!r}; give a prompt, as in "
                '{"television": ["a photo of a {television}"]}'
            )
        if len(prompts) > settings.num_images:
            raise ValueError(
                f"images must be at least {len(prompts)}, one for each prompt of {name!r}, got "
                f"{settings.num_images}"
            )


def _list_entries(argument: str, value: Any, what: str) -> dict[str, list[Any]]:
    """Check that an argument maps class names to iterables, and return these as lists."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{argument} must map class names to lists of {what}, got {describe(value)}; write "
            f'{{"bag": [...]}}'
        )
    for name, entries in value.items():
        if not isinstance(name, str):
            raise ValueError(
                f"{argument} must map class names to lists of {what}, got {describe(name)} as a "
                "name; pass a text"
            )
        single = str | bytes | os.PathLike | SupportsRead | Mapping
        if argument == "references":
            single |= SupportsArray
        if isinstance(entries, single) or not isinstance(entries, Iterable):
            raise ValueError(
                f"{argument} must map class names to lists of {what}, got {describe(entries)} for "
                f"{name!r}; write it in brackets, [...]"
            )
    return {name: list(entries) for name, entries in value.items()}
