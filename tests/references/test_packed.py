"""Packed banks: the same bank to the last bit from one file, and no other file taken for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEncoder, FakeGenerator, FakeMasker, fake_models
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load, save

import rimjax
from rimjax.files import fingerprint
from rimjax.references import store
from rimjax.references.build import build_references
from rimjax.references.contents import FEATURES, Manifest
from rimjax.sealed import read_sealed, seal, unseal
from rimjax.settings import CONFIGURATIONS, ReferenceSettings
from rimjax.types import ReferenceBank

NAMES = ["apple", "plum"]
KEY = "rimjax bank"
SETTINGS = (
    *(each.adjust(ReferenceSettings(num_images=3)) for each in CONFIGURATIONS.values()),
    ReferenceSettings(foreground_mask=False, background_mask=False, num_subcategories=2, seed=5),
    ReferenceSettings(background_subcategories=1, centre=1.0),
)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    """A bank in which a mask of the first class covers nothing."""
    manifest, _ = build_references(NAMES, fake_models(), cache_dir=tmp_path)
    (apple, _) = store.read_all_references(manifest, pictures=True)
    foreground = apple.foreground.copy()
    foreground[1] = np.nan
    broken = replace(apple, foreground=foreground, fallbacks=2)
    store.write_references(tmp_path / "references/apple-0", broken)
    return store.write_manifest(
        tmp_path,
        names=NAMES,
        folders=["apple-0", manifest.folders[1]],
        settings=manifest.settings,
        preset=manifest.preset,
        encoder=manifest.encoder,
    )


@pytest.fixture
def packed(manifest: Manifest, tmp_path: Path) -> Path:
    return store.pack_bank(manifest, tmp_path / "packed.safetensors").path


def list_parts(bank: ReferenceBank) -> list[Any]:
    whitening = bank.whitening
    arrays = [bank.prototypes, bank.owners, bank.classes]
    arrays += [] if whitening is None else [whitening.mean, whitening.matrix]
    return [bank.names, bank.encoder, *(np.asarray(array).tobytes() for array in arrays)]


def read_content(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with safe_open(path, "numpy") as stored:
        return unseal(stored.metadata()[KEY]), load(path.read_bytes())


def write_content(path: Path, content: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    path.write_bytes(save(arrays, {KEY: json.dumps(seal(content))}))


@pytest.mark.parametrize("settings", [None, *SETTINGS])
def test_a_packed_bank_is_the_same_under_every_setting(
    manifest: Manifest, packed: Path, settings: ReferenceSettings | None
) -> None:
    ours, theirs = (rimjax.load_bank(path, settings) for path in (packed, manifest.path))
    assert list_parts(ours) == list_parts(theirs)


def test_a_packed_bank_keeps_what_a_bank_records(manifest: Manifest, packed: Path) -> None:
    again = store.read_manifest(packed)
    for name in ("names", "settings", "preset", "encoder", "versions"):
        assert getattr(again, name) == getattr(manifest, name), name
    assert store.digest_references(again) == store.digest_references(manifest)
    pairs = zip(*map(store.read_all_references, (again, manifest)), strict=True)
    for ours, theirs in pairs:
        assert (ours.name, ours.fallbacks) == (theirs.name, theirs.fallbacks)
        for name in FEATURES:
            assert getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()


def test_a_packed_bank_holds_no_pictures_and_no_paths(
    manifest: Manifest, packed: Path, tmp_path: Path
) -> None:
    content, arrays = read_content(packed)
    assert arrays.keys() == set(FEATURES)
    assert all(array.shape == (6, 3) for array in arrays.values())
    assert str(tmp_path) not in json.dumps(content) and "/" not in json.dumps(content["settings"])
    with pytest.raises(ValueError, match=r"packed\.safetensors: a packed bank holds no pictures"):
        store.read_all_references(store.read_manifest(packed), pictures=True)
    moved = tmp_path / "elsewhere" / "other name.safetensors"
    moved.parent.mkdir()
    packed.rename(moved)
    for folder in ("references", "banks"):
        (tmp_path / folder).rename(tmp_path / f"no {folder}")
    assert rimjax.load_bank(moved).names == ("background", *NAMES)


def name_models(generator: str, masker: str, encoder: str) -> Any:
    parts: dict[str, Any] = {
        "generator": FakeGenerator(),
        "masker": FakeMasker(),
        "encoder": FakeEncoder(),
    }
    for part, source in zip(parts.values(), (generator, masker, encoder), strict=True):
        part.source = source
    return replace(fake_models(), **parts)


def test_licences_are_those_of_what_made_the_features(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32, 3), 128, np.uint8)).save(tmp_path / "mug.png")
    mug = np.full((32, 32, 4), 255, np.uint8)
    mug[:16, :, 3] = 0
    published = name_models("sd-1.4", "sam-vit-b", "dinov3-base")
    drawn, _ = build_references(NAMES, published, cache_dir=tmp_path)
    both, _ = build_references(
        ["leaf"],
        name_models("random weights", "", "dinov3-base"),
        cache_dir=tmp_path,
        references={"my mug": [mug], "cup": [mug]},
        extend=drawn,
    )
    licences = store.pack_bank(both, tmp_path / "both.safetensors").licences
    assert licences == store.read_manifest(tmp_path / "both.safetensors").licences  # type: ignore
    wanted = {
        "generator sd-1.4 (CompVis/stable-diffusion-v1-4@133a221b): CreativeML OpenRAIL-M",
        "masker sam-vit-b (https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth): "
        "Apache-2.0",
        "generator random weights: no licence applies",
        "masker not from rimjax's list of weights: ask whoever built the bank for the licence",
        "photographs of my mug, cup: chosen by whoever built the bank; ask them for the licence",
    }
    assert wanted <= set(licences) and len(licences) == 6
    assert sum("DINOv3 License" in line for line in licences) == 1
    alone, _ = build_references([], published, cache_dir=tmp_path, references={"tin": [mug]})
    licences = store.pack_bank(alone, tmp_path / "alone.safetensors").licences
    assert [line.split()[0] for line in licences] == ["masker", "encoder", "photographs"]


def test_a_bank_of_an_earlier_version_says_that_its_models_are_unknown(
    manifest: Manifest, tmp_path: Path
) -> None:
    for folder in manifest.folders:
        record = tmp_path / "references" / folder / "references.json"
        content = read_sealed(record)
        del content["sources"]
        record.write_text(json.dumps(seal(content)))
    bank = store.pack_bank(manifest, tmp_path / "old.safetensors")
    wanted = "models: not recorded when the bank was built; ask whoever built it"
    assert bank.licences == (wanted,)


def test_what_mini_made_names_the_photographs_that_it_learned_from() -> None:
    models = rimjax.load_preset("mini", encoder="mini-clip")
    assert models.encoder.source == "mini-clip" and models.masker.source == "mini"  # type: ignore
    unet = rimjax.load_preset("mini", encoder="mini-unet").encoder
    assert unet.source == "mini"  # type: ignore


def test_every_flipped_bit_is_noticed(packed: Path) -> None:
    whole = packed.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 3  # a blank of the header may become no other blank
        packed.write_bytes(changed)
        with pytest.raises(ValueError, match=r"packed\.safetensors: ") as refusal:
            store.read_manifest(packed)
        assert "\n" not in str(refusal.value), place
    for length in (0, 7, 100, len(whole) // 2, len(whole) - 1):
        packed.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a packed bank, or damaged"):
            store.read_manifest(packed)


def _change_class(**changes: object) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda content, arrays: content["classes"][1].update(changes)


def _change(**changes: object) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    return lambda content, arrays: content.update(changes)


def _put(name: str, value: float) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(content: dict[str, Any], arrays: dict[str, Any]) -> None:
        arrays[name][2, 1] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_change(format=2), "must have format 1, got 2; use the version of rimjax that packed it"),
        (_change(format="new", classes=None), "must have format 1, got 'new'"),
        (_change(classes=[]), "at least one class name"),
        (_change(classes=["apple", "plum"]), "a class isn't a dict"),
        (_change(licences=[5]), "a licence isn't a text"),
        (_change(licences=["\x1b[2J"]), "isn't printable"),
        (_change(versions={"jax": "1\x1b"}), "isn't printable"),
        (_change(encoder=None), "'encoder' isn't a str"),
        (_change_class(name="Apple"), "more than once: apple"),
        (_change_class(name="background"), "must not hold 'background'"),
        (_change_class(name=" plum"), "needless blanks"),
        (_change_class(name="plum\x1b"), "isn't printable"),
        (_change_class(images=2), r"must be float32\[5, D\], got float32\[6, 3\]"),
        (_change_class(images=0, fallbacks=0), "has no image"),
        (_change_class(images="3"), "'images' isn't a int"),
        (_change_class(fallbacks=4), "more masks from attention alone than images"),
        (_put("whole", np.nan), "whole must be finite"),
        (_put("background", np.inf), "background must be finite"),
        (lambda _, arrays: arrays.pop("whole"), "got background, foreground"),
        (
            lambda _, arrays: arrays.update(whole=arrays["whole"].astype(np.float64)),
            "got float64",
        ),
        (
            lambda _, arrays: arrays.update(whole=np.zeros((6, 0), np.float32)),
            r"must be float32\[6, D\]",
        ),
        (
            lambda _, arrays: arrays.update(whole=np.zeros(6, np.float32)),
            r"must be float32\[6, D\]",
        ),
        (
            lambda _, arrays: arrays.update(whole=np.zeros((6, 4), np.float32)),
            r"must be float32\[6, D\]",
        ),
    ],
)
def test_a_forged_file_is_refused_in_one_line(
    packed: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], message: str
) -> None:
    """With digests that fit, as someone who wants to mislead would write them."""
    content, arrays = read_content(packed)
    change(content, arrays)
    content["features"] = fingerprint("features", arrays)
    write_content(packed, content, arrays)
    with pytest.raises(ValueError, match=message) as refusal:
        rimjax.load_bank(packed)
    assert "packed.safetensors: " in str(refusal.value) and "\n" not in str(refusal.value)


def test_forged_settings_are_refused(packed: Path) -> None:
    content, arrays = read_content(packed)
    write_content(packed, content | {"settings": {"nope": 1}}, arrays)
    with pytest.raises(ValueError, match=r"packed\.safetensors: settings are damaged"):
        rimjax.load_bank(packed)


def test_other_files_are_no_packed_banks(manifest: Manifest, tmp_path: Path) -> None:
    features = tmp_path / "references/apple-0/prototypes.safetensors"
    with pytest.raises(ValueError, match="it has no metadata 'rimjax bank'"):
        rimjax.load_bank(features)
    renamed = tmp_path / "manifest.safetensors"
    renamed.write_bytes(manifest.path.read_bytes())
    with pytest.raises(ValueError, match=r"manifest\.safetensors: not a packed bank"):
        rimjax.load_bank(renamed)
    with pytest.raises(FileNotFoundError, match="no such bank"):
        rimjax.load_bank(tmp_path / "none.safetensors")


def test_what_cannot_be_packed_is_refused_and_leaves_no_file(
    manifest: Manifest, packed: Path, tmp_path: Path
) -> None:
    (apple, _) = store.read_all_references(manifest, pictures=True)
    infinite = np.where(np.arange(3) == 1, np.inf, apple.whole).astype(np.float32)
    store.write_references(tmp_path / "references/apple-1", replace(apple, whole=infinite))
    broken = replace(manifest, folders=("apple-1", manifest.folders[1]))
    out = tmp_path / "out.safetensors"
    with pytest.raises(ValueError, match=r"\.json: can't be packed \(whole must be finite"):
        store.pack_bank(broken, out)
    with pytest.raises(ValueError, match="is a packed bank already; copy the file"):
        store.pack_bank(store.read_manifest(packed), out)
    with pytest.raises(ValueError, match=r"out\.bank: .* must end in \.safetensors"):
        store.pack_bank(manifest, tmp_path / "out.bank")
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".*"))
