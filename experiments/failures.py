"""Draw the scenes with the lowest mIoU under the `rimjax` configuration.

Command:  python experiments/failures.py --validation
              mini; 2 CPU cores, under 1 minute after beyond.py
"""

from comparisons import compare_pictures, image_miou
from harness import Experiment, start

COUNT = 12


def main(experiment: Experiment) -> None:
    models = experiment.load_models("rimjax")
    outcomes = experiment.evaluate_models(models, experiment.items)
    worst = [outcome.item for outcome in sorted(outcomes, key=image_miou)[:COUNT]]
    variants = {"printed": experiment.load_models(), "rimjax": models}
    compare_pictures(experiment, "failures", variants, worst)


if __name__ == "__main__":
    start(main, Experiment, __doc__)
