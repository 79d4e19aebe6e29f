"""What the commands share: the models' options, progress, whole-or-nothing files, where a result came from, the compilation cache."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm import tqdm

from rimjax.bank import Manifest
from rimjax.models.deferred import DeferredGenerator
from rimjax.presets import Models, load_preset
from rimjax.references import ReferenceSettings, settings_of

PACKAGES = ("rimjax", "jax", "jaxlib", "flax", "diffusers", "transformers", "torch", "torchvision", "segment-anything", "numpy")
PresetName = Literal["mini", "paper"]


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """Which of a preset's models a command runs, and how."""

    weights_dir: Path | None = None
    """Folder that holds the paper preset's weights in `paper/` (default: RIMJAX_WEIGHTS, or the user's data folder)."""
    generator: str | None = None
    """Of the paper preset: sd-1.4 (default) or sd-1.5."""
    masker: str | None = None
    """Of the paper preset: sam-vit-b (default), sam-vit-l or sam-vit-h."""
    encoder: str | None = None
    """Of the paper preset: dinov2-base (default), dinov2-small, dinov2-large, clip-vit-b-16, mae-vit-b or sd-unet; mini-... of mini."""
    proposer: str | None = None
    """Regions from elsewhere than the masker: cells (of the encoder's grid) or maskformer (mini-maskformer)."""
    configuration: Literal["paper", "rimjax"] | None = None
    """How regions are named: as in the paper, or as did best on validation scenes (default: paper of paper, rimjax of mini)."""
    random_weights: bool = False
    """A self-test of the paper preset without its weights: reports every stage's time and memory; its results mean nothing."""
    steps: int | None = None
    """Steps of the sampler (default: the preset's)."""

    def bank_settings(self, manifest: Manifest, models: Models) -> ReferenceSettings:
        """Those that a finished bank is read with: its own, but T and the whitening of a configuration that was asked for."""
        settings, wanted = settings_of(manifest), models.references
        return (
            settings if self.configuration is None else replace(settings, num_subcategories=wanted.num_subcategories, whiten=wanted.whiten)
        )

    def load_preset(self, preset: str) -> Models:
        """The preset's models, with what was asked for put in."""
        start = time.perf_counter()
        if self.random_weights:
            _say("random weights: pictures, masks and labels mean nothing; only time and memory do")
        models = load_preset(
            preset,
            self.weights_dir,
            generator=self.generator,
            masker=self.masker,
            encoder=self.encoder,
            proposer=self.proposer,
            configuration=self.configuration,
            random_weights=self.random_weights,
        )
        if self.steps is not None and isinstance(models.generator, DeferredGenerator):
            drawing = replace(models.generator.config, steps=self.steps)
            models = replace(models, generator=replace(models.generator, config=drawing))
        if self.random_weights:
            self_test("load SAM and the encoder", time.perf_counter() - start)
            models = replace(models, **{stage: Measured(stage, getattr(models, stage)) for stage in ("generator", "masker", "encoder")})
        return models


@dataclass(frozen=True, kw_only=True)
class ModelOptions(StageOptions):
    """Which models a command runs; the commands that draw references inherit these."""

    preset: PresetName = "mini"
    """Which models and settings."""
    images: int | None = None
    """K, images drawn of each class (default: the preset's)."""

    def load(self) -> Models:
        """The models, with what was asked for put in."""
        models = self.load_preset(self.preset)
        if self.images is None:
            return models
        return replace(models, references=replace(models.references, num_images=self.images))


class Measured:
    """A model that reports each call's seconds and the peak of memory so far: the self-test's view of a stage."""

    def __init__(self, stage: str, model: Any) -> None:
        self._stage, self._model = stage, model

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._model, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = found(*args, **kwargs)
            self_test(f"{self._stage}.{name}", time.perf_counter() - start)
            return result

        return call


def self_test(what: str, seconds: float) -> None:
    """Report a stage's seconds and the process's peak of resident memory so far."""
    import resource  # Unix's own

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
    _say(f"{what}: {seconds:.1f} s, peak memory so far {peak:.2f} GiB")


def _say(line: str) -> None:
    tqdm.write(f"self-test: {line}", file=sys.stderr)


def one_line(error: BaseException) -> str:
    """What an error says, on one line: of a long list the first items and how many more there are."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    rest = len(lines) - 4
    shown = " ".join([lines[0], "; ".join(lines[1:4])]).strip() if lines else type(error).__name__
    return shown if rest <= 0 else f"{shown}; and {rest} more"


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
    """Write a text or a PNG whole or not at all; ValueError where that can't be."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            temporary.write_text(content)
        else:
            content.save(temporary, format="PNG")
        temporary.replace(path)
    except OSError as error:
        if temporary.is_file():
            temporary.unlink()
        raise ValueError(f"{path}: can't be written ({error.strerror or error}); choose another place") from error


def check_outputs(*paths: Path | None) -> None:
    """Raise ValueError, before any work is done, for a file that couldn't be written: its name is a folder's, or its place no folder."""
    for path in paths:
        if path is None:
            continue
        if path.is_dir():
            raise ValueError(f"{path}: is a folder; give the name of a file")
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise ValueError(f"{path}: can't be written, {parent} is no folder that one may write to; choose another place")


def provenance(models: Models) -> dict[str, Any]:
    """Settings, weights and versions, to stand beside a result."""
    stages = {stage: getattr(models, stage).fingerprint for stage in ("generator", "masker", "encoder")}
    stages["proposals"] = models.masker.proposals_fingerprint
    settings = {"references": asdict(models.references), "segmentation": asdict(models.segmentation)}
    return {"preset": models.name, "settings": settings, "weights": stages, "versions": versions()}


def compile_cache(folder: Path) -> None:
    """Keep XLA's compiled programs, so that a second start is fast."""
    import jax

    jax.config.update("jax_compilation_cache_dir", str(folder.absolute() / "jit"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
