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
