"""Run the command line in this process."""

from __future__ import annotations

import sys

import pytest

from rimjax.commands import main

NOTICES = (
    "rimjax: warning",
    "regions:",
    "bank:",
    "segment:",
    "evaluate:",
    "check labels:",
    "self-test:",
)


def run(*words: object, capsys: pytest.CaptureFixture[str] | None = None) -> str:
    """Run a command; return what it printed, if `capsys` is given."""
    before = sys.argv
    sys.argv = ["rimjax", *map(str, words)]
    try:
        main.main()
    finally:
        sys.argv = before
    return capsys.readouterr().out if capsys else ""


def refused(capsys: pytest.CaptureFixture[str], *words: object, status: int = 2) -> str:
    """Run a command that must exit with this status; return the only line it says.

    Progress and warnings may come before it.
    """
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == status
    lines = capsys.readouterr().err.replace("\r", "\n").splitlines()
    lines = [line for line in lines if line.strip() and not line.startswith(NOTICES)]
    assert len(lines) == 1 and lines[0].startswith("rimjax: "), lines
    return lines[0]
