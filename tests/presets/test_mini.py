"""The shipped mini checkpoints: unchanged, and good enough for the whole method to work."""

from __future__ import annotations

import os
import shutil
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cli import refused, run

import ported_weights
import rimjax
from rimjax import presets
from rimjax.datasets import fashion_mnist, fashion_scenes
from rimjax.evaluation import evaluate
from rimjax.files import sha256
from rimjax.models import weight_record
from rimjax.models.protocols import Models
from rimjax.models.trust import find_confidence
from rimjax.presets import PRESETS, load_image_text
from rimjax.references import store
from rimjax.references.build import build_references

ROOT = Path(ported_weights.__file__).parent


@pytest.fixture(scope="module")
def models() -> Models:
    models = rimjax.load_preset("mini")
    return replace(models, references=replace(models.references, num_images=4))


def test_files_are_those_of_the_manifest() -> None:
    manifest = tomllib.loads((ROOT / "MANIFEST.toml").read_text())["mini"]
    digests = {e["file"]: e["sha256"] for e in manifest.values() if "file" in e}
    digests |= manifest["settings"]
    files = {str(path.relative_to(ROOT)): path for path in (ROOT / "mini").rglob("*.*")}
    del files["mini/heldout.json"]  # figures, which nothing loads
    assert {name: sha256(path) for name, path in files.items()} == digests
    total = sum(path.stat().st_size for path in (ROOT / "mini").rglob("*") if path.is_file())
    assert total < 20 * 2**20


LOADS: dict[str, Callable[[], object]] = {
    "mini/vit.safetensors": lambda: rimjax.load_preset("mini"),
    "mini/sam.safetensors": lambda: rimjax.load_preset("mini"),
    "mini/calibration.safetensors": lambda: rimjax.load_preset("mini"),
    "mini/mae-vit.safetensors": lambda: rimjax.load_preset("mini", encoder="mini-mae"),
    "mini/clip-vit.safetensors": lambda: rimjax.load_preset("mini", encoder="mini-clip"),
    "mini/maskformer/model.safetensors": lambda: rimjax.load_preset(
        "mini", proposer="mini-maskformer"
    ),
    "mini/maskformer/config.json": lambda: rimjax.load_preset("mini", proposer="mini-maskformer"),
    "mini/clip/model.safetensors": lambda: load_image_text("mini"),
    **{
        f"mini/stable-diffusion/{part}": lambda: rimjax.load_preset("mini").generator.check("bag")
        for part in (
            "unet/flax_model.safetensors",
            "vae/flax_model.safetensors",
            "text_encoder/flax_model.safetensors",
            "vae/config.json",
            "tokenizer/tokenizer.json",
        )
    },
}
"""What loads each of the shipped files."""


@pytest.mark.parametrize("file", LOADS)
def test_a_flipped_bit_in_a_shipped_file_is_noticed_when_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    copied = tmp_path / "ported_weights"
    shutil.copytree(ROOT, copied)
    monkeypatch.setattr(ported_weights, "__file__", str(copied / "__init__.py"))
    whole = bytearray((copied / file).read_bytes())
    whole[-100] ^= 1
    (copied / file).write_bytes(whole)
    with pytest.raises(ValueError, match=f"{file}: isn't the file that belongs to the package"):
        LOADS[file]()


def test_shipped_files_are_read_once_for_all_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    digested: list[Path] = []
    monkeypatch.setattr(weight_record, "sha256", lambda path: digested.append(path) or sha256(path))
    weight_record._digest.cache_clear()
    for _ in range(2):
        assert rimjax.load_preset("mini").generator.fingerprint
    assert len(digested) == len(set(digested)) > 5


def test_ported_weights_are_compared_with_their_record_when_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "vit.safetensors"
    shutil.copy(ROOT / "mini/vit.safetensors", file)
    weight_record.write_record(file, file)
    choice = replace(PRESETS["mini"].encoders["mini"], path=str(file))
    monkeypatch.setattr(
        presets, "PRESETS", {"mini": replace(PRESETS["mini"], encoders={"mini": choice})}
    )
    rimjax.load_preset("mini")
    whole = bytearray(file.read_bytes())
    whole[-100] ^= 1
    file.write_bytes(whole)
    later = time.time() + 10
    os.utime(file, (later, later))
    with pytest.raises(ValueError, match=r"vit\.safetensors: differs from its sha256"):
        rimjax.load_preset("mini")
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"must have .* bytes as recorded"):
        rimjax.load_preset("mini")


def test_proposals_cover_the_items(models: Models) -> None:
    best = []
    for scene in fashion_scenes.render_benchmark(6):
        masks = models.proposer.propose(scene.image).masks
        for position in range(1, len(scene.items) + 1):
            truth = scene.instances == position
            ious = [(mask & truth).sum() / (mask | truth).sum() for mask in masks]
            best.append(max(ious, default=0.0))
    assert np.mean(best) > 0.7


def test_the_whole_method_names_unlike_classes(models: Models, tmp_path: Path) -> None:
    names = ("trouser", "sneaker", "bag")
    manifest, _ = build_references(names, models, cache_dir=tmp_path)
    for references in store.read_all_references(manifest, pictures=True):
        assert references.images is not None and references.masks is not None
        assert references.images.shape == (4, 64, 64, 3) and references.images.std() > 20
        shares = references.masks.mean((1, 2))
        assert (shares > 0.05).all() and (shares < 0.95).all()
        assert references.attention.max() <= 1 and references.attention.std() > 0.01
    bank = rimjax.load_bank(manifest)
    labels = [1 + fashion_mnist.CLASSES.index(name) for name in names]
    photos, classes = fashion_mnist.load_shipped_items()
    kept = np.flatnonzero(np.isin(classes + 1, labels))
    renamed = np.array([labels.index(c + 1) if c + 1 in labels else 0 for c in classes], np.uint8)
    scenes = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        items = tuple(int(item) for item in rng.choice(kept, 2, replace=False))
        scene = fashion_scenes.render(rng, photos, renamed, items)
        scenes.append((scene.image, scene.labels))
    # A single label everywhere scores at most 0.2, random labels about 0.3.
    assert evaluate(scenes, bank, models).miou > 0.6


def test_a_class_is_the_same_alone_and_among_others(models: Models, tmp_path: Path) -> None:
    plain = replace(models, references=replace(models.references, whiten=0, centre=0))
    alone = rimjax.build_bank(["bag"], plain, cache_dir=tmp_path / "a")
    among = rimjax.build_bank(["sneaker", "bag"], plain, cache_dir=tmp_path / "b")
    np.testing.assert_allclose(alone.classes[1], among.classes[2], atol=1e-5)


def test_the_paper_preset_lists_missing_weights(tmp_path: Path) -> None:
    files = r"stable-diffusion-v1-4.*sam_vit_b_01ec64\.pth.*dinov2-vitb14\.safetensors"
    with pytest.raises(FileNotFoundError, match=rf"{files}.*RIMJAX_WEIGHTS"):
        rimjax.load_preset("paper", tmp_path)
    with pytest.raises(ValueError, match="preset must be one of mini, paper"):
        rimjax.load_preset("huge")
    with pytest.raises(ValueError, match="configuration must be one of rimjax, printed, paper"):
        rimjax.load_preset("mini", configuration="best")


def test_a_coarser_grid_finds_fewer_masks_and_has_no_confidence(
    models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coarse = rimjax.load_preset("mini", points_per_side=5)
    images = [item.image() for item in fashion_scenes.open_benchmark().items[:4]]
    fine, few = (
        sum(len(each.propose(image).masks) for image in images)
        for each in (models.proposer, coarse.proposer)
    )
    assert 0 < few < fine
    assert find_confidence(models, models.segmentation) is not None
    assert find_confidence(coarse, coarse.segmentation) is None
    build = ("regions", "build", "--limit", "1", "--cache-dir", tmp_path)
    coarse_grid = ("--points-per-side", "5")
    for words, computed in ((), 1), (coarse_grid, 1), (coarse_grid, 0):
        assert f"{computed} of them computed now" in run(*build, *words, capsys=capsys)
    assert len(list((tmp_path / "regions").glob("proposals-*"))) == 2
    refusals = (("0", "mini-maskformer"), "must be left out with"), (("0",), "at least 1")
    for (count, *proposer), why in refusals:
        others = ("--proposer", *proposer) if proposer else ()
        line = refused(capsys, *build, "--points-per-side", count, *others)
        assert "--points-per-side must be" in line and why in line
