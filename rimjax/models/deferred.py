"""Stable Diffusion that isn't there until it must draw."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from rimjax.models import diffusion
from rimjax.models.diffusion import DiffusionConfig, StableDiffusion
from rimjax.models.protocols import Generated


@dataclass(frozen=True, eq=False)
class DeferredGenerator:
    """Stable Diffusion, loaded when first asked to draw; its fingerprint comes from its files, so a cached bank never loads it.

    Attributes:
        directory: of the weights; None: random ones.
        config: how images are drawn.
        seed: of random weights.
    """

    directory: Path | None
    config: DiffusionConfig
    seed: int = 0

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all files and of the drawing settings; "random-..." for random weights."""
        drawing = {name: value for name, value in asdict(self.config).items() if name != "batch_size"}
        digest = hashlib.sha256(json.dumps(drawing, sort_keys=True).encode())
        if self.directory is None:
            return f"random-{self.seed}-{digest.hexdigest()[:12]}"
        for path in sorted(path for path in self.directory.rglob("*") if path.is_file()):
            with path.open("rb") as file:
                digest.update(f"{path.relative_to(self.directory)} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
        return digest.hexdigest()[:20]

    @cached_property
    def model(self) -> StableDiffusion:
        """The model itself, loaded when first asked for."""
        if self.directory is None:
            from rimjax.models import random_weights

            return diffusion.StableDiffusion(random_weights.stable_diffusion(self.seed), self.config)
        return diffusion.load(self.directory, self.config)

    def check(self, class_name: str) -> None:
        """As `Generator.check`."""
        self.model.check(class_name)

    def generate(self, class_name: str, num_images: int, seed: int) -> Generated:
        """As `Generator.generate`."""
        return self.model.generate(class_name, num_images, seed)
