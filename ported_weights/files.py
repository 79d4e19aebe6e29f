"""State dicts from the files that PyTorch's checkpoints are published as."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """The state dict in a `.safetensors`, `.pth`, `.pt` or `.bin` file, taken out of {"model": ...} or {"state_dict": ...}.

    No code that a file may hold is run (`torch.load` with `weights_only=True`).

    Args:
        path: of one file; shards are read one by one.

    Returns:
        {key: tensor on the CPU}, of the shapes and dtypes in the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: another suffix, truncated, a TorchScript archive, holds Python objects, or isn't a mapping of tensors; one line
            that names the file.
        ImportError: torch or safetensors is missing.
    """
    try:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f'reading PyTorch\'s weights needs torch and safetensors ({error}): pip install "rimjax[pipeline]"') from error
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise ValueError(f"{path}: expected a .safetensors, .pth, .pt or .bin file")
    with path.open("rb") as file:  # what the system says of a file that isn't there or can't be read is best said by itself
        zipped = file.read(4) == b"PK\x03\x04"
    if suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: truncated, or no safetensors file ({_line(error)})") from error

    if zipped:
        _check_archive(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles by others, which are refused
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: holds Python objects besides tensors, or is damaged; not loaded, because that could run code; where you trust "
            "it, torch.save its state_dict() alone"
        ) from error
    except Exception as error:  # bytes that mean nothing raise nearly anything: EOFError, KeyError, RuntimeError, OSError
        raise ValueError(f"{path}: truncated, or no file of PyTorch's ({_line(error)})") from error
    return _tensors(path, content)


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: truncated ({_line(error)})") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(
            f"{path}: a TorchScript archive; where you trust it, save its state_dict() first: "
            "torch.save(torch.jit.load(path, map_location='cpu').state_dict(), 'weights.pth')"
        )


def _tensors(path: Path, content: Any) -> dict[str, torch.Tensor]:
    import torch

    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path}: expected a mapping of names to tensors, got {type(content).__name__}, not a mapping or empty")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{path}: expected a mapping of names to tensors, got {type(value).__name__} at {key!r}")
    return {key: value.detach() for key, value in content.items()}


def _line(error: Exception) -> str:
    """The first line of what an error says, or its name."""
    return (str(error).strip().splitlines() or [""])[0][:120] or type(error).__name__
