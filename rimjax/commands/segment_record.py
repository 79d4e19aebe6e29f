"""The record in a folder of segmented images, by which a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rimjax.files import append_line, sha256
from rimjax.sealed import seal, unseal

RECORD = "segmented.jsonl"


def append_entry(folder: Path, entry: Mapping[str, Any]) -> None:
    """Append an image's entry: image, sha256, key, files and result.

    Raises:
        WriteError: it can't be written; the message names the file.
    """
    append_line(folder / RECORD, json.dumps(seal(entry)))


def read_lines(folder: Path | None) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a folder's record, in order."""
    path = None if folder is None else folder / RECORD
    for line in path.read_bytes().splitlines() if path is not None and path.is_file() else ():
        with suppress(ValueError):  # a line that a kill cut short
            yield unseal(line)


def read_record(folder: Path | None, key: str) -> dict[str, dict[str, Any]]:
    """Return the entries of the images that were finished under a key, by their file names.

    An image of which a file has changed since, or is gone, is left out.
    """
    entries = {entry["image"]: entry for entry in read_lines(folder)}

    def is_whole(entry: Mapping[str, Any]) -> bool:
        assert folder is not None
        places = {folder / name: digest for name, digest in entry["files"].items()}
        return all(place.is_file() and sha256(place) == each for place, each in places.items())

    return {
        name: entry for name, entry in entries.items() if entry["key"] == key and is_whole(entry)
    }
