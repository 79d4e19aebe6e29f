"""`rimjax bench match`: how exact, fast and small the matching kernels are on this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rimjax.commands.console import check_outputs
from rimjax.commands.options import NO_DEFAULT, Flag
from rimjax.files import package_versions, write_json


@dataclass(frozen=True)
class BenchMatch:
    """Measure the matching kernels.

    Reports whether the labels are right, the speed beside other implementations and the machine's
    limit, the time to compile, and memory.

    Example: rimjax bench match --json match.json --trace trace

    Attributes:
        dim: D, the feature size.
        quick: Measure small sizes only, and no memory: takes half a minute.
        trace: Folder for a profiler trace of N=4, P=10,000, R=648, which Perfetto or xprof opens.
        json: File to write the report to as well.
    """

    dim: int = 768
    quick: Flag = False
    trace: Annotated[Path | None, NO_DEFAULT] = None
    json: Annotated[Path | None, NO_DEFAULT] = None

    def run(self) -> None:
        """Measure, print and, if asked, write the report."""
        import jax

        from rimjax.bench import match, roofline

        if self.dim < 1:
            raise ValueError(f"dim must be at least 1, got {self.dim}")
        check_outputs(self.json)
        device = jax.devices()[0]
        name = f"{device.platform}: {device.device_kind}, {os.cpu_count()} cores"
        report: dict[str, Any] = {"device": name, "versions": package_versions()}
        packages = report["versions"]
        print(f"{name}; float32; jax {packages['jax']}, torch {packages['torch']}\n")

        print("Labels that differ from the float64 oracle's where scores are close (N=4):")
        report["accuracy"] = match.measure_accuracy()
        for row in report["accuracy"]:
            _print_accuracy(row)

        with_peers = [(4, 100, 648, 81), (6, 100, 648, 81)]
        alone = [(10, 100, 648, 81), (16, 16, 64, 81), (4, 1000, 648, 81), (4, 10_000, 648, 81)]
        if self.quick:
            with_peers, alone = [(4, 20, 30, 9), (6, 20, 30, 9)], [(7, 20, 30, 9)]
        print(
            "\nSimilarities of P regions to R prototypes, median times: the whole call starts from "
            "features, the kernel and its peers from cosines"
        )
        report["speed"] = []
        for size in [*with_peers, *alone]:
            row = match.measure_speed(*size, self.dim, peers=size in with_peers)
            report["speed"].append(row)
            _print_speed(row)

        report["rates"] = roofline.measure_rates()
        rates = (f"{name} {value / 1e9:.1f} G/s" for name, value in report["rates"].items())
        print(
            "\nRoofline: operations over the rate of element-wise float32 arithmetic in cache, or "
            f"bytes over bandwidth, whichever is longer\n  {', '.join(rates)}"
        )
        for row in report["speed"]:
            if row["N"] <= 6:
                row["roofline"] = roofline.compute_roofline(row, report["rates"])
                for part, limit in row["roofline"].items():
                    least = f"at least {limit['seconds'] * 1e3:>7.2f} ms"
                    print(f"  {_format_size(row)} {part:<36} {least}: ratio {limit['ratio']:.2f}")

        print("\nCompilation:")
        report["compilation"] = []
        agents = (1, 4, 7) if self.quick else (*range(1, 13), 16)
        for row in match.measure_compilations(agents, self.dim):
            report["compilation"].append(row)
            print(f"  N={row['N']:<3} {row['compile s']:.2f} s")

        if not self.quick:
            print("\nMemory with 10,000 classes of 8 prototypes:")
            report["memory"] = match.measure_memory(1000, 10_000, 8, self.dim)
            for row in report["memory"]:
                figures = (f"{k} {v:.1f}" for k, v in row.items() if isinstance(v, float))
                print(f"  {row['call']}: {', '.join(figures)}")
        if self.trace is not None:
            size = with_peers[0] if self.quick else alone[-1]
            match.write_trace(self.trace, *size, self.dim)
            print(f"\ntrace: {self.trace}")
        if self.json is not None:
            write_json(self.json, report)


def _print_accuracy(row: dict[str, Any]) -> None:
    for oracle in ("same inputs", "float64 inputs"):
        labels = row[oracle]
        print(
            f"  {row['dtype']:<9} oracle on {oracle:<15} {labels['disagree']:>4} of "
            f"{row['regions']}; {labels['disagree above 1e-5']} of the "
            f"{labels['regions above 1e-5']} with a margin above 1e-5; largest margin "
            f"{labels['largest margin that disagrees']:.1e}"
        )


def _print_speed(row: dict[str, Any]) -> None:
    whole = f"{row['seconds'] * 1e3:>9.2f} ms, {row['ns per pair']:.2f} ns a pair"
    kernel = f"{row['kernel seconds'] * 1e3:.2f} ms"
    print(f"  {_format_size(row)} {whole}, compiled in {row['compile s']:.2f} s; kernel {kernel}")
    for call, key in (("kernel", "combined kernel"), ("whole call", "combined")):
        seconds, ratio = row[f"{key} seconds"] * 1e3, row[f"{key} over relation"]
        title = f"reading combined, {call}"
        print(f"      {title:<38} {seconds:>9.2f} ms  {ratio:>10.2f} times relation's")
    for name, peer in row.get("peers", {}).items():
        if "missing" in peer:
            print(f"      {name:<38} {peer['missing']}")
        else:
            times = f"{peer['times the kernel']:>10.0f} times the kernel's"
            print(f"      {name:<38} {peer['seconds'] * 1e3:>9.1f} ms  {times}")


def _format_size(row: dict[str, Any]) -> str:
    return f"N={row['N']:<3} P={row['P']:<6} R={row['R']:<5}"
