"""Convert published weights to rimjax's own files: whole or not at all, with a record of digests.

The record is complete before the weights appear under their name, so that after a kill there are
either both, or a record without weights, which the next conversion replaces.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ported_weights import clip, dinov2, dinov3, mae
from ported_weights.checkpoints import read_state_dict
from rimjax.files import atomic_file, atomic_folder, lock_destination
from rimjax.models.vit_encoder import save_vit
from rimjax.models.weight_record import locate_record, write_record
from rimjax.weights.stable_diffusion import port_folder

VITS = {"dinov2": dinov2.port, "dinov3": dinov3.port, "clip": clip.port, "mae": mae.port}
KINDS = ("stable-diffusion", *VITS, "transformers")
_NAMES = ("model.safetensors", "pytorch_model.bin")


def convert(kind: str, source: str | Path, destination: str | Path) -> None:
    """Convert published weights.

    Args:
        kind: "stable-diffusion", "dinov2", "dinov3", "clip" or "mae"; or "transformers" for a model
            that stays in torch (both towers of CLIP, MaskFormer).
        source: a diffusers or transformers folder; for the others a file, or a folder that holds
            model.safetensors or pytorch_model.bin.
        destination: the folder, or for a ViT the .safetensors file, to write; the record goes
            beside it as `<destination>.sha256`.

    Raises:
        FileNotFoundError: the source doesn't exist.
        ValueError: the destination exists already, or the source isn't such a model, is damaged, or
            holds code.
        OSError: the destination can't be written.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    source, destination = Path(source), Path(destination)
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    with lock_destination(destination):
        if destination.exists():
            raise ValueError(f"{destination}: exists already; delete it first")
        try:
            with (atomic_file if kind in VITS else atomic_folder)(destination) as temporary:
                if kind in VITS:
                    _port_vit(kind, source, temporary)
                elif kind == "transformers":
                    _copy_folder(source, temporary)
                else:
                    port_folder(source, temporary)
                write_record(destination, temporary)
        except BaseException:
            if not destination.exists():
                locate_record(destination).unlink(missing_ok=True)
            raise


def _port_vit(kind: str, source: Path, destination: Path) -> None:
    file = _find_file(source)
    state = read_state_dict(file)
    try:
        params, config = VITS[kind](state)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    save_vit(params, config, destination)


def _copy_folder(source: Path, destination: Path) -> None:
    """Copy a transformers folder, its weights as safetensors whatever their format was."""
    from safetensors.torch import save

    state, config = read_state_dict(_find_file(source)), source / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{config}: missing; a transformers folder has it")
    for path in source.iterdir():
        if path.suffix in (".json", ".txt"):
            shutil.copy(path, destination / path.name)
    # safetensors refuses tensors that share memory
    separate = {key: tensor.contiguous().clone() for key, tensor in state.items()}
    (destination / "model.safetensors").write_bytes(save(separate, metadata={"format": "pt"}))


def _find_file(source: Path) -> Path:
    if source.is_file():
        return source
    for name in _NAMES:
        if (source / name).is_file():
            return source / name
    raise FileNotFoundError(f"{source}: holds neither {' nor '.join(_NAMES)}")
