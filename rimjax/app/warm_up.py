"""Compile what the first visitor would wait for, before anyone comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from rimjax.app.session import Session
from rimjax.images import ImageSource, read_image
from rimjax.references import store
from rimjax.references.one_class import references_key
from rimjax.regions.extract import extract
from rimjax.show import draw


def warm_up(session: Session, classes: Sequence[str], image: ImageSource) -> Callable[[], None]:
    """Segment an image if the cache has the classes' references.

    Otherwise only its regions are extracted, since drawing would take minutes.

    Args:
        session: shown to nobody.
        classes: names of drawn classes.
        image: as of `rimjax.segment`, with something of one of the classes.

    Returns:
        What explains a region; it takes seconds, during which others can use the models.
    """
    pixels = read_image(image)
    y, x = 0, 0
    with suppress(ValueError, OSError):  # of a damaged bank a visitor is told
        if _has_references(session, classes):
            seg = session.segment(pixels, ", ".join(classes))
            y, x = (np.argwhere(seg.labels)[0] * draw.find_factor(pixels)).tolist()
        else:
            extract(session.models, pixels)

    def explain() -> None:
        with suppress(ValueError, OSError):
            session.explain((x, y))

    return explain


def _has_references(session: Session, classes: Sequence[str]) -> bool:
    """Return whether the cache has the references of all classes."""
    models, cache = session.models, store.locate_cache(session.cache_dir)
    return all(
        store.locate_references(
            cache, name, references_key(name, models, models.references)
        ).exists()
        for name in classes
    )
