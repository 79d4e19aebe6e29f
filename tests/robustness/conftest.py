"""How much the robustness tests try: `--robust N` multiplies their counts."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--robust", type=int, default=1, metavar="N", help="try N times as much (default: 1)"
    )


@pytest.fixture
def robust(request: pytest.FixtureRequest) -> int:
    """How much to try; pytest reads the option only if tests/robustness is on its command line."""
    count = request.config.getoption("robust", 1)
    assert isinstance(count, int)
    return count
