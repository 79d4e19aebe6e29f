"""Beyond the paper: the gain of each choice that it leaves open, and mIoU for up to ten agents.

Command:  python experiments/beyond.py --validation
              mini's validation scenes, to choose settings; 2 CPU cores, about 5 minutes
          python experiments/beyond.py
              mini's benchmark, to report the choice
          python experiments/beyond.py --preset paper --data data
              COCO Object, 5,000 images; a GPU

Each row is the paper's configuration with the named change. A row of "step by step" also keeps the
changes of the steps before it; the last step is the `rimjax` configuration.
"""

from dataclasses import replace

from harness import Experiment, start
from plots import draw_curves
from tables import Row, write_chart

from rimjax.evaluation import Evaluation
from rimjax.models.vit_encoder import ViTEncoder

AGENTS = range(2, 11)
SIZES = {"mini": (96, 160, 192), "paper": (224, 336, 672)}


def main(experiment: Experiment) -> None:
    paper, ours = experiment.load_models("paper"), experiment.load_models("rimjax")
    bank = experiment.build_bank(paper)
    single = experiment.build_bank(paper, num_subcategories=1)
    whitened = experiment.build_bank(ours)
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
        "rimjax, but T = 8": (experiment.build_bank(ours, num_subcategories=8), best),
        **{f"N = {count}": (bank, replace(theirs, num_agents=count)) for count in AGENTS},
        **{
            f"rimjax, but N = {count}": (whitened, replace(best, num_agents=count))
            for count in AGENTS
        },
    }
    evaluations = experiment.evaluate(experiment.open_model_store(paper), rows)
    for size in SIZES[experiment.preset]:
        assert isinstance(ours.encoder, ViTEncoder)
        other = replace(ours, encoder=replace(ours.encoder, input_size=size))
        name = f"rimjax, but input size {size}"
        setup = (experiment.build_bank(other), best)
        evaluations |= experiment.evaluate(experiment.open_model_store(other), {name: setup})
    table = [
        Row(name, "44.5" if name.startswith("the paper") else "", evaluation)
        for name, evaluation in evaluations.items()
    ]
    bases = {
        "the paper's": evaluations["the paper's configuration"],
        "rimjax": evaluations["step by step: whitened = rimjax"],
    }
    experiment.write_table("beyond", table, bases, ours)
    charts: dict[str, dict[float, Evaluation]] = {
        "agents N, the paper's configuration": {
            count: evaluations[f"N = {count}"] for count in AGENTS
        },
        "agents N, rimjax's configuration": {
            count: evaluations[f"rimjax, but N = {count}"] for count in AGENTS
        },
    }
    write_chart(experiment.folder, "beyond", draw_curves(charts))


if __name__ == "__main__":
    start(main, Experiment, __doc__)
