"""Published and mini weights for rimjax's Flax models: one rule table a family, and the ViT's own file format."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rimjax.models.vit import Params, ViTConfig


def save_vit(params: Params, config: ViTConfig, path: str | Path) -> None:
    """Write a ViT as safetensors, its tree's keys joined by "/", with the config as metadata."""
    import numpy as np
    from flax.traverse_util import flatten_dict
    from safetensors.numpy import save

    arrays = {key: np.ascontiguousarray(array) for key, array in flatten_dict(dict(params), sep="/").items()}
    Path(path).write_bytes(save(arrays, metadata={"config": json.dumps(asdict(config))}))  # an OSError where the disk is full


def load_vit(path: str | Path) -> tuple[dict[str, Any], ViTConfig]:
    """The parameters and config that `save_vit` wrote.

    Raises:
        ValueError: the file is damaged, or isn't such a file.
        ImportError: flax or safetensors is missing.
    """
    try:
        from flax.traverse_util import unflatten_dict
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(f'the ViT needs flax and safetensors ({error}): pip install "rimjax[pipeline]"') from error
    from rimjax.models.vit import ViTConfig

    try:
        with safe_open(path, framework="numpy") as file:
            config = ViTConfig(**json.loads((file.metadata() or {})["config"]))
            return unflatten_dict({key: file.get_tensor(key) for key in file.keys()}, sep="/"), config  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a ViT that ported_weights.save_vit wrote, or damaged ({error})") from error
