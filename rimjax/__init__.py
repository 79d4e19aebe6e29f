"""rimjax: training-free open-vocabulary segmentation by relation-aware intra-modal matching (RIM, CVPR 2024), in JAX.

Public names load on first use, so `from rimjax import match` needs JAX alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rimjax import draw as draw
    from rimjax import match as match
    from rimjax.images import read_image as read_image
    from rimjax.inference import SegmentSettings as SegmentSettings
    from rimjax.inference import segment as segment
    from rimjax.presets import Models as Models
    from rimjax.presets import load_preset as load_preset
    from rimjax.references import ReferenceSettings as ReferenceSettings
    from rimjax.references import build_bank as build_bank
    from rimjax.references import load_bank as load_bank
    from rimjax.types import Match as Match
    from rimjax.types import ReferenceBank as ReferenceBank
    from rimjax.types import Regions as Regions
    from rimjax.types import Segmentation as Segmentation

_HOME = {
    "SegmentSettings": "inference",
    "segment": "inference",
    "Models": "presets",
    "load_preset": "presets",
    "ReferenceSettings": "references",
    "build_bank": "references",
    "load_bank": "references",
    "read_image": "images",
    "Match": "types",
    "ReferenceBank": "types",
    "Regions": "types",
    "Segmentation": "types",
}
__all__ = ["draw", "match", *_HOME]


def __getattr__(name: str) -> Any:
    if name in ("draw", "match"):
        return importlib.import_module(f"rimjax.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'rimjax' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"rimjax.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        raise ImportError(f'rimjax.{name} needs {error.name}: pip install "rimjax[pipeline]"') from error


def __dir__() -> list[str]:
    return sorted(__all__)
