"""Table 3 of the paper: encoders compared on the same regions and references.

Command:  python experiments/table3.py
              mini's counterparts, Fashion Scenes; 2 CPU cores, about 4 minutes
          python experiments/table3.py --preset paper --data data
              COCO Object, 5,000 images; a GPU

Paper: CLIP 42.0, SD's UNet without a prompt 43.1, MAE 39.5, DINOv2 44.5

The paper doesn't state which features of CLIP and MAE it uses (here the keys of the last layer, as
with DINOv2), nor the UNet's block and noise level (here those of DIFT, see `UNetEncoder`).
"""

from comparisons import compare_stages
from harness import Experiment, start

ENCODERS = {
    "CLIP": ("42.0", {"mini": "mini-clip", "paper": "clip-vit-b-16"}),
    "SD's UNet, no prompt": ("43.1", {"mini": "mini-unet", "paper": "sd-unet"}),
    "MAE": ("39.5", {"mini": "mini-mae", "paper": "mae-vit-b"}),
    "DINOv2": ("44.5", {"mini": "mini", "paper": "dinov2-base"}),
}


def main(experiment: Experiment) -> None:
    compare_stages(experiment, "table3", "encoder", ENCODERS)


if __name__ == "__main__":
    start(main, Experiment, __doc__)
