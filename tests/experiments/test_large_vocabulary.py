"""The script that measures a vocabulary on several devices, on a small one."""

from __future__ import annotations

from pathlib import Path

from eight_devices import run_on_eight_devices

SCRIPT = Path(__file__).parents[2] / "experiments" / "large_vocabulary.py"
SMALL = ["--classes", "40", "--dim", "32", "--regions", "16", "--devices", "1", "8"]


def test_eight_devices_hold_an_eighth_each() -> None:
    run = f"import runpy; runpy.run_path({str(SCRIPT)!r})['main']({SMALL!r})"
    _, _, one, eight, _, differ = run_on_eight_devices(run).splitlines()
    assert one.startswith("| 1 | ") and eight.startswith("| 8 | ")
    assert differ == "0 of 16 labels differ"
