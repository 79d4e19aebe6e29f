"""The figures of an evaluation, and `rimjax evaluate merge`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from rimjax.commands.console import check_outputs, warn
from rimjax.commands.options import NO_DEFAULT
from rimjax.evaluation import Evaluation, run_folder
from rimjax.files import write_json


def format_evaluation(evaluation: Evaluation) -> str:
    """Format per-class IoU, mIoU with its interval, and stage timings."""
    low, high = evaluation.estimate_interval()
    width = max(12, *map(len, evaluation.names))
    lines = ["IoU (%)"]
    for name, iou in evaluation.per_class.items():
        lines.append(f"  {name:<{width}} {'   -' if iou is None else f'{100 * iou:5.1f}'}")
    interval = f"95 %: {100 * low:.1f} to {100 * high:.1f}"
    count = f"{len(evaluation.counts)} images"
    lines.append(f"  {'mIoU':<{width}} {100 * evaluation.miou:5.1f}   ({interval}; {count})")
    stages = [f"{stage} {1000 * sec:.0f} ms" for stage, sec in evaluation.timings.items()]
    of_what = "median" if len(evaluation.counts) > 1 else "1 image: compilation included"
    lines.append(f"per image: {'  '.join(stages)}   ({of_what})")
    if evaluation.slow_start is not None:
        lines.append(f"first image: {evaluation.slow_start:.1f} s, compilation included")
    return "\n".join(lines)


def report_figures(description: dict[str, Any], evaluation: Evaluation, file: Path | None) -> None:
    """Print a run's figures and write them to a file, if one is given."""
    print(format_evaluation(evaluation))
    if evaluation.bad:
        total = len(evaluation.bad) + len(evaluation.counts)
        names = ", ".join(evaluation.bad)
        warn(f"{len(evaluation.bad)} of {total} images could not be used: {names}")
    if file is not None:
        write_json(file, {**description, **evaluation.as_json()})


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Merge the shards of a run: the figures are exactly those of a run over all images.

    Example: rimjax evaluate merge run-1 run-2 run-3 --json result.json

    Attributes:
        runs: The shards' folders, from `rimjax evaluate --shard 1/3 --output run-1` and so on; or
            the folder of one finished run.
        json: File for the figures.
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], NO_DEFAULT]
    json: Annotated[Path | None, NO_DEFAULT] = None

    def run(self) -> None:
        check_outputs(self.json)
        run_folder.check_apart(self.runs, self.json)
        description, results = run_folder.merge_runs(self.runs)
        report_figures(description, run_folder.summarise_run(description, results), self.json)
