"""What the commands share: progress, whole-or-nothing files, where a result came from, the compilation cache."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm import tqdm

from rimjax.presets import Models

PACKAGES = ("rimjax", "jax", "jaxlib", "flax", "diffusers", "transformers", "torch", "torchvision", "segment-anything", "numpy")
PresetName = Literal["mini", "paper"]


def versions() -> dict[str, str | None]:
    """Installed version of every package that a result depends on; None where it is missing."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def progress(names: Iterable[str]) -> Iterable[str]:
    bar = tqdm(list(names), desc="bank", unit="class")
    for name in bar:
        bar.set_postfix_str(name)
        yield name


def write(path: Path, content: str | Image.Image) -> None:
    """Write a text or a PNG whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if isinstance(content, str):
        temporary.write_text(content)
    else:
        content.save(temporary, format="PNG")
    temporary.replace(path)


def provenance(models: Models) -> dict[str, Any]:
    """Settings, weights and versions, to stand beside a result."""
    stages = {stage: getattr(models, stage).fingerprint for stage in ("generator", "masker", "encoder")}
    settings = {"references": asdict(models.references), "segmentation": asdict(models.segmentation)}
    return {"preset": models.name, "settings": settings, "weights": stages, "versions": versions()}


def compile_cache(folder: Path) -> None:
    """Keep XLA's compiled programs, so that a second start is fast."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder.absolute() / "jit"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
