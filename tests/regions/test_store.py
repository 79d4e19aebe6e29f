"""The store of regions: computed once, rebuilt where damaged, apart where anything differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import FakeEncoder, FakeProposer, fake_models
from scenes import make_scene

from rimjax import files
from rimjax.models.protocols import Proposals
from rimjax.regions.extract import extract_regions
from rimjax.regions.store import RegionStore, pack_proposals, unpack_proposals
from rimjax.types import Regions


@pytest.fixture
def store(tmp_path: Path) -> RegionStore:
    return RegionStore.open(tmp_path, fake_models())


def count_files(folder: Path) -> int:
    return len(list(folder.rglob("*.safetensors")))


def check_equal(regions: Regions, expected: Regions) -> None:
    for name in ("features", "masks", "valid", "scores"):
        np.testing.assert_array_equal(getattr(regions, name), getattr(expected, name))


def test_stored_regions_equal_extracted_regions(
    store: RegionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = make_scene()
    expected = extract_regions(FakeProposer(), FakeEncoder(), image)
    timings: dict[str, float] = {}
    check_equal(store.load(image, timings), expected)
    assert timings.keys() == {"load", "propose", "encode", "pool"}
    monkeypatch.setattr(FakeProposer, "propose", lambda *args: pytest.fail("proposed again"))
    monkeypatch.setattr(FakeEncoder, "encode", lambda *args: pytest.fail("encoded again"))
    for joined in (False, True):
        if joined:
            store.join()
        timings = {}
        check_equal(store.load(image, timings), expected)
        assert timings.keys() == {"load"} and store.has(image)


def test_masks_and_scores_are_packed_exactly() -> None:
    rng = np.random.default_rng(0)
    for count, shape in ((0, (5, 7)), (3, (1, 1)), (4, (33, 20)), (2, (64, 1))):
        masks = rng.random((count, *shape)) < rng.random((count, 1, 1))
        scores, stability = rng.random((2, count), np.float32)
        for proposals in (Proposals(masks, scores, stability), Proposals(masks, scores)):
            again = unpack_proposals(pack_proposals(proposals, shape), shape)
            np.testing.assert_array_equal(again.masks, masks)
            np.testing.assert_array_equal(again.scores, scores)
            if count and proposals.stability is None:
                assert again.stability is None
            else:
                np.testing.assert_array_equal(again.stability, stability)


def test_a_proposer_without_scores_has_none_again(tmp_path: Path) -> None:
    class Unscored(FakeProposer):
        def propose(self, image: np.ndarray) -> Proposals:
            return Proposals(super().propose(image).masks)

    store = RegionStore.open(tmp_path, replace(fake_models(), proposer=Unscored()))
    image, _ = make_scene()
    assert [store.load(image).scores for _ in range(2)] == [None, None]


def test_features_belong_to_the_masks_that_they_were_pooled_under(store: RegionStore) -> None:
    """Proposals that come in another order, as from another device, bring other features."""

    class Reversed(FakeProposer):
        def propose(self, image: np.ndarray) -> Proposals:
            found = super().propose(image)
            assert found.scores is not None
            return Proposals(found.masks[::-1], found.scores[::-1])

    image, _ = make_scene()
    store.load(image)
    for path in store.folder.glob("proposals-*/*.safetensors"):
        path.unlink()
    other = RegionStore(store.folder, Reversed(), store.encode, store.fingerprint)
    expected = extract_regions(Reversed(), FakeEncoder(), image)
    for _ in range(2):
        check_equal(other.load(image), expected)


def test_an_image_without_regions(store: RegionStore) -> None:
    for _ in range(2):
        regions = store.load(np.full((20, 30, 3), 128, np.uint8))
        assert regions.masks is not None and regions.masks.shape == (0, 20, 30)
        assert not np.asarray(regions.valid).any()
        store.join()


@pytest.mark.parametrize("joined", [False, True])
def test_damaged_files_are_computed_again(store: RegionStore, joined: bool) -> None:
    image, _ = make_scene()
    expected = store.load(image)
    if joined:
        store.join()
    for path in sorted(store.folder.rglob("*.safetensors")):
        whole, middle = path.read_bytes(), path.stat().st_size // 3
        flipped = whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]
        for damaged in (whole[:40], whole[:middle] + bytes(8) + whole[middle + 8 :], flipped, b""):
            path.write_bytes(damaged)
            fresh = RegionStore(store.folder, store.proposer, store.encode, store.fingerprint)
            assert not fresh.has(image)
            check_equal(fresh.load(image), expected)
            assert fresh.has(image), "the rebuilt record is used though the damaged file is there"
            if joined:
                fresh.join()
                for other in set(path.parent.glob("*.safetensors")) - {path}:
                    other.unlink()
        path.write_bytes(whole)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    unwritable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeProposer, "propose", lambda *args: pytest.fail("proposed"))
    store = RegionStore.open(unwritable, fake_models())
    with pytest.raises(OSError, match=rf"^{unwritable}/regions/.*: can't be written"):
        store.load(make_scene()[0])


def test_other_models_and_step_versions_are_stored_apart(
    store: RegionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = make_scene()

    def load(fingerprint: str) -> int:
        RegionStore(store.folder, store.proposer, store.encode, fingerprint).load(image)
        return count_files(tmp_path)

    assert load("one") == 2
    assert load("another") == 3, "the proposals serve again"
    monkeypatch.setitem(files.STEP_VERSIONS, "pool", files.STEP_VERSIONS["pool"] + 1)
    assert load("another") == 4
    monkeypatch.setitem(files.STEP_VERSIONS, "propose", files.STEP_VERSIONS["propose"] + 1)
    assert load("another") == 6
