"""The reference bank on disk: a folder per class, and a manifest, written last, that lists them.

    <cache>/references/<class>-<digest>/  prototypes.safetensors, image-00000.png, mask-00000.png,
                                          ..., references.json (sha256 of each file)
    <cache>/banks/<digest>.json           class names, their folders, settings, versions

Or the features alone in one file, wherever it lies; see `rimjax.references.packed`.

Folders never change once they are there. A killed run leaves whole folders or none. Both JSON files
carry a digest of their own. Nothing is read that isn't recorded or lies behind a symbolic link.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.numpy import load, save

from rimjax.files import (
    atomic_file,
    atomic_folder,
    check_plain_name,
    digest,
    package_versions,
    sha256,
)
from rimjax.models.protocols import Generated
from rimjax.references.contents import FEATURES, ClassReferences, Manifest, read_prompts
from rimjax.references.packed import SUFFIX, PackedBank, is_packed, read_packed, write_packed
from rimjax.references.recorded import find_inside, name_picture, read_picture, read_recorded
from rimjax.sealed import read_sealed, seal

ARRAYS = (*FEATURES, "attention", "points")
_ARRAY_FILE, _RECORD_FILE = "prototypes.safetensors", "references.json"
_RECORD_TYPES = {"name": str, "fallbacks": int, "drawing": str, "files": dict}
_MANIFEST_TYPES = dict(
    names=list, folders=list, settings=dict, preset=str, encoder=str, versions=dict
)


def locate_cache(cache_dir: str | Path | None) -> Path:
    """Return the given folder, or RIMJAX_CACHE, or the user's cache folder.

    Raises:
        ValueError: it is a file.
    """
    folder = Path(cache_dir or os.environ.get("RIMJAX_CACHE") or user_cache_path("rimjax"))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"cache_dir must be a folder, got the file {folder}")
    return folder


def locate_references(cache: Path, name: str, key: str) -> Path:
    """Return a class's folder: its name in plain letters, and the digest of its dependencies."""
    letters = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "class"
    return cache / "references" / f"{letters}-{key}"


def write_references(path: Path, references: ClassReferences) -> bool:
    """Write a class's folder whole or not at all.

    Returns:
        False where the folder exists already, e.g. since another process was faster; it stays.
    """
    if references.images is None or references.masks is None:
        raise ValueError("references must be read with their pictures to be written")
    try:
        with atomic_folder(path) as folder:
            arrays = {name: np.ascontiguousarray(getattr(references, name)) for name in ARRAYS}
            (folder / _ARRAY_FILE).write_bytes(save(arrays))
            for index, pair in enumerate(zip(references.images, references.masks, strict=True)):
                for kind, pixels in zip(("image", "mask"), pair, strict=True):
                    Image.fromarray(pixels).save(folder / name_picture(kind, index))
            record = {
                "name": references.name,
                "fallbacks": references.fallbacks,
                "drawing": references.drawing,
                "sources": dict(references.sources),
                **({"prompts": list(references.prompts)} if references.prompts else {}),
                "files": {file.name: sha256(file) for file in sorted(folder.iterdir())},
            }
            text = json.dumps(seal(record), indent=1)
            (folder / _RECORD_FILE).write_text(text, encoding="utf-8")
    except FileExistsError:
        return False
    return True


def read_references(
    path: Path, pictures: bool = False, only: Sequence[int] | None = None
) -> ClassReferences:
    """Read a class's folder, checking each file that is read against its sha256.

    Args:
        path: the class's folder.
        pictures: read images and masks too.
        only: numbers of the images to read; default: all.

    Raises:
        ValueError: a file is missing, damaged, not recorded, or outside the cache.
    """
    remedy = "delete that folder and build the bank again"
    if not path.is_dir():
        raise ValueError(
            f"{path}: no such folder; a bank's manifest must stay in banks/, beside references/, "
            "or build the bank again"
        )
    try:
        record = read_sealed(find_inside(path, _RECORD_FILE), _RECORD_TYPES)
        recorded = {check_plain_name(name, path): sha for name, sha in record["files"].items()}
        arrays = load(read_recorded(path, _ARRAY_FILE, recorded))
        wanted = range(len(arrays["attention"])) if only is None else only
        images, masks = (
            np.stack([read_picture(path, kind, index, recorded) for index in wanted])
            if pictures
            else None
            for kind in ("image", "mask")
        )
        return ClassReferences(
            name=record["name"],
            images=images,
            masks=masks,
            fallbacks=record["fallbacks"],
            drawing=record["drawing"],
            sources={stage: str(name) for stage, name in dict(record.get("sources", {})).items()},
            prompts=read_prompts(record.get("prompts", [])),
            **{name: arrays[name][list(wanted)] for name in ARRAYS},
        )
    except KeyError as error:
        raise ValueError(f"{path}: {error} isn't recorded; {remedy}") from error
    except (OSError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{path}: incomplete or damaged ({error}); {remedy}") from error


def find_drawing(cache: Path, name: str, drawing: str) -> Generated | None:
    """Return a class's drawn images from the cache, or None.

    Another encoder, masker or threshold therefore draws nothing again.
    """
    pattern = locate_references(cache, name, "*")
    for path in sorted(pattern.parent.glob(f"{pattern.name}/{_RECORD_FILE}")):
        try:
            if read_sealed(find_inside(path.parent, path.name)).get("drawing") == drawing:
                references = read_references(path.parent, pictures=True)
                assert references.images is not None
                return Generated(images=references.images, attention=references.attention)
        except (ValueError, OSError, AttributeError):  # a damaged folder is of no use here
            continue
    return None


def write_manifest(
    cache: Path,
    *,
    names: Sequence[str],
    folders: Sequence[str],
    settings: dict[str, Any],
    preset: str,
    encoder: str,
    prompts: Mapping[str, Sequence[str]] | None = None,
) -> Manifest:
    """Write a bank's manifest under a name that digests its contents."""
    contents: dict[str, Any] = {
        "names": list(names),
        "folders": list(folders),
        "settings": settings,
        "preset": preset,
        "encoder": encoder,
        **({"prompts": {name: list(prompts[name]) for name in prompts}} if prompts else {}),
    }
    path = cache / "banks" / f"{digest(contents)[:12]}.json"
    versions = package_versions()
    with atomic_file(path) as temporary:
        text = json.dumps(seal({**contents, "versions": versions}), indent=1)
        temporary.write_text(text, encoding="utf-8")
    kept = {name: tuple(listed) for name, listed in (prompts or {}).items()}
    return Manifest(tuple(names), tuple(folders), settings, preset, encoder, versions, path, kept)


def read_manifest(path: str | Path) -> Manifest:
    """Read a bank's manifest, or all of a packed bank (a `PackedBank`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it isn't a bank, or is damaged, or names a file outside its bank.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such bank; `rimjax bank build` prints the path of a bank"
        )
    if path.suffix == SUFFIX or is_packed(path):
        return read_packed(path)
    remedy = "build the bank again"
    try:
        fields = read_sealed(path, _MANIFEST_TYPES)
        prompts = {
            key: read_prompts(texts) for key, texts in dict(fields.get("prompts", {})).items()
        }
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a bank manifest, or damaged ({error}); {remedy}") from error
    names, folders = tuple(fields["names"]), tuple(fields["folders"])
    if not all(isinstance(text, str) for text in (*names, *folders)) or not names:
        raise ValueError(f"{path}: not a bank manifest, or damaged (names aren't texts); {remedy}")
    if len(set(names)) < len(names) or len(names) != len(folders):
        raise ValueError(
            f"{path}: damaged ({len(set(names))} distinct names, {len(folders)} folders); {remedy}"
        )
    for folder in folders:
        check_plain_name(folder, path)
    return Manifest(
        names,
        folders,
        fields["settings"],
        fields["preset"],
        fields["encoder"],
        fields["versions"],
        path,
        prompts,
    )


def read_all_references(manifest: Manifest, pictures: bool = False) -> list[ClassReferences]:
    """Read the references of a bank in its class order.

    Raises:
        ValueError: a folder is missing or damaged, or holds another class than the manifest says;
            or `pictures` are asked of a packed bank.
    """
    if isinstance(manifest, PackedBank):
        if pictures:
            raise ValueError(
                f"{manifest.path}: a packed bank holds no pictures; use the bank that it was "
                "packed from"
            )
        return list(manifest.references)
    bank = [
        read_references(manifest.cache / "references" / folder, pictures)
        for folder in manifest.folders
    ]
    for name, references in zip(manifest.names, bank, strict=True):
        if references.name != name:
            raise ValueError(
                f"{manifest.path}: the folder for {name!r} holds {references.name!r}; "
                "build the bank again"
            )
    return bank


def digest_references(manifest: Manifest) -> str:
    """Return a digest of a bank's class names and references, the same wherever the bank is kept.

    A packed bank has the digest of the bank that it was packed from.

    Raises:
        ValueError: a folder is missing or damaged.
    """
    if isinstance(manifest, PackedBank):
        return manifest.digest
    arrays = []
    for folder in manifest.folders:
        path = manifest.cache / "references" / folder / _RECORD_FILE
        try:
            record = read_sealed(find_inside(path.parent, path.name), _RECORD_TYPES)
            arrays.append(record["files"][_ARRAY_FILE])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path}: incomplete or damaged ({error}); build the bank again"
            ) from error
    return digest([manifest.names, manifest.encoder, arrays])


def pack_bank(manifest: Manifest, path: Path) -> PackedBank:
    """Write a bank's features to one file that can be used like its manifest.

    Args:
        manifest: of the bank, which isn't a packed one.
        path: the file, NAME.safetensors; it is replaced if it exists.

    Raises:
        ValueError: the bank is damaged or packed already, or the file has another suffix.
        WriteError: the file can't be written.
    """
    if isinstance(manifest, PackedBank):
        raise ValueError(f"{manifest.path}: is a packed bank already; copy the file")
    references = read_all_references(manifest)
    return write_packed(path, manifest, references, digest_references(manifest))
