"""Ablations: what the paper leaves open, each choice against the default of this package.

Command:  python experiments/ablations.py --validation
              mini's validation scenes; 2 CPU cores, about 3 minutes after beyond.py --validation
          python experiments/ablations.py
              mini's benchmark; as long, after make demo and beyond.py
          python experiments/ablations.py --preset paper --data data
              COCO Object, 5,000 images; a GPU

Each row is the `printed` or the `rimjax` configuration with the named change alone. The paper
preset also has rows for images that keep their shape, which on mini are square anyway, and for
CLIP's and MAE's input sizes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from harness import Experiment, start
from tables import Row

from rimjax.models.protocols import Models
from rimjax.models.sam import SamMasker
from rimjax.models.stable_diffusion import DeferredGenerator
from rimjax.models.vit_encoder import ViTEncoder
from rimjax.presets import PNDM_STEPS
from rimjax.references.build import assemble_bank, build_references
from rimjax.types import ReferenceBank

SIZES = {"mini": (192,), "paper": (336, 672)}
STEPS = {"mini": 20, "paper": PNDM_STEPS}  # mini's own number, so that drawing takes as long
BASELINES = {"clip-vit-b-16": (224, 336), "mae-vit-b": (224, 336)}
"""Table 3's encoders of the paper preset, whose default is 592 pixels."""


def main(experiment: Experiment) -> None:
    evaluations, bases, ours = {}, {}, None
    for configuration in ("printed", "rimjax"):
        ours = experiment.load_models(configuration)
        bank, theirs = experiment.build_bank(ours), ours.segmentation
        rows = {
            configuration: (bank, theirs),
            **{
                f"{configuration}, {name} on top": (bank, replace(theirs, on_top=on_top))
                for name, on_top in (("surest proposal", "predicted_iou"), ("best named", "score"))
            },
            f"{configuration}, Eq. 3 by token": (build_by_token(experiment, ours), theirs),
            **{
                f"{configuration}, {name}": (experiment.build_bank(models), theirs)
                for name, models in change_references(experiment, ours).items()
            },
        }
        if configuration == "printed":
            rows |= experiment.build_cosine_rows(ours)
        evaluations |= experiment.evaluate(experiment.open_regions(ours), rows)
        bases[configuration] = evaluations[configuration]
        for name, models in change_features(experiment, ours).items():
            setup = (experiment.build_bank(models), theirs)
            load = experiment.open_regions(models)
            evaluations |= experiment.evaluate(load, {f"{configuration}, {name}": setup})
    table = [Row(name, "", evaluation) for name, evaluation in evaluations.items()]
    experiment.write_table("ablations", table, bases, ours)


def change_references(experiment: Experiment, models: Models) -> dict[str, Models]:
    """Return models by the change: only the references differ."""
    generator = _get_generator(models)
    steps = STEPS[experiment.preset]
    pndm = replace(generator.config, scheduler="pndm", steps=steps)
    assert isinstance(models.masker, SamMasker)
    single = SamMasker(models.masker.sam, multimask=False)
    return {
        "SAM's single mask": replace(models, masker=single),
        f"PNDM, {steps} steps": replace(models, generator=replace(generator, config=pndm)),
    }


def change_features(experiment: Experiment, models: Models) -> dict[str, Models]:
    """Return models by the change: the features of both flows differ."""
    encoder = models.encoder
    assert isinstance(encoder, ViTEncoder)
    changes: dict[str, Mapping[str, Any]] = {"masks not antialiased": {"antialias": False}}
    for size in SIZES[experiment.preset]:
        changes[f"input size {size}"] = {"encoder": replace(encoder, input_size=size)}
    if experiment.preset == "paper":
        changes["images keep their shape"] = {"encoder": replace(encoder, resize="aspect")}
        for name, sizes in BASELINES.items():
            for size in (None, *sizes):
                other = experiment.load_models(encoder=name, input_size=size).encoder
                changes[f"{name}, input size {size or 592}"] = {"encoder": other}
    return {name: replace(models, **change) for name, change in changes.items()}


def build_by_token(experiment: Experiment, models: Models) -> ReferenceBank:
    """Build the bank of Eq. 3's other reading; a name of one token is drawn the same by both."""
    generator = _get_generator(models)
    config = replace(generator.config, normalise="token")
    other = replace(models, generator=replace(generator, config=config))
    groups = []
    for name in experiment.dataset.prompts:
        _, weights = generator.model.prompts.encode(name)
        chosen = other if np.count_nonzero(weights) > 1 else models
        groups += build_references([name], chosen, cache_dir=experiment.cache_dir)[1]
    return assemble_bank(groups, models.references, models.features)


def _get_generator(models: Models) -> DeferredGenerator:
    assert isinstance(models.generator, DeferredGenerator)
    return models.generator


if __name__ == "__main__":
    start(main, Experiment, __doc__)
