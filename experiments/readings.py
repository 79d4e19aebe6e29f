"""Every reading of Sec. 3.5 beside the paper's own pattern, in one pass over stored regions.

Command:  python experiments/readings.py --validation
              mini's validation scenes, to choose the `rimjax` configuration; 2 CPU cores, minutes
          python experiments/readings.py
              mini's benchmark, to report it
          python experiments/readings.py --synthetic
              synthetic features like DINOv2's; 2 CPU cores, about 20 minutes
          python experiments/readings.py --preset paper --data data --dataset voc
              any published data set; a GPU

Paper: Table 2's rows 3, 4 and 5 (41.8, 43.1, 44.5), Table 5's random and top agents (43.8, 44.5),
and Figure 5a (rising to T = 8, then falling)

As printed, Eq. 9 compares rankings alone. Other readings keep the similarity of features as well.
A reading is consistent with the paper's order unless the paired 95 % interval of a step of that
order excludes the paper's sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import trials
from harness import RESULTS, Experiment, start
from one_pass import collect
from tables import format_gain, print_lines, write_csv
from worlds import WORLDS, make_world

from rimjax.commands.console import progress
from rimjax.commands.options import Flag
from rimjax.evaluation.metrics import bootstrap_means
from rimjax.match import match
from rimjax.references.build import assemble_bank
from rimjax.references.contents import ClassReferences
from rimjax.settings import ReferenceSettings, SegmentSettings
from rimjax.types import ReferenceBank


@dataclass(frozen=True, kw_only=True)
class Readings(Experiment):
    """Options; see `Experiment`.

    Attributes:
        synthetic: Synthetic features instead of images.
        worlds: Worlds of each kind, with --synthetic.
    """

    synthetic: Flag = False
    worlds: int = 2

    @property
    def folder(self) -> Path:
        """Folder for tables: synthetic features belong to no preset."""
        return self.out or RESULTS / "synthetic" if self.synthetic else super().folder


# ---- images


@dataclass(frozen=True, eq=False)
class Score:
    """mIoU (%) and its bootstrap draws over images, the same draws for every score."""

    miou: float
    draws: np.ndarray

    def describe(self) -> str:
        """Return the mIoU with its interval."""
        low, high = np.nanquantile(self.draws, [0.025, 0.975])
        return f"{self.miou:.1f} ({low:.1f} to {high:.1f})"

    def gain(self, base: Score) -> tuple[float, float, float]:
        """Return the difference to another score and its paired interval."""
        low, high = np.nanquantile(self.draws - base.draws, [0.025, 0.975])
        return self.miou - base.miou, float(low), float(high)


def run_images(experiment: Readings) -> None:
    """Evaluate every trial on images; write the table and what it says."""
    models = experiment.load_models()
    items = progress(experiment.items, "regions", "image")
    dataset = experiment.dataset
    loads = {"": experiment.open_regions(models)}
    images = collect(items, loads, dataset.classes, dataset.background)[""]
    kept: dict[tuple[str, int], ReferenceBank] = {}

    def find_bank(features: str, count: int) -> ReferenceBank:
        if (features, count) not in kept:
            changes = (trials.FEATURES | trials.BACKGROUNDS)[features]
            kept[features, count] = experiment.build_bank(
                models, num_subcategories=count, **changes
            )
        return kept[features, count]

    def measure(features: str, count: int, settings: SegmentSettings) -> Score:
        evaluation = images.evaluate(find_bank(features, count), settings)
        draws = bootstrap_means(evaluation.counts, background=dataset.background)
        return Score(100 * evaluation.miou, 100 * draws)

    listed = trials.list_trials() + trials.list_background_trials()
    shown = progress(listed, "readings", "reading")
    scores = {trial[:4]: measure(trial[0], trial[2], trial[4]) for trial in shown}
    titles = ("features", "reading", "T", "agents")
    header = (*titles, "mIoU, 95 % interval", "gain over cosine, T = 1")
    lines: list[tuple[str, ...]] = [header]
    for (features, title, count, policy), score in scores.items():
        gain = format_gain(score.gain(scores[features, "cosine", 1, ""]))
        lines.append((features, title, str(count), policy, score.describe(), gain))
    print_lines(lines)
    write_csv(experiment.folder, "readings", lines)
    verdicts: list[tuple[str, ...]] = [("features", "reading", *STEPS, "verdict")]
    for features in trials.FEATURES:
        for title, settings in trials.READINGS.items():
            curve = [measure(features, count, settings) for count in trials.CURVE]
            verdicts.append((features, title, *judge(scores, features, title, curve)))
    print_lines(verdicts)
    write_csv(experiment.folder, "readings-order", verdicts)


STEPS = (
    "row 4 - row 3 (paper +1.3)",
    "row 5 - row 4 (+1.4)",
    "top - random (+0.7)",
    "random - row 3 (+2.0)",
    "T = 8 - T = 1 (Figure 5a: +)",
    "T = 8 - T = 12 (+)",
)


def judge(
    scores: Mapping[Any, Score], features: str, title: str, curve: list[Score]
) -> tuple[str, ...]:
    """Compare a reading with the paper's order; return its steps and the verdict."""
    three = scores[features, "cosine", 1, ""]
    four, five = scores[features, title, 1, "top"], scores[features, title, trials.T, "top"]
    random = scores[features, title, trials.T, "random"]
    peak = curve[trials.CURVE.index(trials.T)]
    steps = [
        four.gain(three),
        five.gain(four),
        five.gain(random),
        random.gain(three),
        peak.gain(curve[0]),
        peak.gain(curve[-1]),
    ]
    against = [
        name.split(" (")[0] for name, (_, _, high) in zip(STEPS, steps, strict=True) if high < 0
    ]
    verdict = f"contradicted by {'; '.join(against)}" if against else "consistent"
    return (*map(format_gain, steps), verdict)


# ---- synthetic features


def run_worlds(experiment: Readings) -> None:
    """Name the regions of every world by every trial; write the accuracies."""
    right: dict[tuple[str, str, int, str], dict[str, list[np.ndarray]]] = {}
    first = experiment.seed * experiment.worlds
    worlds = [(name, seed) for name in WORLDS for seed in range(first, first + experiment.worlds)]
    for name, seed in progress(worlds, "worlds", "world"):
        references, regions, labels = make_world(WORLDS[name], seed)

        def build(
            settings: ReferenceSettings, references: list[ClassReferences] = references
        ) -> ReferenceBank:
            return assemble_bank(references, settings, "")

        banks = trials.list_banks(build, ReferenceSettings(), (1, trials.T))
        jobs = [(*trial, banks[trial[0], trial[2]]) for trial in trials.list_trials()]
        for features, changes in trials.FEATURES.items():
            bank = split_images(references, build, ReferenceSettings(**changes))
            for title, settings in (("cosine", trials.COSINE), ("combined, exp", trials.COMBINED)):
                jobs.append((features, title, 0, trials.PER_IMAGE, settings, bank))
        for *trial, settings, bank in jobs:
            named = np.asarray(match(regions, bank, **settings.as_keywords(seed)).labels)
            found = right.setdefault(tuple(trial), {})  # pyright: ignore[reportArgumentType]
            found.setdefault(name, []).append(named == labels)
    lines: list[tuple[str, ...]] = [
        (
            *("features", "reading", "T", "agents", *WORLDS),
            *("worst gain over centred cosine, T = 1", "worst gain over cosine, same T"),
        )
    ]
    centred = right["centred", "cosine", 1, ""]
    for (features, title, count, policy), hits in right.items():
        same = right[
            features, "cosine", count, trials.PER_IMAGE if policy == trials.PER_IMAGE else ""
        ]
        accuracies = [f"{100 * np.concatenate(hits[name]).mean():.1f}" for name in WORLDS]
        worst = [find_worst(hits, base) for base in (centred, same)]
        lines.append((features, title, str(count or "K"), policy, *accuracies, *worst))
    print_lines(lines)
    write_csv(experiment.folder, "readings-synthetic", lines)


def split_images(
    references: list[ClassReferences], build: trials.Build, settings: ReferenceSettings
) -> ReferenceBank:
    """Build a bank in which each foreground image is a prototype, so no profile is a mean's."""
    single = build(replace(settings, num_subcategories=1))
    rows = np.concatenate([group.foreground for group in references])
    if single.whitening is not None:
        rows = np.asarray(single.whitening.apply(rows))
    owners = np.repeat(np.arange(len(references)), [len(group.foreground) for group in references])
    return replace(
        single,
        prototypes=np.concatenate([np.asarray(single.prototypes)[:1], rows]),
        owners=np.concatenate([[0], owners + 1]).astype(np.int32),
    )


def find_worst(hits: Mapping[str, list[np.ndarray]], base: Mapping[str, list[np.ndarray]]) -> str:
    """Return the lowest gain in accuracy over the worlds, with its paired interval."""
    gains = []
    for name in WORLDS:
        gain = np.subtract(np.concatenate(hits[name]), np.concatenate(base[name]), dtype=float)
        error = 196 * gain.std() / len(gain) ** 0.5
        gains.append((100 * gain.mean(), 100 * gain.mean() - error, 100 * gain.mean() + error))
    return format_gain(min(gains))


def main(experiment: Readings) -> None:
    if not experiment.synthetic:
        run_images(experiment)
        return
    if experiment.worlds < 1:
        raise ValueError(f"worlds must be at least 1, got {experiment.worlds}")
    for name in ("dataset_name", "limit", "images", "validation"):
        if getattr(experiment, name):
            flag = name.removesuffix("_name")
            raise ValueError(f"{flag} must be left out with --synthetic, which has no images")
    run_worlds(experiment)


if __name__ == "__main__":
    start(main, Readings, __doc__)
