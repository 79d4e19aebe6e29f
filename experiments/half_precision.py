"""The labels that change when the encoder computes in bfloat16, of references and images alike.

Command:  python experiments/half_precision.py
              mini, Fashion Scenes; 2 CPU cores, about 2 minutes after table2.py
          python experiments/half_precision.py --preset paper --data data
              COCO Object, 5,000 images; a GPU

Images are drawn once, in the generator's own numbers, and proposed once.
"""

from contextlib import closing
from dataclasses import replace

import numpy as np
from harness import Experiment, start
from tables import format_gain, measure_gain, print_lines, write_csv

from rimjax.evaluation import Evaluation
from rimjax.evaluation.metrics import Counts
from rimjax.types import BACKGROUND

HEADER = (
    *("configuration", "pixels whose label changes (%)", "images with such a pixel (%)"),
    *("mIoU in float32 (%)", "mIoU in bfloat16 (%)", "gain, 95 % interval", "images"),
)


def main(experiment: Experiment) -> None:
    names, background = (BACKGROUND, *experiment.dataset.classes), experiment.dataset.background
    lines = []
    for configuration in ("rimjax", "printed"):
        passes = []
        for dtype in ("float32", "bfloat16"):
            own = replace(experiment, encoder_dtype=dtype)
            models = own.load_models(configuration)
            rows = {"": (own.build_bank(models), models.segmentation)}
            passes.append(own.evaluate_images(own.open_regions(models), rows, own.items))
        changed, confusions = [], ([], [])
        with closing(passes[0]), closing(passes[1]):
            for outcomes in zip(*passes, strict=True):
                labels = [outcome.segmentations[""].labels for outcome in outcomes]
                changed.append(np.mean(labels[0] != labels[1]))
                for kept, outcome in zip(confusions, outcomes, strict=True):
                    kept.append(outcome.confusions[""])
        exact, half = (
            Evaluation(names, Counts.from_confusions(np.stack(kept)), {}, background)
            for kept in confusions
        )
        shares = (np.mean(changed), np.mean(np.array(changed) > 0))
        figures = [f"{100 * share:.2f}" for share in shares]
        figures += [f"{100 * evaluation.miou:.2f}" for evaluation in (exact, half)]
        gain = format_gain(measure_gain(half, exact))
        lines.append((configuration, *figures, gain, str(len(changed))))
    print_lines([HEADER, *lines])
    write_csv(experiment.folder, "half_precision", [HEADER, *lines])


if __name__ == "__main__":
    start(main, Experiment, __doc__)
