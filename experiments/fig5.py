"""Figure 5 of the paper: mIoU against (a) sub-categories T and (b) the binarisation threshold.

Command:  python experiments/fig5.py
              mini, Fashion Scenes; 2 CPU cores, about 4 minutes after table2.py
          python experiments/fig5.py --preset paper --data data
              COCO Object, 5,000 images; a GPU

Paper: (a) rises to T = 8 (44.5), then falls; (b) flat, best at 0.7

No image is drawn again: the thresholds cut out the same images.
"""

from harness import Experiment, start
from plots import draw_curves
from tables import Row, write_chart

SUBCATEGORIES = (1, 2, 4, 6, 8, 10, 12)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def main(experiment: Experiment) -> None:
    models = experiment.load_models()
    banks = {
        ("T", count): experiment.build_bank(models, num_subcategories=count)
        for count in SUBCATEGORIES
    }
    banks |= {("threshold", at): experiment.build_bank(models, threshold=at) for at in THRESHOLDS}
    rows = {
        f"{name} = {value}": (bank, models.segmentation) for (name, value), bank in banks.items()
    }
    rows |= experiment.build_cosine_rows(models)
    evaluations = experiment.evaluate(experiment.open_regions(models), rows)
    paper = {"T = 8": "44.5", "threshold = 0.7": "44.5"}
    table = [Row(name, paper.get(name, ""), result) for name, result in evaluations.items()]
    experiment.write_table("fig5", table, models=models)
    charts = {
        "sub-categories T": {count: evaluations[f"T = {count}"] for count in SUBCATEGORIES},
        "binarisation threshold": {at: evaluations[f"threshold = {at}"] for at in THRESHOLDS},
    }
    marked = {"sub-categories T": 8, "binarisation threshold": 0.7}
    write_chart(experiment.folder, "fig5", draw_curves(charts, marked))


if __name__ == "__main__":
    start(main, Experiment, __doc__)
