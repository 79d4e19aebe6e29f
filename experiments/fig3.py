"""Figure 3 of the paper: images, segmentations and truth side by side.

Command:  python experiments/fig3.py
              mini, Fashion Scenes; 2 CPU cores, under 1 minute after table2.py
          python experiments/fig3.py --preset paper --dataset voc --data data
              likewise context, coco-object; a GPU

Shows the data set's first images (the paper's are hand-picked) under the configurations
`printed` and `rimjax`.
"""

from comparisons import compare_pictures
from harness import Experiment, start

COUNT = 12


def main(experiment: Experiment) -> None:
    items = experiment.items[:COUNT]
    variants = {
        "printed": experiment.load_models(),
        "rimjax": experiment.load_models("rimjax"),
    }
    compare_pictures(experiment, "fig3", variants, items)


if __name__ == "__main__":
    start(main, Experiment, __doc__, dataset="voc")
