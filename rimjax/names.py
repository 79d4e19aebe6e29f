"""Class names: cleaned in one place, and the words for the background and for no class."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import TypeVar

from rimjax.types import BACKGROUND

T = TypeVar("T")
_BACKGROUND = {BACKGROUND, "bg"}
_NO_CLASS = {"ignore", "ignored", "unlabeled", "unlabelled", "void"}


def clean_name(name: str) -> str:
    """Return a class name in Unicode's composed form, with single blanks and none around it."""
    return " ".join(unicodedata.normalize("NFC", name).replace("\ufeff", "").split())


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


def is_background(name: str) -> bool:
    """Return whether a name is a known spelling of the background, e.g. "_background_"."""
    return _strip_marks(name) in _BACKGROUND


def is_no_class(name: str) -> bool:
    """Return whether a name marks pixels without a label, e.g. "__ignore__"."""
    return _strip_marks(name) in _NO_CLASS


def _strip_marks(name: str) -> str:
    return clean_name(name).lower().strip("_-<>[]() ")
