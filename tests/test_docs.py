"""The snippets of the documentation run as printed, with the mini models.

In a page, a code block without a language holds commands that run; one marked `sh` holds commands
that are only read: they need weights, data or minutes that tests don't have. docs/photographs.md is
tested in tests/commands/test_own_references.py; doctests run by themselves.
"""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tyro
from cli import run
from fakes import fake_models
from own_pictures import find_scene, save_documented_files, save_photograph
from PIL import Image
from scenes import NAMES, make_scene

import rimjax
from rimjax import presets
from rimjax.commands import class_options, options
from rimjax.commands.main import CONFIG, Command
from rimjax.models.protocols import Models

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "experiments/README.md", *sorted(DOCS.rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("docs/results.md", "docs/photographs.md", "experiments/README.md")
"""Pages whose snippets another test runs, or whose commands take hours."""
LONG = ("demo", "evaluate", "report", "regions", "convert-coco", "bench", "doctor", "app")
"""Commands of the README that take minutes, data or a run; other tests run each of them."""


def name_page(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def list_snippets(path: Path, language: str) -> list[str]:
    return [code for found, code in BLOCK.findall(path.read_text()) if found == language]


def list_commands(code: str) -> list[list[str]]:
    lines = [shlex.split(line, comments=True) for line in code.splitlines()]
    return [words for words in lines if words]


def parse(words: list[str]) -> Any:
    return tyro.cli(Command, prog="rimjax", args=words, config=CONFIG)


@pytest.mark.parametrize("path", PAGES, ids=name_page)
def test_commands_exist_with_their_options(path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for program, *words in [
        command
        for language in ("", "sh")
        for code in list_snippets(path, language)
        for command in list_commands(code)
    ]:
        match program:
            case "rimjax":
                parse(words)
            case "python" | "pytest":
                assert (ROOT / words[0]).exists(), words[0]
            case "make":
                assert f"\n{words[0]}:" in (ROOT / "Makefile").read_text(), words[0]
            case "pip":
                extras = re.findall(r"\.\[(.*)\]", words[-1])
                assert set(",".join(extras).split(",")) <= {*project["optional-dependencies"], ""}
            case _:
                raise AssertionError(f"{program}: mark the block `text` if it isn't a command")


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """The mini preset draws two images of a class in two steps; it is loaded and compiled once."""
    load = presets.load_preset

    @cache
    def load_small(name: str, *args: Any, **options: Any) -> Models:
        models = load(name, *args, **options | {"steps": 2})
        return replace(models, references=replace(models.references, num_images=2))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(presets, "load_preset", load_small)
        patch.setattr(options, "load_preset", load_small)
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the pages name."""
    folder = save_documented_files(tmp_path_factory.mktemp("pages"))
    (folder / "classes.txt").write_text("# ours\nsneaker\nbag\n")
    scene = find_scene(1)
    save_photograph(folder / "photos/a.jpg", scene)
    save_photograph(folder / "shoes/images/a.png", scene)
    (folder / "shoes/labels").mkdir()
    Image.fromarray((scene.labels > 0).astype("uint8")).save(folder / "shoes/labels/a.png")
    (folder / "shoes/names.txt").write_text("sneaker\n")
    return folder


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache, so that a class is drawn once for all pages."""
    return tmp_path_factory.mktemp("cache")


def run_command(words: list[str], capsys: pytest.CaptureFixture[str], bank: str) -> str:
    """Run a command, drawing little; return the path of its bank, or the last one's."""
    words = [bank if word == "PATH" else word for word in words]
    few = ["--images", "2", "--steps", "2"]
    try:
        parse([*words, *few])
    except SystemExit:
        few = []
    if "--bank" in words:  # its images are drawn already
        few = []
    capsys.readouterr()
    printed = run(*words, *few, capsys=capsys)
    return printed.strip().splitlines()[-1] if words[:2] == ["bank", "build"] else bank


@pytest.mark.parametrize(
    "path", [path for path in PAGES if name_page(path) not in ELSEWHERE], ids=name_page
)
def test_snippets_run(
    path: Path,
    files: Path,
    drawings: Path,
    small: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    snippets = [pair for pair in BLOCK.findall(path.read_text()) if pair[0] in ("", "python")]
    if not snippets:
        return
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RIMJAX_CACHE", str(drawings))
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    models = rimjax.load_preset("mini")
    scope: dict[str, Any] = {"rimjax": rimjax, "models": models, "__name__": "__main__"}
    scope["bank"] = rimjax.build_bank(["sneaker", "bag"], models)
    bank = ""
    with warnings.catch_warnings():
        for language, code in snippets:
            if language == "python":
                exec(compile(code, name_page(path), "exec", dont_inherit=True), scope)
                continue
            for program, *words in list_commands(code):
                if program == "rimjax" and not (path.name == "README.md" and words[0] in LONG):
                    bank = run_command(words, capsys, bank)


def test_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models, image = fake_models(), make_scene()[0]
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: models)
    monkeypatch.setattr(class_options, "check_words", lambda *args: None)
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
