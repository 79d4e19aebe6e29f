"""Imports point one way: a file imports only rooms below its own, and no folder has a circle."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = (
    "ported_weights",
    "rimjax.types",
    "rimjax.match",
    "rimjax.settings",
    "rimjax.files",
    "rimjax.sealed",
    "rimjax.images",
    "rimjax.steps",
    "rimjax.models",
    "rimjax.datasets",
    "rimjax.weights",
    "rimjax.presets",
    "rimjax.regions",
    "rimjax.references",
    "rimjax.results",
    "rimjax.pipeline",
    "rimjax.evaluation",
    "rimjax.evaluate",
    "rimjax.distributed",
    "rimjax.show",
    "rimjax.app",
    "rimjax.bench",
    "rimjax.commands",
    "rimjax.__main__",
    "rimjax",
)
"""From the ground floor up; `rimjax` itself, which names everything lazily, is the roof."""


def name_module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    name_module(path): path
    for package in ("rimjax", "ported_weights")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def find_room(module: str) -> str:
    return max((room for room in ROOMS if f"{module}.".startswith(f"{room}.")), key=len)


@cache
def list_imports(module: str) -> frozenset[str]:
    """Return the modules of ours that a module imports anywhere: in functions and for types too."""
    imports = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            imports |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports must be absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                imports.add(inner if inner in MODULES else str(node.module))
    return frozenset(imports & MODULES.keys()) - {module}


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_rooms_below_its_own(module: str) -> None:
    own = ROOMS.index(find_room(module))
    upward = {other for other in list_imports(module) if ROOMS.index(find_room(other)) > own}
    assert not upward, f"{module} stands below {sorted(upward)}"


def test_no_circle() -> None:
    try:
        TopologicalSorter({module: list_imports(module) for module in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"imports form a circle: {' -> '.join(error.args[1])}")


def test_every_room_exists_and_none_is_forgotten() -> None:
    assert set(ROOMS) == {find_room(module) for module in MODULES}
    assert {path.name for path in (ROOT / "rimjax").iterdir() if path.suffix == ".py"} == {
        *("__init__.py", "__main__.py", "types.py", "settings.py", "files.py", "images.py"),
        *("sealed.py", "pipeline.py", "evaluate.py"),
    }


FILES = [*MODULES.values(), *sorted((ROOT / "experiments").rglob("*.py"))]


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_has_at_most_300_lines(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= 300
