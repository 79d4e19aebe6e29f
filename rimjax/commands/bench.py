"""`rimjax bench match`: how fast, how exact and how small the matching kernels are on this machine."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from rimjax.commands.console import check_outputs
from rimjax.commands.options import NO_DEFAULT
from rimjax.files import package_versions, write_json


@dataclass(frozen=True)
class Bench:
    """Measure the matching kernels: exactness first, then speed beside other implementations, the roofline, compilation and memory.

    Example: rimjax bench match --json match.json --trace trace
    """

    what: tyro.conf.Positional[Literal["match"]] = "match"
    """What to measure."""
    dim: int = 768
    """D, the feature size."""
    quick: bool = False
    """Small sizes only: a few seconds, no memory."""
    trace: Path | None = None
    """Write a profiler trace of N=4, P=10,000, R=648 to this folder, for Perfetto or xprof."""
    json: Path | None = None
    """Write the report to this file too."""

    def run(self) -> None:
        import jax

        from rimjax import bench

        if self.dim < 1:
            raise ValueError(f"--dim must be at least 1, got {self.dim}")
        check_outputs(self.json)
        device = jax.devices()[0]
        report: dict[str, Any] = {
            "device": f"{device.platform}: {device.device_kind}, {os.cpu_count()} cores",
            "versions": package_versions(),
        }
        print(
            f"{report['device']}; float32; jax {report['versions']['jax']}, torch {report['versions']['torch']}\n"
        )

        print("Labels that differ from the float64 oracle's, on scores made close (N=4):")
        report["accuracy"] = bench.accuracy()
        for row in report["accuracy"]:
            for oracle in ("same inputs", "float64 inputs"):
                found = row[oracle]
                above, wrong = found["regions above 1e-5"], found["disagree above 1e-5"]
                print(
                    f"  {row['dtype']:<9} oracle on {oracle:<15} {found['disagree']:>4} of {row['regions']}; {wrong} of the {above} with a "
                    f"margin above 1e-5; largest margin {found['largest margin that disagrees']:.1e}"
                )

        sizes = (
            [(4, 20, 30, 9), (6, 20, 30, 9)]
            if self.quick
            else [(4, 100, 648, 81), (6, 100, 648, 81)]
        )
        alone = (
            [(7, 20, 30, 9)]
            if self.quick
            else [(10, 100, 648, 81), (16, 16, 64, 81), (4, 1000, 648, 81), (4, 10_000, 648, 81)]
        )
        print(
            "\nSimilarities of P regions to R prototypes, medians: the whole call, from features; the kernel and its peers, from cosines"
        )
        report["speed"] = []
        for size in [*sizes, *alone]:
            row = bench.speed(*size, self.dim, peers=size in sizes)
            report["speed"].append(row)
            whole = f"{row['seconds'] * 1e3:>9.2f} ms, {row['ns per pair']:.2f} ns a pair, compiled in {row['compile s']:.2f} s"
            print(f"  {_size(row)} {whole}; kernel {row['kernel seconds'] * 1e3:.2f} ms")
            for name, peer in row.get("peers", {}).items():
                if "missing" in peer:
                    print(f"      {name:<38} {peer['missing']}")
                else:
                    print(
                        f"      {name:<38} {peer['seconds'] * 1e3:>9.1f} ms  {peer['times the kernel']:>10.0f} times the kernel's"
                    )

        report["rates"] = bench.rates()
        print(
            "\nRoofline: operations over the rate of element-wise float32 arithmetic in cache, or bytes over bandwidth"
        )
        print(
            f"  {', '.join(f'{name} {value / 1e9:.1f} G/s' for name, value in report['rates'].items())}"
        )
        for row in report["speed"]:
            if row["N"] <= 6:
                row["roofline"] = bench.roofline(row, report["rates"])
                for part, found in row["roofline"].items():
                    print(
                        f"  {_size(row)} {part:<36} at least {found['seconds'] * 1e3:>7.2f} ms: ratio {found['ratio']:.2f}"
                    )

        print("\nCompilation:")
        report["compilation"] = []
        for row in bench.compilations((1, 4, 7) if self.quick else (*range(1, 13), 16), self.dim):
            report["compilation"].append(row)
            print(f"  N={row['N']:<3} {row['compile s']:.2f} s")

        if not self.quick:
            print("\nMemory, 10,000 classes of 8 prototypes:")
            report["memory"] = bench.memory(1000, 10_000, 8, self.dim)
            for row in report["memory"]:
                print(
                    f"  {row['call']}: "
                    + ", ".join(
                        f"{key} {value:.1f}"
                        for key, value in row.items()
                        if isinstance(value, float)
                    )
                )
        if self.trace is not None:
            bench.trace(self.trace, *(sizes[0] if self.quick else alone[-1]), self.dim)
            print(f"\ntrace: {self.trace}")
        if self.json is not None:
            write_json(self.json, report)


def _size(row: dict[str, Any]) -> str:
    return f"N={row['N']:<3} P={row['P']:<6} R={row['R']:<5}"
