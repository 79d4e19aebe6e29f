"""What a report says of a run whose pixel counts and times are known."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trees
from browser import Visit
from cli import refused, run
from fakes import fake_models
from PIL import Image

from rimjax.commands import options
from rimjax.evaluation.run_folder import ImageResult, open_run

NAMES = ("background", "coat", "shirt", "bag", "shoe")
CONFUSIONS = {
    # rows true, columns predicted
    "one": [[800, 0, 0, 0, 0], [30, 100, 70, 0, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0] * 5],
    "two": [[500, 0, 0, 0, 9], [50, 250, 0, 0, 0], [0, 6, 4, 0, 0], [0, 0, 0, 0, 0], [0] * 5],
    "three": [[900, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 0, 39, 0, 0], [0, 0, 0, 0, 0], [0] * 5],
}
"""Nothing is truly a shoe, and a bag is in neither truth nor prediction."""


def write_run(
    folder: Path,
    names: Sequence[str] = NAMES,
    confusions: Mapping[str, Sequence[Sequence[int]]] = CONFUSIONS,
    seconds: Sequence[float] = (2.0, 0.003, 0.004),
) -> Path:
    """Write the folder of a run with these pixel counts, and seconds of matching."""
    description = {
        "dataset": "known",
        "classes": list(names[1:]),
        "background": True,
        "num_images": len(confusions),
        "shard": None,
        "save_labels": False,
        "settings": {"segmentation": {"num_agents": 4}},
        "weights": {"encoder": "abcdef"},
        "versions": {"rimjax": "0.1.0"},
    }
    with open_run(folder, description) as (_, append):
        for (name, rows), taken in zip(confusions.items(), seconds, strict=True):
            timings = {"encode": 0.02, "match": taken}
            append(ImageResult.from_confusion(name, np.array(rows), timings))
    return folder


def read_text(path: Path) -> str:
    """Return a page's text without tags and line breaks."""
    body = re.sub(r"<(script|style)\b.*?</\1>", "", path.read_text(), flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", body).replace("&nbsp;", " ").split())


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_run(tmp_path_factory.mktemp("run") / "run")
    run("report", folder)
    return folder / "report.html"


def test_times_are_medians_and_the_first_image_stands_apart(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("evaluate", "merge", report.parent, capsys=capsys).splitlines()
    assert printed[-2:] == [
        "per image: encode 20 ms  match 4 ms   (median)",
        "first image: 2.0 s, compilation included",
    ]
    text = read_text(report)
    assert "24 ms per image (median)" in text and "match 4.0 ms" in text
    assert "First image: 2.0 s, compilation included." in text

    even = write_run(tmp_path / "even", seconds=(0.005, 0.003, 0.004))
    assert "first image" not in run("evaluate", "merge", even, capsys=capsys)
    two = dict(list(CONFUSIONS.items())[:2])
    pair = write_run(tmp_path / "pair", confusions=two, seconds=(2.0, 0.003))
    assert "match 3 ms   (median)" in run("evaluate", "merge", pair, capsys=capsys)
    single = write_run(tmp_path / "one", confusions={"one": CONFUSIONS["one"]}, seconds=(2.0,))
    last = run("evaluate", "merge", single, capsys=capsys).splitlines()[-1]
    assert last == "per image: encode 20 ms  match 2000 ms   (1 image: compilation included)"
    run("report", single)
    assert "Of the only image, compilation included" in read_text(single / "report.html")


def test_the_most_frequent_mistake_has_the_most_pixels(report: Path) -> None:
    text = read_text(report)
    said = "Most frequent mistake: 80 pixels of coat named background, 16 % of coat."
    assert said in text, "shirt named coat has 12 % of shirt, but 6 pixels"
    buttons = re.findall(r'data-cell="(\d),(\d)"', report.read_text())
    total = np.sum(list(CONFUSIONS.values()), axis=0)
    pixels = [total[int(truth), int(prediction)] for truth, prediction in buttons]
    assert pixels == [80, 70, 9, 6, 1]
    assert "coat named shirt 70 pixels, 14 %" in text


def read_figures(visited: Visit) -> dict[str, dict[str, str]]:
    """Return the table of the classes' figures: class -> column -> text."""
    table = visited.page.locator("table.figures")

    def read_texts(row: Any, cells: str) -> list[str]:
        texts = row.locator(cells).all_inner_texts()
        return [text.replace("\N{NO-BREAK SPACE}", " ") for text in texts]

    columns, rows = read_texts(table, "thead th"), {}
    for row in table.locator("tbody tr").all():
        cells = read_texts(row, "td")
        name = row.locator("th").inner_text()
        if len(cells) == len(columns) - 2:  # "not in the truth" spans two columns
            cells.insert(1, "")
        rows[name] = dict(zip(columns[1:], cells, strict=True))
    return rows


def test_figures_of_each_class(report: Path, visit: Callable[..., Visit]) -> None:
    visited = visit(f"file://{report}")
    figures = read_figures(visited)
    assert list(figures) == ["background", "coat", "shirt", "shoe"]
    coat = figures["coat"]
    assert coat["IoU"] == f"{100 * 350 / 506:.1f} %" and coat["recall"] == "70.0 %"
    assert coat["left as background"] == "16.0 %" and coat["named another class"] == "14.0 %"
    assert coat["precision"] == f"{100 * 350 / 356:.1f} %"
    assert coat["pixels in the truth"] == "500" and coat["images in the truth"] == "2"
    assert coat["pixels named so"] == "356" and " to " in coat["95 % interval"]
    assert figures["background"]["left as background"] == "-"
    assert figures["shirt"]["left as background"] == "2.0 %"
    hover = visited.page.evaluate('document.getElementById("chart-classes").data[0].hovertext')
    assert "in the truth: 500 pixels, 2 images" in hover[1]
    assert visited.errors == []


def test_a_class_that_the_truth_lacks_is_not_among_the_weakest(
    report: Path, visit: Callable[..., Visit]
) -> None:
    text = read_text(report)
    assert "Weakest classes: shirt (36 %), coat (69 %), background (96 %)." in text
    assert "Not in the truth, but named: shoe (9 pixels)." in text
    visited = visit(f"file://{report}")
    shoe = read_figures(visited)["shoe"]
    assert shoe["IoU"] == "not in the truth" and shoe["95 % interval"] == ""
    assert shoe["recall"] == shoe["left as background"] == shoe["named another class"] == "-"
    assert shoe["precision"] == "0.0 %" and shoe["pixels named so"] == "9"
    bars = visited.page.evaluate(
        """() => {
            const chart = document.getElementById("chart-classes");
            const [bar] = chart.data;
            return [bar.y, bar.hovertext, chart.querySelectorAll(".errorbar path").length];
        }"""
    )
    names, hover, whiskers = bars
    assert names[-1] == "shoe<br>(not in the truth)" and whiskers == 3
    assert hover[-1] == "shoe: not in the truth<br>9 pixels are named so"


def test_a_class_in_one_image_has_no_interval(tmp_path: Path, visit: Callable[..., Visit]) -> None:
    confusions = {name: CONFUSIONS[name] for name in ("one", "three")}
    folder = write_run(tmp_path / "run", confusions=confusions, seconds=(0.1, 0.1))
    run("report", folder)
    figures = read_figures(visit(f"file://{folder / 'report.html'}"))
    assert figures["coat"]["images in the truth"] == "1" and figures["coat"]["95 % interval"] == "-"


@pytest.mark.parametrize("names", [NAMES, ("background", "<b>x</b>", "a & b", "&lt;", "%{x}")])
def test_names_are_drawn_as_they_are_and_an_empty_cell_says_never(
    names: tuple[str, ...], tmp_path: Path, visit: Callable[..., Visit]
) -> None:
    folder = write_run(tmp_path / "run", names)
    run("report", folder)
    visited = visit(f"file://{folder / 'report.html'}", viewport={"width": 1280, "height": 900})
    page = visited.page

    def read_labels(selector: str) -> list[str]:
        return [text or "" for text in page.locator(selector).all_text_contents()]

    assert read_labels("#chart-confusion .xtick text") == list(names)
    assert read_labels("#chart-confusion .ytick text") == list(names[::-1])  # from below
    assert set(names[:3]) <= set(read_labels("#chart-classes .ytick text"))
    title = page.locator("#cell-title")

    def click(truth: int, prediction: int) -> str:
        """Click on a cell; return what the pointer shows there."""
        page.locator("#chart-confusion").scroll_into_view_if_needed()
        x, y = page.evaluate(
            """([truth, prediction]) => {
                const chart = document.getElementById("chart-confusion");
                const { xaxis, yaxis } = chart._fullLayout;
                const box = chart.querySelector(".nsewdrag").getBoundingClientRect();
                return [box.x + xaxis.c2p(prediction), box.y + yaxis.c2p(truth)];
            }""",
            [truth, prediction],
        )
        page.mouse.move(x, y)
        page.wait_for_timeout(150)  # plotly looks at the pointer every 50 ms
        shown = page.locator("#chart-confusion .hoverlayer .nums").text_content() or ""
        page.mouse.click(x, y)
        return shown

    assert click(2, 1).startswith(f"{names[2]} named {names[1]}")
    title.get_by_text(f"{names[2]} named {names[1]}", exact=True).wait_for(timeout=5000)
    assert (
        page.locator("#cell-rest").inner_text() == "Not among this page's pictures: two (6 pixels)"
    )
    assert click(3, 2) == f"{names[3]} named {names[2]}: never"
    title.get_by_text(f"{names[3]} named {names[2]}: never", exact=True).wait_for(timeout=5000)
    assert page.locator("#cell-rest").inner_text() == ""
    assert page.locator("#cell-cards .card").count() == 0
    assert visited.errors == []


def test_settings_are_open_and_the_rest_closed(report: Path) -> None:
    section = report.read_text().partition('<section id="settings">')[2]
    found = re.findall(r"<details( open)?><summary>(.*?)</summary>", section)
    assert found == [(" open", "Settings"), ("", "Weights (digests)"), ("", "Versions")]


def test_the_report_must_be_called_html(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, "report", report.parent, "--output", tmp_path / "x.txt")
    assert "--output must be an HTML file" in line and not list(tmp_path.iterdir())
    run("report", report.parent, "--output", tmp_path / "x.HTML")
    assert (tmp_path / "x.HTML").is_file()


@pytest.fixture
def folder_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder of patches, and the folder of a run of fakes on it."""
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: fake_models())
    data = trees.write_noisy_folder(tmp_path / "my patches", "background\napple\nplum\nleaf\n")
    output = tmp_path / "run"
    run("evaluate", "--dataset", data, "--cache-dir", tmp_path / "cache", "--output", output)
    return data, output


def read_data(path: Path) -> dict[str, Any]:
    """Return the data that a report's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text())
    assert found is not None
    return json.loads(found[1])


def test_the_worst_images_have_the_command_that_explains_them(
    folder_run: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    visit: Callable[..., Visit],
) -> None:
    data, output = folder_run
    content = read_data(output / "report.html")
    scores = {name: image["iou"] for name, image in content["images"].items()}
    assert content["worst"] and content["best"]
    mean = np.mean(list(scores.values()))
    assert all(scores[name] <= mean for name in content["worst"])
    assert all(scores[name] > mean for name in content["best"])
    page = visit(f"file://{output / 'report.html'}").page
    commands = page.locator("#worst code").all_inner_texts()
    assert len(commands) == len(content["worst"]) and page.locator("#best code").count() == 0
    words = shlex.split(commands[0])
    image = data / f"images/{content['worst'][0]}.png"
    assert words[:3] == ["rimjax", "segment", str(image)]
    x, y = map(int, words[words.index("--explain-at") + 1].split(","))
    truth, prediction = (
        np.asarray(Image.open(folder / f"labels/{image.stem}.png"))[y, x]
        for folder in (data, output)
    )
    assert content["images"][image.stem]["mistake"] == [truth, prediction] and truth != prediction
    why = tmp_path / "why.png"
    words[words.index("why.png")] = str(why)
    printed = run(*words[1:], "--output", tmp_path / "overlay.png", capsys=capsys)
    assert f"explanation: {why}" in printed and why.is_file()


def test_what_a_report_lacks_is_a_warning_too(
    folder_run: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = folder_run
    capsys.readouterr()
    run("report", output)
    assert "warning" not in capsys.readouterr().err
    (output / "labels/0.png").unlink()
    run("report", output)
    said = capsys.readouterr().err
    assert f"rimjax: warning: {output / 'report.html'}: no picture of 1 image: " in said
    data.rename(tmp_path / "moved")
    shutil.rmtree(tmp_path / "cache/references")
    run("report", output)
    said = capsys.readouterr().err
    assert f"{output / 'report.html'}: no pictures: the data set can't be read: " in said
    assert str(data) in said.splitlines()[0]
    assert f"{output / 'report.html'}: no references: the bank can't be read" in said
    bare = tmp_path / "bare"
    words = ("--dataset", tmp_path / "moved", "--cache-dir", tmp_path / "cache", "--output", bare)
    run("evaluate", *words, "--no-save-labels")
    assert "no pictures: the run kept no label maps" in capsys.readouterr().err
