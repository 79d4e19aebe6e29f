"""The command line, run in this process."""

from __future__ import annotations

import sys

import pytest

from rimjax import cli


def run(*words: object, capsys: pytest.CaptureFixture[str] | None = None) -> str:
    """What a command printed, if `capsys` is given."""
    before = sys.argv
    sys.argv = ["rimjax", *map(str, words)]
    try:
        cli.main()
    finally:
        sys.argv = before
    return capsys.readouterr().out if capsys else ""


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a command said before it left with status 2; progress bars and warnings may stand before it."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    lines = [
        line
        for line in capsys.readouterr().err.replace("\r", "\n").splitlines()
        if line.startswith("rimjax: ")
    ]
    lines = [line for line in lines if not line.startswith("rimjax: warning")]
    assert len(lines) == 1
    return lines[0]
