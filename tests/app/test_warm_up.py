"""What is compiled before the first visitor comes."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
from fakes import fake_models, list_drawn
from scenes import NAMES, make_scene

from rimjax.app.session import Session
from rimjax.app.warm_up import warm_up
from rimjax.show import draw


def count_compilations(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> int:
    """Count what a visitor's segmentation and explanation compile."""
    caplog.clear()
    session = Session(fake_models(), tmp_path)
    factor = draw.find_factor(make_scene()[0])
    with jax.log_compiles():
        session.segment(make_scene()[0], ", ".join(NAMES))
        session.explain((4 * factor, 6 * factor))
    return sum(record.getMessage().startswith("Compiling") for record in caplog.records)


def test_the_first_visitor_compiles_no_more_than_the_second(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jax.clear_caches()
    cold = count_compilations(tmp_path, caplog)
    jax.clear_caches()
    warm_up(Session(fake_models(), tmp_path), NAMES, make_scene()[0])()
    first, second = (count_compilations(tmp_path, caplog) for _ in range(2))
    assert first == second < cold


def test_nothing_is_drawn_ahead(tmp_path: Path) -> None:
    session = Session(fake_models(), tmp_path)
    warm_up(session, NAMES, make_scene()[0])()
    assert not list_drawn(session.models) and session.draw_overlay(0.5) is None
