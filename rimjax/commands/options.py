"""The options of the commands that load models."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tqdm import tqdm

from rimjax.distributed.cluster import Workers
from rimjax.models.protocols import Models, Pixels
from rimjax.models.sam import SamPrecision
from rimjax.models.trust import find_confidence
from rimjax.pipeline import check_regions_named
from rimjax.presets import Precision, Scheduler, load_preset
from rimjax.references.build import read_settings
from rimjax.references.contents import Manifest
from rimjax.settings import CONFIGURATIONS, THRESHOLDS


def default(text: str) -> object:
    """Describe the default of an option that is None."""
    return tyro.conf.arg(help_behavior_hint=f"(default: {text})")


NO_DEFAULT = tyro.conf.arg(help_behavior_hint="")
Flag = Annotated[tyro.conf.FlagCreatePairsOff[bool], NO_DEFAULT]
"""An option without a value, off unless given."""
DTYPE_DEFAULT = default("float32; bfloat16 for paper on an accelerator")
PRESET_DEFAULT = default("the preset's")
CACHE_DEFAULT = default("RIMJAX_CACHE, or the user's cache folder")
WEIGHTS_DEFAULT = default("RIMJAX_WEIGHTS, or the user's data folder")


@dataclass(frozen=True, kw_only=True)
class PresetOptions:
    """Preset.

    Attributes:
        preset: Either mini, small models in the package that know ten kinds of clothing; or paper,
            Stable Diffusion, SAM and DINOv2 for photographs, whose weights must be downloaded.
        images: K, images drawn of each class.
    """

    preset: Literal["mini", "paper"] = "mini"
    images: Annotated[int | None, PRESET_DEFAULT] = None


@dataclass(frozen=True, kw_only=True)
class UnknownOptions:
    """Regions that no class fits.

    A region's score says how like its class it is: by default cosine + 0.1 relation, at most 1.1.
    Its margin is the distance to the score of the runner-up among the classes. Its confidence is
    the share of such regions that was named rightly on mini's validation scenes, where every thing
    was among the classes; other presets, classes and unfamiliar pictures have none.

    Attributes:
        min_score: Least score for a region to get its class's name; 0.65 is a good start for mini
            (docs/unknown.md).
        min_margin: Least margin.
        min_confidence: Least confidence, from 0 to 1; mini only.
        unknown: What regions below become: a class "unknown" after the others (label), which every
            output has, or background.
    """

    min_score: Annotated[float | None, default("any")] = None
    min_margin: Annotated[float | None, default("any")] = None
    min_confidence: Annotated[float | None, default("any")] = None
    unknown: Literal["label", "background"] = "label"

    def apply(self, models: Models) -> Models:
        """Return models whose segmentation settings have these thresholds.

        Raises:
            ValueError: a threshold is out of range, or can't be applied with these models.
        """
        names = (*THRESHOLDS, "unknown")
        changes: dict[str, Any] = {name: getattr(self, name) for name in names}
        settings = replace(models.segmentation, **changes)
        find_confidence(models, settings)
        if isinstance(models.proposer, Pixels):
            check_regions_named(settings)
        return replace(models, segmentation=settings)


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """Models.

    Attributes:
        configuration: Named settings of matching: rimjax, the recommended settings; or printed
            (alias paper), the paper's equations to the letter.
        generator: Stable Diffusion of the paper preset: sd-1.4 or sd-1.5.
        masker: SAM of the paper preset: sam-vit-b, sam-vit-l or sam-vit-h.
        encoder: Encoder: dinov2-base, dinov2-small, dinov2-large, dinov3-base, dinov3-small,
            dinov3-large, clip-vit-b-16, mae-vit-b or sd-unet of the paper preset; mini, mini-clip,
            mini-mae or mini-unet of mini.
        proposer: Regions from another source than SAM: maskformer (ResNet-101 trained on
            COCO-Stuff; the paper names no backbone), or mini-maskformer of mini; or pixels, without
            regions.
        input_size: Side in pixels that the encoder resizes images to; a multiple of its patch size.
        scheduler: Sampler that draws images; pndm is Stable Diffusion 1.4's own.
        steps: Steps of the sampler that draws images.
        dtype: Numbers that the generator computes in: float32, or bfloat16, which is faster and
            less exact.
        encoder_dtype: Numbers that the encoder computes in; bfloat16 changes a few labels.
        masker_dtype: Number format SAM computes in; bfloat16 and float16 are meant for GPUs and
            change a few masks.
        compile_masker: Compile SAM's image encoder by torch.compile; pays for many images.
        points_per_side: Points on a side of SAM's grid of prompts for regions; half as many take a
            quarter of the decoder's time and find fewer masks (docs/speed.md).
        weights_dir: Folder that holds the paper preset's weights in paper/.
        random_weights: Self-test of the paper preset without its weights: reports the time and
            memory of each stage; results mean nothing.
    """

    configuration: Annotated[Literal["rimjax", "printed", "paper"] | None, default("rimjax")] = None
    generator: Annotated[str | None, default("sd-1.4")] = None
    masker: Annotated[str | None, default("sam-vit-b")] = None
    encoder: Annotated[str | None, default("dinov2-base, or mini")] = None
    proposer: Annotated[str | None, default("SAM")] = None
    input_size: Annotated[int | None, PRESET_DEFAULT] = None
    scheduler: Annotated[Scheduler | None, default("dpmsolver++")] = None
    steps: Annotated[int | None, default("the preset's, or 50 with pndm")] = None
    dtype: Annotated[Precision | None, DTYPE_DEFAULT] = None
    encoder_dtype: Precision = "float32"
    masker_dtype: SamPrecision = "float32"
    compile_masker: Flag = False
    points_per_side: Annotated[int | None, default("32; 10 of mini")] = None
    weights_dir: Annotated[Path | None, WEIGHTS_DEFAULT] = None
    random_weights: Flag = False

    def load_stages(self, preset: str) -> Models:
        """Load the preset's models under these options."""
        start = time.perf_counter()
        if self.random_weights:
            _report(
                "random weights: pictures, masks and labels mean nothing; only time and memory do"
            )
        models = load_preset(
            preset,
            self.weights_dir,
            generator=self.generator,
            masker=self.masker,
            encoder=self.encoder,
            proposer=self.proposer,
            configuration=self.configuration or "rimjax",
            scheduler=self.scheduler,
            steps=self.steps,
            input_size=self.input_size,
            random_weights=self.random_weights,
            dtype=self.dtype,
            encoder_dtype=self.encoder_dtype,
            masker_dtype=self.masker_dtype,
            compile_masker=self.compile_masker,
            points_per_side=self.points_per_side,
        )
        if self.random_weights:
            report_stage("load SAM and the encoder", time.perf_counter() - start)
            stages = ("generator", "masker", "proposer", "encoder")
            watched = {
                stage: WatchedModel(stage, model)
                for stage in stages
                if not isinstance(model := getattr(models, stage), Pixels)
            }
            models = replace(models, **watched)
        return models

    def adopt_bank(self, manifest: Manifest, models: Models) -> Models:
        """Return models with a finished bank's settings, or with the chosen configuration's.

        Without a chosen configuration, matching follows the configuration that the bank was built
        with; "rimjax" if it was built with settings of its own.
        """
        references = read_settings(manifest)
        if self.configuration is not None:
            references = CONFIGURATIONS[self.configuration].adjust(references)
            return replace(models, references=references)
        chosen = next(
            (each for each in CONFIGURATIONS.values() if each.adjust(references) == references),
            CONFIGURATIONS["rimjax"],
        )
        return replace(models, references=references, segmentation=chosen.segmentation)


@dataclass(frozen=True, kw_only=True)
class ModelOptions(StageOptions, PresetOptions):
    """Models of a command that draws references."""

    def load(self, with_bank: bool = False) -> Models:
        """Load the models under these options."""
        for name in ("images", "scheduler", "steps") if with_bank else ():
            if getattr(self, name) is not None:
                drawn = "whose images are drawn already"
                raise ValueError(f"{name} must be left out with --bank, {drawn}")
        models = self.load_stages(self.preset)
        if self.images is None:
            return models
        if self.images < 1:
            raise ValueError(f"images must be at least 1, got {self.images}")
        return replace(models, references=replace(models.references, num_images=self.images))


@dataclass(frozen=True, kw_only=True)
class RayOptions:
    """Workers on a Ray cluster.

    Attributes:
        ray: Address of a Ray cluster whose workers do the work; auto for the cluster that this
            machine belongs to, local for workers on this machine alone.
        ray_workers: Number of workers; each loads the models once.
        ray_cpus: CPUs of a worker.
        ray_gpus: GPUs of a worker; a fraction lets workers share a GPU.
    """

    ray: Annotated[str | None, default("this process does it all")] = None
    ray_workers: Annotated[int | None, default("as many as there is room for")] = None
    ray_cpus: float = 1.0
    ray_gpus: float = 0.0

    def open(self) -> Workers | None:
        """Return the workers to ask for; None without --ray.

        Raises:
            ValueError: a number is out of range, or given without --ray.
        """
        if self.ray is None:
            if (self.ray_workers, self.ray_cpus, self.ray_gpus) != (None, 1.0, 0.0):
                raise ValueError("ray must be given with the numbers of its workers, got none")
            return None
        if self.ray_workers is not None and self.ray_workers < 1:
            raise ValueError(f"ray_workers must be at least 1, got {self.ray_workers}")
        if min(self.ray_cpus, self.ray_gpus) < 0 or not self.ray_cpus + self.ray_gpus:
            raise ValueError("ray_cpus and --ray-gpus must be at least 0, and not both 0")
        return Workers(
            address=self.ray, count=self.ray_workers, cpus=self.ray_cpus, gpus=self.ray_gpus
        )


def parse_shard(text: str | None) -> tuple[int, int]:
    """Return the index of the first image of a shard "i/n", and the step; None means all images."""
    if text is None:
        return 0, 1
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f'shard must be "i/n" with i from 1 to n, got {text!r}')
    return int(index) - 1, int(count)


class WatchedModel:
    """A model that reports each call's seconds and the peak of memory so far, for the self-test."""

    def __init__(self, stage: str, model: Any) -> None:
        self._stage, self._model = stage, model

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not set yet, e.g. while unpickling
            raise AttributeError(name)
        attribute = getattr(self._model, name)
        if not callable(attribute):
            return attribute

        def call(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = attribute(*args, **kwargs)
            report_stage(f"{self._stage}.{name}", time.perf_counter() - start)
            return result

        return call


def report_stage(stage: str, seconds: float) -> None:
    """Report a stage's seconds and, where the system tells, the peak of resident memory."""
    _report(f"{stage}: {seconds:.1f} s{_describe_peak()}")


def _describe_peak() -> str:
    try:
        import resource
    except ImportError:  # Windows
        return ""
    unit = 2**30 if sys.platform == "darwin" else 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return f", peak memory so far {peak:.2f} GiB"


def _report(line: str) -> None:
    tqdm.write(f"self-test: {line}", file=sys.stderr)
