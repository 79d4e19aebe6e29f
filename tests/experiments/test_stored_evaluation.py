"""`experiments/stored_evaluation.py` at a small size: its table, and the loop over images."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

from rimjax.evaluation.loop import evaluate_items
from rimjax.evaluation.metrics import mean_iou

FOLDER = Path(__file__).parents[2] / "experiments"


def test_rows_are_evaluated_as_by_the_loop_over_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    script = importlib.import_module("stored_evaluation")
    kept = {title: script.trials.READINGS[title] for title in ("printed",)}
    monkeypatch.setattr(script.trials, "READINGS", kept)
    monkeypatch.setattr(script, "OUTLINES", 30)
    options = script.StoredEvaluation(count=5, regions=12, classes=7, size=(200, 150))
    script.fill(options, tmp_path)
    lines = {line[0]: line[1:] for line in script.measure(options, tmp_path)}
    assert {"a pass with both kinds of features", "in all"} < lines.keys()
    assert lines["peak of memory"][0].endswith("GiB")
    load = options.open_store(tmp_path, "image").load
    rows = {
        "Table 2, row 3": (options.make_bank("image"), script.trials.COSINE),
        "Table 2, row 5": (options.make_bank("image", 8), kept["printed"]),
    }
    confusions = [o.confusions for o in evaluate_items(options.list_items(), load, rows)]
    for title in rows:
        expected = 100 * mean_iou(np.sum([each[title] for each in confusions], axis=0))
        assert expected > 0 and lines[title][1].startswith(f"{expected:.1f} (")
