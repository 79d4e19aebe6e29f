"""Tables of experiments: rows beside the paper's figures, with intervals and paired gains."""

from __future__ import annotations

import csv
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rimjax.commands import console
from rimjax.evaluation import Evaluation
from rimjax.evaluation.metrics import bootstrap_means
from rimjax.files import write_json


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: what the row is.
        paper: the paper's figure (%).
        evaluation: what was measured; None if nothing was.
        reason: why nothing was measured.
    """

    name: str
    paper: str
    evaluation: Evaluation | None = None
    reason: str = ""


def write_table(
    folder: Path,
    name: str,
    rows: Iterable[Row],
    bases: Mapping[str, Evaluation] | None,
    origin: Mapping[str, Any],
) -> None:
    """Print a table, paper beside measured, and write it as CSV.

    A JSON file with the origin goes beside it.

    Args:
        folder: folder of the files.
        name: name of the files.
        rows: rows in order.
        bases: title -> evaluation; each adds a column with every row's paired gain over it.
        origin: settings, weights and versions behind the last row.
    """
    bases = bases or {}
    gains = [f"gain over {title}, 95 % interval" for title in bases]
    header = ("", "paper", "measured", "95 % interval", "images", *gains)
    lines = [_format_row(row, bases.values()) for row in rows]
    print_lines([header, *lines])
    write_csv(folder, name, [("row", *header[1:]), *lines])
    write_json(folder / f"{name}.json", origin)


def print_lines(lines: Sequence[Sequence[str]]) -> None:
    """Print lines of a table in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [cell.ljust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join(cells).rstrip())


def format_gain(gain: tuple[float, float, float]) -> str:
    """Format a gain and its interval, as `measure_gain` returns them."""
    return "{:+.1f} ({:+.1f} to {:+.1f})".format(*gain)


def write_csv(folder: Path, name: str, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows, the header first."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    print(f"-> {folder / name}.csv")


def write_spread(folder: Path, name: str, seeds: Sequence[Path]) -> None:
    """Write a table's mean over seeds beside its standard deviation.

    A number that differs between the seeds becomes "mean, seeds +-deviation", followed by the first
    seed's interval over images. A gain smaller than its deviation is said to be so.

    Args:
        folder: folder of the file.
        name: name of the table, in each seed's folder too.
        seeds: folders of the seeds.
    """
    tables = []
    for seed in seeds:
        with (seed / f"{name}.csv").open(newline="") as file:
            tables.append(list(csv.reader(file)))
    header, *rows = [list(zip(*rows, strict=True)) for rows in zip(*tables, strict=True)]
    titles = [cells[0] for cells in header]
    lines = [
        [_describe_spread(title, cells) for title, cells in zip(titles, row, strict=True)]
        for row in rows
    ]
    print_lines([titles, *lines])
    write_csv(folder, name, [titles, *lines])


def _describe_spread(title: str, cells: Sequence[str]) -> str:
    if len(set(cells)) == 1 or title == "95 % interval":
        return cells[0]
    numbers = [re.match(r"[+-]?\d+\.\d+", cell) for cell in cells]
    if not all(numbers):
        return "; ".join(cells)
    values = [float(number.group()) for number in numbers if number]
    mean, deviation = np.mean(values), np.std(values, ddof=1)
    is_gain, images = cells[0][0] in "+-", cells[0].partition(" ")[2]
    described = f"{mean:{'+' if is_gain else ''}.1f}, seeds +-{deviation:.1f}"
    if images:
        described += f", images {images}"
    if is_gain and abs(mean) < deviation:
        described += ", smaller than the spread over seeds"
    return described


def write_chart(folder: Path, name: str, picture: Image.Image) -> None:
    """Write a PNG."""
    console.write_picture(folder / f"{name}.png", picture)
    print(f"-> {folder / name}.png")


def measure_gain(evaluation: Evaluation, base: Evaluation) -> tuple[float, float, float]:
    """Return the difference of two mIoUs on the same images, in points, and its paired interval."""
    means = [
        bootstrap_means(side.counts, background=side.background) for side in (evaluation, base)
    ]
    low, high = np.nanquantile(means[0] - means[1], [0.025, 0.975])
    return 100 * (evaluation.miou - base.miou), 100 * float(low), 100 * float(high)


def _format_row(row: Row, bases: Collection[Evaluation]) -> tuple[str, ...]:
    evaluation = row.evaluation
    if evaluation is None:
        return (row.name, row.paper, "-", row.reason, "", *("" for _ in bases))
    low, high = evaluation.estimate_interval()
    gains = [
        "" if evaluation is base else format_gain(measure_gain(evaluation, base)) for base in bases
    ]
    measured = (f"{100 * evaluation.miou:.1f}", f"{100 * low:.1f} to {100 * high:.1f}")
    return (row.name, row.paper, *measured, str(len(evaluation.counts)), *gains)
