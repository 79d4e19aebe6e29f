"""How many cases the robustness tests run: `--robust N` multiplies each test's own number."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--robust", type=int, default=1, help="multiply the number of cases of tests/robustness"
    )


@pytest.fixture(scope="session")
def robust(request: pytest.FixtureRequest) -> int:
    """The factor; 1 takes seconds, 120 is `make test-full`."""
    return request.config.getoption("--robust")
