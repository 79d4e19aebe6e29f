"""Draw the scenes with the lowest mIoU under the `rimjax` configuration.

Command:  python experiments/failures.py --validation
              mini; 2 CPU cores, under 1 minute after beyond.py
"""

from harness import Experiment, image_miou, start

from rimjax.datasets import Item
from rimjax.pipeline import name_regions

COUNT = 12


def main(experiment: Experiment) -> None:
    models = experiment.load_models("rimjax")
    bank, store = experiment.build_bank(models), experiment.open_model_store(models)

    def measure(item: Item) -> float:
        seg = name_regions(store.load(item.image()), bank, models.segmentation)
        return image_miou(seg, item.labels())

    worst = sorted(experiment.items, key=measure)[:COUNT]
    variants = {"paper": experiment.load_models("paper"), "rimjax": models}
    experiment.compare_pictures("failures", variants, worst)


if __name__ == "__main__":
    start(main, Experiment, __doc__)
