"""Figure 5 of the paper: mIoU against (a) the number of sub-categories T and (b) the threshold at which attention is binarised.

Command:  python experiments/fig5.py                                    mini, Fashion Scenes; 2 CPU cores, about 4 minutes after table2.py
          python experiments/fig5.py --preset paper --data data         COCO Object, 5,000 images; a GPU
Paper:    (a) rises to T = 8 (44.5), then falls; (b) flat, best at 0.7. No image is drawn again: another threshold only cuts the same
          images out anew.
"""

from harness import Experiment, Row, start
from plots import curves

SUBCATEGORIES = (1, 2, 4, 6, 8, 10, 12)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def main(experiment: Experiment) -> None:
    models = experiment.models()
    banks = {("T", count): experiment.bank(models, num_subcategories=count) for count in SUBCATEGORIES}
    banks |= {("threshold", at): experiment.bank(models, threshold=at) for at in THRESHOLDS}
    found = experiment.evaluate(
        experiment.regions_of(models), {f"{name} = {value}": (bank, models.segmentation) for (name, value), bank in banks.items()}
    )
    paper = {"T = 8": "44.5", "threshold = 0.7": "44.5"}
    experiment.table("fig5", [Row(name, paper.get(name, ""), one) for name, one in found.items()], models=models)
    charts = {
        "sub-categories T": {count: found[f"T = {count}"] for count in SUBCATEGORIES},
        "binarisation threshold": {at: found[f"threshold = {at}"] for at in THRESHOLDS},
    }
    experiment.write_picture("fig5", curves(charts, {"sub-categories T": 8, "binarisation threshold": 0.7}))


if __name__ == "__main__":
    start(main, Experiment, __doc__)
