"""Measure a GPU or TPU machine: the kernel, every model, and the memory of both frameworks.

Command:  python experiments/accelerator.py --output results/accelerator
              a GPU or TPU: the paper preset's models at full size, on random weights; no download
              a CPU: the same, but images are drawn by mini; 22 minutes on 2 busy cores
          python experiments/accelerator.py --small
              small models and few steps, in a minute; shows only that all of it runs

Prints a table in Markdown, and writes it as accelerator.md and, with versions and devices, as
accelerator.json. Where packages of the pipeline are missing, their part is skipped, and the table
says so. A part that fails, e.g. for want of memory, is recorded as well; the others go on, and the
exit status is 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
from accelerator_parts import CPU, PARTS, SMALL, Figure, Sizes

from rimjax.commands.devices import Facts, collect_facts, judge_devices, share_gpu_memory
from rimjax.files import package_versions, write_json, write_text


def measure_peaks(part: str, facts: Facts) -> Iterator[Figure]:
    """Return the peak of each framework's memory up to the end of a part."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        yield Figure(part, "peak memory of JAX so far", stats["peak_bytes_in_use"] / 2**30, "GiB")
    if facts.torch.has_gpu:
        import torch

        peak = torch.cuda.max_memory_allocated() / 2**30
        yield Figure(part, "peak memory of torch so far", peak, "GiB")
        free, total = torch.cuda.mem_get_info()
        yield Figure(part, "taken from the GPU at this time", (total - free) / 2**30, "GiB")
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        peak = int(lines["VmHWM"].split()[0]) / 2**20
        yield Figure(part, "peak of resident memory so far, both frameworks", peak, "GiB")


def measure_part(part: str, sizes: Sizes, facts: Facts) -> list[Figure]:
    """Measure a part; what fails is a figure without value."""
    figures = []
    try:
        figures += PARTS[part](sizes)
    except ImportError as error:
        needs = f'needs {error.name}: pip install "rimjax[pipeline]"' if error.name else str(error)
        return [*figures, Figure(part, "all of it", None, f"skipped, {needs}")]
    except Exception as error:  # out of memory, above all: other parts may fit
        reason = " ".join(str(error).split())[:200]
        figures.append(Figure(part, "the rest", None, f"FAILED: {type(error).__name__}: {reason}"))
    return figures + list(measure_peaks(part, facts))


def format_table(figures: Sequence[Figure], title: str) -> str:
    """Format figures as a table in Markdown."""
    lines = [title, "", "| part | measure | value | unit |", "|---|---|---|---|"]
    for figure in figures:
        value = "" if figure.value is None else f"{figure.value:.3g}"
        if figure.value is not None and abs(figure.value) >= 1000:
            value = f"{figure.value:,.0f}"
        lines.append(f"| {figure.part} | {figure.measure} | {value} | {figure.unit} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="folder for the table")
    parser.add_argument("--small", action="store_true", help="small models, few steps")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--batch", type=int, help="images drawn at once")
    options = parser.parse_args()
    share_gpu_memory()
    facts, versions = collect_facts(), package_versions()
    if facts.jax.error is not None:
        parser.exit(2, f"accelerator.py: {judge_devices(facts)[0]}\n")
    sizes = SMALL if options.small else CPU if jax.default_backend() == "cpu" else Sizes()
    if options.batch is not None:
        if options.batch < 1:
            parser.error(f"--batch must be at least 1, got {options.batch}")
        sizes = replace(sizes, batch=options.batch)
    device = facts.jax.devices[0]
    title = f"{device.platform}: {device.name}; jax {versions['jax']}, torch {versions['torch']}"
    print("\n".join([title, *(f"WRONG: {line}" for line in judge_devices(facts))]), flush=True)
    figures: list[Figure] = []
    for part in options.only:
        start = time.monotonic()
        figures += measure_part(part, sizes, facts)
        print(f"{part}: {time.monotonic() - start:.0f} s", flush=True)
        if options.output is not None:  # after each part: a crash loses only its own
            options.output.mkdir(parents=True, exist_ok=True)
            report: dict[str, Any] = {
                "versions": versions,
                "devices": asdict(facts),
                "sizes": asdict(sizes),
            }
            report["figures"] = [asdict(figure) for figure in figures]
            write_json(options.output / "accelerator.json", report)
            write_text(options.output / "accelerator.md", format_table(figures, title))
    print(format_table(figures, title))
    if any(figure.value is None and figure.unit.startswith("FAILED") for figure in figures):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
