"""The store of regions: computed once, rebuilt where damaged, apart where anything differs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEncoder, FakeProposer
from scenes import make_scene

from rimjax import files
from rimjax.models.protocols import Proposals
from rimjax.regions.extract import extract_regions
from rimjax.regions.store import RegionStore
from rimjax.steps.pool import pool_regions


def pool(encoder: FakeEncoder, image: np.ndarray, masks: np.ndarray) -> tuple[Any, Any]:
    regions = pool_regions(encoder.encode(image), masks)
    return regions.features, regions.valid


@pytest.fixture
def store(tmp_path: Path) -> RegionStore:
    encoder = FakeEncoder()
    return RegionStore(tmp_path, FakeProposer(), partial(pool, encoder), encoder.fingerprint)


def test_stored_regions_equal_extracted_regions(
    store: RegionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = make_scene()
    expected = extract_regions(FakeProposer(), FakeEncoder(), image)
    for _ in range(2):
        regions = store.load(image)
        for name in ("features", "masks", "valid", "scores"):
            np.testing.assert_array_equal(getattr(regions, name), getattr(expected, name))
        monkeypatch.setattr(FakeProposer, "propose", lambda *args: pytest.fail("proposed again"))


def test_a_proposer_without_scores_has_none_again(tmp_path: Path) -> None:
    class Unscored(FakeProposer):
        def propose(self, image: np.ndarray) -> Proposals:
            return Proposals(super().propose(image).masks)

    store = RegionStore(tmp_path, Unscored(), partial(pool, FakeEncoder()), "fake-encoder")
    image, _ = make_scene()
    assert [store.load(image).scores for _ in range(2)] == [None, None]


def test_an_image_without_regions(store: RegionStore) -> None:
    regions = store.load(np.full((20, 30, 3), 128, np.uint8))
    assert regions.masks is not None and regions.masks.shape == (0, 20, 30)
    assert not np.asarray(regions.valid).any()


def test_damaged_files_are_computed_again(store: RegionStore) -> None:
    image, _ = make_scene()
    expected = store.load(image)
    for path in store.folder.rglob("*.npz"):
        whole, middle = path.read_bytes(), path.stat().st_size // 3
        for damaged in (whole[:40], whole[:middle] + bytes(8) + whole[middle + 8 :], b""):
            path.write_bytes(damaged)
            regions = store.load(image)
            np.testing.assert_array_equal(regions.features, expected.features)
            np.testing.assert_array_equal(regions.masks, expected.masks)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(
    unwritable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeProposer, "propose", lambda *args: pytest.fail("proposed"))
    store = RegionStore(unwritable / "regions", FakeProposer(), partial(pool, FakeEncoder()), "")
    with pytest.raises(OSError, match=rf"^{unwritable}/regions/.*: can't be written"):
        store.load(make_scene()[0])


def test_other_models_and_step_versions_are_stored_apart(
    store: RegionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, _ = make_scene()

    def count() -> int:
        return len(list(tmp_path.rglob("*.npz")))

    store.load(image)
    assert count() == 2
    RegionStore(tmp_path, store.proposer, store.pool, "another").load(image)
    assert count() == 3, "the proposals serve again"
    monkeypatch.setitem(files.STEP_VERSIONS, "pool", files.STEP_VERSIONS["pool"] + 1)
    store.load(image)
    assert count() == 4
    monkeypatch.setitem(files.STEP_VERSIONS, "propose", files.STEP_VERSIONS["propose"] + 1)
    store.load(image)
    assert count() == 6
