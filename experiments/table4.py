"""Table 4 of the paper: pixels without proposals, MaskFormer's regions and SAM's.

Command:  python experiments/table4.py
              mini's counterparts, Fashion Scenes; 2 CPU cores, about 3 minutes
          python experiments/table4.py --preset paper --data data
              PASCAL VOC 2012, 1,449 images; a GPU

Paper: none (pixels against references) 42.0, MaskFormer trained on COCO-Stuff 76.7, SAM 77.8

Without proposals, the encoder's features are matched and the class scores resized to the image.
MaskFormer has a ResNet-101 and was trained on COCO-Stuff; the paper names no backbone. Mini's was
trained on scenes like the benchmark's.
"""

from comparisons import compare_stages
from harness import Experiment, start

PROPOSERS = {
    "none: pixels": ("42.0", {"mini": "pixels", "paper": "pixels"}),
    "MaskFormer, COCO-Stuff (mini: scenes)": (
        "76.7",
        {"mini": "mini-maskformer", "paper": "maskformer"},
    ),
    "SAM": ("77.8", {"mini": None, "paper": None}),
}


def main(experiment: Experiment) -> None:
    compare_stages(experiment, "table4", "proposer", PROPOSERS)


if __name__ == "__main__":
    start(main, Experiment, __doc__, dataset="voc")
