"""Flat dicts of arrays in safetensors files, written array by array and read as views of the file.

The library's own functions copy all arrays at once, twice when they write; Stable Diffusion has 4.3 GB of them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

_DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "BF16": jnp.bfloat16, "I64": "i8", "I32": "i4", "U8": "u1", "BOOL": "?"}


def save_mapped(arrays: Mapping[str, Any], path: str | Path) -> None:
    """Write NumPy or JAX arrays as a safetensors file; one at a time is copied.

    Raises:
        ValueError: an array's dtype has no name in the format, or isn't among those used here.
    """
    names = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}
    for key, array in arrays.items():
        if array.dtype not in names:
            raise ValueError(f"{key}: expected one of {', '.join(_DTYPES)}, got {array.dtype}")
    ordered = sorted(arrays, key=lambda key: (-arrays[key].dtype.itemsize, key))  # the largest first, so that all stay aligned
    header, offset = {}, 0
    for key in ordered:
        array = arrays[key]
        header[key] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with Path(path).open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key in ordered:
            file.write(np.ascontiguousarray(arrays[key]).reshape(-1).view(np.uint8).data)


def load_mapped(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file as read-only views: what is read of them comes from the disk when it is used.

    Raises:
        ValueError: truncated, or no safetensors file.
    """
    path = Path(path)
    size = path.stat().st_size
    try:
        content = np.memmap(path, np.uint8, "r")
        start = 8 + struct.unpack("<Q", content[:8].tobytes())[0]
        if start > size:
            raise ValueError(f"its header should have {start - 8} bytes")
        header = json.loads(content[8:start].tobytes())
        header.pop("__metadata__", None)
        end = start + max((one["data_offsets"][1] for one in header.values()), default=0)
        if end != size:
            raise ValueError(f"it should have {end} bytes and has {size}")
        views = {}
        for key, one in header.items():
            first, last = one["data_offsets"]
            views[key] = content[start + first : start + last].view(_DTYPES[one["dtype"]]).reshape(one["shape"])
        return views
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ValueError(f"{path}: truncated, or no safetensors file ({error})") from error
