"""Table 5 of the paper: random category agents against the N classes nearest to the region.

Command:  python experiments/table5.py
              mini, Fashion Scenes; 2 CPU cores, about 1 minute after table2.py
          python experiments/table5.py --preset paper --data data
              COCO Object, 5,000 images; a GPU

Paper: random 43.8, top-N 44.5

Random agents are drawn five times, and the pixels of all five runs are counted together. Plain
cosine has no agents.
"""

from dataclasses import replace

import numpy as np
from harness import Experiment, start
from tables import Row

from rimjax.evaluation.metrics import Counts

SEEDS = range(5)


def main(experiment: Experiment) -> None:
    models = {name: experiment.load_models(name) for name in ("printed", "rimjax")}
    setups = experiment.build_cosine_rows(models["printed"])
    for name, own in models.items():
        bank, top = experiment.build_bank(own), own.segmentation
        setups[f"{name}, top"] = bank, top
        for seed in SEEDS:
            random = replace(top, agent_policy="random", seed=seed)
            setups[f"{name}, random {seed}"] = bank, random
    evaluations = experiment.evaluate(experiment.open_regions(models["printed"]), setups)
    rows, bases = [], {}
    for name in models:
        runs = [evaluations[f"{name}, random {seed}"].counts for seed in SEEDS]
        hits, unions = (
            np.sum([getattr(run, part) for run in runs], axis=0) for part in ("hits", "unions")
        )
        top = evaluations[f"{name}, top"]
        together = bases[f"random agents, {name}"] = replace(top, counts=Counts(hits, unions))
        suffix = "" if name == "printed" else ", rimjax configuration"
        rows.append(Row(f"random agents{suffix}", "" if suffix else "43.8", together))
        rows.append(Row(f"top-N agents{suffix}", "" if suffix else "44.5", top))
    rows += [Row(name, "", evaluations[name]) for name in evaluations if "cosine" in name]
    experiment.write_table("table5", rows, bases, models["rimjax"])


if __name__ == "__main__":
    start(main, Experiment, __doc__)
