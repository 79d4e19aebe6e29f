"""What commands print and write: progress, warnings, outputs, where a result came from."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from rimjax.files import (
    STEP_VERSIONS,
    atomic_file,
    check_writable,
    package_versions,
    parse_json,
)
from rimjax.models.protocols import Models
from rimjax.references.packed import SUFFIX, is_packed
from rimjax.sealed import SEAL
from rimjax.settings import name_configuration

LOG_SECONDS = 30
"""Progress prints a line at most this often where standard error isn't a terminal."""

_SOFTWARE = "rimjax"
"""Marks the PNGs that rimjax writes, which it may replace."""

_HTML_MARK = b'<meta name="generator" content="rimjax">'
"""In the head of the reports that rimjax writes, likewise."""

Element = TypeVar("Element")


def progress(
    elements: Iterable[Element], description: str, unit: str, total: int | None = None
) -> Iterator[Element]:
    """Pass elements on and show progress: a bar on a terminal, sparse lines in a log.

    Args:
        elements: what is worked on.
        description: the work.
        unit: what an element is, in the singular.
        total: number of elements; default: the length of a collection.
    """
    if total is None and isinstance(elements, Collection):
        total = len(elements)
    if sys.stderr.isatty():
        bar = tqdm(elements, description, total, unit=unit)
        for element in bar:
            if isinstance(element, str):
                bar.set_postfix_str(element)
            yield element
        return
    start = shown = time.monotonic()
    count = 0
    for element in elements:
        yield element
        count, now = count + 1, time.monotonic()
        if now - shown >= LOG_SECONDS and count != total:
            shown = now
            print(_format_count(description, unit, count, total, now - start), file=sys.stderr)
    if count:
        seconds = time.monotonic() - start
        print(_format_count(description, unit, count, total, seconds), file=sys.stderr)


def _format_count(
    description: str, unit: str, count: int, total: int | None, seconds: float
) -> str:
    of_total = "" if total is None else f" of {total}"
    left = f", {seconds / count * (total - count):.0f} s left" if total and count < total else ""
    each = seconds / count
    units = unit + ("es" if unit.endswith("s") else "s")
    rate = f"{1 / each:.1f} {units}/s" if 0 < each < 1 else f"{each:.2f} s per {unit}"
    return f"{description}: {count}{of_total}, {rate}{left}"


def show_class_progress(names: Iterable[str]) -> Iterator[str]:
    """Show the progress of building a bank."""
    return progress(names, "bank", "class")


def warn(line: str) -> None:
    """Print a warning without breaking a progress bar."""
    tqdm.write(f"rimjax: warning: {line}", file=sys.stderr)


def shorten(error: BaseException) -> str:
    """Return an error's message on one line: of a long list, the first items and a count."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    text = " ".join([lines[0], "; ".join(lines[1:4])]).strip()
    return text if len(lines) <= 4 else f"{text}; and {len(lines) - 4} more"


def name_flag(message: str, command: object) -> str:
    """Turn the argument at a message's beginning into the command's flag.

    A library error says "num_agents must be ..."; on the command line it says "--num-agents".
    """
    name = re.match(r"(\w+)(?= must )", message)
    if name is None or name[0] not in _list_flags(command):
        return message
    return f"--{name[0].replace('_', '-')}{message[name.end() :]}"


def _list_flags(command: Any) -> set[str]:
    names: set[str] = set()
    for field in fields(command):
        value = getattr(command, field.name)
        if is_dataclass(value):
            names |= _list_flags(value)
        elif "Positional" not in str(field.type):
            names.add(field.name)
    return names


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a PNG, marked as rimjax's, whole or not at all.

    Raises:
        OSError: it can't be written; the message names it.
    """
    mark = PngInfo()
    mark.add_text("Software", _SOFTWARE)
    with atomic_file(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=mark, bits=8)


def write_labels(path: Path, labels: np.ndarray, colours: np.ndarray | None = None) -> None:
    """Write a label or id map as a PNG of 8 bits, or of 16 where the values need them.

    Args:
        path: the file.
        labels: [H, W], from 0 on.
        colours: uint8[C, 3], shown for the values 0 to C - 1 of an 8-bit PNG, which others show in
            white; default: a grey PNG.
    """
    if labels.dtype != np.uint8:
        write_picture(path, Image.fromarray(labels.astype(np.uint16)))
        return
    picture = Image.fromarray(labels)
    if colours is not None:
        palette = np.full((256, 3), 255, np.uint8)
        palette[: len(colours)] = colours[:256]
        picture.putpalette(palette.tobytes())
    write_picture(path, picture)


def check_outputs(*paths: Path | None, overwrite: bool | None = None) -> None:
    """Raise ValueError, before any work is done, for a file that can't or mustn't be written.

    Results that rimjax wrote may be replaced; the manifest of a bank or run never is.

    Args:
        paths: files to write; None is left out.
        overwrite: whether files that rimjax didn't write may be replaced; None, which means no, for
            a command without --overwrite.
    """
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"{path}: is a folder; name a file")
        if path.exists() and not path.is_file():  # a device or a pipe
            continue
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        try:
            check_writable(parent)
        except OSError as error:
            reason = getattr(error.__cause__, "strerror", error)
            raise ValueError(
                f"{path}: can't be written, {parent} isn't a writable directory ({reason}); choose "
                "another place"
            ) from error
        if not path.is_file() or not path.stat().st_size:
            continue
        if _is_sealed(path):
            raise ValueError(
                f"{path}: must not be replaced, a bank or run needs it; choose another name"
            )
        if not overwrite and not is_result(path):
            way_out = "" if overwrite is None else ", or give --overwrite"
            raise ValueError(
                f"{path}: exists, and rimjax didn't write it; choose another name{way_out}"
            )


def _is_sealed(path: Path) -> bool:
    """Return whether a file is JSON with a digest of its own, as banks and runs have it."""
    try:
        return SEAL in parse_json(path.read_bytes())
    except (OSError, ValueError, TypeError):  # another kind of file
        return False


def is_result(path: Path) -> bool:
    """Return whether rimjax wrote a file: a PNG, JSON, HTML, or packed bank, by its mark."""
    try:
        if path.suffix == SUFFIX:
            return is_packed(path)
        if path.suffix.lower() == ".png":
            with Image.open(path) as picture:
                return picture.info.get("Software") == _SOFTWARE
        if path.suffix.lower() in (".html", ".htm"):
            with path.open("rb") as file:
                return _HTML_MARK in file.read(1000)
        content = parse_json(path.read_bytes())
        if isinstance(content, list):  # COCO results
            return all(entry["source"] == _SOFTWARE for entry in content)
        return "rimjax" in content["versions"]
    except Exception:  # another kind of file
        return False


def describe_origin(models: Models) -> dict[str, Any]:
    """Return settings, weights and versions, to stand beside a result."""
    stages = ("generator", "masker", "proposer", "encoder")
    return {
        "preset": models.name,
        "configuration": name_configuration(models.references, models.segmentation),
        "settings": {
            "references": asdict(models.references),
            "segmentation": asdict(models.segmentation),
            "antialias": models.antialias,
            "proposals": getattr(models.proposer, "settings", {}),
        },
        "steps": dict(STEP_VERSIONS),
        "weights": {stage: getattr(models, stage).fingerprint for stage in stages},
        "versions": package_versions(),
    }


def keep_compilations(folder: Path) -> None:
    """Keep XLA's compiled programs in a folder, so that a second start is fast.

    JAX's own environment variables, such as JAX_COMPILATION_CACHE_DIR, go before.
    """
    import jax

    programs = str(folder.absolute() / "jit")
    options = {
        "jax_compilation_cache_dir": programs,
        "jax_persistent_cache_min_compile_time_secs": 0.3,
    }
    for name, value in options.items():
        if name.upper() not in os.environ:
            jax.config.update(name, value)
