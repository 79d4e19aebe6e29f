"""Comparisons that several experiments draw: pictures of variants, tables of a stage's choices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from harness import Experiment
from tables import Row, write_chart, write_csv

import rimjax
from rimjax.datasets import Item
from rimjax.evaluation.loop import Outcome
from rimjax.evaluation.metrics import mean_iou
from rimjax.models.protocols import Models
from rimjax.settings import CONFIGURATIONS


def compare_pictures(
    experiment: Experiment, name: str, variants: Mapping[str, Models], items: Sequence[Item]
) -> None:
    """Write a picture of images, each variant's segmentation and the truth.

    A CSV of each image's mIoU goes beside it.
    """
    columns = [experiment.evaluate_models(models, items) for models in variants.values()]
    pictures, rows = [], []
    for item, *outcomes in zip(items, *columns, strict=True):
        image, truth = item.read()
        segs = [outcome.segmentations[""] for outcome in outcomes]
        titled = dict(zip(variants, segs, strict=True))
        pictures.append(rimjax.draw.comparison(image, titled, truth))
        rows.append((item.id, *(f"{100 * image_miou(outcome):.1f}" for outcome in outcomes)))
    write_chart(experiment.folder, name, rimjax.draw.grid(pictures, 2))
    titles = ("image", *(f"mIoU, {title}" for title in variants))
    write_csv(experiment.folder, name, [titles, *rows])


def image_miou(outcome: Outcome) -> float:
    """Return the mIoU of an outcome of `evaluate_models`, in 0..1, over the classes present."""
    return mean_iou(outcome.confusions[""])


def compare_stages(
    experiment: Experiment,
    name: str,
    stage: str,
    choices: Mapping[str, tuple[str, Mapping[str, str | None]]],
) -> None:
    """Write the table of a stage's choices: as printed, by plain cosine, and by `rimjax`.

    Args:
        experiment: the experiment.
        name: name of the table.
        stage: "encoder" or "proposer".
        choices: title -> the paper's figure, and the choice's name in each preset.
    """
    configuration, rows, ours = CONFIGURATIONS["printed"], [], None
    for title, (paper, choice) in choices.items():
        ours = experiment.load_models("rimjax", **{stage: choice[experiment.preset]})
        references = configuration.adjust(ours.references)
        printed = replace(ours, references=references, segmentation=configuration.segmentation)
        setups = {
            title: (experiment.build_bank(printed), printed.segmentation),
            **experiment.build_cosine_rows(printed, f"{title}, "),
            f"{title}, rimjax configuration": (experiment.build_bank(ours), ours.segmentation),
        }
        evaluations = experiment.evaluate(experiment.open_regions(ours), setups)
        rows += [
            Row(row, paper if row == title else "", evaluation)
            for row, evaluation in evaluations.items()
        ]
    experiment.write_table(name, rows, models=ours)
