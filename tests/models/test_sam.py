"""The SAM adapter against segment-anything's predictor and mask generator, on a tiny Sam."""

import copy
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import segment_anything
import torch
from safetensors.torch import save_file

import rimjax
from ported_weights.checkpoints import read_state_dict
from rimjax.models import sam as adapter
from rimjax.models.protocols import Masker, Proposer
from rimjax.models.sam import ProposalConfig, Sam, SamConfig, SamMasker, SamProposer, encoder

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
def sam() -> Sam:
    torch.manual_seed(3)
    model = adapter.build(CONFIG)
    for mlp in (
        model.mask_decoder.output_hypernetworks_mlps
    ):  # random logits are near 0: no mask would count as stable
        mlp.layers[-1].weight.data *= 100
    return Sam(model, CONFIG)


@pytest.fixture(scope="module")
def masker(sam) -> SamMasker:
    return SamMasker(sam)


@pytest.fixture(scope="module")
def proposer(sam) -> SamProposer:
    return SamProposer(sam, LENIENT)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def generated(sam, image) -> list[dict]:
    """What segment-anything itself proposes with the same settings."""
    generator = segment_anything.SamAutomaticMaskGenerator(
        sam.model,
        points_per_side=3,
        points_per_batch=64,
        pred_iou_thresh=-10.0,
        stability_score_thresh=0.01,
        box_nms_thresh=1.0,
    )
    return generator.generate(image)


@pytest.mark.parametrize("points", [[[10.0, 20.0]], [[0.0, 0.0], [31.0, 23.0], [18.5, 7.25]]])
def test_mask_is_the_predictors_best(sam, masker, image, points):
    predictor = segment_anything.SamPredictor(sam.model)
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


def test_the_single_mask_is_the_predictors_own(sam, masker, image):
    points = np.array([[3.0, 4.0], [31.0, 23.0], [18.5, 7.25]], np.float32)
    predictor = segment_anything.SamPredictor(sam.model)
    predictor.set_image(image)
    (expected,), _, _ = predictor.predict(points, np.ones(3), multimask_output=False)
    single = SamMasker(sam, multimask=False)
    np.testing.assert_array_equal(single.mask(image, points), expected)
    assert not np.array_equal(masker.mask(image, points), expected), "the outputs differ"
    assert masker.fingerprint == sam.fingerprint != single.fingerprint


@pytest.mark.parametrize("points", [[], [[18.5, 7.25]]])
def test_a_boxs_mask_is_the_predictors_own(sam, masker, image, points):
    points, box = (
        np.array(points, np.float32).reshape(-1, 2),
        np.array([2.5, 3, 20, 17], np.float32),
    )
    predictor = segment_anything.SamPredictor(sam.model)
    predictor.set_image(image)
    given = {"point_coords": points, "point_labels": np.ones(len(points))} if len(points) else {}
    (expected,), _, _ = predictor.predict(box=box, multimask_output=False, **given)
    assert masker.takes_boxes and expected.any() and not expected.all()
    np.testing.assert_array_equal(masker.mask(image, points, box), expected)
    assert not np.array_equal(
        masker.mask(image, points, box[[0, 1, 0, 1]] + [0, 0, 3, 3]), expected
    )


def test_a_sam_that_was_trained_on_points_alone_refuses_boxes(sam, image):
    masker = SamMasker(Sam(sam.model, replace(CONFIG, box_prompts=False)))
    assert not masker.takes_boxes and masker.fingerprint == sam.fingerprint
    assert not getattr(rimjax.load_preset("mini").masker, "takes_boxes", True)
    with pytest.raises(ValueError, match="box must be None: this SAM takes none"):
        masker.mask(image, np.array([[3, 4]], np.float32), np.array([2, 3, 20, 17], np.float32))
    with pytest.raises(ValueError, match=r"box must be \[4\] \(x0, y0, x1, y1\), got \[1, 4\]"):
        SamMasker(sam).mask(image, np.zeros((0, 2), np.float32), np.ones((1, 4), np.float32))


def test_proposals_are_the_generators_largest_first(proposer, image, generated):
    typed: Proposer = proposer
    proposals = typed.propose(image)
    assert proposals.scores is not None and proposals.scores.dtype == np.float32
    assert len(generated) > 3
    assert proposals.masks.shape == (len(generated), 24, 32) and proposals.masks.dtype == bool
    areas = proposals.masks.sum((1, 2))
    assert (np.diff(areas) <= 0).all()
    assert sorted(mask.tobytes() for mask in proposals.masks) == sorted(
        record["segmentation"].tobytes() for record in generated
    )
    theirs = {record["segmentation"].tobytes(): record["predicted_iou"] for record in generated}
    for mask, score in zip(proposals.masks, proposals.scores, strict=True):
        assert score == pytest.approx(
            theirs[mask.tobytes()], abs=1e-5
        )  # decoded in batches of another size


def test_small_proposals_are_dropped(sam, image, generated):
    limit = int(np.median([record["area"] for record in generated])) + 1
    strict = SamProposer(sam, replace(LENIENT, min_area=limit))
    expected = sum(record["area"] >= limit for record in generated)
    assert 0 < expected < len(generated)
    assert len(strict.propose(image).masks) == expected


def test_overlapping_boxes_are_suppressed(sam, image, generated):
    strict = SamProposer(sam, replace(LENIENT, box_nms_thresh=0.7))
    assert 0 < len(strict.propose(image).masks) < len(generated)


def test_no_proposal_at_all_is_an_empty_stack(sam, image):
    strict = SamProposer(sam, replace(LENIENT, pred_iou_thresh=1e3))
    proposals = strict.propose(image)
    assert proposals.scores is not None
    assert (
        proposals.masks.shape == (0, 24, 32)
        and proposals.masks.dtype == bool
        and proposals.scores.shape == (0,)
    )


def test_it_runs_without_warnings(masker, proposer, image):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masker.mask(image, np.array([[5.0, 5.0]], np.float32))
        proposer.propose(image)


def test_bad_input_is_refused(masker, proposer, image):
    with pytest.raises(ValueError, match=r"image must be uint8\[H, W, 3\]"):
        proposer.propose(image.astype(np.float32))
    with pytest.raises(ValueError, match="points must be"):
        masker.mask(image, np.zeros((0, 2), np.float32))
    with pytest.raises(ValueError, match="points must be"):
        masker.mask(image, np.zeros(2, np.float32))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_checkpoints_round_trip(sam, proposer, image, tmp_path, suffix):
    path = tmp_path / f"sam{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(sam.model.state_dict(), path)
    loaded = adapter.load(read_state_dict(path), CONFIG, device="cpu")
    assert loaded.fingerprint == sam.fingerprint
    np.testing.assert_array_equal(
        SamProposer(loaded, LENIENT).propose(image).masks, proposer.propose(image).masks
    )


def test_fingerprints_follow_weights_and_the_proposers_its_settings(sam, masker, proposer):
    assert SamProposer(sam, replace(LENIENT, points_per_side=8)).fingerprint != proposer.fingerprint
    assert (
        SamProposer(sam, replace(LENIENT, points_per_batch=7)).fingerprint == proposer.fingerprint
    )
    torch.manual_seed(4)
    other = Sam(adapter.build(CONFIG), CONFIG)
    assert SamMasker(other).fingerprint != masker.fingerprint
    assert SamProposer(other, LENIENT).fingerprint != proposer.fingerprint


@pytest.mark.parametrize("window", [3, 5])
def test_the_encoder_is_segment_anythings_where_windows_are_padded(window, image, monkeypatch):
    config = replace(CONFIG, window_size=window, encoder_depth=3)
    model = adapter.load(None, config, seed=2).model
    for block in model.image_encoder.blocks:
        block.attn.rel_pos_h.data.normal_()
        block.attn.rel_pos_w.data.normal_()
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = model.image_encoder(pixels)
        for limit in (1, 1 << 27):  # one head at a time, and all of them
            monkeypatch.setattr(encoder, "MAX_BIAS", limit)
            torch.testing.assert_close(
                encoder.encode(model.image_encoder, pixels), expected, atol=1e-5, rtol=1e-5
            )


def test_an_image_that_is_too_narrow_is_refused(sam, proposer):
    with pytest.raises(ValueError, match="image must keep a pixel"):
        proposer.propose(np.zeros((1, 300, 3), np.uint8))


@pytest.mark.parametrize("shape", [(1, 64, 3), (64, 1, 3), (5, 60, 3), (3, 3, 3)])
def test_thin_images_are_searched_without_their_empty_crops(sam, shape):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    whole = SamProposer(sam, LENIENT).propose(image)
    crops = SamProposer(sam, replace(LENIENT, crop_layers=2)).propose(image)
    assert crops.masks.shape[1:] == shape[:2] and len(crops.masks) >= 1 and len(whole.masks) >= 1


def test_load_says_what_is_wrong(sam):
    state = sam.model.state_dict()
    with pytest.raises(
        ValueError,
        match=r"(?s)must fit the model.*neck\.0\.weight: must be float32\[64, 32, 1, 1\], got",
    ):
        adapter.load(state, replace(CONFIG, out_chans=64))
    state["extra"] = state.pop("mask_decoder.iou_token.weight")
    with pytest.raises(
        ValueError, match=r"(?s)extra: the model has no such weight.*iou_token\.weight: missing"
    ):
        adapter.load(state, CONFIG)


GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_parameters_of_a_model_in_use_can_be_loaded(sam, device):
    """On its device, and with gradients."""
    state = copy.deepcopy(sam.model).to(device).requires_grad_().state_dict(keep_vars=True)
    assert adapter.load(state, CONFIG, device="cpu").fingerprint == sam.fingerprint


def test_nan_among_the_weights_is_refused_by_name(sam):
    state = {name: tensor.clone() for name, tensor in sam.model.state_dict().items()}
    state["mask_decoder.iou_token.weight"][0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"iou_token\.weight: holds NaN or infinity"):
        adapter.load(state, CONFIG)


@pytest.mark.parametrize("head", ["iou", "mask"])
def test_nan_of_the_model_is_no_empty_mask(sam, image, head):
    """As where numbers overflow, though each weight is finite."""
    broken = Sam(copy.deepcopy(sam.model), CONFIG)
    decoder = broken.model.mask_decoder
    part = {"iou": decoder.iou_prediction_head.layers[-1], "mask": decoder.output_upscaling[0]}[
        head
    ]
    part.bias.data[:] = torch.nan
    with pytest.raises(ValueError, match="SAM must give finite numbers"):
        SamMasker(broken).mask(image, np.array([[5.0, 5.0]], np.float32))
    with pytest.raises(ValueError, match="SAM must give finite numbers"):
        SamProposer(broken, LENIENT).propose(image)


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


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("points_per_side", value) for value in (0, -1)),
        *(("points_per_batch", value) for value in (0, -3)),
        ("min_area", -1),
        ("crop_layers", -1),
        ("pred_iou_thresh", float("nan")),
        ("box_nms_thresh", float("inf")),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be "):
        replace(ProposalConfig(), **{name: value})


@pytest.mark.parametrize("message", ["CUDA out of memory", "can't allocate memory"])
def test_memory_that_runs_out_is_said_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    kind = torch.OutOfMemoryError if "CUDA" in message else RuntimeError

    def run_out(self: object, image: np.ndarray) -> None:
        raise kind(message)

    monkeypatch.setattr(Sam, "embed", run_out)
    models = rimjax.load_preset("mini")
    image = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(MemoryError, match=r"proposing regions needs more memory .* half precision"):
        models.proposer.propose(image)
    with pytest.raises(MemoryError, match="cutting out references needs more memory"):
        models.masker.mask(image, np.array([[3.0, 4.0]]))
