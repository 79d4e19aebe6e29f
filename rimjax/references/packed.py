"""A bank in one file, so that it can be shared: features and what made them, without pictures.

    NAME.safetensors    foreground, background and whole, float32[rows, D]: a row per image, the
                        classes one after another; metadata "rimjax bank": JSON (see `write_packed`)

The JSON carries a digest of its own and one of the features.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rimjax.datasets.names import parse_names
from rimjax.files import atomic_file, fingerprint
from rimjax.references.contents import FEATURES, ClassReferences, Manifest, read_prompts
from rimjax.sealed import check_types, seal, unseal
from rimjax.weights.sources import describe_source

FORMAT = 1
"""Raise it when files change so that earlier versions of rimjax can't read them."""

SUFFIX = ".safetensors"
_KEY = "rimjax bank"
_TYPES = dict(
    classes=list,
    settings=dict,
    preset=str,
    encoder=str,
    versions=dict,
    references=str,
    features=str,
    licences=list,
)
_CLASS_TYPES = dict(name=str, images=int, fallbacks=int, drawing=str)


@dataclass(frozen=True, kw_only=True)
class PackedBank(Manifest):
    """A bank from one file; it has no folders.

    Attributes:
        references: of each class, without pictures, attention and points.
        digest: `digest_references` of the bank that was packed.
        licences: a line for each model and set of photographs that made the features.
    """

    references: tuple[ClassReferences, ...]
    digest: str
    licences: tuple[str, ...]


def write_packed(
    path: Path, manifest: Manifest, references: Sequence[ClassReferences], digest: str
) -> PackedBank:
    """Write a bank's features to one file, whole or not at all.

    Args:
        path: the file, NAME.safetensors.
        manifest: of the bank.
        references: of each class in the manifest's order.
        digest: `digest_references` of the bank.

    Raises:
        ValueError: the file has another suffix, or a feature is infinite or in part NaN.
        WriteError: the file can't be written.
    """
    if path.suffix != SUFFIX:
        raise ValueError(f"{path}: a packed bank's name must end in {SUFFIX}; choose such a name")
    arrays = {
        name: np.concatenate([getattr(group, name) for group in references]) for name in FEATURES
    }
    content = {
        "format": FORMAT,
        "classes": [
            {
                "name": group.name,
                "images": len(group.foreground),
                "fallbacks": group.fallbacks,
                "drawing": group.drawing,
                **({"prompts": list(group.prompts)} if group.prompts else {}),
            }
            for group in references
        ],
        "settings": manifest.settings,
        "preset": manifest.preset,
        "encoder": manifest.encoder,
        "versions": manifest.versions,
        "references": digest,
        "features": _digest_features(arrays),
        "licences": _list_licences(references),
    }
    try:
        bank = _unpack(path, content, arrays)
    except ValueError as error:
        raise ValueError(f"{manifest.path}: can't be packed ({error})") from error
    with atomic_file(path) as temporary:
        text = json.dumps(seal(content), ensure_ascii=False)
        temporary.write_bytes(save(arrays, {_KEY: text}))
    return bank


def read_packed(path: Path) -> PackedBank:
    """Read a packed bank.

    Raises:
        ValueError: the file is something else, damaged, or a later version's.
    """
    remedy = "get the file again, or pack the bank again"
    try:
        with safe_open(path, "numpy") as stored:
            content = unseal(_read_metadata(stored))
            if content.get("format") == FORMAT:
                arrays = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                return _unpack(path, content, arrays)
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a packed bank, or damaged ({error}); {remedy}") from error
    raise ValueError(
        f"{path}: a packed bank must have format {FORMAT}, got {content.get('format')!r}; use the "
        "version of rimjax that packed it, or pack the bank again with this one"
    )


def is_packed(path: Path) -> bool:
    """Return whether a file is, or was before it was damaged, a packed bank."""
    try:
        with safe_open(path, "numpy") as stored:
            return bool(_read_metadata(stored))
    except (SafetensorError, OSError, ValueError):
        return False


def _read_metadata(stored: Any) -> str:
    metadata = stored.metadata() or {}
    if _KEY not in metadata:
        raise ValueError(f"it has no metadata {_KEY!r}")
    return metadata[_KEY]


def _unpack(path: Path, content: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> PackedBank:
    """Check a file's content and return the bank.

    Raises:
        ValueError: an entry or array isn't as `write_packed` writes it.
    """
    check_types(content, _TYPES)
    for entry in content["classes"]:
        if not isinstance(entry, dict):
            raise ValueError("a class isn't a dict")
        check_types(entry, _CLASS_TYPES)
    names = tuple(entry["name"] for entry in content["classes"])
    if parse_names(names) != names:
        raise ValueError("a class name has needless blanks or marks")
    if not all(isinstance(line, str) for line in content["licences"]):
        raise ValueError("a licence isn't a text")
    shown = [content[name] for name in ("preset", "encoder", "references")]
    for entry in content["versions"].items():
        shown += map(str, entry)
    for text in (*names, *content["licences"], *shown):  # a terminal obeys what isn't printable
        if not text.isprintable():
            raise ValueError(f"{text!r} isn't printable")
    counts = [entry["images"] for entry in content["classes"]]
    if any(not 0 <= entry["fallbacks"] <= entry["images"] for entry in content["classes"]):
        raise ValueError("a class has more masks from attention alone than images")
    if min(counts) < 1:
        raise ValueError("a class has no image")
    _check_features(arrays, sum(counts))
    if _digest_features(arrays) != content["features"]:
        raise ValueError("its features differ from their digest")
    references = []
    for entry, end in zip(content["classes"], np.cumsum(counts), strict=True):
        rows = slice(end - entry["images"], end)
        references.append(
            ClassReferences(
                name=entry["name"],
                images=None,
                masks=None,
                attention=np.zeros((entry["images"], 0, 0), np.float32),
                points=np.zeros((entry["images"], 0, 2), np.float32),
                fallbacks=entry["fallbacks"],
                foreground=arrays["foreground"][rows],
                background=arrays["background"][rows],
                whole=arrays["whole"][rows],
                drawing=entry["drawing"],
                prompts=read_prompts(entry.get("prompts", [])),
            )
        )
    return PackedBank(
        names=names,
        folders=(),
        settings=content["settings"],
        preset=content["preset"],
        encoder=content["encoder"],
        versions=content["versions"],
        path=path,
        prompts={group.name: group.prompts for group in references if group.prompts},
        references=tuple(references),
        digest=content["references"],
        licences=tuple(content["licences"]),
    )


def _check_features(arrays: Mapping[str, np.ndarray], rows: int) -> None:
    """Raise ValueError for arrays that aren't the features of so many images."""
    if arrays.keys() != set(FEATURES):
        raise ValueError(f"it must hold {', '.join(FEATURES)}, got {', '.join(sorted(arrays))}")
    size = arrays["whole"].shape[-1:]
    for name, array in arrays.items():
        if array.dtype != np.float32 or array.shape != (rows, *size) or not array.size:
            raise ValueError(
                f"{name} must be float32[{rows}, D], got {array.dtype}{list(array.shape)}"
            )
        if not (np.isfinite(array).all(axis=1) | np.isnan(array).all(axis=1)).all():
            raise ValueError(f"{name} must be finite, or NaN where a mask covers nothing")


def _digest_features(arrays: Mapping[str, Float32[np.ndarray, "rows D"]]) -> str:
    return fingerprint("features", arrays)


def _list_licences(references: Sequence[ClassReferences]) -> list[str]:
    """Describe each model and each class's photographs, in a line each."""
    lines, photographed = [], []
    for group in references:
        for stage, source in group.sources.items():
            lines.append(f"{stage} {describe_source(source)}")
        if not group.sources:
            lines.append("models: not recorded when the bank was built; ask whoever built it")
        if not group.drawing:
            photographed.append(group.name)
    if photographed:
        owner = "chosen by whoever built the bank; ask them for the licence"
        lines.append(f"photographs of {', '.join(photographed)}: {owner}")
    return list(dict.fromkeys(lines))
