"""Read state dicts from the file formats in which PyTorch checkpoints are published."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def read_state_dict(path: str | Path) -> dict[str, Any]:
    """Read the state dict of a .safetensors, .pth, .pt or .bin file.

    A dict that stands under "model" or "state_dict" is taken out. Code that a file may hold isn't
    run (`torch.load` with `weights_only=True`).

    Args:
        path: a single file; read the parts of a split checkpoint separately.

    Returns:
        {key: torch tensor on the CPU}, of the shapes and dtypes in the file.

    Raises:
        FileNotFoundError: the file doesn't exist.
        ValueError: the file has another suffix, is truncated, is a TorchScript archive, holds
            Python objects, or isn't a mapping of tensors; the message is one line and begins with
            the path.
        ImportError: torch or safetensors is missing.
    """
    try:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        needs = f"reading PyTorch's weights needs torch and safetensors ({error})"
        raise ImportError(f'{needs}: pip install "rimjax[pipeline]"') from error
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: must end in {', '.join(SUFFIXES)}; rename or convert it")
    with path.open("rb") as file:  # raises the system's own error if it is missing or unreadable
        is_zip = file.read(4) == b"PK\x03\x04"
    if suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            reason = f"truncated, or not a safetensors file ({_first_line(error)})"
            raise ValueError(f"{path}: {reason}; get it again") from error

    if is_zip:
        _check_archive(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # warnings about pickles that we refuse
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: holds Python objects besides tensors, or is damaged; it isn't loaded, because"
            " that could run code; if you trust it, torch.save its state_dict() alone"
        ) from error
    except Exception as error:  # meaningless bytes raise EOFError, KeyError, RuntimeError, OSError
        reason = f"truncated, or not a PyTorch file ({_first_line(error)})"
        raise ValueError(f"{path}: {reason}; get it again") from error
    return _take_tensors(path, content)


def _check_archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # zipfile raises UnicodeDecodeError, NotImplementedError and others
        raise ValueError(f"{path}: truncated ({_first_line(error)}); get it again") from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(
            f"{path}: is a TorchScript archive; if you trust it, save its state_dict() first: "
            "torch.save(torch.jit.load(path, map_location='cpu').state_dict(), 'weights.pth')"
        )


def _take_tensors(path: Path, content: Any) -> dict[str, Any]:
    import torch

    for wrapper in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    expected = f"{path}: must hold a mapping of names to tensors"
    if not isinstance(content, Mapping) or not content:
        size = " without entries" if isinstance(content, Mapping) else ""
        raise ValueError(f"{expected}, got a {type(content).__name__}{size}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{expected}, got {type(value).__name__} at {key!r}")
    return {key: value.detach() for key, value in content.items()}


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the error's name."""
    return (str(error).strip().splitlines() or [""])[0][:120] or type(error).__name__
