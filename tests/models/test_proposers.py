"""A tiny random MaskFormer against transformers."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from published import write_maskformer
from scipy import special

from rimjax.models.maskformer import MaskFormerConfig, MaskFormerProposer
from rimjax.models.protocols import Proposals, Proposer

CONFIG = MaskFormerConfig(input_size=64)
MULTIPLE, WIDE, TALL, TINY, THIN = (64, 96), (45, 83), (90, 50), (1, 3), (34, 187)
"""Sizes (H, W) of images."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose time to torch's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("maskformer")
    write_maskformer(path)
    return path


@pytest.fixture(scope="module")
def original(folder) -> Any:
    return transformers.MaskFormerForInstanceSegmentation.from_pretrained(folder).eval()


def random_image(size: tuple[int, int]) -> np.ndarray:
    """Of blobs and noise."""
    rng = np.random.default_rng(size)
    coarse = Image.fromarray(rng.integers(0, 200, (3, 4, 3), np.uint8)).resize(
        (size[1], size[0]), Image.Resampling.BICUBIC
    )
    return np.asarray(coarse) // 2 + rng.integers(0, 128, (*size, 3), np.uint8)


def proposer_of(folder: Path, config: MaskFormerConfig = CONFIG) -> MaskFormerProposer:
    return MaskFormerProposer(folder, config, device="cpu")


def run_proposer(proposer: MaskFormerProposer, image: np.ndarray) -> tuple[np.ndarray, Proposals]:
    """Return the pixels that the model gets, and the proposals."""
    inputs = []
    handle = proposer.model.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append(kwargs["pixel_values"]), with_kwargs=True
    )
    proposed = proposer.propose(image)
    handle.remove()
    (pixels,) = inputs
    return pixels.numpy(), proposed


def reference(
    original: Any, pixels: np.ndarray, size: tuple[int, int], threshold: float
) -> list[tuple[np.ndarray, float]]:
    """Return the logits, at the image's size, and probabilities of the queries over the threshold.

    Pillow resizes them; its enlargement is bilinear too.
    """
    with torch.inference_mode():
        output = original(pixel_values=torch.from_numpy(pixels))
    likely = special.softmax(output.class_queries_logits[0].double().numpy(), -1)[:, :3].max(
        -1
    )  # the last of the four is "nothing"
    assert np.abs(likely - threshold).min() > 1e-4, "a query lies on the threshold: choose another"
    logits = output.masks_queries_logits[0].numpy()
    return [
        (
            np.asarray(
                Image.fromarray(logit).resize((size[1], size[0]), Image.Resampling.BILINEAR)
            ),
            score,
        )
        for logit, score in zip(logits, likely, strict=True)
        if score > threshold
    ]


@pytest.mark.parametrize("input_size", [64, 70, None])
@pytest.mark.parametrize("size", [MULTIPLE, WIDE, TALL, TINY, THIN, (300, 40)])
def test_the_model_sees_what_transformers_processor_makes(folder, size, input_size):
    image = random_image(size)
    wanted = (
        {"height": size[0], "width": size[1]}
        if input_size is None
        else {"shortest_edge": input_size, "longest_edge": 256}
    )
    theirs = transformers.MaskFormerImageProcessor(size=wanted)(
        image, return_tensors="np", input_data_format="channels_last"
    )["pixel_values"]
    ours, _ = run_proposer(
        proposer_of(folder, MaskFormerConfig(input_size, longest_side=256)), image
    )
    assert ours.shape == theirs.shape and ours.shape[2] % 32 == ours.shape[3] % 32 == 0
    levels = np.abs(ours - theirs) * np.reshape(CONFIG.std, (3, 1, 1)) * 255
    resized = ours.shape[2:] != size
    assert levels.max() <= (
        1.01 if resized else 1e-3
    )  # Pillow rounds to 8 bits after either pass; else float32 only
    assert theirs.std() > 0.1


@pytest.mark.parametrize("threshold", [0.35, 0.45, 0.5])
@pytest.mark.parametrize("size", [MULTIPLE, WIDE, TALL])
def test_proposals_are_the_likely_queries_masks_largest_first(folder, original, size, threshold):
    pixels, (ours, scores, _) = run_proposer(
        proposer_of(folder, MaskFormerConfig(64, threshold=threshold)), random_image(size)
    )
    theirs = [pair for pair in reference(original, pixels, size, threshold) if (pair[0] > 0).any()]
    assert 1 < len(theirs) < 24, (
        "too few or all queries are over the threshold: the test couldn't tell"
    )
    assert ours.shape == (len(theirs), *size) and ours.dtype == bool
    areas = ours.sum((1, 2))
    assert (np.diff(areas) <= 0).all() and areas.min() > 0
    assert scores is not None and scores.dtype == np.float32
    unmatched = list(zip(ours, scores, strict=True))
    for logit, likely in theirs:  # areas may tie, so each is looked for
        sure = np.abs(logit) > 1e-4 * np.abs(logit).max()  # float32 rounding of two resizers
        same = [
            index
            for index, (mask, score) in enumerate(unmatched)
            if (mask == (logit > 0))[sure].all() and abs(score - likely) < 1e-5  # float32 again
        ]
        assert same
        del unmatched[same[0]]


def test_of_no_likely_query_there_are_no_masks(folder):
    proposer = proposer_of(folder, MaskFormerConfig(64, threshold=1.0))
    masks, scores, _ = proposer.propose(random_image(WIDE))
    assert masks.shape == (0, *WIDE) and masks.dtype == bool
    assert scores is not None and scores.shape == (0,)


def test_the_best_class_counts_not_all_of_them_together(folder, tmp_path):
    """Every query: 0.3 for each class, 0.1 for nothing."""
    proposer = proposer_of(folder, MaskFormerConfig(64, threshold=0.31))
    with torch.no_grad():
        proposer.model.class_predictor.weight.zero_()
        proposer.model.class_predictor.bias.copy_(torch.tensor([0.3, 0.3, 0.3, 0.1]).log())
    assert len(proposer.propose(random_image(WIDE)).masks) == 0
    proposer.config = MaskFormerConfig(64, threshold=0.29)
    assert len(proposer.propose(random_image(WIDE)).masks) > 1


def test_the_image_is_not_written_to_and_may_be_a_view(folder):
    image = random_image(WIDE)
    before = image.copy()
    proposer = proposer_of(folder)
    straight = proposer.propose(image).masks
    np.testing.assert_array_equal(image, before)
    view = np.flip(
        np.ascontiguousarray(np.flip(image, 1)), 1
    )  # negative strides, which torch lacks
    view.setflags(write=False)
    np.testing.assert_array_equal(proposer.propose(view).masks, straight)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)],
)
def test_what_is_no_image_is_refused(folder, image):
    with pytest.raises(ValueError, match="image must be uint8"):
        proposer_of(folder).propose(image)


def with_config(folder: Path, path: Path, **change: object) -> Path:
    shutil.copytree(folder, path)
    config = json.loads((path / "config.json").read_text()) | change
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_fingerprint_follows_weights_architecture_and_settings(folder, tmp_path):
    once: Proposer = proposer_of(folder)
    again, named = (
        proposer_of(folder),
        with_config(folder, tmp_path / "named", transformers_version="4.0.0"),
    )
    assert once.fingerprint == again.fingerprint == proposer_of(named).fingerprint
    assert len(once.fingerprint) == 20
    with torch.no_grad():
        again.model.class_predictor.bias[0] += 1e-3
    del again.__dict__["fingerprint"]
    decoder = json.loads((folder / "config.json").read_text())["decoder_config"] | {
        "decoder_attention_heads": 4
    }
    others = [
        again,
        proposer_of(folder, MaskFormerConfig(64, threshold=0.4)),
        proposer_of(folder, MaskFormerConfig(96)),
        proposer_of(
            with_config(folder, tmp_path / "heads", decoder_config=decoder)
        ),  # the same weights, used otherwise
    ]
    assert len({proposer.fingerprint for proposer in (once, *others)}) == 5
