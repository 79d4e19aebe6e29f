"""Both flows on models whose right answers are known: references are cut-outs of a colour, regions are named by their colour."""

from __future__ import annotations

import dataclasses
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes import SIZE, FakeEncoder, FakeGenerator, colour, fake_models
from PIL import Image

import rimjax
from rimjax.references import store
from rimjax.references.build import build_references

NAMES = ("apple", "plum", "leaf")


def scene() -> tuple[np.ndarray, np.ndarray]:
    image, truth = np.full((40, 60, 3), 128, np.uint8), np.zeros((40, 60), np.uint8)
    for index, name in enumerate(NAMES):
        image[5:30, 3 + 19 * index : 18 + 19 * index] = colour(name)
        truth[5:30, 3 + 19 * index : 18 + 19 * index] = index + 1
    return image, truth


def test_regions_get_their_colours_name(tmp_path: Path) -> None:
    models = fake_models()
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    assert bank.names == ("background", *NAMES)
    image, truth = scene()
    seg = rimjax.segment(image, bank, models)
    np.testing.assert_array_equal(seg.labels, truth)
    assert set(seg.timings) == {"propose", "encode", "pool", "match", "assemble"}
    for assembly in ("paint", "vote"):
        for similarity in ("relation", "cosine"):
            settings = rimjax.SegmentSettings(
                num_agents=3, assembly=assembly, similarity=similarity
            )
            np.testing.assert_array_equal(
                rimjax.segment(image, bank, models, settings=settings).labels, truth
            )


def test_prototypes_are_those_of_the_cut_outs(tmp_path: Path) -> None:
    models = fake_models()
    manifest = build_manifest(NAMES, models, cache_dir=tmp_path)
    shard = store.read_all_references(manifest, pictures=True)[0]
    inside = (shard.images == colour("apple")).all(-1)
    np.testing.assert_array_equal(shard.masks, inside)
    np.testing.assert_allclose(
        shard.foreground[0], colour("apple") / 128.0 - 1 + [0, 0, 0.01], atol=0.15
    )
    bank = rimjax.load_bank(manifest.path)
    np.testing.assert_allclose(bank.classes[1], shard.foreground.mean(0), rtol=1e-5)


def test_no_foreground_mask_pools_the_whole_image(tmp_path: Path) -> None:
    models = fake_models()
    settings = dataclasses.replace(models.references, foreground_mask=False, num_subcategories=1)
    bank = rimjax.build_bank(NAMES, models, settings=settings, cache_dir=tmp_path)
    shard = store.read_all_references(
        store.read_manifest(next((tmp_path / "banks").glob("*.json")))
    )[0]
    np.testing.assert_allclose(bank.prototypes[1], shard.whole.mean(0), rtol=1e-5)


def test_zero_proposals_give_background(tmp_path: Path) -> None:
    models = fake_models()
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    seg = rimjax.segment(np.full((20, 30, 3), 128, np.uint8), bank, models)
    assert seg.labels.shape == (20, 30) and not seg.labels.any() and len(seg.masks) == 0


def test_a_second_build_draws_nothing_and_is_equal(tmp_path: Path) -> None:
    models = fake_models()
    first = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    again = fake_models()
    second = rimjax.build_bank(NAMES, again, cache_dir=tmp_path)
    assert again.generator.drawn == []
    np.testing.assert_array_equal(first.prototypes, second.prototypes)
    more = fake_models()
    rimjax.build_bank([*NAMES, "sky"], more, cache_dir=tmp_path)
    assert more.generator.drawn == ["sky"]


def test_a_class_does_not_depend_on_the_others(tmp_path: Path) -> None:
    alone = rimjax.build_bank(["plum"], fake_models(), cache_dir=tmp_path / "a")
    among = rimjax.build_bank(NAMES, fake_models(), cache_dir=tmp_path / "b")
    np.testing.assert_array_equal(alone.classes[1], among.classes[2])


@pytest.mark.parametrize(
    ("change", "drawn"),
    [
        ({"generator": FakeGenerator("other")}, ["plum"]),
        (
            {"references": rimjax.ReferenceSettings(num_images=3, num_subcategories=2, seed=1)},
            ["plum"],
        ),
        ({"references": rimjax.ReferenceSettings(num_images=2, num_subcategories=2)}, ["plum"]),
        ({"encoder": FakeEncoder("other")}, []),  # the images that are there do
        (
            {
                "references": rimjax.ReferenceSettings(
                    num_images=3, num_subcategories=2, threshold=0.5
                )
            },
            [],
        ),
    ],
)
def test_what_a_shard_depends_on_makes_a_new_one(
    tmp_path: Path, change: dict, drawn: list[str]
) -> None:
    before = build_manifest(["plum"], fake_models(), cache_dir=tmp_path)
    changed = dataclasses.replace(fake_models(), **change)
    changed.generator.drawn.clear()
    after = build_manifest(["plum"], changed, cache_dir=tmp_path)
    assert changed.generator.drawn == drawn and after.folders != before.folders
    if not drawn:
        old, new = (
            store.read_all_references(manifest, pictures=True)[0] for manifest in (before, after)
        )
        np.testing.assert_array_equal(old.images, new.images)


def test_a_damaged_shard_is_no_source_of_images(tmp_path: Path) -> None:
    before = build_manifest(["plum"], fake_models(), cache_dir=tmp_path)
    (tmp_path / "references" / before.folders[0] / "image-00.png").write_bytes(b"rubbish")
    changed = dataclasses.replace(fake_models(), encoder=FakeEncoder("other"))
    build_manifest(["plum"], changed, cache_dir=tmp_path)
    assert changed.generator.drawn == ["plum"]


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))  # as where the disk is full
    try:
        with pytest.raises(OSError, match="File too large"):
            build_manifest(["plum"], fake_models(), cache_dir=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "references").iterdir())


def test_the_number_of_subcategories_draws_nothing(tmp_path: Path) -> None:
    rimjax.build_bank(["plum"], fake_models(), cache_dir=tmp_path)
    changed = dataclasses.replace(
        fake_models(), references=rimjax.ReferenceSettings(num_images=3, num_subcategories=1)
    )
    bank = rimjax.build_bank(["plum"], changed, cache_dir=tmp_path)
    assert changed.generator.drawn == [] and len(bank.prototypes) == 2


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import rimjax, fakes
models = fakes.fake_models()
draw = models.generator.generate
def generate(name, *args):
    if name == "leaf":
        os.kill(os.getpid(), signal.SIGKILL)
    return draw(name, *args)
models.generator.generate = generate
rimjax.build_bank(("apple", "plum", "leaf"), models, cache_dir={cache!r})
"""


def test_a_killed_build_goes_on_with_the_class_it_was_on(tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), cache=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL
    assert not list(tmp_path.glob("banks/*.json")), "the manifest is written last"
    models = fake_models()
    rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    assert models.generator.drawn == ["leaf"]


def test_extending_a_bank_makes_only_the_new_class(tmp_path: Path) -> None:
    old = build_manifest(NAMES, fake_models(), cache_dir=tmp_path)
    models = fake_models()
    new = build_manifest(["sky"], models, cache_dir=tmp_path, extend=old)
    assert models.generator.drawn == ["sky"]
    assert rimjax.load_bank(new).names == ("background", *NAMES, "sky")


@pytest.mark.parametrize("damage", [b"", b"rubbish"])
@pytest.mark.parametrize("file", ["prototypes.safetensors", "references.json"])
def test_a_damaged_shard_is_named(tmp_path: Path, file: str, damage: bytes) -> None:
    manifest = build_manifest(NAMES, fake_models(), cache_dir=tmp_path)
    (tmp_path / "references" / manifest.folders[1] / file).write_bytes(damage)
    with pytest.raises(ValueError, match=rf"{manifest.folders[1]}.*delete that folder"):
        rimjax.load_bank(manifest.path)


def test_a_damaged_manifest_and_a_swapped_one_are_named(tmp_path: Path) -> None:
    manifest = build_manifest(NAMES, fake_models(), cache_dir=tmp_path)
    text = manifest.path.read_text()
    manifest.path.write_text(text[:50])
    with pytest.raises(ValueError, match="not a bank manifest"):
        rimjax.load_bank(manifest.path)
    manifest.path.write_text(text.replace('"apple"', '"pear"'))
    with pytest.raises(ValueError, match=r"'pear'.*'apple'"):
        rimjax.load_bank(manifest.path)
    with pytest.raises(FileNotFoundError, match="no such bank"):
        rimjax.load_bank(tmp_path / "none.json")


def test_a_bank_of_another_encoder_is_refused(tmp_path: Path) -> None:
    models = fake_models()
    bank = rimjax.build_bank(NAMES, models, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="made with encoder fake-encoder"):
        rimjax.segment(
            scene()[0], bank, dataclasses.replace(models, encoder=FakeEncoder("another"))
        )


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "at least one"),
        (["a", " "], "blank"),
        (["a", "b", "A"], "more than once"),
        (["Background", "b"], "part of every bank"),
    ],
)
def test_bad_class_names(tmp_path: Path, names: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rimjax.build_bank(names, fake_models(), cache_dir=tmp_path)
    assert not (tmp_path / "banks").exists()


def test_a_class_from_photographs(tmp_path: Path) -> None:
    photo = np.full((50, 70, 3), 128, np.uint8)
    photo[10:40, 20:50] = colour("mug")
    Image.fromarray(photo).save(tmp_path / "mug.png")
    models = fake_models()
    bank = rimjax.build_bank(
        ["apple"], models, cache_dir=tmp_path, references={"my mug": [tmp_path / "mug.png"]}
    )
    assert bank.names == ("background", "apple", "my mug") and models.generator.drawn == ["apple"]
    seg = rimjax.segment(photo, bank, models)
    np.testing.assert_array_equal(seg.labels == 2, (photo == colour("mug")).all(-1))


def test_a_photographs_alpha_or_point_is_its_mask(tmp_path: Path) -> None:
    photo = np.full((40, 40, 4), 255, np.uint8)
    photo[..., :3] = 128
    photo[:10, :10, :3] = colour("mug")
    photo[20:, :, 3] = 0
    models = fake_models()

    def mask(points: dict | None) -> np.ndarray:
        manifest = build_manifest(
            [], models, cache_dir=tmp_path, references={"mug": [photo]}, points=points
        )
        return store.read_all_references(manifest, pictures=True)[0].masks[0]

    assert mask(None)[:250].all() and not mask(None)[262:].any()
    pointed = mask({"mug": [(5.0, 5.0)]})
    assert pointed[:120, :120].all() and not pointed[140:].any() and not pointed[:, 140:].any()
    with pytest.raises(ValueError, match="lies outside"):
        mask({"mug": [(50.0, 5.0)]})


def test_the_contact_sheet_and_overlay_have_a_picture(tmp_path: Path) -> None:
    models = fake_models()
    manifest = build_manifest(NAMES, models, cache_dir=tmp_path)
    sheet = rimjax.draw.contact_sheet(store.read_all_references(manifest, pictures=True)[0])
    assert sheet.width > 8 * 128 and sheet.height > 4 * 128
    image, truth = scene()
    picture = np.asarray(
        rimjax.draw.overlay(image, rimjax.segment(image, rimjax.load_bank(manifest), models))
    )
    assert picture.shape[0] > 400 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 8
    with pytest.raises(ValueError, match="size"):
        rimjax.draw.overlay(image[1:], rimjax.segment(image, rimjax.load_bank(manifest), models))
    assert SIZE == 32 and truth.shape == image.shape[:2]
