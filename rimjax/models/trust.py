"""Which confidence holds for models, settings and a bank: the one that was measured for them."""

from __future__ import annotations

from rimjax.models.calibration import Confidence
from rimjax.models.protocols import Models
from rimjax.settings import SegmentSettings, name_configuration
from rimjax.types import ReferenceBank


def find_confidence(
    models: Models, settings: SegmentSettings, bank: ReferenceBank | None = None
) -> Confidence | None:
    """Return what gives regions their confidence; None where nothing was measured.

    Args:
        models: whose reference settings are the bank's.
        settings: how to match.
        bank: whose classes must all be among those that were measured; None: they are.

    Raises:
        ValueError: there is none, but the settings ask for a least confidence.
    """
    known, name = models.calibration, name_configuration(models.references, settings)
    measured_on = known and (known.encoder, known.proposer)
    if known is None or measured_on != (models.features, models.proposer.fingerprint):
        check_calibrated(None, settings)
        return None
    names = () if bank is None or known.classes is None else bank.names[1:]
    strange = [each for each in names if each.lower() not in (known.classes or ())]
    found = None if strange else known.confidences.get(name)
    check_calibrated(found, settings, f"classes such as {strange[0]!r}" if strange else "")
    return found


def check_calibrated(
    calibration: Confidence | None, settings: SegmentSettings, unmeasured: str = ""
) -> None:
    """Raise ValueError for a least confidence where there is none.

    Args:
        calibration: from `find_confidence`.
        settings: how to match.
        unmeasured: what no confidence was measured for; default: models and settings.
    """
    if settings.min_confidence is not None and calibration is None:
        raise ValueError(
            f"min_confidence must be None with {unmeasured or 'models and settings'} that no "
            f"confidence was measured for, got {settings.min_confidence}; use min_margin or "
            "min_score"
        )
