"""Check the arguments of flow 1 before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from rimjax.images import SupportsArray, SupportsRead
from rimjax.match.checks import describe
from rimjax.models.protocols import Models
from rimjax.settings import ReferenceSettings


def check_call(
    names: Any, models: Any, settings: Any, references: Any, points: Any
) -> tuple[list[str], dict[str, list[Any]], dict[str, list[tuple[float, float]]]]:
    """Check the types of the arguments of `build_bank`.

    Returns:
        Names, references and points as lists, since an iterator can be read only once.

    Raises:
        ValueError: an argument is of another type; the message names it.
    """
    if not isinstance(models, Models):
        raise ValueError(
            f"models must be Models, got {describe(models)}; pass the class names first, then the "
            "models that load_preset returns"
        )
    if isinstance(names, str | bytes | Mapping) or not isinstance(names, Iterable):
        raise ValueError(
            f"names must be a list of class names, got {describe(names)}; write it in brackets, "
            'as in ["bag"]'
        )
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
    pictures = _list_entries("references", references, "pictures")
    prompts: dict[str, list[tuple[float, float]]] = {}
    for name, rows in _list_entries("points", points, "points (x, y)").items():
        prompts[name] = []
        for row in rows:
            try:
                x, y = row
                prompts[name].append((float(x), float(y)))
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"points must hold points (x, y), got {describe(row)} for {name!r}; pass two "
                    "numbers for each photograph"
                ) from error
    return names, pictures, prompts


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
