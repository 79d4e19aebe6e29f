"""Reproduce every table, figure and reading, and write one page of them beside the paper's.

Command:  python experiments/reproduce.py
              mini, Fashion Scenes; 2 CPU cores, about 20 minutes (`make experiments`)
          python experiments/reproduce.py --preset paper --data data --output results
              VOC 2012, Context and COCO Object; a GPU, hours: the plan says how many
          python experiments/reproduce.py --plan
              only the plan
          python experiments/reproduce.py --ray auto --ray-gpus 1 --preset paper --data data
              the workers of a Ray cluster draw the classes and extract the regions

The plan comes first: what is drawn, proposed and encoded, and how long it takes at the speed of two
classes and two images, which are kept like all others. Each step is a script of this folder. A
stopped run goes on with the same command: finished steps aren't run again while their files are as
they were written, and a step finds the references and regions of those before it in the cache. What
lacks its data set is skipped, and the page says so.
"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import tyro
from page import write_page
from processes import FOLDER, ask_device, run_script
from scripts import STEPS, Reproduce, Step

from rimjax import datasets
from rimjax.commands.console import name_flag, progress, shorten
from rimjax.commands.devices import share_gpu_memory
from rimjax.commands.main import CONFIG
from rimjax.files import (
    STEP_VERSIONS,
    digest,
    lock_destination,
    package_versions,
    sha256,
    write_json,
)
from rimjax.presets import locate_weights
from rimjax.sealed import read_sealed, seal

FINISHED = "reproduce.json"

Finished = dict[str, dict[str, Any]]
"""Name of a step -> "digest", of what it depends on, and "files", their names and sha256."""


def main() -> None:
    share_gpu_memory()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    options = tyro.cli(Reproduce, description=__doc__, config=CONFIG)
    try:
        failed = reproduce(options)
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"reproduce.py: {name_flag(shorten(error), options)}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as error:
        print("reproduce.py: stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from error
    if failed:
        raise SystemExit(1)


def reproduce(options: Reproduce) -> dict[str, str]:
    """Print the plan, run the steps that aren't finished, write the page.

    Returns:
        The names of the steps that failed, and why.

    Raises:
        ValueError: an option is out of range, no step can be run, or another process writes to the
            folder.
    """
    options.check()
    missing = find_missing(options)
    steps = [step for step in options.steps if step.name not in missing]
    if not steps:
        raise ValueError(f"nothing can be run: {'; '.join(dict.fromkeys(missing.values()))}")
    with nullcontext() if options.plan else lock_destination(options.folder / FINISHED):
        finished = read_finished(options.folder)
        done = [] if options.again else [s for s in steps if is_finished(s, options, finished)]
        todo = [step for step in steps if step not in done]
        show_plan(options, todo, done, missing)
        if options.plan:
            return {}
        if todo and options.cluster.ray is not None:
            fill_cache(options, todo)
        return run_steps(options, todo, finished, missing)


def fill_cache(options: Reproduce, todo: Sequence[Step]) -> None:
    """Have workers draw the classes and extract the regions that steps read.

    Raises:
        ValueError: they couldn't.
    """
    names = [step.name for step in todo]
    if failure := run_script("fill", *options.words, *options.worker_words, "--only", *names):
        raise ValueError(f"the workers failed: {failure}")


def run_steps(
    options: Reproduce, todo: Sequence[Step], finished: Finished, missing: Mapping[str, str]
) -> dict[str, str]:
    """Run steps, record each in `finished` and in the folder, and write the page.

    Returns:
        The names of the steps that failed, and why.
    """
    failed: dict[str, str] = {}
    for step in progress(todo, "reproduce", "step"):
        start = time.monotonic()
        failure = run_script(step.name, *options.words, "--out", options.folder)
        if failure is None:
            files = hash_files(options.folder, step.name)
            finished[step.name] = {"digest": digest_step(step, options), "files": files}
            write_json(options.folder / FINISHED, seal({"steps": finished}))
            print(f"{step.name}: {time.monotonic() - start:.0f} s", flush=True)
        else:
            failed[step.name] = failure
    reasons = {name: f"Skipped: {reason}" for name, reason in missing.items()}
    reasons |= {name: f"Failed: {failure}" for name, failure in failed.items()}
    shown = [step for step in STEPS if step.name in reasons or is_finished(step, options, finished)]
    titles = {step.name: step.title for step in shown}
    path = write_page(options.folder, titles, reasons, describe(options, shown))
    print(f"look at {path}")
    return failed


def describe(options: Reproduce, steps: Sequence[Step]) -> dict[str, str]:
    """Describe what the results depend on, for the page."""
    names = dict.fromkeys(name for step in steps for name in options.name_datasets(step))
    versions = [f"{name} {version}" for name, version in package_versions().items() if version]
    return {
        "preset": options.preset,
        "data sets": ", ".join(names),
        "images of each data set": str(options.limit or "all"),
        "images drawn of each class": str(options.images or "the preset's"),
        "generator's numbers": options.dtype or "the preset's",
        "encoder's numbers": options.encoder_dtype,
        "device": " ".join(dict.fromkeys(ask_device())),
        "versions": ", ".join(versions),
        "command": f"`{shlex.join(['python', 'experiments/reproduce.py', *sys.argv[1:]])}`",
    }


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


def is_finished(step: Step, options: Reproduce, finished: Finished) -> bool:
    """Return whether a step's files are as it wrote them, and what they depend on is as it was."""
    record = finished.get(step.name)
    if not record or not record["files"] or record["digest"] != digest_step(step, options):
        return False
    return record["files"].items() <= hash_files(options.folder, step.name).items()


def hash_files(folder: Path, name: str) -> dict[str, str]:
    """Return the names of a step's files, e.g. NAME.csv and NAME-order.csv, and their sha256."""
    return {path.name: sha256(path) for path in sorted(folder.glob(f"{name}[.-]*"))}


def digest_step(step: Step, options: Reproduce) -> str:
    """Digest what a step's results depend on; of the data sets only where they are."""
    chosen = [options.preset, options.limit, options.images, str(options.data)]
    chosen += [options.dtype, options.encoder_dtype]
    scripts = {path.name: sha256(path) for path in sorted(FOLDER.glob("*.py"))}
    for name in ("reproduce.py", "scripts.py", "plan.py", "fill.py", "page.py", "processes.py"):
        del scripts[name]
    folder = locate_weights(options.preset, options.weights_dir)
    weights = [
        (str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    platform, _ = ask_device()
    versions = [STEP_VERSIONS, package_versions()]
    return digest([step.name, chosen, platform, scripts, weights, versions])


def read_finished(folder: Path) -> Finished:
    """Return each finished step's digest and files; none if the file is damaged."""
    try:
        return read_sealed(folder / FINISHED, {"steps": dict})["steps"]
    except (OSError, ValueError):
        return {}


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
    if failure := run_script("plan", *options.words, "--only", *names):
        raise ValueError(f"the plan failed: {failure}")


if __name__ == "__main__":
    main()
