"""The SAM adapter against segment-anything's own predictor and mask generator, on a tiny random Sam."""

import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from ported_weights.files import read_state_dict
from rimjax.models import sam as adapter
from rimjax.models.protocols import Masker
from rimjax.models.sam import ProposalConfig, SamConfig, SamMasker

torch = pytest.importorskip("torch", reason="SAM runs on torch")
segment_anything = pytest.importorskip(
    "segment_anything", reason="the adapter is compared with segment-anything itself"
)

CONFIG = SamConfig(
    image_size=64,
    patch_size=8,
    encoder_dim=32,
    encoder_depth=2,
    encoder_heads=2,
    global_attn_indexes=(1,),
    window_size=4,
    out_chans=32,
    decoder_heads=4,
    decoder_mlp_dim=64,
)
LENIENT = ProposalConfig(
    points_per_side=3,
    points_per_batch=2,
    pred_iou_thresh=-10.0,
    stability_score_thresh=0.01,
    box_nms_thresh=1.0,
    min_area=0,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small loses time to threads, twentyfold on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def masker() -> SamMasker:
    torch.manual_seed(3)
    sam = adapter.build(CONFIG)
    for mlp in (
        sam.mask_decoder.output_hypernetworks_mlps
    ):  # random logits are near 0: no mask would count as stable
        mlp.layers[-1].weight.data *= 100
    return SamMasker(sam, CONFIG, LENIENT, device="cpu")


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def generated(masker, image) -> list[dict]:
    """What segment-anything itself proposes with the same settings."""
    generator = segment_anything.SamAutomaticMaskGenerator(
        masker.sam,
        points_per_side=3,
        points_per_batch=64,
        pred_iou_thresh=-10.0,
        stability_score_thresh=0.01,
        box_nms_thresh=1.0,
    )
    return generator.generate(image)


@pytest.mark.parametrize("points", [[[10.0, 20.0]], [[0.0, 0.0], [31.0, 23.0], [18.5, 7.25]]])
def test_mask_is_the_predictors_best(masker, image, points):
    predictor = segment_anything.SamPredictor(masker.sam)
    predictor.set_image(image)
    masks, scores, _ = predictor.predict(
        np.array(points), np.ones(len(points)), multimask_output=True
    )
    typed: Masker = masker
    ours = typed.mask(image, np.array(points, np.float32))
    assert ours.shape == (24, 32) and ours.dtype == bool
    np.testing.assert_array_equal(ours, masks[np.argmax(scores)])
    others = [mask for mask in masks if not np.array_equal(mask, ours)]
    assert others, "all three masks are the same: the test couldn't tell a wrong choice"


def test_proposals_are_the_generators_largest_first(masker, image, generated):
    proposals = masker.propose_scored(image)
    assert len(generated) > 3
    assert proposals.masks.shape == (len(generated), 24, 32) and proposals.masks.dtype == bool
    areas = proposals.masks.sum((1, 2))
    assert (np.diff(areas) <= 0).all()
    assert sorted(mask.tobytes() for mask in proposals.masks) == sorted(
        one["segmentation"].tobytes() for one in generated
    )
    theirs = {one["segmentation"].tobytes(): one["predicted_iou"] for one in generated}
    for mask, score in zip(proposals.masks, proposals.scores, strict=True):
        assert score == pytest.approx(
            theirs[mask.tobytes()], abs=1e-5
        )  # decoded in batches of another size
    np.testing.assert_array_equal(masker.propose(image), proposals.masks)


def test_small_proposals_are_dropped(masker, image, generated):
    limit = int(np.median([one["area"] for one in generated])) + 1
    strict = SamMasker(masker.sam, CONFIG, replace(LENIENT, min_area=limit), device="cpu")
    expected = sum(one["area"] >= limit for one in generated)
    assert 0 < expected < len(generated)
    assert len(strict.propose(image)) == expected


def test_overlapping_boxes_are_suppressed(masker, image, generated):
    strict = SamMasker(masker.sam, CONFIG, replace(LENIENT, box_nms_thresh=0.7), device="cpu")
    assert 0 < len(strict.propose(image)) < len(generated)


def test_no_proposal_at_all_is_an_empty_stack(masker, image):
    strict = SamMasker(masker.sam, CONFIG, replace(LENIENT, pred_iou_thresh=1e3), device="cpu")
    proposals = strict.propose_scored(image)
    assert (
        proposals.masks.shape == (0, 24, 32)
        and proposals.masks.dtype == bool
        and proposals.scores.shape == (0,)
    )


def test_it_runs_without_warnings(masker, image):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masker.mask(image, np.array([[5.0, 5.0]], np.float32))
        masker.propose(image)


def test_bad_input_is_refused(masker, image):
    with pytest.raises(ValueError, match=r"image: expected uint8\[H, W, 3\]"):
        masker.propose(image.astype(np.float32))
    with pytest.raises(ValueError, match="points: expected"):
        masker.mask(image, np.zeros((0, 2), np.float32))
    with pytest.raises(ValueError, match="points: expected"):
        masker.mask(image, np.zeros(2, np.float32))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoints_round_trip(masker, image, tmp_path, suffix):
    from safetensors.torch import save_file

    path = tmp_path / f"sam{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(masker.sam.state_dict(), path)
    loaded = adapter.load(read_state_dict(path), CONFIG, proposals=LENIENT, device="cpu")
    assert loaded.fingerprint == masker.fingerprint
    np.testing.assert_array_equal(loaded.propose(image), masker.propose(image))


def test_fingerprint_follows_weights_not_proposal_settings(masker):
    other = SamMasker(masker.sam, CONFIG, replace(LENIENT, points_per_side=8), device="cpu")
    assert other.fingerprint == masker.fingerprint
    torch.manual_seed(4)
    assert SamMasker(adapter.build(CONFIG), CONFIG, device="cpu").fingerprint != masker.fingerprint


def test_load_says_what_is_wrong(masker):
    state = masker.sam.state_dict()
    with pytest.raises(
        ValueError,
        match=r"(?s)not the weights of this SAM.*neck\.0\.weight: \[32, 32, 1, 1\], expected \[64, 32, 1, 1\]",
    ):
        adapter.load(state, replace(CONFIG, out_chans=64))
    state["extra"] = state.pop("mask_decoder.iou_token.weight")
    with pytest.raises(
        ValueError,
        match=r"(?s)iou_token\.weight: not in the file.*extra: this SAM has no such weight",
    ):
        adapter.load(state, CONFIG)


def test_random_weights_follow_the_seed_and_leave_torchs_generator_alone():
    before = torch.get_rng_state()
    prints = [adapter.load(None, CONFIG, seed=seed).fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_published_architecture_is_segment_anythings_vit_b():
    with torch.device("meta"):
        theirs = segment_anything.sam_model_registry["vit_b"]().state_dict()
        ours = adapter.build(SamConfig()).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items()
    }


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "segment_anything", None)
    with pytest.raises(ImportError, match=r'pip install "rimjax\[pipeline\]"'):
        adapter.build(CONFIG)
