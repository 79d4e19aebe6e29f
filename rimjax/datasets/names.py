"""Class names: cleaned in one place, and the words for the background and for no class."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import TypeVar

from rimjax.types import BACKGROUND

T = TypeVar("T")
_BACKGROUND = {BACKGROUND, "bg"}
_NO_CLASS = {"ignore", "ignored", "unlabeled", "unlabelled", "void"}
_HEADINGS = {
    *("category", "categories", "class", "classes", "id", "index", "label", "labels", "name"),
    *("names", "no", "none"),
}
"""Words of which a table's heading consists, or a line that says "no label"."""


def clean_name(name: str) -> str:
    """Return a class name in Unicode's composed form, with single blanks and none around it.

    Characters that only format text, such as U+200B, are left out: names that differ by them look
    the same.
    """
    visible = "".join(letter for letter in name if unicodedata.category(letter) != "Cf")
    return " ".join(unicodedata.normalize("NFC", visible).split())


def clean_keys(argument: str, values: Mapping[str, T]) -> dict[str, T]:
    """Return a mapping by cleaned class names.

    Raises:
        ValueError: two keys are the same name; the message begins with `argument`.
    """
    cleaned: dict[str, T] = {}
    for name, value in values.items():
        if (clean := clean_name(name)) in cleaned:
            raise ValueError(
                f"{argument} must name each class once, got {clean!r} twice; put them together"
            )
        cleaned[clean] = value
    return cleaned


def parse_names(names: Iterable[str]) -> tuple[str, ...]:
    """Clean class names and check them.

    Raises:
        ValueError: no name, a blank name, a duplicate (ignoring case), a word for pixels without a
            label, or the background, which every bank has anyway.
    """
    clean = tuple(clean_name(name) for name in names)
    if not clean:
        raise ValueError('classes must hold at least one class name, e.g. "sneaker,bag", got none')
    if not all(clean):
        raise ValueError(f"classes must not hold a blank name, got {list(clean)}")
    lowered = [name.lower() for name in clean]
    if repeated := sorted({name for name in lowered if lowered.count(name) > 1}):
        raise ValueError(f"class names must differ, got more than once: {', '.join(repeated)}")
    if spelled := [name for name in clean if is_background(name)]:
        raise ValueError(f"classes must not hold {spelled[0]!r}: every bank has it; leave it out")
    if unlabelled := [name for name in clean if is_no_class(name)]:
        raise ValueError(
            f"classes must not hold {unlabelled[0]!r}, which marks pixels without a label; "
            "leave it out"
        )
    return clean


def is_background(name: str) -> bool:
    """Return whether a name is a known spelling of the background, e.g. "_background_"."""
    return _strip_marks(name) in _BACKGROUND


def is_no_class(name: str) -> bool:
    """Return whether a name marks pixels without a label, e.g. "__ignore__"."""
    return _strip_marks(name) in _NO_CLASS


def is_heading(name: str) -> bool:
    """Return whether a list's first line seems to be no class, e.g. "0 background" or "id,name"."""
    words = set(re.findall(r"[^\W_]+", clean_name(name).lower()))
    return bool(words & (_BACKGROUND | _NO_CLASS)) or (bool(words) and words <= _HEADINGS)


def _strip_marks(name: str) -> str:
    return clean_name(name).lower().strip("_-<>[]() ")
