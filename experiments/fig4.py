"""Figure 4 of the paper: matching by pixels and by regions.

Command:  python experiments/fig4.py
              mini, Fashion Scenes; 2 CPU cores, under 1 minute after table4.py
          python experiments/fig4.py --preset paper --data data
              PASCAL VOC 2012; a GPU
"""

from comparisons import compare_pictures
from harness import Experiment, start

COUNT = 8


def main(experiment: Experiment) -> None:
    variants = {
        "pixels": experiment.load_models(proposer="pixels"),
        "regions": experiment.load_models(),
    }
    compare_pictures(experiment, "fig4", variants, experiment.items[:COUNT])


if __name__ == "__main__":
    start(main, Experiment, __doc__, dataset="voc")
