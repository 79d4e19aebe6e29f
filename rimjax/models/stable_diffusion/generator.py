"""Stable Diffusion that is loaded on first use."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from rimjax.files import fingerprint
from rimjax.models.protocols import (
    CopiedByFields,
    Fingerprinted,
    Generated,
    cached_property,
)
from rimjax.models.stable_diffusion.attention import import_libraries
from rimjax.models.stable_diffusion.checkpoint import Checkpoint, read
from rimjax.models.stable_diffusion.config import DiffusionConfig, list_drawing_settings
from rimjax.models.stable_diffusion.prompts import check_vocabulary
from rimjax.models.stable_diffusion.sampler import StableDiffusion
from rimjax.models.weight_record import check_weights, digest_weights

_LOADING = threading.RLock()
"""Held while weights are loaded, so that threads that ask at once load them once."""


@runtime_checkable
class WeightSource(Fingerprinted, Protocol):
    """A checkpoint that can be told from others before it is loaded."""

    def load(self) -> Checkpoint:
        """Return the checkpoint, loaded on the first call and shared by all."""
        ...


@dataclass(frozen=True, eq=False)
class StoredWeights(CopiedByFields):
    """The checkpoint in a folder that `checkpoint.save` wrote.

    Attributes:
        directory: the folder.
    """

    directory: Path

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the files, from their record where there is one: see `weight_record`."""
        return fingerprint(digest_weights(self.directory))

    def load(self) -> Checkpoint:
        """Read the checkpoint on the first call.

        Raises: as `checkpoint.read` and `check_weights`.
        """
        with _LOADING:
            return self._checkpoint

    @cached_property
    def _checkpoint(self) -> Checkpoint:
        import_libraries()  # first, so that the error names what is missing and imports stay quiet
        check_weights(self.directory)
        return read(self.directory)


@dataclass(frozen=True, eq=False)
class DeferredGenerator(CopiedByFields):
    """Stable Diffusion as a `Generator`, loaded on first use.

    The fingerprint comes from the weights' record, so a complete bank never loads them. Generators
    with other settings, made by `dataclasses.replace(generator, config=...)`, share the weights.

    Attributes:
        weights: the checkpoint.
        config: how images are drawn.
        source: name of the weights; see `name_source`.
    """

    weights: WeightSource
    config: DiffusionConfig
    source: str = ""

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the weights and the drawing settings."""
        return fingerprint([self.weights.fingerprint, list_drawing_settings(self.config)])

    @property
    def model(self) -> StableDiffusion:
        """The model, loaded on first use."""
        with _LOADING:
            return self._model

    @cached_property
    def _model(self) -> StableDiffusion:
        return StableDiffusion(self.weights.load(), self.config)

    def check(self, class_name: str) -> None:
        """Raise ValueError for a class name that `generate` would refuse."""
        check_vocabulary(class_name, self.config.vocabulary)  # before the weights are loaded
        self.model.check(class_name)

    def generate(self, class_name: str, num_images: int, seed: int) -> Generated:
        """Draw a class, as `StableDiffusion.generate`."""
        return self.model.generate(class_name, num_images, seed)
