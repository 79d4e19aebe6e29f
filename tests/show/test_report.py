"""Reports: of a real run in a browser, of runs that lack something, and of very large ones."""

from __future__ import annotations

import base64
import builtins
import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trees
from browser import Visit
from cli import refused, run
from fakes import fake_models
from PIL import Image

from rimjax import datasets, draw
from rimjax.commands import options
from rimjax.evaluation import metrics
from rimjax.evaluation.run_folder import ImageResult, merge_runs
from rimjax.show.report import page
from rimjax.show.report.contents import Contents, Labelled

CLASSES = ("coat", "trouser", "ankle boot")


@pytest.fixture(scope="module")
def mini_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of mini on six scenes, with two images of each of three classes."""
    root = tmp_path_factory.mktemp("report")
    cache = ("--cache-dir", root / "cache")
    run("bank", "build", "--classes", ",".join(CLASSES), "--images", 2, *cache)
    (bank,) = (root / "cache/banks").iterdir()
    words = ("--bank", bank, "--only-bank-classes", "--limit", 6, *cache)
    run("evaluate", *words, "--output", root / "run")
    return root / "run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = "background\nred fruit: apple\nplum\nleaf\n"
    return trees.write_noisy_folder(tmp_path / "patches", names)


@pytest.fixture
def fake_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of fakes on a folder of patches."""
    monkeypatch.setattr(options, "load_preset", lambda *args, **options: fake_models())
    output = tmp_path / "run"
    run("evaluate", "--dataset", folder, "--cache-dir", tmp_path / "cache", "--output", output)
    return output


def read_data(path: Path) -> dict[str, Any]:
    """Return the data that a report's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text())
    assert found is not None
    return json.loads(found[1])


def click_cell(visit: Visit, truth: str, prediction: str) -> None:
    """Click on a cell's place in the confusion matrix."""
    visit.page.locator("#chart-confusion").scroll_into_view_if_needed()
    x, y = visit.page.evaluate(
        """([truth, prediction]) => {
            const chart = document.getElementById("chart-confusion");
            const { xaxis, yaxis } = chart._fullLayout;
            const box = chart.querySelector(".nsewdrag").getBoundingClientRect();
            return [box.x + xaxis.c2p(xaxis.d2c(prediction)), box.y + yaxis.c2p(yaxis.d2c(truth))];
        }""",
        [truth, prediction],
    )
    visit.page.mouse.move(x, y)
    visit.page.wait_for_timeout(100)  # plotly looks at the pointer every 50 ms
    visit.page.mouse.click(x, y)


def test_a_report_in_a_browser(mini_run: Path, visit: Callable[..., Visit]) -> None:
    visited = visit(f"file://{mini_run / 'report.html'}", viewport={"width": 1280, "height": 900})
    browser_page = visited.page
    description, results = merge_runs([mini_run])
    names = ["background", *description["classes"]]
    total = np.sum([result.fill_confusion(len(names)) for result in results.values()], axis=0)
    expected = f"{100 * metrics.mean_iou(total):.1f}\N{NO-BREAK SPACE}%"
    assert browser_page.locator(".numbers strong").first.inner_text() == expected
    bars = browser_page.evaluate('document.getElementById("chart-classes").data[0].x')
    ious = metrics.iou_per_class(total)
    np.testing.assert_allclose(bars, 100 * np.sort(ious[~np.isnan(ious)])[::-1], atol=1e-9)

    truth, prediction = np.unravel_index(np.argmax(total - np.diag(np.diag(total))), total.shape)
    most = sorted(
        (-result.fill_confusion(len(names))[truth, prediction], image)
        for image, result in results.items()
    )

    def expect_title(text: str) -> None:
        browser_page.locator("#cell-title").get_by_text(text, exact=True).wait_for(timeout=5000)

    click_cell(visited, "background", "background")
    expect_title("background, named rightly")
    click_cell(visited, names[truth], names[prediction])
    expect_title(f"{names[truth]} named {names[prediction]}")
    shown = browser_page.locator("#cell-cards figcaption b").all_inner_texts()
    assert shown == [image for pixels, image in most if pixels]

    card = browser_page.locator("#worst .card").first
    widths = []
    slider = card.locator("input")
    slider.focus()
    for key, expected_value in (("Home", "0"), ("ArrowRight", "1"), ("End", "100")):
        browser_page.keyboard.press(key)
        assert slider.input_value() == expected_value
        clip = "node => getComputedStyle(node).clipPath"
        widths.append([card.locator(f".{kind}").evaluate(clip) for kind in ("prediction", "truth")])
    assert len({prediction for prediction, _ in widths}) == 3
    assert len({truth for _, truth in widths}) == 3

    browser_page.locator("#images .views label", has_text="errors").click()
    assert card.locator(".errors").is_visible() and not card.locator(".prediction").is_visible()
    pictures = browser_page.locator("img")
    assert pictures.evaluate_all("all => all.every(one => one.alt && one.naturalWidth > 0)")
    assert browser_page.locator("#references details").count() == len(names) - 1
    assert browser_page.locator("#references img").count() == (len(names) - 1) * 2 * 4
    assert visited.errors == [] and visited.requests == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_report_fits_a_phone(
    mini_run: Path, visit: Callable[..., Visit], scheme: str, tmp_path: Path
) -> None:
    address = f"file://{mini_run / 'report.html'}"
    visited = visit(address, viewport={"width": 375, "height": 750}, color_scheme=scheme)
    assert visited.page.evaluate("document.documentElement.scrollWidth") <= 375
    visited.page.screenshot(path=tmp_path / "page.png")
    ground = np.asarray(Image.open(tmp_path / "page.png").convert("L"))[5, 5]
    assert ground > 200 if scheme == "light" else ground < 60
    assert visited.errors == []


def test_the_layers_are_truth_prediction_and_errors(mini_run: Path) -> None:
    data = read_data(mini_run / "report.html")
    dataset = datasets.load("fashion-scenes").restrict(CLASSES)
    items = {item.id: item for item in dataset.items}
    assert sorted(data["images"]) == sorted(f"scene-{index:03d}" for index in range(6))
    for name, image in data["images"].items():
        truth = items[name].labels()
        prediction = np.asarray(Image.open(mini_run / f"labels/{name}.png"))

        def decode(layer: str, image: dict[str, str] = image) -> np.ndarray:
            content = base64.b64decode(image[layer].partition(",")[2])
            return np.asarray(Image.open(io.BytesIO(content)).convert("RGBA")).astype(int)

        colours = draw.pick_colours(len(data["names"]))
        for layer, labels in (("truth", truth), ("prediction", prediction)):
            pixels, coloured = decode(layer), (labels > 0) & (labels < 255)
            assert ((pixels[..., 3] > 0) == (labels > 0)).all()
            np.testing.assert_array_equal(pixels[coloured, :3], colours[labels[coloured]])
            assert (pixels[labels == 255, :3] == 255).all(), "ignored pixels are white"
        errors, counted = decode("errors"), truth < 255
        assert ((errors[counted][:, 3] > 0) == (truth != prediction)[counted]).all()
        assert (errors[~counted, :3] == 255).all()
        photo = decode("photo")[..., :3]
        assert np.abs(photo - items[name].image()).mean() < 12  # WebP loses a little
    ranked = [*data["worst"], *data["best"][::-1]]
    scores = [data["images"][name]["iou"] for name in ranked]
    assert scores == sorted(scores) and len(scores) == 6


def test_the_command_writes_what_the_evaluation_wrote(
    fake_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at_the_end = (fake_run / "report.html").read_text()
    assert run("report", fake_run, capsys=capsys).splitlines()[-1] == str(fake_run / "report.html")
    assert (fake_run / "report.html").read_text() == at_the_end
    run("report", fake_run, "--output", tmp_path / "other.html")
    assert (tmp_path / "other.html").read_text() == at_the_end
    (tmp_path / "notes.html").write_text("<p>mine</p>")
    line = refused(capsys, "report", fake_run, "--output", tmp_path / "notes.html")
    assert "notes.html: exists, and rimjax didn't write it" in line
    assert (tmp_path / "notes.html").read_text() == "<p>mine</p>"


def test_shards_have_one_report(
    fake_run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [tmp_path / "one", tmp_path / "two"]
    for index, shard in enumerate(shards, 1):
        words = ("--shard", f"{index}/2", "--cache-dir", tmp_path / "cache", "--output", shard)
        run("evaluate", "--dataset", folder, *words)
        assert not (shard / "report.html").exists()
    assert "finish the shards" in refused(capsys, "report", shards[0])
    run("report", *shards, "--output", tmp_path / "both.html")
    both, whole = read_data(tmp_path / "both.html"), read_data(fake_run / "report.html")
    assert both == whole


def test_what_is_no_run_is_refused(
    fake_run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no such file; expected the folder of" in refused(capsys, "report", folder)
    assert "runs must hold at least one" in refused(capsys, "report")
    lines = (fake_run / "images.jsonl").read_text().splitlines(keepends=True)
    (fake_run / "images.jsonl").write_text("".join(lines[:-1]))
    assert "finish the shards" in refused(capsys, "report", fake_run)
    (fake_run / "images.jsonl").write_text("")
    assert "got 0" in refused(capsys, "report", fake_run)


def test_without_pictures_the_page_says_why(fake_run: Path, folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    paths = sorted((fake_run / "labels").iterdir())
    lost = paths[0].read_bytes()
    paths[0].unlink()
    run("report", fake_run, "--output", file)
    data = read_data(file)
    assert paths[0].stem not in data["images"] and len(data["images"]) == len(paths) - 1
    assert "1 image can't be shown" in file.read_text()
    paths[0].write_bytes(lost)
    shutil.rmtree(tmp_path / "cache/references")
    folder.rename(tmp_path / "moved")
    run("report", fake_run, "--output", file)
    text = file.read_text()
    assert "No pictures: the data set can&#39;t be read" in text and str(folder) in text
    assert "No references: the bank can&#39;t be read" in text
    assert read_data(file)["images"] == {}
    words = ("--cache-dir", tmp_path / "cache", "--output", tmp_path / "bare")
    run("evaluate", "--dataset", tmp_path / "moved", *words, "--no-save-labels")
    assert "the run kept no label maps" in (tmp_path / "bare/report.html").read_text()


def test_what_was_moved_is_read_where_it_is_now(
    fake_run: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_data(fake_run / "report.html")
    moved = folder.rename(tmp_path / "moved")
    cache = (tmp_path / "cache").rename(tmp_path / "taken")
    (bank,) = (cache / "banks").iterdir()
    report = ("report", fake_run)
    run(*report, "--dataset", moved, "--bank", bank)
    text, after = (fake_run / "report.html").read_text(), read_data(fake_run / "report.html")
    assert "No pictures" not in text and "No references" not in text
    old, new = (
        [image.pop("command", None) for image in data["images"].values()]
        for data in (before, after)
    )
    assert after == before
    for was, now in zip(old, new, strict=True):
        assert (was is None) == (now is None)
        assert now is None or (str(bank) in now and str(moved) in now)
    for words, why in (
        (("--data", moved), "data must be given with voc"),
        (("--dataset", tmp_path / "gone"), "--dataset must be the folder"),
        (("--bank", tmp_path / "gone.json"), "gone.json: no such bank"),
    ):
        assert why in refused(capsys, *report, *words)
    labels = sorted((moved / "labels").iterdir())
    first = labels[0].read_bytes()
    Image.fromarray(np.full_like(np.asarray(Image.open(labels[0])), 1)).save(labels[0])
    run(*report, "--dataset", moved, "--bank", bank, "--output", tmp_path / "other.html")
    assert labels[0].stem not in read_data(tmp_path / "other.html")["images"]
    assert "the labels aren&#39;t those" in (tmp_path / "other.html").read_text()
    labels[0].write_bytes(first)
    line = refused(capsys, *report, "--dataset", "voc")
    assert "--dataset must be the folder" in line and "give --data instead" in line
    for path in [*(moved / "images").iterdir(), *(moved / "labels").iterdir()]:
        path.rename(path.with_name(f"other-{path.name}"))
    assert "none of the run's images" in refused(capsys, *report, "--dataset", moved)
    assert (fake_run / "report.html").read_text() == text


def test_without_plotly_a_run_goes_on_and_says_so(
    fake_run: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import_module = builtins.__import__

    def import_all_but_plotly(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "plotly":
            raise ModuleNotFoundError("No module named 'plotly'", name="plotly")
        return import_module(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", import_all_but_plotly)
    for module in ("page", "charts"):
        monkeypatch.delitem(sys.modules, f"rimjax.show.report.{module}")
        monkeypatch.delattr(f"rimjax.show.report.{module}")
    line = refused(capsys, "report", fake_run)
    assert line == 'rimjax: a report needs plotly: pip install "rimjax[report]"'
    words = ("--cache-dir", tmp_path / "cache", "--output", tmp_path / "other")
    printed = run("evaluate", "--dataset", folder, *words, capsys=capsys)
    assert printed.splitlines()[-1] == f"no report.html: {line.removeprefix('rimjax: ')}"
    assert "mIoU" in printed and not (tmp_path / "other/report.html").exists()


def make_contents(count: int, num_classes: int, side: int, noise: int) -> Contents:
    """Return contents of `count` images, each of which confuses two classes."""
    rng = np.random.default_rng(0)
    classes = [f"class {index}" for index in range(1, num_classes)]
    results = {}
    for index in range(count):
        confusion = np.zeros((num_classes, num_classes), np.int64)
        truth, prediction = rng.integers(0, num_classes, 2)
        confusion[truth, prediction] = rng.integers(1, 1000)
        confusion[truth, truth] += 500
        name = f"image-{index:05d}"
        results[name] = ImageResult.from_confusion(name, confusion, {"propose": 0.5})

    def read(name: str) -> Labelled:
        random = np.random.default_rng(int(name[-5:]))
        image = random.integers(0, noise, (side, side, 3)).astype(np.uint8)
        truth, prediction = random.integers(0, num_classes, (2, side, side)).astype(np.uint8)
        return Labelled(image, truth, prediction)

    description = {"dataset": "large", "classes": classes, "background": True}
    return Contents(description, results, read, "none were made")


@pytest.mark.parametrize(("side", "most"), [(16, 300), (384, 299)])
def test_a_large_run_is_sampled_and_says_so(tmp_path: Path, side: int, most: int) -> None:
    contents = make_contents(5000, 81, side, noise=256)
    page.write_report(contents, tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 20e6
    data, text = read_data(tmp_path / "report.html"), (tmp_path / "report.html").read_text()
    count = len(data["images"])
    assert 16 < count <= most and (count == most or side > 16)
    assert f"This page holds {count} of the run's 5000 images" in text
    scores = contents.score_images(contents.summarise())
    assert data["images"][data["worst"][0]]["iou"] == pytest.approx(scores.min(), abs=1e-4)
    assert data["images"][data["best"][0]]["iou"] == pytest.approx(scores.max(), abs=1e-4)
    cells = [found for cell, found in data["cells"].items() if len(set(cell.split(","))) == 2]
    largest = max(cells, key=lambda found: found[0][1])
    assert largest[0][0] in data["images"]


def test_names_are_text_and_never_markup(tmp_path: Path, visit: Callable[..., Visit]) -> None:
    contents = make_contents(3, 3, 16, noise=256)
    evil = "<img src=x onerror=alert(1)></script><script>document.title='evil'</script>"
    contents.description["classes"][0] = evil  # pyright: ignore[reportIndexIssue]
    page.write_report(contents, tmp_path / "report.html")
    assert evil not in (tmp_path / "report.html").read_text()
    visited = visit(f"file://{tmp_path / 'report.html'}")
    assert "evil" not in visited.page.title() and visited.errors == []


def test_a_run_without_a_background_has_no_row_for_it(tmp_path: Path) -> None:
    contents = make_contents(5, 4, 16, noise=256)
    for result in list(contents.results.values()):
        cells = [cell for cell in result.cells if cell[0]]
        contents.results[result.image] = ImageResult(result.image, cells, result.timings)
    without = Contents({**contents.description, "background": False}, contents.results, "gone", "")
    page.write_report(without, tmp_path / "report.html")
    charts = read_data(tmp_path / "report.html")["charts"]
    assert "background" not in charts["confusion"]["data"][0]["y"]
    assert "background" not in charts["classes"]["data"][0]["y"]
    assert "No pictures: gone." in (tmp_path / "report.html").read_text()
