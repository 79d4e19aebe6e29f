"""Where the published weights come from (SOURCES.toml), how they are fetched, and what their sha256 must be."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tomllib
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class SourceFile:
    """One published file.

    Attributes:
        path: below the repository.
        bytes: None where it isn't known beforehand.
        sha256: likewise.
    """

    path: str
    bytes: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Source:
    """One model's published weights.

    Attributes:
        name: "sd-1.4", "sam-vit-b", "dinov2-base", ...
        kind: of `convert.convert`; "sam" is used as published.
        licence: of the weights.
        becomes: file or folder below the preset's folder.
        files: all that are needed.
        repo: on the Hugging Face hub.
        revision: there.
        url: of the one file, where there is no repository.
    """

    name: str
    kind: str
    licence: str
    becomes: str
    files: tuple[SourceFile, ...]
    repo: str | None = None
    revision: str | None = None
    url: str | None = None

    @property
    def origin(self) -> str:
        """Where it comes from, in words."""
        return self.url or f"{self.repo}@{(self.revision or '')[:8]}"


@cache
def sources() -> Mapping[str, Source]:
    """Every published model, by name."""
    entries = tomllib.loads((Path(__file__).parent / "SOURCES.toml").read_text())
    return {
        name: Source(name=name, files=tuple(SourceFile(**file) for file in entry.pop("files")), **entry) for name, entry in entries.items()
    }


def sha256(path: Path) -> str:
    """Of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(path: Path, expected: SourceFile) -> None:
    """Raise ValueError unless the file has the expected size and sha256, as far as they are known."""
    size = path.stat().st_size
    if expected.bytes is not None and size != expected.bytes:
        raise ValueError(f"{path}: has {size} bytes, expected {expected.bytes}; delete it and get it again")
    if expected.sha256 is not None and (found := sha256(path)) != expected.sha256:
        raise ValueError(f"{path}: its sha256 is {found}, expected {expected.sha256}; delete it and get it again")


def missing_bytes(source: Source) -> int | None:
    """How much of a source is still to be fetched; None where a size isn't known and the hub doesn't tell it."""
    sizes = {file.path: file.bytes for file in source.files}
    if source.repo is not None:
        from huggingface_hub import HfApi, try_to_load_from_cache

        for path in sizes:
            if isinstance(try_to_load_from_cache(source.repo, path, revision=source.revision), str):
                sizes[path] = 0
        if None in sizes.values():
            try:
                about = HfApi().model_info(source.repo, revision=source.revision, files_metadata=True)
            except (OSError, ValueError):  # said again, and better, when the files themselves are asked for
                return None
            sizes |= {file.rfilename: file.size for file in about.siblings or [] if sizes.get(file.rfilename, 0) is None}
    return None if None in sizes.values() else sum(size or 0 for size in sizes.values())


def check_disk(needed: Mapping[Path, int]) -> None:
    """Raise OSError unless the disks hold what is to be written to these folders, which needn't exist yet."""
    totals: dict[int, tuple[Path, int]] = {}
    for folder, size in needed.items():
        there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        device = there.stat().st_dev
        totals[device] = (there, totals.get(device, (there, 0))[1] + size)
    for there, size in totals.values():
        free = shutil.disk_usage(there).free
        if free < size:
            raise OSError(f"{there}: too little disk: {size / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free")


def fetch(source: Source, folder: Path) -> Path:
    """The source's file, or the folder that holds its files: in the hub's cache, or in `folder` where it is no repository's.

    Interrupted downloads go on where they stopped. The hub's own settings hold: HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN.

    Raises:
        OSError: a file can't be had; the message lists those that are wanted.
        ValueError: a file isn't the published one.
    """
    try:
        if source.url is not None:
            return _fetch_url(source.url, source.files[0], folder / source.becomes)
        assert source.repo is not None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()  # else it tells of every try again, at length
        root = Path()
        for file in source.files:
            path = Path(hf_hub_download(source.repo, file.path, revision=source.revision))
            check(path, file)
            root = path.parents[file.path.count("/")]
    except (OSError, http.client.HTTPException) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise OSError(f"{source.name}: can't be downloaded ({reason}). {wanted(source, folder)}") from error
    return root / source.files[0].path if len(source.files) == 1 else root


def wanted(source: Source, folder: Path) -> str:
    """Which files to get by hand, and where to put them."""
    place = folder / source.becomes
    if source.url is not None:
        return f"Wanted: {source.url} as {place}"
    names = ", ".join(file.path for file in source.files)
    example = "FILE" if len(source.files) == 1 else "FOLDER"
    return f"Wanted from {source.repo} at revision {source.revision}: {names}; then `rimjax weights port {source.kind} {example} {place}`"


def _fetch_url(url: str, file: SourceFile, target: Path) -> Path:
    from huggingface_hub import constants
    from tqdm import tqdm

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    done = part.stat().st_size if part.exists() else 0
    if done != file.bytes:
        request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
        with (
            urllib.request.urlopen(request, timeout=60) as reply,
            part.open("ab" if reply.status == 206 else "wb") as out,
            tqdm(total=file.bytes, initial=out.tell(), desc=file.path, unit="B", unit_scale=True) as bar,
        ):
            while block := reply.read(1 << 20):
                bar.update(out.write(block))
    if file.bytes is not None and part.stat().st_size < file.bytes:
        raise OSError(f"the connection broke after {part.stat().st_size} of {file.bytes} bytes; run it again to go on")
    try:
        check(part, file)
    except ValueError:
        part.unlink()
        raise
    part.rename(target)
    return target
