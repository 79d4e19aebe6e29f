"""`rimjax segment --explain`, on the real mini preset."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cli import refused, run
from PIL import Image

from rimjax.datasets import load


def test_segment_explains_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = tmp_path / "scene.png"
    Image.fromarray(load("fashion-scenes").items[0].image()).save(scene)
    cache = ("--cache-dir", tmp_path / "cache", "--images", "2")
    words = (scene, "--classes", "sneaker,bag", *cache, "--output", tmp_path / "out")
    why = tmp_path / "pictures/why.png"
    printed = run("segment", *words, "--explain", why, capsys=capsys)
    assert str(why) in printed and Image.open(why).width > 800
    at = run("segment", *words, "--explain", why, "--explain-at", "2,2", capsys=capsys)
    assert str(why) in at, "again, although the image's results are there"
    theirs = tmp_path / "theirs.png"
    theirs.write_bytes(scene.read_bytes())
    assert "rimjax didn't write it" in refused(capsys, "segment", *words, "--explain", theirs)
    assert "must not overwrite an image" in refused(capsys, "segment", *words, "--explain", scene)
    run("segment", *words, "--explain", theirs, "--overwrite", capsys=capsys)
    single = (*words[:-1], tmp_path / "one.png")
    both = ("--json", why, "--explain", why)
    assert "--json must be a file of its own" in refused(capsys, "segment", *single, *both)
    two = (scene, shutil.copy(scene, tmp_path / "second.png"))
    assert "explain needs a single image" in refused(
        capsys, "segment", *two, *words[1:], "--explain", why
    )
    assert "PNG" in refused(capsys, "segment", *words, "--explain", tmp_path / "why.jpg")
    wrong = refused(capsys, "segment", *words, "--explain", why, "--explain-at", "2;2")
    assert '--explain-at must be a point "X,Y"' in wrong
    assert "--explain FILE.png" in refused(capsys, "segment", *words, "--explain-at", "2,2")
