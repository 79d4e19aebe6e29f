"""The reference bank on disk: one immutable shard a class, and a manifest, written last, that names a bank's shards in order.

    <cache>/shards/<class>-<digest>/    prototypes.safetensors, image-00.png, mask-00.png, ..., shard.json (sha256 of each)
    <cache>/banks/<digest>.json         names, shards, settings, versions

A shard is written to a temporary folder, fsynced and renamed, so a killed run leaves whole shards or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from platformdirs import user_cache_path
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from rimjax.models.protocols import Generated

ARRAYS = ("foreground", "background", "whole", "attention", "points")


@dataclass(frozen=True)
class Shard:
    """One class's references, image by image.

    Attributes:
        name: the class.
        images: uint8[K, H, W, 3], or None when only the features were read.
        masks: bool[K, H, W] foregrounds, or None likewise.
        attention: float32[K, h, w] averaged cross-attention in 0..1 (zeros for photographs).
        points: float32[K, n, 2] prompt points xy in pixels, NaN where fewer were drawn.
        fallbacks: how many masks came from the attention map alone.
        foreground: float32[K, D] pooled under the mask (Eq. 4), NaN where it covers nothing.
        background: float32[K, D] pooled under its complement, NaN likewise.
        whole: float32[K, D] pooled over the whole image (Table 2, row 2).
        drawing: digest of what images and attention depend on; "" for photographs.
    """

    name: str
    images: np.ndarray | None
    masks: np.ndarray | None
    attention: np.ndarray
    points: np.ndarray
    fallbacks: int
    foreground: np.ndarray
    background: np.ndarray
    whole: np.ndarray
    drawing: str = ""


@dataclass(frozen=True)
class Manifest:
    """A bank's table of contents.

    Attributes:
        names: classes in order, without the background.
        shards: each class's shard folder name.
        settings: the fields of `ReferenceSettings`.
        preset: the models' preset name.
        encoder: fingerprint of the encoder that made the features.
        path: the manifest's file.
    """

    names: tuple[str, ...]
    shards: tuple[str, ...]
    settings: dict[str, Any]
    preset: str
    encoder: str
    path: Path


def cache_folder(cache_dir: str | Path | None) -> Path:
    """The given folder, or the user's cache folder (the environment variable RIMJAX_CACHE moves it)."""
    folder = Path(cache_dir or os.environ.get("RIMJAX_CACHE") or user_cache_path("rimjax"))
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: is a file; give a folder for the banks (--cache-dir, RIMJAX_CACHE)")
    return folder


def shard_path(folder: Path, name: str, key: str) -> Path:
    """A shard's folder: the class in plain letters, and the digest of what it depends on."""
    return folder / "shards" / f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-') or 'class'}-{key}"


def write_shard(final: Path, shard: Shard) -> None:
    """Write a shard's folder whole or not at all."""
    if shard.images is None or shard.masks is None:
        raise ValueError("shard: its pictures were not read, so it can't be written")
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write_files(temporary, shard)
        if final.exists():  # another process finished the same shard first
            return
        temporary.rename(final)
        _fsync(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_files(folder: Path, shard: Shard) -> None:
    assert shard.images is not None and shard.masks is not None
    folder.mkdir(parents=True)
    (folder / "prototypes.safetensors").write_bytes(save({name: np.ascontiguousarray(getattr(shard, name)) for name in ARRAYS}))
    for index, (image, mask) in enumerate(zip(shard.images, shard.masks, strict=True)):
        Image.fromarray(image).save(folder / f"image-{index:02d}.png")
        Image.fromarray(mask).save(folder / f"mask-{index:02d}.png")
    files = {file.name: _sha256(file) for file in sorted(folder.iterdir())}
    about = {"name": shard.name, "fallbacks": shard.fallbacks, "drawing": shard.drawing, "files": files}
    (folder / "shard.json").write_text(json.dumps(about, indent=1))
    for file in folder.iterdir():
        _fsync(file)
    _fsync(folder)


def read_shard(path: Path, pictures: bool = False) -> Shard:
    """Read a shard, checking every file that is read against its sha256.

    Args:
        path: the shard's folder.
        pictures: read images and masks too.

    Raises:
        ValueError: a file is missing or damaged.
    """
    remedy = "delete that folder and build the bank again"
    try:
        about = json.loads((path / "shard.json").read_text())
        wanted = {name: digest for name, digest in about["files"].items() if pictures or not name.endswith(".png")}
        for name, digest in wanted.items():
            if _sha256(path / name) != digest:
                raise ValueError(f"{path}: {name} is damaged (its sha256 is not the recorded one); {remedy}")
        arrays = load_file(path / "prototypes.safetensors")
        kinds: dict[str, np.ndarray | None] = {"image": None, "mask": None}
        if pictures:
            kinds = {kind: np.stack([np.asarray(Image.open(path / n)) for n in sorted(wanted) if n.startswith(kind)]) for kind in kinds}
        return Shard(
            name=about["name"],
            images=kinds["image"],
            masks=kinds["mask"],
            attention=arrays["attention"],
            points=arrays["points"],
            fallbacks=about["fallbacks"],
            foreground=arrays["foreground"],
            background=arrays["background"],
            whole=arrays["whole"],
            drawing=about.get("drawing", ""),
        )
    except (OSError, KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError, SafetensorError) as error:
        raise ValueError(f"{path}: this part of the bank is incomplete or damaged ({error}); {remedy}") from error


def find_drawing(folder: Path, name: str, drawing: str) -> Generated | None:
    """The images of a class that some shard in the cache was made of, so that another encoder, masker or threshold draws nothing again."""
    pattern = shard_path(folder, name, "*")
    for path in sorted(pattern.parent.glob(f"{pattern.name}/shard.json")):
        try:
            if json.loads(path.read_text()).get("drawing") == drawing:
                shard = read_shard(path.parent, pictures=True)
                assert shard.images is not None
                return Generated(images=shard.images, attention=shard.attention)
        except (ValueError, OSError, AttributeError):  # damaged: it is of no use here
            continue
    return None


def write_manifest(
    folder: Path, *, names: tuple[str, ...], shards: tuple[str, ...], settings: dict[str, Any], preset: str, encoder: str
) -> Manifest:
    """Write a bank's manifest under a name that digests its contents."""
    versions = {package: metadata.version(package) for package in ("jax", "flax", "diffusers", "torch")}
    contents = {"names": names, "shards": shards, "settings": settings, "preset": preset, "encoder": encoder}
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()[:12]
    final = folder / "banks" / f"{digest}.json"
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    temporary.write_text(json.dumps({**contents, "versions": versions}, indent=1))
    _fsync(temporary)
    temporary.rename(final)
    _fsync(final.parent)
    return read_manifest(final)


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest.

    Raises:
        FileNotFoundError: there is none at that path.
        ValueError: it is no manifest.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such bank; `rimjax bank build` prints the path of the one it makes")
    try:
        fields = json.loads(path.read_text())
        manifest = Manifest(tuple(fields["names"]), tuple(fields["shards"]), fields["settings"], fields["preset"], fields["encoder"], path)
    except (KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a bank manifest, or damaged ({error!r}); build the bank again") from error
    if not all(isinstance(one, str) for one in (*manifest.names, *manifest.shards)) or len(set(manifest.names)) < len(manifest.names):
        raise ValueError(f"{path}: not a bank manifest, or damaged (its names and shards aren't distinct texts); build the bank again")
    if len(manifest.names) != len(manifest.shards) or not manifest.names:
        raise ValueError(f"{path}: names {len(manifest.names)} classes but {len(manifest.shards)} shards; build the bank again")
    return manifest


def read_shards(manifest: Manifest, pictures: bool = False) -> list[Shard]:
    """The shards of a bank in its class order.

    Raises:
        ValueError: a shard is missing or damaged, or holds another class than the manifest says.
    """
    shards = [read_shard(manifest.path.parent.parent / "shards" / name, pictures) for name in manifest.shards]
    for name, shard in zip(manifest.names, shards, strict=True):
        if shard.name != name:
            raise ValueError(f"{manifest.path}: the shard in {name!r}'s place holds {shard.name!r}; build the bank again")
    return shards


def references_digest(manifest: Manifest) -> str:
    """Digest of a bank's class names and of the references that its shards hold: 20 hex digits, the same wherever the bank is kept.

    Raises:
        ValueError: a shard is missing or damaged.
    """
    held = []
    for name in manifest.shards:
        path = manifest.path.parent.parent / "shards" / name / "shard.json"
        try:
            held.append(json.loads(path.read_text())["files"]["prototypes.safetensors"])
        except (OSError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: this part of the bank is incomplete or damaged ({error}); build the bank again") from error
    return hashlib.sha256(json.dumps([manifest.names, manifest.encoder, held]).encode()).hexdigest()[:20]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
