"""Check that the fields of a dataclass are among their choices."""

from __future__ import annotations

from typing import Literal, get_args, get_origin, get_type_hints


def check_choices(config: object) -> None:
    """Raise ValueError for a field whose value isn't among those of its `Literal` type."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal and value not in get_args(hint):
            choices = ", ".join(map(str, get_args(hint)))
            raise ValueError(f"{name} must be one of {choices}, got {value!r}")
