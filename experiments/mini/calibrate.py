"""Measure how often mini's names are right, and how far an image may be from its training scenes.

Command:  python experiments/mini/calibrate.py
Hardware: 2 CPU cores, about 8 minutes

Writes ported_weights/mini/calibration.safetensors and its entry in MANIFEST.toml. Run it again
after export.py: a calibration says nothing of other weights than those that it was measured on.

The confidence of a region that gets a class's name is a logistic function of score and margin,
fitted, for each configuration, to the regions of the first 800 validation scenes, which a bank of
all ten classes names; of a region named background it is the share of such regions that are. A
region's right name is the class of most of its pixels. The distance of an image is measured from
1,500 scenes of the photographs that the models learned from; 99 % of 400 further validation scenes
lie within its limit. None of these is the benchmark's. experiments/reliability.py and unknown.py
show what comes of it on other scenes.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import tomlkit
from common import parse_arguments
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression

sys.path.append(str(Path(__file__).parents[1]))
from true_regions import TrueRegions, collect_true_regions
from validation import open_validation_scenes

import rimjax
from rimjax.commands.console import progress, show_class_progress
from rimjax.datasets import fashion_mnist, fashion_scenes
from rimjax.files import sha256, write_text
from rimjax.models.calibration import Calibration, Confidence, summarise_grid
from rimjax.models.protocols import Models
from rimjax.presets import PRESETS, locate_weights
from rimjax.regions.store import load_or_extract

FITTED, FURTHER = 800, 400
"""Validation scenes that confidences are fitted to, and those after them."""
TRAINING_SCENES = 1_500
WITHIN = 0.99
"""Share of validation scenes that are to count as familiar."""


def fit_confidence(regions: TrueRegions, models: Models, cache: Path) -> Confidence:
    """Fit a configuration's confidence to regions named by a bank of all classes."""
    bank = rimjax.build_bank(regions.classes, models, cache_dir=cache, progress=show_class_progress)
    naming = regions.name(bank, models)
    named = naming.labels > 0
    numbers = np.stack([naming.scores, naming.margins], 1)[named]
    # As good as unregularised.
    fitted = LogisticRegression(C=1e4, max_iter=1000).fit(numbers, naming.right[named])
    (score, margin), intercept = fitted.coef_[0], fitted.intercept_[0]
    background = float(naming.right[~named].mean())
    return Confidence(float(score), float(margin), float(intercept), background)


def measure_world(models: Models, data: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Return mean, matrix and limit of `Calibration`."""
    photos, classes = (part[:-5_000] for part in fashion_mnist.read_idx("train", data))
    scenes = [
        fashion_scenes.render_random(np.random.default_rng((78, index)), photos, classes).image
        for index in progress(range(TRAINING_SCENES), "training scenes", "scene")
    ]
    summaries = np.stack([summarise_grid(grid) for grid in models.encoder.encode_batch(scenes)])
    estimate: Any = LedoitWolf().fit(summaries)
    values, vectors = np.linalg.eigh(estimate.precision_)
    mean, matrix = estimate.location_, vectors * np.sqrt(values)
    further = open_validation_scenes(data, FITTED + FURTHER).items[FITTED:]
    grids = models.encoder.encode_batch([item.image() for item in further])
    distances = [np.linalg.norm((summarise_grid(grid) - mean) @ matrix) for grid in grids]
    return mean.astype(np.float32), matrix.astype(np.float32), float(np.quantile(distances, WITHIN))


def main() -> None:
    options = parse_arguments(__doc__)
    cache = options.out / "calibration"
    models = rimjax.load_preset("mini")
    scenes = open_validation_scenes(options.data, FITTED)
    items = progress(scenes.items, "regions", "scene")
    regions = collect_true_regions(items, load_or_extract(cache, models), scenes.classes)
    confidences = {
        name: fit_confidence(regions, rimjax.load_preset("mini", configuration=name), cache)
        for name in ("rimjax", "printed")
    }
    mean, matrix, limit = measure_world(models, options.data)
    calibration = Calibration(
        models.features, models.proposer.fingerprint, confidences, limit, mean, matrix
    )
    name = PRESETS["mini"].calibration
    assert name is not None
    path = locate_weights("mini") / name
    calibration.save(path)
    root = path.parents[1]
    manifest: Any = tomlkit.parse((root / "MANIFEST.toml").read_text())
    manifest["mini"]["calibration"] = {
        "file": str(path.relative_to(root)),
        "sha256": sha256(path),
        "bytes": path.stat().st_size,
        "source": "measured by experiments/mini/calibrate.py on scenes of Fashion-MNIST's training "
        "split",
        "licence": "Apache-2.0; the photographs are Fashion-MNIST's (MIT)",
    }
    write_text(root / "MANIFEST.toml", tomlkit.dumps(manifest))
    print(f"{len(regions.truths)} regions; {confidences}; limit {limit:.2f}")


if __name__ == "__main__":
    main()
