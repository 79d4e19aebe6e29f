"""What Sec. 3.5 compares: how a region ranks its agents, and how two classes rank the same.

Command:  python experiments/rankings.py
              mini, Fashion Scenes; 2 CPU cores, under 1 minute after table1.py
          python experiments/rankings.py --preset paper --dataset voc --data data
              a GPU

Shows the first region that is named rightly and the first that isn't, under the `rimjax`
configuration. The bars are the probabilities of the region's likeliest rankings (Eq. 7): to the
region, to the class that it gets, and to its runner-up.
"""

from collections.abc import Iterator
from itertools import permutations
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from harness import Experiment, start
from plots import create_figure, render_figure
from tables import write_chart, write_csv

from rimjax import match
from rimjax.match.rankings import SCORE_MAPS
from rimjax.models.protocols import Models
from rimjax.settings import SegmentSettings
from rimjax.types import ReferenceBank, Regions

SHOWN = 8
"""Rankings in the chart."""

PURE = 0.9
"""Regions count of which so much of the pixels belongs to one class."""


class Example(NamedTuple):
    """A region that is named a class.

    Attributes:
        title: how it is named, and what it is.
        picture: the image, dark outside the region.
        feature: as the bank's prototypes are, whitened or not.
        classes: the class that it gets, and the runner-up.
        agents: the classes nearest to it.
    """

    title: str
    picture: np.ndarray
    feature: np.ndarray
    classes: np.ndarray
    agents: np.ndarray


def main(experiment: Experiment) -> None:
    models = experiment.load_models("rimjax")
    bank = experiment.build_bank(models)
    examples = list(find_examples(experiment, models, bank))
    if not examples:
        raise ValueError("regions must lie on one class to be shown, got none that do")
    canvas, axes = create_figure(2, 3.2, rows=len(examples))
    rows = [("region", "ranking", "of", "probability")]
    references = np.asarray(bank.classes)
    for example, picture, chart in zip(examples, axes[::2], axes[1::2], strict=True):
        picture.imshow(example.picture)
        picture.set(title=example.title, xticks=[], yticks=[])
        agents = references[example.agents]
        chances = {"this region": rank_agents(example.feature, agents, models.segmentation)}
        for index in example.classes:
            name = f"the class {bank.names[index]}"
            chances[name] = rank_agents(references[index], agents, models.segmentation)
        orders = list(permutations(example.agents))
        likeliest = np.argsort(-chances["this region"], kind="stable")[:SHOWN]
        names = [" > ".join(bank.names[agent] for agent in orders[index]) for index in likeliest]
        places = np.arange(len(likeliest))
        for offset, (name, values) in enumerate(chances.items()):
            chart.barh(places + 0.27 * (offset - 1), values[likeliest], 0.27, label=name)
            rows += [
                (example.title, ranking, name, f"{values[index]:.4f}")
                for ranking, index in zip(names, likeliest, strict=True)
            ]
        chart.set(yticks=places, xlabel="probability")
        chart.set_yticklabels(names, fontsize=8)
        chart.invert_yaxis()
        chart.legend(frameon=False, fontsize=8, loc="lower right")
    canvas.tight_layout()
    write_chart(experiment.folder, "rankings", render_figure(canvas))
    write_csv(experiment.folder, "rankings", rows)


def rank_agents(feature: np.ndarray, agents: np.ndarray, settings: SegmentSettings) -> np.ndarray:
    """Return the probability of each ranking of the agents (Eq. 6, 7)."""
    lengths = np.linalg.norm(agents, axis=1) * np.linalg.norm(feature)
    cosines = [jnp.asarray(cosine, jnp.float32) for cosine in agents @ feature / lengths]
    weights = SCORE_MAPS[settings.score_map](cosines, settings.temperature)
    return np.asarray(match.permutation_probabilities(jnp.stack(weights)))


def find_examples(experiment: Experiment, models: Models, bank: ReferenceBank) -> Iterator[Example]:
    """Yield the first region that is named rightly and the first that isn't."""
    load, wanted = experiment.open_regions(models), [True, False]
    for item in experiment.items:
        image, truth = item.image(), item.labels()
        regions = load(image, {})
        assert isinstance(regions, Regions) and regions.masks is not None
        result = match.match(regions, bank, **models.segmentation.as_keywords())
        features = np.asarray(regions.features)
        if bank.whitening is not None:
            features = np.asarray(bank.whitening.apply(features))
        for index, mask in enumerate(np.asarray(regions.masks)):
            counts = np.bincount(truth[mask], minlength=256)
            owner, label = int(counts[:255].argmax()), int(result.labels[index])
            right, pure = owner == label, counts[owner] >= PURE * counts.sum()
            if not (label and owner and pure and right in wanted):
                continue
            wanted.remove(right)
            truly = "rightly" if right else f"but it is {bank.names[owner]}"
            yield Example(
                f"named {bank.names[label]}, {truly}",
                np.where(mask[..., None], image, image // 4),
                features[index],
                np.argsort(-np.asarray(result.scores[index]), kind="stable")[:2],
                np.asarray(result.agents[index]),
            )
            if not wanted:
                return


if __name__ == "__main__":
    start(main, Experiment, __doc__, dataset="voc")
