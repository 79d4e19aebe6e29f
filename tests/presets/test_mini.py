"""The shipped mini checkpoints: unchanged since the manifest, and good enough that the whole method works on unseen photographs."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import ported_weights
import rimjax
from rimjax.references import store
from rimjax.datasets import fashion_scenes, load
from rimjax.evaluation import evaluate
from rimjax.inference import describe
from rimjax.models.protocols import Models
from rimjax.references.build import build_references

ROOT = Path(ported_weights.__file__).parent


@pytest.fixture(scope="module")
def models() -> Models:
    loaded = rimjax.load_preset("mini")
    return replace(loaded, references=replace(loaded.references, num_images=4, num_subcategories=1))


def test_files_are_those_of_the_manifest() -> None:
    manifest = tomllib.loads((ROOT / "MANIFEST.toml").read_text())["mini"]
    entries = {name: entry for name, entry in manifest.items() if "file" in entry}
    for name, entry in entries.items():
        assert hashlib.sha256((ROOT / entry["file"]).read_bytes()).hexdigest() == entry["sha256"], (
            name
        )
    assert {entry["file"] for entry in entries.values()} == {
        str(path.relative_to(ROOT)) for path in (ROOT / "mini").rglob("*.safetensors")
    }
    total = sum(path.stat().st_size for path in (ROOT / "mini").rglob("*") if path.is_file())
    assert total < 20 * 2**20


def test_proposals_cover_the_items(models: Models) -> None:
    best = []
    for scene in fashion_scenes.render_benchmark(6):
        masks = np.asarray(describe(scene.image, models).masks)
        for position in range(1, len(scene.items) + 1):
            truth = scene.instances == position
            best.append(
                max(((mask & truth).sum() / (mask | truth).sum() for mask in masks), default=0.0)
            )
    assert np.mean(best) > 0.7


def test_the_whole_method_finds_unlike_classes(models: Models, tmp_path: Path) -> None:
    names = ("trouser", "sneaker", "bag")
    manifest = build_manifest(names, models, cache_dir=tmp_path)
    for shard in store.read_all_references(manifest, pictures=True):
        assert shard.images is not None and shard.masks is not None
        assert shard.images.shape == (4, 64, 64, 3) and shard.images.std() > 20
        assert (shard.masks.mean((1, 2)) > 0.05).all() and (shard.masks.mean((1, 2)) < 0.95).all()
        assert shard.attention.max() <= 1 and shard.attention.std() > 0.01
    bank = rimjax.load_bank(manifest)
    wanted = [1 + fashion_scenes.CLASSES.index(name) for name in names]
    photos, classes = fashion_mnist.load_shipped_items()
    kept = np.isin(classes + 1, wanted)
    renamed = np.array([wanted.index(c + 1) if c + 1 in wanted else 0 for c in classes], np.uint8)
    scenes = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        items = tuple(int(item) for item in rng.choice(np.flatnonzero(kept), 2, replace=False))
        scene = fashion_scenes.render(rng, photos, renamed, items)
        scenes.append((scene.image, scene.labels))
    assert evaluate(scenes, bank, models).miou > 0.6, (
        "one label everywhere scores at most 0.2, labels at random about 0.3"
    )


def test_a_class_comes_out_the_same_alone_and_in_company(models: Models, tmp_path: Path) -> None:
    models = replace(
        models, references=replace(models.references, whiten=0)
    )  # the whitening is the whole bank's
    alone = rimjax.build_bank(["bag"], models, cache_dir=tmp_path / "a")
    among = rimjax.build_bank(["sneaker", "bag"], models, cache_dir=tmp_path / "b")
    np.testing.assert_allclose(alone.classes[1], among.classes[2], atol=1e-5)


def test_the_paper_preset_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError,
        match=r"stable-diffusion-v1-4.*sam_vit_b_01ec64\.pth.*dinov2-vitb14\.safetensors.*RIMJAX_WEIGHTS",
    ):
        rimjax.load_preset("paper", tmp_path)
    with pytest.raises(ValueError, match="expected one of mini, paper"):
        rimjax.load_preset("huge")
    assert load("fashion-scenes").size == 200
