"""What is measured once of a preset's models: how often names are right, and what they know.

Not in the paper. A file beside the preset's weights holds it, made by
experiments/mini/calibrate.py, with the fingerprints of the models that it was measured on: it says
nothing of others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from rimjax.files import fingerprint, parse_json


@dataclass(frozen=True)
class Confidence:
    """How often a region is named rightly, by its score and margin, under one configuration.

    A logistic function for regions that a class is the best for, and a share for those that the
    background is the best for.

    Attributes:
        score: weight of the best class's score.
        margin: weight of the margin, the distance to the runner-up's score.
        intercept: added to both.
        background: share of the background's regions that are background.
    """

    score: float
    margin: float
    intercept: float
    background: float

    def estimate(
        self,
        scores: Float[np.ndarray, " P"],
        margins: Float[np.ndarray, " P"],
        background: Bool[np.ndarray, " P"],
    ) -> Float[np.ndarray, " P"]:
        """Estimate the share of such regions that is named rightly, in 0..1.

        Args:
            scores: of the best classes.
            margins: distances to the runners-up, at least 0.
            background: whether the best class is the background.
        """
        logits = self.score * scores + self.margin * margins + self.intercept
        named = 1 / (1 + np.exp(-np.clip(logits, -60, 60)))
        return np.where(background, self.background, named)


UNSURE = Confidence(score=0, margin=0, intercept=-60, background=0)
"""Of regions in an unfamiliar picture: 0, to 26 digits."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """How often names are right, and which images are like the training scenes.

    An image's distance is the Mahalanobis distance of `summarise_grid` from the training scenes'.

    Attributes:
        encoder: `Models.features` of the models that it was measured on.
        proposer: fingerprint of the proposer, which `confidences` depend on as well.
        confidences: by the configuration's name.
        limit: distance above which an image is unlike the training scenes.
        mean: mean of the training scenes' summaries.
        matrix: a square root of their precision: its rows times its columns are the inverse of the
            covariance.
        classes: the names, in lower case, that `confidences` hold for; None: any. The file doesn't
            have them: they are the preset's.
    """

    encoder: str
    proposer: str
    confidences: Mapping[str, Confidence]
    limit: float
    mean: Float[np.ndarray, " S"]
    matrix: Float[np.ndarray, "S S"]
    classes: tuple[str, ...] | None = None

    def measure_distance(self, features: Float[np.ndarray, "h w D"]) -> float:
        """Return the distance of an image's features from the training scenes'; about sqrt(2 D)."""
        return float(np.linalg.norm((summarise_grid(features) - self.mean) @ self.matrix))

    @property
    def fingerprint(self) -> str:
        """Digest of all numbers."""
        return fingerprint(self._describe(), {"mean": self.mean, "matrix": self.matrix})

    def _describe(self) -> dict[str, object]:
        confidences = {name: asdict(each) for name, each in self.confidences.items()}
        names = ("encoder", "proposer", "limit")
        return {**{name: getattr(self, name) for name in names}, "confidences": confidences}

    def save(self, path: Path) -> None:
        """Write it as safetensors, the numbers besides the arrays as metadata.

        Raises:
            OSError: the file can't be written.
        """
        arrays = {"mean": self.mean, "matrix": self.matrix}
        arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}
        path.write_bytes(save(arrays, metadata={"calibration": json.dumps(self._describe())}))


def load_calibration(path: Path) -> Calibration:
    """Read what `Calibration.save` wrote.

    Raises:
        ValueError: the file is missing, damaged or something else.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            content = parse_json((file.metadata() or {})["calibration"])
            arrays = {name: file.get_tensor(name) for name in ("mean", "matrix")}
        confidences = {
            name: Confidence(**numbers) for name, numbers in content.pop("confidences").items()
        }
        return Calibration(**content, confidences=confidences, **arrays)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a calibration, or damaged ({error})") from error


def summarise_grid(features: Float[np.ndarray, "h w D"]) -> Float[np.ndarray, " S"]:
    """Return mean and standard deviation of a grid's features of length 1, S = 2 D."""
    rows = features.reshape(-1, features.shape[-1]).astype(np.float32)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.concatenate([rows.mean(0), rows.std(0)])
