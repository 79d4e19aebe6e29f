"""Table 5 of the paper: a region's category agents drawn at random, or the N classes nearest to it.

Command:  python experiments/table5.py                                  mini, Fashion Scenes; 2 CPU cores, about 1 minute after table2.py
          python experiments/table5.py --preset paper --data data       COCO Object, 5,000 images; a GPU
Paper:    random 43.8, top-N 44.5. Random agents are drawn five times over, and all five counted together.
"""

from dataclasses import replace

from harness import Experiment, Row, start

SEEDS = range(5)


def main(experiment: Experiment) -> None:
    models = experiment.models()
    bank, top = experiment.bank(models), models.segmentation
    drawn = {f"random {seed}": (bank, replace(top, agent_policy="random", seed=seed)) for seed in SEEDS}
    found = experiment.evaluate(experiment.regions_of(models), {"top": (bank, top), **drawn})
    together = replace(found["top"], confusions=sum(found[name].confusions for name in drawn))
    rows = [Row("random agents", "43.8", together), Row("top-N agents", "44.5", found["top"])]
    experiment.table("table5", rows, {"random": together}, models)


if __name__ == "__main__":
    start(main, Experiment, __doc__)
