"""Published weights to rimjax's own files: whole or not at all, with their sha256 beside them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ported_weights import clip, dinov2, mae, save_vit, stable_diffusion
from ported_weights.files import read_state_dict
from ported_weights.sources import sha256

VITS = {"dinov2": dinov2.port, "clip": clip.port, "mae": mae.port}
KINDS = ("stable-diffusion", *VITS, "transformers")
_NAMES = ("model.safetensors", "pytorch_model.bin")


def convert(kind: str, source: str | Path, destination: str | Path) -> None:
    """Port published weights.

    Args:
        kind: "stable-diffusion", "dinov2", "clip" or "mae"; or "transformers", of a model that stays in torch (CLIP's both towers,
            MaskFormer).
        source: a diffusers or transformers folder; for the others a file, or a folder with model.safetensors or pytorch_model.bin.
        destination: the folder, or for a ViT the .safetensors file, to write; `<destination>.sha256` goes beside it.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: the destination is there already, or the source isn't such a model, is damaged, or holds code.
        OSError: the destination can't be written.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
    source, destination = Path(source), Path(destination)
    if destination.exists():
        raise ValueError(f"{destination}: is there already; delete it first")
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    temporary = destination.with_name(f".{destination.name}.{os.getpid()}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if kind == "stable-diffusion":
            stable_diffusion.port_folder(source, temporary)
        elif kind == "transformers":
            _copy(source, temporary)
        else:
            file = _file(source)
            state = read_state_dict(file)
            try:
                ported = VITS[kind](state)
            except ValueError as error:
                raise ValueError(f"{file}: {error}") from error
            save_vit(*ported, temporary)
        lines = [f"{sha256(path)}  {destination.name / path.relative_to(temporary)}\n" for path in _files(temporary)]
        _record(destination).write_text("".join(lines))
        temporary.rename(destination)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        for path in (temporary, _record(destination)):
            if path.is_file():
                path.unlink()
        ours = (None, *map(str, (temporary, _record(destination), *destination.parents)))  # None: a full disk doesn't say where
        if isinstance(error, OSError) and error.errno is not None and error.filename in ours:
            raise OSError(f"{destination}: can't be written ({error.strerror})") from error
        raise


def _copy(source: Path, destination: Path) -> None:
    """A transformers folder as it is, but its weights as safetensors, whatever they were."""
    from safetensors.torch import save

    state, config = read_state_dict(_file(source)), source / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{config}: missing; a folder of transformers has one")
    destination.mkdir()
    for path in source.iterdir():
        if path.suffix in (".json", ".txt"):
            shutil.copy(path, destination / path.name)
    apart = {key: tensor.contiguous().clone() for key, tensor in state.items()}  # safetensors wants no two tensors in one memory
    (destination / "model.safetensors").write_bytes(save(apart, metadata={"format": "pt"}))


def damaged(path: Path) -> list[str] | None:
    """The ported files that are missing or have changed since `convert` wrote them; None where it left no record."""
    record = _record(path)
    if not record.exists():
        return None
    entries = [line.split("  ", 1) for line in record.read_text().splitlines()]
    return [name for digest, name in entries if not (path.parent / name).is_file() or sha256(path.parent / name) != digest]


def _record(path: Path) -> Path:
    """What `sha256sum -c` reads."""
    return path.with_name(f"{path.name}.sha256")


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _file(source: Path) -> Path:
    if source.is_file():
        return source
    for name in _NAMES:
        if (source / name).is_file():
            return source / name
    raise FileNotFoundError(f"{source}: holds neither {' nor '.join(_NAMES)}")
