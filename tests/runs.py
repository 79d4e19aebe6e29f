"""Read the runs that `rimjax evaluate --output` wrote."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rimjax.evaluation.run_folder import merge_runs


def read_confusions(*folders: Path) -> np.ndarray:
    """Return the confusion matrices of a run or its shards, image by image."""
    description, results = merge_runs(folders)
    count = 1 + len(description["classes"])
    usable = sorted(result.image for result in results.values() if result.error is None)
    return np.stack([results[image].fill_confusion(count) for image in usable])
