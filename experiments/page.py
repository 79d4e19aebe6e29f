"""One page of all tables and figures, from the CSV files that the scripts wrote."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from rimjax.files import write_text

NAME = "README.md"

MOST = 80
"""Rows of a table on the page."""


def write_page(
    folder: Path, titles: Mapping[str, str], reasons: Mapping[str, str], facts: Mapping[str, str]
) -> Path:
    """Write a page of results.

    Args:
        folder: folder of the results; the page goes there too.
        titles: name of each script -> its title, in order.
        reasons: name of a script -> why it has no results.
        facts: what the results depend on, e.g. {"preset": "mini"}; shown above them.

    Returns:
        The page.
    """
    parts = [
        "# Results",
        "Written by `experiments/reproduce.py`. Figures are mIoU in %, with a 95 % interval by "
        "bootstrap over images; gains are paired over the same images.",
        _join_rows([["what", "of these results"], *facts.items()]),
    ]
    for name, title in titles.items():
        parts.append(f"## {title}")
        if name in reasons:
            parts.append(reasons[name])
            continue
        if (folder / f"{name}.png").exists():
            parts.append(f"![{title}]({name}.png)")
        if (folder / f"{name}.html").exists():
            parts.append(
                f"`{name}.html`, beside this page after a run, shows the `rimjax` configuration's "
                "classes, confusions, worst and best images and references, in any browser."
            )
        if (folder / f"{name}.csv").exists():
            parts.append(_format_table(folder / f"{name}.csv"))
    path = folder / NAME
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _format_table(path: Path) -> str:
    """Return a CSV file as a Markdown table; a long one is only linked."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    if len(rows) > MOST:
        return f"{len(rows) - 1} rows: [{path.name}]({path.name})"
    return _join_rows(rows) if rows else f"{path.name} is empty"


def _join_rows(rows: Sequence[Sequence[str]]) -> str:
    header, *lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *lines))
