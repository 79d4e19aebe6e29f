"""Past the paper: what every choice that it leaves open is worth, mIoU up to ten agents, and the way to the `rimjax` configuration.

Command:  python experiments/beyond.py --validation                     mini, to choose by; 2 CPU cores, about 5 minutes
          python experiments/beyond.py                                  mini's benchmark, to report
          python experiments/beyond.py --preset paper --data data       COCO Object, 5,000 images; a GPU
Every row is the paper's configuration but for what it names; the rows of "step by step" keep the steps before them.
"""

from dataclasses import replace

from harness import Experiment, Row, start
from plots import curves

from rimjax.models.vit import ViTEncoder

AGENTS = range(2, 11)
SIZES = {"mini": (96, 160, 192), "paper": (224, 336, 672)}


def main(experiment: Experiment) -> None:
    paper, ours = experiment.models("paper"), experiment.models("rimjax")
    bank, single, whitened = experiment.bank(paper), experiment.bank(paper, num_subcategories=1), experiment.bank(ours)
    theirs, best = paper.segmentation, ours.segmentation
    few = replace(theirs, candidates="agents")
    rows = {
        "the paper's configuration": (bank, theirs),
        "score map shift": (bank, replace(theirs, score_map="shift")),
        "score map exp": (bank, replace(theirs, score_map="exp")),
        "candidates agents": (bank, few),
        "assembly vote": (bank, replace(theirs, assembly="vote")),
        "plain cosine": (bank, replace(theirs, similarity="cosine")),
        "step by step: T = 1": (single, theirs),
        "step by step: candidates agents": (single, few),
        "step by step: score map exp": (single, replace(few, score_map="exp")),
        "step by step: whitened = rimjax": (whitened, best),
        "rimjax, but plain cosine": (whitened, replace(best, similarity="cosine")),
        "rimjax, but vote": (whitened, replace(best, assembly="vote")),
        "rimjax, but T = 8": (experiment.bank(ours, num_subcategories=8), best),
        **{f"N = {count}": (bank, replace(theirs, num_agents=count)) for count in AGENTS},
        **{f"rimjax, but N = {count}": (whitened, replace(best, num_agents=count)) for count in AGENTS},
    }
    found = experiment.evaluate(experiment.regions_of(paper), rows)
    for size in SIZES[experiment.preset]:
        assert isinstance(ours.encoder, ViTEncoder)
        other = replace(ours, encoder=replace(ours.encoder, input_size=size))
        name = f"rimjax, but input size {size}"
        found |= experiment.evaluate(experiment.regions_of(other), {name: (experiment.bank(other), best)})
    table = [Row(name, "44.5" if name.startswith("the paper") else "", one) for name, one in found.items()]
    bases = {"the paper's": found["the paper's configuration"], "rimjax": found["step by step: whitened = rimjax"]}
    experiment.table("beyond", table, bases, ours)
    charts = {
        "agents N, the paper's configuration": {count: found[f"N = {count}"] for count in AGENTS},
        "agents N, rimjax's configuration": {count: found[f"rimjax, but N = {count}"] for count in AGENTS},
    }
    experiment.write_picture("beyond", curves(charts))


if __name__ == "__main__":
    start(main, Experiment, __doc__)
