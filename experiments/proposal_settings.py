"""Settings of SAM's proposals that trade masks for time: what they take, and what they lose.

Command:  python experiments/proposal_settings.py --validation
              mini, 200 scenes of training-split photographs; 2 CPU cores, about 5 minutes
          python experiments/proposal_settings.py --preset paper --data data
              COCO Object, 5,000 images; a GPU

Every image is proposed under each setting by turns, so that other jobs slow all of them alike, and
encoded anew each time. A mask is lost, or new, if no mask of the other setting overlaps it with an
IoU above 0.9; several masks may have the same counterpart.
"""

import math
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np
from harness import Experiment, start
from jaxtyping import Bool, Int64
from tables import format_gain, measure_gain, print_lines, write_csv

from rimjax.commands.console import progress
from rimjax.datasets import Item
from rimjax.evaluation import Evaluation
from rimjax.evaluation.loop import Setup, evaluate_items, raise_errors
from rimjax.evaluation.metrics import Counts
from rimjax.models.protocols import Models
from rimjax.models.sam.adapter import SamProposer
from rimjax.regions.extract import extract
from rimjax.types import BACKGROUND, Regions

HEADER = (
    *("setting", "ms an image", "over the default", "mIoU (%)", "gain, 95 % interval"),
    *("masks an image", "lost", "new", "images"),
)
SAME = 0.9

Masks = Bool[np.ndarray, "M H W"]


@dataclass(eq=False)
class Trial:
    """A setting, and what was seen of it in each image.

    Attributes:
        models: with the setting.
        seconds: that proposing took.
        masks: number of masks.
        lost: masks of the default without a counterpart here.
        new: masks without a counterpart in the default.
        confusions: the pixels, by true and predicted class.
    """

    models: Models
    seconds: list[float] = field(default_factory=list)
    masks: list[int] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    new: list[int] = field(default_factory=list)
    confusions: list[Int64[np.ndarray, "C C"]] = field(default_factory=list)

    @property
    def proposer(self) -> SamProposer:
        """SAM, of these models."""
        assert isinstance(self.models.proposer, SamProposer)
        return self.models.proposer

    def segment(self, item: Item, setup: Setup, background: bool) -> Masks:
        """Segment an image, and return its masks."""
        found: list[Masks] = []
        self.proposer.sam.forget()  # settings share a SAM, which keeps the last image's encoding

        def load(image: np.ndarray, timings: dict[str, float]) -> Regions:
            regions = extract(self.models, image, timings)
            assert isinstance(regions, Regions) and regions.masks is not None
            found.append(np.asarray(regions.masks))
            self.seconds.append(timings["propose"])
            return regions

        outcomes = evaluate_items([item], load, {"": setup}, background=background)
        (outcome,) = raise_errors(outcomes)
        self.confusions.append(outcome.confusions[""])
        self.masks.append(len(found[0]))
        return found[0]


def main(experiment: Experiment) -> None:
    trials, dataset = list_trials(experiment), experiment.dataset
    default = trials["default"]
    setup = experiment.build_bank(default.models), default.models.segmentation
    for trial in trials.values():  # the first image of a model takes longer
        extract(trial.models, experiment.items[0].image())
    for turn, item in enumerate(progress(experiment.items, "propose", "image")):
        masks = {
            name: trials[name].segment(item, setup, dataset.background)
            for name in np.roll(list(trials), turn)
        }
        for name, trial in trials.items():
            trial.lost.append(count_unmatched(masks["default"], masks[name]))
            trial.new.append(count_unmatched(masks[name], masks["default"]))
    names = BACKGROUND, *dataset.classes
    evaluations = {
        name: Evaluation(
            names, Counts.from_confusions(np.stack(trial.confusions)), {}, dataset.background
        )
        for name, trial in trials.items()
    }
    lines = []
    for name, trial in trials.items():
        gain = measure_gain(evaluations[name], evaluations["default"])
        ratio = median(np.divide(trial.seconds, default.seconds))
        compared = f"{ratio:.2f}", format_gain(gain), str(sum(trial.lost)), str(sum(trial.new))
        over, gained, lost, new = ("",) * 4 if trial is default else compared
        time, miou = f"{1000 * median(trial.seconds):.0f}", f"{100 * evaluations[name].miou:.1f}"
        count, images = f"{np.mean(trial.masks):.1f}", str(len(trial.masks))
        lines.append((name, time, over, miou, gained, count, lost, new, images))
    print_lines([HEADER, *lines])
    write_csv(experiment.folder, "proposal_settings", [HEADER, *lines])


def list_trials(experiment: Experiment) -> dict[str, Trial]:
    """List the settings to try, the default first."""
    default = experiment.load_models("rimjax")
    trials = {"default": Trial(default)}
    proposer = trials["default"].proposer
    coarse = max(1, proposer.config.points_per_side // 2)
    changes = {
        "skip_covered=True": {"skip_covered": True},
        f"points_per_side={coarse}": {"points_per_side": coarse},
        "crop_layers=1": {"crop_layers": 1},
    }
    for name, change in changes.items():
        own = replace(proposer, config=replace(proposer.config, **change))
        trials[name] = Trial(replace(default, proposer=own))
    for dtype in ("bfloat16", "float16"):
        half = experiment.load_models("rimjax", masker_dtype=dtype)
        trials[f"masker_dtype={dtype}"] = Trial(half)
    return trials


def count_unmatched(masks: Masks, others: Masks) -> int:
    """Count the masks without a counterpart among others."""
    rows, columns = (
        m.reshape(len(m), math.prod(m.shape[1:])).astype(np.float32) for m in (masks, others)
    )
    overlaps = rows @ columns.T
    unions = rows.sum(1)[:, None] + columns.sum(1) - overlaps
    return len(masks) - int((overlaps > SAME * unions).any(1).sum())


if __name__ == "__main__":
    start(main, Experiment, __doc__)
