"""The scenes that the rimjax configuration gets most wrong, to look at.

Command:  python experiments/failures.py --validation           mini; 2 CPU cores, under 1 minute after beyond.py
"""

from harness import Experiment, image_miou, start

from rimjax.inference import label

COUNT = 12


def main(experiment: Experiment) -> None:
    models = experiment.models("rimjax")
    bank = experiment.bank(models)
    found = [(item, label(regions, bank, models.segmentation)) for item, regions in experiment.regions_of(models)]
    worst = sorted(found, key=lambda one: image_miou(one[1], one[0].labels()))[:COUNT]
    variants = {"paper": experiment.models("paper"), "rimjax": models}
    experiment.side_by_side("failures", variants, [item for item, _ in worst])


if __name__ == "__main__":
    start(main, Experiment, __doc__)
