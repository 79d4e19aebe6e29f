"""rimjax: training-free open-vocabulary segmentation by relation-aware intra-modal matching.

The method is RIM (CVPR 2024), in JAX. Public names load on first use, so `from rimjax import match`
needs only JAX, NumPy and jaxtyping.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rimjax import evaluate as evaluate
    from rimjax import match as match
    from rimjax.images import read_image as read_image
    from rimjax.models.protocols import Models as Models
    from rimjax.pipeline import UnfamiliarImageWarning as UnfamiliarImageWarning
    from rimjax.pipeline import segment as segment
    from rimjax.presets import load_preset as load_preset
    from rimjax.references.build import build_bank as build_bank
    from rimjax.references.build import load_bank as load_bank
    from rimjax.references.coco import read_coco_references as read_coco_references
    from rimjax.references.prompt_table import read_prompt_table as read_prompt_table
    from rimjax.references.reference import Reference as Reference
    from rimjax.results import Segment as Segment
    from rimjax.results import Segmentation as Segmentation
    from rimjax.settings import ReferenceSettings as ReferenceSettings
    from rimjax.settings import SegmentSettings as SegmentSettings
    from rimjax.show import draw as draw
    from rimjax.show.explain import Explanation as Explanation
    from rimjax.show.explain import explain as explain
    from rimjax.types import Match as Match
    from rimjax.types import ReferenceBank as ReferenceBank
    from rimjax.types import Regions as Regions
    from rimjax.types import Whitening as Whitening

_MODULES = {"draw": "show.draw", "evaluate": "evaluate", "match": "match"}
_NAMES = {
    "read_image": "images",
    "Models": "models.protocols",
    "UnfamiliarImageWarning": "pipeline",
    "segment": "pipeline",
    "explain": "show.explain",
    "load_preset": "presets",
    "build_bank": "references.build",
    "load_bank": "references.build",
    "read_coco_references": "references.coco",
    "read_prompt_table": "references.prompt_table",
    "Reference": "references.reference",
    "ReferenceSettings": "settings",
    "SegmentSettings": "settings",
    "Match": "types",
    "ReferenceBank": "types",
    "Regions": "types",
    "Explanation": "show.explain",
    "Segment": "results",
    "Segmentation": "results",
    "Whitening": "types",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("rimjax")
    if name not in _MODULES | _NAMES:
        raise AttributeError(f"module 'rimjax' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"rimjax.{(_MODULES | _NAMES)[name]}")
    except ModuleNotFoundError as error:
        remedy = 'pip install "rimjax[pipeline]"'
        raise ImportError(f"rimjax.{name} needs {error.name}: {remedy}") from error
    return module if name in _MODULES else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(_MODULES | _NAMES)
