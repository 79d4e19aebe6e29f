"""Prompts of a class: other words for it, or whole sentences with the object's words marked.

    television                      other words, in the class name's place: "a photo of television"
    a photo of a television         a whole prompt; the object is what follows "a photo of a"
    an old {television} in a shop   a whole prompt; the object's words are in braces

Cross-attention is captured for the object's words (Eq. 1-3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rimjax.datasets.dataset import read_lines
from rimjax.datasets.names import clean_name
from rimjax.match.checks import describe

_LEAD = re.compile(r"(a photo of (?:(?:a|an|the) )?)(\S.*)", re.IGNORECASE)


def parse_prompt(text: str) -> str:
    """Return a prompt cleaned, a whole prompt with braces around its object.

    Raises:
        ValueError: it is blank, or its braces aren't a single pair around words.

    >>> parse_prompt("a photo of a  television"), parse_prompt("telly")
    ('a photo of a {television}', 'telly')
    """
    prompt = clean_name(text)
    if not prompt:
        raise ValueError("prompts must hold words, got a blank one; leave it out")
    braces = re.findall(r"[{}]", prompt)
    if braces and (braces != ["{", "}"] or not re.search(r"\{[^{}]*[^{}\s][^{}]*\}", prompt)):
        raise ValueError(
            f"prompts must mark the object by one pair of braces, got {prompt!r}; write for "
            'example "a photo of a {television}"'
        )
    if braces:
        return re.sub(r"\{\s*(.*?)\s*\}", r"{\1}", prompt)
    lead = _LEAD.fullmatch(prompt)
    return f"{lead[1]}{{{lead[2]}}}" if lead else prompt


def check_prompts(name: str, prompts: Any) -> tuple[str, ...]:
    """Return a class's prompts, parsed; None or none at all means its name alone.

    Raises:
        ValueError: they are no texts, or the same twice.
    """
    if prompts is None:
        return ()
    listed = [prompts] if isinstance(prompts, str) else prompts
    if isinstance(listed, bytes | Mapping) or not isinstance(listed, Iterable):
        raise ValueError(
            f"names must map {name!r} to a list of prompts or None, got {describe(prompts)}"
        )
    listed = list(listed)
    if not all(isinstance(text, str) for text in listed):
        raise ValueError(
            f"names must map {name!r} to prompts that are texts, got {listed[:3]}; pass None to "
            "draw it from its name alone"
        )
    parsed = tuple(parse_prompt(text) for text in listed)
    if len(set(parsed)) < len(parsed):
        raise ValueError(f"prompts of {name!r} must differ, got {list(parsed)}; leave one out")
    return parsed


def parse_classes(text: str) -> dict[str, tuple[str, ...]]:
    """Parse classes as on the command line, "tv=a photo of a television|monitor,bag".

    `@classes.txt` among them stands for the classes in a file, a class a line in the same form;
    blank lines and lines that begin with # are left out.

    Returns:
        Class names to prompts, none for a class that is drawn from its name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a class comes twice, a prompt is malformed, or a file holds no class.
    """
    classes: dict[str, tuple[str, ...]] = {}
    for entry in text.split(","):
        entry = entry.strip()
        lines = _read_file(Path(entry[1:])) if entry.startswith("@") else [entry]
        for line in lines:
            name, equals, prompts = line.partition("=")
            name = clean_name(name)
            if name in classes:
                raise ValueError(f"classes must differ, got more than once: {name}")
            classes[name] = check_prompts(name, prompts.split("|") if equals else None)
    return classes


def _read_file(path: Path) -> list[str]:
    lines = read_lines(path.expanduser(), "a text file with a class a line")
    if not (kept := [line for line in lines if line and not line.startswith("#")]):
        raise ValueError(f"{path}: holds no class; write a class a line")
    return kept
