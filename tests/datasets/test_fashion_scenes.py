"""The Fashion Scenes renderer: exact truth, the same scenes everywhere, true captions."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from rimjax.datasets import fashion_mnist, fashion_scenes, load

PHOTOS, CLASSES = fashion_mnist.load_shipped_items()


def test_shipped_items() -> None:
    assert PHOTOS.shape == (1000, 28, 28) and PHOTOS.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(CLASSES), [100] * 10)


def test_the_benchmark_is_the_same_everywhere() -> None:
    digest = hashlib.sha256()
    for scene in fashion_scenes.render_benchmark(20):
        digest.update(scene.image.tobytes() + scene.labels.tobytes())
    assert digest.hexdigest() == "e3151d03b3a4f317a007e6ef05884a4e283c5d31fb07c30b05ab8d545816c4f7"


def test_labels_and_instances_agree() -> None:
    for seed in range(10):
        scene = fashion_scenes.render_random(np.random.default_rng(seed), PHOTOS, CLASSES)
        np.testing.assert_array_equal(scene.labels > 0, scene.instances > 0)
        for instance, item in enumerate(scene.items, start=1):
            assert set(scene.labels[scene.instances == instance]) <= {CLASSES[item] + 1}
        assert 0.05 < (scene.labels > 0).mean() < 0.9


def test_an_item_is_drawn_where_its_labels_are() -> None:
    photo, classes = PHOTOS[150:151], CLASSES[150:151]
    white = np.where(fashion_mnist.cut_out(photo[0]), 255, 0).astype(np.uint8)[None]
    textured, flat = (
        fashion_scenes.render(np.random.default_rng(3), photos, classes, (0,))
        for photos in (photo, white)
    )
    np.testing.assert_array_equal(textured.labels, flat.labels)
    different = (textured.image != flat.image).any(-1)
    outside = different & (textured.labels == 0)
    assert outside.sum() < 0.1 * different.sum(), "only the soft edge differs outside the labels"
    assert different[textured.labels > 0].mean() > 0.8


def test_cut_out_fills_holes_and_drops_specks() -> None:
    photo = np.zeros((28, 28), np.uint8)
    photo[5:20, 5:20] = 200
    photo[10:12, 10:12] = 0
    photo[26, 26] = 90
    mask = fashion_mnist.cut_out(photo)
    assert mask[5:20, 5:20].all() and mask.sum() == 225
    assert fashion_mnist.cut_out(np.zeros((28, 28), np.uint8)).any()


def test_captions_name_the_class_and_describe_the_scene_truly() -> None:
    rng, lengths = np.random.default_rng(0), set()
    for item in range(0, 1000, 25):
        scene, caption = fashion_scenes.render_single(rng, PHOTOS, CLASSES, item)
        name = fashion_mnist.CLASSES[CLASSES[item]]
        assert caption.startswith("a photo ") and caption.endswith(name)
        assert scene.image.shape == (64, 64, 3)
        words = caption.removeprefix("a photo ").removesuffix(name).split()
        assert set(words) <= {"of", scene.tints[0], "on", scene.ground, "ground"}
        lengths.add(len(words))
    assert lengths == {1, 2, 4, 5}


def test_the_dataset_reader() -> None:
    dataset = load("fashion-scenes")
    assert len(dataset.items) == 200
    for item in dataset.items[:3]:
        image, labels = item.read()
        assert image.shape == (128, 128, 3) and labels.shape == (128, 128)
        assert labels.max() <= len(dataset.classes)


def test_missing_files_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist"):
        fashion_mnist.read_idx("train", tmp_path)
