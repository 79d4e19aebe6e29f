"""Beyond the paper: the gain of each choice that it leaves open, and mIoU for up to ten agents.

Command:  python experiments/beyond.py --validation
              mini's validation scenes, to choose settings; 2 CPU cores, about 5 minutes
          python experiments/beyond.py
              mini's benchmark, to report the choice
          python experiments/beyond.py --preset paper --data data
              COCO Object, 5,000 images; a GPU

Each row is the `printed` configuration with the named change. A row of "step by step" also keeps
the changes of the steps before it; the last step is the `rimjax` configuration.
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
    printed, ours = experiment.load_models(), experiment.load_models("rimjax")
    bank = experiment.build_bank(printed)
    single = experiment.build_bank(printed, num_subcategories=1)
    whitened = experiment.build_bank(ours)
    theirs, best = printed.segmentation, ours.segmentation
    few = replace(theirs, candidates="agents")
    exp = replace(few, score_map="exp")
    rows = {
        "printed": (bank, theirs),
        **experiment.build_cosine_rows(printed),
        "score map shift": (bank, replace(theirs, score_map="shift")),
        "score map exp": (bank, replace(theirs, score_map="exp")),
        "candidates agents": (bank, few),
        "assembly vote": (bank, replace(theirs, assembly="vote")),
        "step by step: T = 1": (single, theirs),
        "step by step: score map exp": (single, replace(theirs, score_map="exp")),
        "step by step: similarity weighted": (single, best),
        "step by step: whitened, half centred = rimjax": (whitened, best),
        "an earlier rimjax: whitened, only agents may win": (
            experiment.build_bank(ours, centre=1.0),
            exp,
        ),
        "rimjax, but plain cosine": (whitened, replace(best, similarity="cosine")),
        "rimjax, but combined": (whitened, replace(best, similarity="combined")),
        "rimjax, but random agents": (whitened, replace(best, agent_policy="random")),
        "rimjax, but vote": (whitened, replace(best, assembly="vote")),
        "rimjax, but T = 8": (experiment.build_bank(ours, num_subcategories=8), best),
        **{f"N = {count}": (bank, replace(theirs, num_agents=count)) for count in AGENTS},
        **{
            f"rimjax, but N = {count}": (whitened, replace(best, num_agents=count))
            for count in AGENTS
        },
    }
    evaluations = experiment.evaluate(experiment.open_regions(printed), rows)
    for size in SIZES[experiment.preset]:
        assert isinstance(ours.encoder, ViTEncoder)
        other = replace(ours, encoder=replace(ours.encoder, input_size=size))
        name = f"rimjax, but input size {size}"
        setup = (experiment.build_bank(other), best)
        evaluations |= experiment.evaluate(experiment.open_regions(other), {name: setup})
    table = [
        Row(name, "44.5" if name == "printed" else "", evaluation)
        for name, evaluation in evaluations.items()
    ]
    bases = {
        "printed": evaluations["printed"],
        "cosine": evaluations["plain cosine, T = 1"],
        "rimjax": evaluations["step by step: whitened, half centred = rimjax"],
    }
    experiment.write_table("beyond", table, bases, ours)
    charts: dict[str, dict[float, Evaluation]] = {
        "agents N, printed configuration": {count: evaluations[f"N = {count}"] for count in AGENTS},
        "agents N, rimjax configuration": {
            count: evaluations[f"rimjax, but N = {count}"] for count in AGENTS
        },
    }
    write_chart(experiment.folder, "beyond", draw_curves(charts))


if __name__ == "__main__":
    start(main, Experiment, __doc__)
