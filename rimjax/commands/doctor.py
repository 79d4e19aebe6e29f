"""`rimjax doctor`."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from rimjax.commands.console import check_outputs
from rimjax.commands.options import NO_DEFAULT
from rimjax.files import package_versions, write_json
from rimjax.presets import list_weights
from rimjax.presets.catalogue import PRESETS

MISSING = 'missing: pip install "rimjax[pipeline]"'


@dataclass(frozen=True)
class Doctor:
    """Show versions, devices and weights: what is installed, what is missing, how to get it.

    Example: rimjax doctor --json doctor.json

    Attributes:
        json: File for the report.
    """

    json: Annotated[Path | None, NO_DEFAULT] = None

    def run(self) -> None:
        import jax

        check_outputs(self.json)
        python, versions = sys.version.split()[0], package_versions()
        devices = [f"{device.platform}: {device.device_kind}" for device in jax.devices()]
        weights = {preset: list_weights(preset) for preset in PRESETS}
        print(f"python {python}; JAX devices: {', '.join(devices)}")
        for package, version in versions.items():
            print(f"  {package:<18} {version or MISSING}")
        for preset, files in weights.items():
            for file in files:
                print(f"  {preset:<6} {file.stage:<10} {file.state:<8} {file.path}")
                if file.remedy:
                    print(f"{'':<20}{file.remedy}")
        if self.json is not None:
            report = {"python": python, "versions": versions, "devices": devices}
            entries = {preset: [asdict(file) for file in weights[preset]] for preset in weights}
            write_json(self.json, {**report, "weights": entries})
