"""What a bank on disk holds: a table of contents, and each class's references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

FEATURES = ("foreground", "background", "whole")
"""The pooled features among the fields of `ClassReferences`."""


@dataclass(frozen=True, eq=False)
class ClassReferences:
    """A class's images and their prototypes.

    Attributes:
        name: class name.
        images: RGB images, or None where only the arrays were read.
        masks: foreground masks, or None likewise.
        attention: averaged cross-attention in 0..1 (zeros for photographs); 0x0 in a packed bank.
        points: prompt points (x, y) in pixels, or a photograph's point and its box's corners; NaN
            where there are fewer; none in a packed bank.
        fallbacks: number of masks that come from the attention map alone.
        foreground: features pooled under the mask (Eq. 4); NaN where it covers nothing.
        background: features pooled under the mask's complement; NaN likewise.
        whole: features pooled over the whole image (Table 2, row 2).
        drawing: digest of what images and attention depend on; "" for photographs.
        sources: the models behind the features: generator, masker and encoder (no generator for
            photographs) -> a name that `describe_source` knows; "" is a model of one's own. Empty
            where nothing is recorded.
        prompts: the prompts that it was drawn from; none: its name, or photographs.
    """

    name: str
    images: UInt8[np.ndarray, "K H W 3"] | None
    masks: Bool[np.ndarray, "K H W"] | None
    attention: Float32[np.ndarray, "K h w"]
    points: Float32[np.ndarray, "K n 2"]
    fallbacks: int
    foreground: Float32[np.ndarray, "K D"]
    background: Float32[np.ndarray, "K D"]
    whole: Float32[np.ndarray, "K D"]
    drawing: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A bank's table of contents.

    Attributes:
        names: classes in order, without the background.
        folders: folder name of each class's references.
        settings: fields of `ReferenceSettings`.
        preset: name of the preset that the models come from.
        encoder: `Models.features` of the models that computed the features.
        versions: of the packages that the bank was built with.
        path: the manifest's file.
        prompts: prompts of the classes that weren't drawn from their names alone.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]
    settings: dict[str, Any]
    preset: str
    encoder: str
    versions: dict[str, Any]
    path: Path
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def cache(self) -> Path:
        """The cache folder that holds this bank."""
        return self.path.parent.parent


def read_prompts(value: object) -> tuple[str, ...]:
    """Return recorded prompts; raise ValueError unless they are a list of texts."""
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError("prompts aren't texts")
    return tuple(value)
