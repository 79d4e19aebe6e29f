"""Reproduce every table, figure and reading, and write one page of them beside the paper's.

Command:  python experiments/reproduce.py
              mini, Fashion Scenes; 2 CPU cores, about 20 minutes (`make experiments`)
          python experiments/reproduce.py --preset paper --data data --output results
              VOC 2012, Context and COCO Object; a GPU, hours: the plan says how many
          python experiments/reproduce.py --plan
              only the plan

The plan comes first: what is drawn, proposed and encoded, and how long it takes at the speed of two
classes and two images, which are kept like all others. Each step is a script of this folder. A
stopped run goes on with the same command: finished steps aren't run again, and a step finds the
references and regions of those before it in the cache. What lacks its data set is skipped, and the
page says so.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from harness import Experiment
from page import write_page
from scripts import STEPS, Step

from rimjax import datasets
from rimjax.commands.console import name_flag, progress, shorten
from rimjax.commands.main import CONFIG
from rimjax.commands.options import (
    CACHE_DEFAULT,
    DTYPE_DEFAULT,
    NO_DEFAULT,
    WEIGHTS_DEFAULT,
    Flag,
    default,
)
from rimjax.files import STEP_VERSIONS, digest, package_versions, sha256, write_json
from rimjax.presets import Precision, locate_weights
from rimjax.sealed import read_sealed, seal

FOLDER = Path(__file__).parent
FINISHED = "reproduce.json"


@dataclass(frozen=True, kw_only=True)
class Reproduce:
    """Options.

    Attributes:
        preset: Models and settings.
        data: Folder that holds the published data sets in mmsegmentation's layout.
        only: Only these steps.
        limit: Number of images of each data set, for a try.
        images: K, images drawn of each class, for a try.
        dtype: Numbers that the generator computes in, as of `rimjax evaluate`.
        encoder_dtype: Numbers that the encoder computes in.
        cache_dir: Folder that keeps banks and regions.
        weights_dir: Folder that holds the paper preset's weights.
        output: Folder for tables, pictures and the page.
        plan: Print the plan and stop. Draws up to two classes and segments two images of each data
            set to measure their speed; all are kept in the cache.
        again: Run finished steps again; what they need is still taken from the cache.
    """

    preset: Literal["mini", "paper"] = "mini"
    data: Annotated[Path | None, NO_DEFAULT] = None
    only: Annotated[tuple[str, ...], default("all")] = ()
    limit: Annotated[int | None, default("all")] = None
    images: Annotated[int | None, default("the preset's")] = None
    dtype: Annotated[Precision | None, DTYPE_DEFAULT] = None
    encoder_dtype: Precision = "float32"
    cache_dir: Annotated[Path | None, CACHE_DEFAULT] = None
    weights_dir: Annotated[Path | None, WEIGHTS_DEFAULT] = None
    output: Annotated[Path | None, default("experiments/results/PRESET")] = None
    plan: Flag = False
    again: Flag = False

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return self.output or self.open_experiment(None).folder

    @property
    def steps(self) -> list[Step]:
        """The chosen steps, in order."""
        names = [step.name for step in STEPS]
        if unknown := sorted(set(self.only) - set(names)):
            raise ValueError(f"only must name steps of {', '.join(names)}, got {unknown[0]!r}")
        return [step for step in STEPS if not self.only or step.name in self.only]

    def open_experiment(self, dataset: str | None) -> Experiment:
        """Return the options as the scripts take them."""
        return Experiment(
            preset=self.preset,
            dataset_name=dataset,
            data=self.data,
            limit=self.limit,
            images=self.images,
            dtype=self.dtype,
            encoder_dtype=self.encoder_dtype,
            cache_dir=self.cache_dir,
            weights_dir=self.weights_dir,
            out=self.output,
        )

    def name_datasets(self, step: Step) -> tuple[str, ...]:
        """Return the data sets that a step reads."""
        return step.datasets if self.preset == "paper" else ("fashion-scenes",)


def main() -> None:
    options = tyro.cli(Reproduce, description=__doc__, config=CONFIG)
    try:
        failed = reproduce(options)
    except (ValueError, OSError, ImportError) as error:
        print(f"reproduce.py: {name_flag(shorten(error), options)}", file=sys.stderr)
        raise SystemExit(2) from error
    if failed:
        raise SystemExit(1)


def reproduce(options: Reproduce) -> list[str]:
    """Print the plan, run the steps that aren't finished, write the page.

    Returns:
        The names of the steps that failed.
    """
    missing = find_missing(options)
    steps = [step for step in options.steps if step.name not in missing]
    finished = {} if options.again else read_finished(options)
    todo = [step for step in steps if not is_finished(step, options, finished)]
    show_plan(options, todo, [step for step in steps if step not in todo], missing)
    if options.plan:
        return []
    failed = []
    for step in progress(todo, "reproduce", "step"):
        start = time.monotonic()
        if run_script(step.name, *list_words(options), "--out", options.folder):
            finished[step.name] = digest_step(step, options)
            write_json(options.folder / FINISHED, seal({"finished": finished}))
            print(f"{step.name}: {time.monotonic() - start:.0f} s", flush=True)
        else:
            failed.append(step.name)
    reasons = missing | {name: "failed; see its message above" for name in failed}
    titles = {step.name: step.title for step in options.steps}
    path = write_page(options.folder, titles, reasons)
    print(f"look at {path}")
    return failed


def find_missing(options: Reproduce) -> dict[str, str]:
    """Return the steps that can't be run, and why."""
    reasons: dict[str, str] = {}
    for step in options.steps:
        for name in options.name_datasets(step):
            try:
                datasets.load(name, options.data)
            except (ValueError, OSError) as error:
                reasons[step.name] = shorten(error)
    return reasons


def is_finished(step: Step, options: Reproduce, finished: Mapping[str, str]) -> bool:
    """Return whether a step's results are there, and nothing that they depend on has changed."""
    there = (options.folder / f"{step.name}.csv").exists()
    return there and finished.get(step.name) == digest_step(step, options)


def digest_step(step: Step, options: Reproduce) -> str:
    """Digest what a step's results depend on; of the data sets only where they are."""
    chosen = [options.preset, options.limit, options.images, str(options.data)]
    chosen += [options.dtype, options.encoder_dtype]
    scripts = {path.name: sha256(path) for path in sorted(FOLDER.glob("*.py"))}
    for name in ("reproduce.py", "plan.py", "page.py"):
        del scripts[name]
    folder = locate_weights(options.preset, options.weights_dir)
    weights = [
        (str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return digest([step.name, chosen, scripts, weights, STEP_VERSIONS, package_versions()])


def read_finished(options: Reproduce) -> dict[str, str]:
    """Return the finished steps, and the digest of each; none if the file is damaged."""
    try:
        return read_sealed(options.folder / FINISHED, {"finished": dict})["finished"]
    except (OSError, ValueError):
        return {}


def list_words(options: Reproduce) -> list[str]:
    """Return the options that every script takes, as words of a command line."""
    given = {
        "--preset": options.preset,
        "--encoder-dtype": options.encoder_dtype,
        "--dtype": options.dtype,
        "--data": options.data,
        "--limit": options.limit,
        "--images": options.images,
        "--cache-dir": options.cache_dir,
        "--weights-dir": options.weights_dir,
    }
    pairs = [(flag, str(value)) for flag, value in given.items() if value is not None]
    return [word for pair in pairs for word in pair]


def run_script(name: str, *words: object) -> bool:
    """Run a script of this folder; return whether it succeeded."""
    command = [sys.executable, str(FOLDER / f"{name}.py"), *map(str, words)]
    return subprocess.run(command, check=False).returncode == 0


def show_plan(
    options: Reproduce,
    todo: Sequence[Step],
    done: Sequence[Step],
    missing: Mapping[str, str],
) -> None:
    """Print what is done and left, and how long that takes.

    Raises:
        ValueError: the plan's process failed.
    """
    for name, reason in missing.items():
        print(f"skipped: {name} ({reason})")
    if done:
        print(f"finished: {', '.join(step.name for step in done)}")
    if not todo:
        return
    names = [step.name for step in todo]
    print(f"to do: {', '.join(names)}", flush=True)
    if not run_script("plan", *list_words(options), "--only", *names):
        raise ValueError("the plan failed; see the message above")


if __name__ == "__main__":
    main()
