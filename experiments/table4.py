"""Table 4 of the paper: region proposals by feature cells, MaskFormer and SAM.

Command:  python experiments/table4.py
              mini's counterparts, Fashion Scenes; 2 CPU cores, about 3 minutes
          python experiments/table4.py --preset paper --data data
              PASCAL VOC 2012, 1,449 images; a GPU

Paper: none (pixels against references) 42.0, MaskFormer trained on COCO-Stuff 76.7, SAM 77.8

The "pixels" here are the cells of the encoder's feature grid.
"""

from harness import Experiment, start

PROPOSERS = {
    "none: feature cells": ("42.0", {"mini": "cells", "paper": "cells"}),
    "MaskFormer": ("76.7", {"mini": "mini-maskformer", "paper": "maskformer"}),
    "SAM": ("77.8", {"mini": None, "paper": None}),
}


def main(experiment: Experiment) -> None:
    experiment.compare_stages("table4", "proposer", PROPOSERS)


if __name__ == "__main__":
    start(main, Experiment, __doc__, dataset="voc")
