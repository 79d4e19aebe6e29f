"""`rimjax report`, and the reports that other commands write at their end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rimjax.commands.console import check_outputs, warn
from rimjax.commands.options import NO_DEFAULT, default
from rimjax.evaluation.run_folder import REPORT
from rimjax.show.report.contents import Contents, read_run

RECORDED = default("where the run recorded it")


@dataclass(frozen=True, kw_only=True)
class Report:
    """Write a report of an evaluation: one HTML file that opens in any browser, offline.

    It shows the IoU of each class, which class is taken for which, the worst and best images beside
    their truth, the references, times and settings. `rimjax demo` and `rimjax evaluate --output`
    write it too.

    Example: rimjax report run-1

    Example: rimjax report shard-1 shard-2 --output report.html

    Example: rimjax report run-1 --data /mnt/data --bank clothes/banks/4d0bdee13f01.json

    Attributes:
        runs: Folder of a finished run, as `rimjax evaluate --output` writes it; or the folders of
            all its shards.
        output: The HTML file; its name ends in .html.
        dataset: Folder of your own data set, if it was moved after the run.
        data: Folder that holds the published data set, if it was moved.
        bank: The bank of the run, if it was moved, with the cache folder around it.
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], NO_DEFAULT]
    output: Annotated[Path | None, default(f"{REPORT} in the first folder")] = None
    dataset: Annotated[Path | None, RECORDED] = None
    data: Annotated[Path | None, RECORDED] = None
    bank: Annotated[Path | None, RECORDED] = None

    def run(self) -> None:
        if self.output is not None and self.output.suffix.lower() != ".html":
            raise ValueError(f"output must be an HTML file, got {self.output}; name it NAME.html")
        if self.dataset is not None and not self.dataset.is_dir():
            raise ValueError(
                f"dataset must be the folder that your own data set was moved to, got "
                f"{self.dataset}; for a published data set give --data instead"
            )
        places = {"dataset": self.dataset, "data": self.data, "bank": self.bank}
        moved = {name: path for name, path in places.items() if path is not None}
        contents = read_run(self.runs, moved)
        path = self.output or self.runs[0] / REPORT
        check_outputs(path)
        write_report(contents, path)
        print(path)


def write_report(contents: Contents, path: Path) -> None:
    """Write a report; warn of what it lacks.

    Args:
        contents: what it shows.
        path: the HTML file.

    Raises:
        ImportError: a package is missing; the message says what to install.
        ValueError: no image could be used, or every pixel is ignored.
        WriteError: the file can't be written.
    """
    try:
        from rimjax.show.report import page
    except ModuleNotFoundError as error:
        remedy = 'pip install "rimjax[report]"'
        raise ImportError(f"a report needs {error.name}: {remedy}") from error
    for line in page.write_report(contents, path):
        warn(f"{path}: {line}")


def add_report(contents: Contents, path: Path) -> None:
    """Write a report beside other results and say where; say so if a package is missing."""
    try:
        write_report(contents, path)
    except ImportError as error:
        print(f"no {path.name}: {error}")
    else:
        print(f"report: {path}")
