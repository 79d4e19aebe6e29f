"""Figure 3 of the paper: images, segmentations and truth side by side.

Command:  python experiments/fig3.py
              mini, Fashion Scenes; 2 CPU cores, under 1 minute after table2.py
          python experiments/fig3.py --preset paper --dataset voc --data data
              likewise context, coco-object; a GPU

Shows the data set's first images (the paper's are hand-picked) under the configurations `paper` and
`rimjax`.
"""

from harness import Experiment, start

COUNT = 12


def main(experiment: Experiment) -> None:
    items = experiment.items[:COUNT]
    variants = {
        "paper": experiment.load_models("paper"),
        "rimjax": experiment.load_models("rimjax"),
    }
    experiment.compare_pictures("fig3", variants, items)


if __name__ == "__main__":
    start(main, Experiment, __doc__, dataset="voc")
