"""Table 5 of the paper: random category agents against the N classes nearest to the region.

Command:  python experiments/table5.py
              mini, Fashion Scenes; 2 CPU cores, about 1 minute after table2.py
          python experiments/table5.py --preset paper --data data
              COCO Object, 5,000 images; a GPU

Paper: random 43.8, top-N 44.5

Random agents are drawn five times, and the pixels of all five runs are counted together.
"""

from dataclasses import replace

from harness import Experiment, start
from tables import Row

SEEDS = range(5)


def main(experiment: Experiment) -> None:
    models = experiment.load_models()
    bank, top = experiment.build_bank(models), models.segmentation
    random = {
        f"random {seed}": (bank, replace(top, agent_policy="random", seed=seed)) for seed in SEEDS
    }
    store = experiment.open_model_store(models)
    evaluations = experiment.evaluate(store, {"top": (bank, top), **random})
    counts = sum(evaluations[name].confusions for name in random)
    together = replace(evaluations["top"], confusions=counts)
    rows = [
        Row("random agents", "43.8", together),
        Row("top-N agents", "44.5", evaluations["top"]),
    ]
    experiment.write_table("table5", rows, {"random": together}, models)


if __name__ == "__main__":
    start(main, Experiment, __doc__)
