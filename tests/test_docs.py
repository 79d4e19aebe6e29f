"""The snippets of docs/results.md run as printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cli import run
from fakes import fake_models
from PIL import Image
from scenes import NAMES, make_scene

import rimjax
from rimjax.commands import options

DOCS = Path(__file__).parents[1] / "docs"


def list_snippets(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.S)


def test_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, image = fake_models(), make_scene()[0]
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: models)
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    Image.fromarray(image).save("photos/a.png")
    commands = list_snippets(DOCS / "results.md", "")[0]
    made = 0
    for line in commands.strip().splitlines():
        words = [word.strip('"') for word in re.findall(r'"[^"]*"|\S+', line)][1:]
        words[words.index("--classes") + 1] = ",".join(NAMES)
        if "--coco-ids" in words:
            Path("out/annotations.json").rename("truth.json")
        run(*words, "--cache-dir", "cache")
        made += 1
    assert made == 3 and {path.name for path in Path("out").iterdir()} >= {
        *("a_segmented.png", "a_labels.png", "a_ids.png", "a.txt", "results.json"),
    }
    bank = rimjax.build_bank(list(NAMES), models, cache_dir="cache")
    seg = rimjax.segment(image, bank, models)
    scope: dict[str, Any] = {"seg": seg, "image": image}
    snippets = list_snippets(DOCS / "results.md", "python")
    assert len(snippets) == 3
    for snippet in snippets:
        exec(snippet, scope)
    assert scope["evaluation"].stats[0] == pytest.approx(1)
    assert (scope["annotated"] != image[..., ::-1]).any()
