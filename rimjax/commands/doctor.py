"""`rimjax doctor`."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from rimjax.commands.console import check_outputs
from rimjax.commands.devices import Framework, collect_facts, judge_devices
from rimjax.commands.options import NO_DEFAULT
from rimjax.files import package_versions, write_json
from rimjax.presets import list_weights
from rimjax.presets.catalogue import PRESETS

MISSING = 'missing: pip install "rimjax[pipeline]"'


@dataclass(frozen=True)
class Doctor:
    """Show versions, devices and weights: what is installed, what is missing, how to get it.

    Says so where JAX or torch can't use a GPU that is there, or their CUDA versions clash.

    Example: rimjax doctor --json doctor.json

    Attributes:
        json: File for the report.
    """

    json: Annotated[Path | None, NO_DEFAULT] = None

    def run(self) -> None:
        check_outputs(self.json)
        python, versions = sys.version.split()[0], package_versions()
        facts = collect_facts()
        faults = judge_devices(facts)
        weights = {preset: list_weights(preset) for preset in PRESETS}
        print(f"python {python}")
        for name, framework in (("JAX", facts.jax), ("torch", facts.torch)):
            print(_describe(name, framework))
        for fault in faults:
            print(f"WRONG: {fault}")
        for package, version in versions.items():
            print(f"  {package:<18} {version or MISSING}")
        for preset, files in weights.items():
            for file in files:
                print(f"  {preset:<6} {file.stage:<10} {file.state:<8} {file.path}")
                if file.remedy:
                    print(f"{'':<20}{file.remedy}")
        if self.json is not None:
            report = {"python": python, "versions": versions, "devices": asdict(facts)}
            entries = {preset: [asdict(file) for file in weights[preset]] for preset in weights}
            write_json(self.json, {**report, "faults": faults, "weights": entries})


def _describe(name: str, framework: Framework) -> str:
    """Describe a framework's version, build and devices on one line."""
    if framework.version is None:
        return f"{name}: {MISSING}"
    build = " and ".join(f"CUDA {major}" for major in framework.cuda) or "no CUDA"
    parts = []
    for device in framework.devices:
        memory = ""
        if device.free is not None and device.total is not None:
            memory = f", {device.free / 2**30:.1f} of {device.total / 2**30:.1f} GiB free"
        parts.append(f"{device.platform}: {device.name}{memory}")
    return f"{name} {framework.version} ({build}); {'; '.join(parts) or 'no device'}"
