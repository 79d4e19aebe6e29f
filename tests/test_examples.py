"""The notebooks and the script of examples/ run from beginning to end, with the mini models."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from own_pictures import list_objects, save_photograph

from rimjax.datasets.fashion_scenes import render_benchmark_scene

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One cache for all, so that a class is drawn once; and this checkout in every process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RIMJAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        yield


def execute(name: str, folder: Path) -> list[str]:
    """Run a notebook; return what each code cell printed or showed, as text."""
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}})
    client.execute()
    shown = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            printed = [part.text for part in cell.outputs if part.get("name") == "stdout"]
            values = [part.data["text/plain"] for part in cell.outputs if "data" in part]
            shown.append("".join([*printed, *values]))
    return shown


def test_quick_start(tmp_path: Path) -> None:
    first, bank, overlay, segments, shares, unknown = execute("quick_start", tmp_path)
    assert all("PIL" in picture for picture in (first, overlay, unknown))
    assert bank == "('background', 'sneaker', 'bag', 'dress')"
    named = {line.split()[0] for line in segments.strip().splitlines()}
    assert named == {"sneaker", "bag", "dress"}
    assert 0.5 < eval(shares)["background"] < 0.95


def test_own_mug(tmp_path: Path) -> None:
    shown = execute("own_mug", tmp_path)
    assert shown[2] == "('background', 'sneaker', 'bag', 'my sneaker')"
    found = {name: int(text.split()[0]) for name, text in eval(shown[-1]).items()}
    assert found["my sneaker"] >= 14 and found["bag"] >= 14
    assert found["sneaker"] >= 4, "none would be, if all sneakers were mine"


def test_match_alone(tmp_path: Path) -> None:
    *_, shown = execute("match_alone", tmp_path)
    accuracies = {line[:28].strip(): float(line[28:].split()[0]) for line in shown.splitlines()}
    assert accuracies["plain cosine"] > 80
    assert accuracies["rankings (Eq. 9)"] < accuracies["plain cosine"] - 10, "as the text says"
    mixed = accuracies["cosine + 0.1 rankings"]
    assert mixed == pytest.approx(accuracies["plain cosine"], abs=1)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and not any(cell["outputs"] or cell["execution_count"] for cell in code)


def test_segment_folder(tmp_path: Path) -> None:
    scene = render_benchmark_scene(48)
    masks = dict(list_objects(scene))
    save_photograph(tmp_path / "photos/a.png", scene)
    words = [
        sys.executable,
        EXAMPLES / "segment_folder.py",
        "photos",
        ",".join(masks),
        "--output",
        "out",
    ]
    subprocess.run(words, cwd=tmp_path, check=True, timeout=300)
    (row,) = csv.DictReader((tmp_path / "out/shares.csv").open())
    assert (tmp_path / "out/a.png").exists()
    for name, mask in masks.items():
        assert float(row[name]) == pytest.approx(mask.mean(), abs=0.02)
    empty = subprocess.run(
        [*words[:2], tmp_path / "out/none", "bag"], cwd=tmp_path, capture_output=True, text=True
    )
    assert empty.returncode == 2 and "no .jpg or .png picture" in empty.stderr
