"""Download published weights, from the Hugging Face hub or a web server."""

from __future__ import annotations

import http.client
import shutil
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from rimjax.files import lock_destination
from rimjax.weights.sources import Source, SourceFile, check_file


def count_missing_bytes(source: Source) -> int | None:
    """Return how much is still to download; None where neither we nor the hub know a size."""
    sizes = {file.path: file.bytes for file in source.files}
    if source.repo is not None:
        from huggingface_hub import HfApi, try_to_load_from_cache

        for path in sizes:
            cached = try_to_load_from_cache(source.repo, path, revision=source.revision)
            if isinstance(cached, str):
                sizes[path] = 0
        if None in sizes.values():
            try:
                info = HfApi().model_info(
                    source.repo, revision=source.revision, files_metadata=True
                )
            except (OSError, ValueError):  # `fetch` will say it, and better
                return None
            unknown = {path for path, size in sizes.items() if size is None}
            siblings = info.siblings or []
            sizes |= {file.rfilename: file.size for file in siblings if file.rfilename in unknown}
    return None if None in sizes.values() else sum(size or 0 for size in sizes.values())


def check_disk(needed: Mapping[Path, int]) -> None:
    """Raise OSError unless the disks have room for so many bytes in these folders.

    Args:
        needed: bytes by folder; the folders needn't exist yet.
    """
    totals: dict[int, tuple[Path, int]] = {}
    for folder, size in needed.items():
        parents = (folder.absolute(), *folder.absolute().parents)
        existing = next(parent for parent in parents if parent.exists())
        device = existing.stat().st_dev
        totals[device] = (existing, totals.get(device, (existing, 0))[1] + size)
    for existing, size in totals.values():
        free = shutil.disk_usage(existing).free
        if free < size:
            sizes = f"{size / 1e9:.2f} GB needed, {free / 1e9:.2f} GB free"
            raise OSError(f"{existing}: too little disk space: {sizes}; free some")


def fetch(source: Source, folder: Path) -> Path:
    """Download a source; interrupted downloads continue where they stopped.

    The hub's own settings apply: HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN.

    Args:
        source: the model.
        folder: the preset's folder, which gets files from a web server; the hub's files go to the
            hub's cache.

    Returns:
        The single file, or the folder that holds all files.

    Raises:
        OSError: a file can't be downloaded; the message lists the files to get by hand.
        ValueError: a file isn't the published file, or another process is downloading it.
    """
    try:
        if source.url is not None:
            target = folder / source.becomes
            with lock_destination(target):  # two downloads would write to the same partial file
                return _fetch_url(source.url, source.files[0], target)
        assert source.repo is not None
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import logging

        logging.set_verbosity_error()  # else it reports every retry at length
        root = Path()
        for file in source.files:
            path = Path(hf_hub_download(source.repo, file.path, revision=source.revision))
            check_file(path, file)
            root = path.parents[file.path.count("/")]
    except (OSError, http.client.HTTPException) as error:
        reason = _explain_gate(source, error)
        reason = reason or (str(error).strip().splitlines() or [type(error).__name__])[0]
        advice = describe_manual_download(source, folder)
        raise OSError(f"{source.name}: can't be downloaded ({reason}). {advice}") from error
    return root / source.files[0].path if len(source.files) == 1 else root


def _explain_gate(source: Source, error: Exception) -> str | None:
    """Say what opens a gated repository, if the error is that this one is closed."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError

    if not isinstance(error, GatedRepoError):
        return None
    page = f"{constants.ENDPOINT}/{source.repo}"
    return f"accept its licence at {page}, then log in with `hf auth login` or set HF_TOKEN"


def describe_manual_download(source: Source, folder: Path) -> str:
    """Say which files to get by hand, and where to put them."""
    destination = folder / source.becomes
    if source.url is not None:
        return f"Get {source.url} as {destination}"
    names = ", ".join(file.path for file in source.files)
    example = "FILE" if len(source.files) == 1 else "FOLDER"
    command = f"`rimjax weights port {source.kind} {example} {destination}`"
    return f"Get from {source.repo} at revision {source.revision}: {names}; then {command}"


def _fetch_url(url: str, file: SourceFile, target: Path) -> Path:
    from huggingface_hub import constants
    from tqdm import tqdm

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.part")
    start = partial.stat().st_size if partial.exists() else 0
    if start != file.bytes:
        headers = {"Range": f"bytes={start}-"} if start else {}
        request = urllib.request.Request(url, headers=headers)
        with (
            urllib.request.urlopen(request, timeout=60) as reply,
            partial.open("ab" if reply.status == 206 else "wb") as out,
            tqdm(
                total=file.bytes, initial=out.tell(), desc=file.path, unit="B", unit_scale=True
            ) as bar,
        ):
            while block := reply.read(1 << 20):
                bar.update(out.write(block))
    size = partial.stat().st_size
    if file.bytes is not None and size < file.bytes:
        reason = f"the connection broke after {size} of {file.bytes} bytes"
        raise OSError(f"{reason}; run the command again to continue")
    try:
        check_file(partial, file)
    except ValueError:
        partial.unlink()
        raise
    partial.rename(target)
    return target
