"""The loop over images: background rule, class names, and images that can't be used."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import trees
from fakes import fake_models
from PIL import Image
from scenes import NAMES, make_scene

import rimjax
from rimjax import datasets
from rimjax.datasets import Dataset, Item
from rimjax.evaluation import evaluate
from rimjax.evaluation.loop import Outcome, evaluate_items, raise_errors
from rimjax.images import read_image
from rimjax.regions.extract import extract_regions
from rimjax.results import Segmentation

GROUND = (128, 128, 140)
"""A colour whose feature is the background's."""

ROWS = ("relation", "cosine")


def write_context_with_ground(root: Path) -> Path:
    """Write PASCAL Context with a region in the background's colour in the first image."""
    trees.write_context(root)
    path = root / trees.CONTEXT_BASE / f"JPEGImages/{trees.CONTEXT_IDS[0]}.jpg"
    image = np.array(Image.open(path))
    image[32:] = GROUND
    Image.fromarray(image).save(path, quality=100, subsampling=0)
    return root


@pytest.mark.parametrize(("name", "background"), [("context", True), ("context59", False)])
def test_evaluate_honours_the_background_rule_and_reports_class_names(
    tmp_path: Path, name: str, background: bool
) -> None:
    dataset = datasets.load(name, write_context_with_ground(tmp_path / "data"))
    models = fake_models()
    settings = replace(models.references, num_images=1, num_subcategories=1)
    bank = rimjax.build_bank(dataset.prompts, models, settings=settings, cache_dir=tmp_path)
    segmentations: list[Segmentation] = []
    cosine = replace(models.segmentation, similarity="cosine")
    evaluation = evaluate(dataset, bank, models, cosine, keep=segmentations)

    region_labels = np.concatenate([seg.region_labels for seg in segmentations])
    assert (0 in region_labels) == background, "no region is named background without the class"
    ground = segmentations[0].labels[32:]
    assert (ground == 0).all() if background else (ground > 0).all()

    labels = np.stack([item.labels() for item in dataset.items])
    counted = (labels != 255).sum()
    assert evaluation.background == background
    assert evaluation.confusion is not None
    assert evaluation.confusion[0].any() == background, "label 0 counts only where a class"
    assert evaluation.confusion.sum() == counted and (counted < labels.size) != background
    assert evaluation.names == ("background", *dataset.classes)
    assert list(evaluation.per_class) == ["background", *dataset.classes][not background :]
    things = {name: evaluation.per_class[name] for name in ("tvmonitor", "window", "sky", "wood")}
    assert things == dict.fromkeys(things, 1.0) and evaluation.miou == 1.0


def test_label_0_of_any_data_set_without_background_is_ignored(tmp_path: Path) -> None:
    models = fake_models()
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    image, truth = make_scene()
    image[32:] = GROUND  # named some class, since background isn't allowed
    items = [Item("scene", lambda: image, lambda: truth)]
    evaluation = evaluate(Dataset("own", NAMES, items, background=False), bank, models)
    assert evaluation.confusion is not None
    assert evaluation.confusion.sum() == (truth > 0).sum() and evaluation.miou == 1


def test_a_data_set_whose_pixels_are_all_ignored_is_refused(tmp_path: Path) -> None:
    models = fake_models()
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    image, truth = make_scene()
    with pytest.raises(ValueError, match="got only ignored pixels"):
        evaluate([(image, np.full_like(truth, 255))], bank, models)


def test_pairs_are_evaluated_under_the_banks_names(tmp_path: Path) -> None:
    models = fake_models()
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    evaluation = evaluate([make_scene()], bank, models)
    assert evaluation.names == bank.names and evaluation.background and evaluation.miou == 1


def test_a_bank_of_other_classes_is_refused(tmp_path: Path) -> None:
    dataset = datasets.load("voc", trees.write_voc(tmp_path / "data"))
    models = fake_models()
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="bank must hold the classes of voc, got a bank without"):
        evaluate(dataset, bank, models)


def evaluate_with_broken_image(folder: Path) -> list[Outcome]:
    """Return the outcomes of three images, the second of which is unreadable."""
    image, truth = make_scene()
    (folder / "broken.png").write_bytes(b"no picture")
    items = [
        Item("first", lambda: image, lambda: truth),
        Item("broken", partial(read_image, folder / "broken.png"), lambda: truth),
        Item("last", lambda: image, lambda: truth),
    ]
    models = fake_models()
    bank = rimjax.build_bank(NAMES, models, cache_dir=folder)
    load_regions = partial(extract_regions, models.proposer, models.encoder)
    rows = {name: (bank, replace(models.segmentation, similarity=name)) for name in ROWS}
    return list(evaluate_items(items, load_regions, rows))


def test_an_unreadable_image_has_an_error_and_the_loop_goes_on(tmp_path: Path) -> None:
    first, broken, last = evaluate_with_broken_image(tmp_path)
    assert isinstance(broken.error, ValueError) and broken.item.id == "broken"
    assert str(broken.error).startswith(f"{tmp_path / 'broken.png'}: ")
    assert not broken.confusions and not broken.segmentations
    for outcome, name in ((first, "first"), (last, "last")):
        assert outcome.error is None and outcome.item.id == name
        assert tuple(outcome.confusions) == tuple(outcome.segmentations) == ROWS
        for confusion in outcome.confusions.values():
            np.testing.assert_array_equal(confusion, np.diag(np.bincount(make_scene()[1].ravel())))


def test_raise_errors_names_the_image(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"broken: {tmp_path / 'broken.png'}: not an image"):
        list(raise_errors(evaluate_with_broken_image(tmp_path)))


def test_a_label_outside_the_banks_classes_names_the_image(tmp_path: Path) -> None:
    models = fake_models()
    image, truth = make_scene()
    truth[0, 0] = 1 + len(NAMES)
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"0: truth must lie in \[0, 4\), got 0\.\.4"):
        evaluate([(image, truth)], bank, models)
