"""Regions from elsewhere than SAM: feature cells, and a tiny random MaskFormer against transformers' own processor and model."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import FakeEncoder, FakeMasker
from PIL import Image
from published import write_maskformer

from rimjax.models.proposers import CellMasker, MaskFormerConfig, MaskFormerMasker
from rimjax.models.protocols import Masker

torch = pytest.importorskip("torch", reason="MaskFormer runs in torch")
transformers = pytest.importorskip("transformers", reason="MaskFormer is transformers'")
special = pytest.importorskip("scipy.special", reason="the reference's softmax is scipy's")

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
        size[::-1], Image.Resampling.BICUBIC
    )
    return np.asarray(coarse) // 2 + rng.integers(0, 128, (*size, 3), np.uint8)


def masker_of(folder: Path, config: MaskFormerConfig = CONFIG) -> MaskFormerMasker:
    return MaskFormerMasker(FakeMasker(), folder, config, device="cpu")


def seen_and_proposed(masker: MaskFormerMasker, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the model was given, and the proposals."""
    seen = []
    handle = masker.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["pixel_values"]), with_kwargs=True
    )
    proposed = masker.propose(image)
    handle.remove()
    (pixels,) = seen
    return pixels.numpy(), proposed


def reference(
    original: Any, pixels: np.ndarray, size: tuple[int, int], threshold: float
) -> list[np.ndarray]:
    """Logits at the image's size of the queries over the threshold; resized by Pillow, whose enlargement is bilinear too."""
    with torch.inference_mode():
        found = original(pixel_values=torch.from_numpy(pixels))
    likely = special.softmax(found.class_queries_logits[0].double().numpy(), -1)[:, :3].max(
        -1
    )  # the last of the four is "nothing"
    assert np.abs(likely - threshold).min() > 1e-4, "a query lies on the threshold: choose another"
    logits = found.masks_queries_logits[0].numpy()[likely > threshold]
    return [
        np.asarray(Image.fromarray(one).resize(size[::-1], Image.Resampling.BILINEAR))
        for one in logits
    ]


# Feature cells.


class OblongEncoder(FakeEncoder):
    def encode(self, image: np.ndarray) -> np.ndarray:
        return np.zeros((5, 7, 2), np.float32)


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (5, 7), (128, 9), (3, 4), (1, 1), (1, 40)])
def test_cells_partition_any_image(size):
    masks = CellMasker(FakeMasker(), OblongEncoder()).propose(np.zeros((*size, 3), np.uint8))
    assert masks.shape == (35, *size) and masks.dtype == bool
    np.testing.assert_array_equal(masks.sum(0), np.ones(size))  # every pixel has exactly one


@pytest.mark.parametrize("size", [(32, 32), (33, 50), (5, 7), (128, 9), (3, 4)])
def test_a_pixel_belongs_to_the_grids_cell_that_it_lies_in(size):
    masks = CellMasker(FakeMasker(), OblongEncoder()).propose(np.zeros((*size, 3), np.uint8))
    for row in range(size[0]):
        for column in range(size[1]):
            (owner,) = np.flatnonzero(masks[:, row, column])
            assert owner // 7 <= row * 5 / size[0] < owner // 7 + 1  # the pixel's corner, in cells
            assert owner % 7 <= column * 7 / size[1] < owner % 7 + 1


def test_in_an_image_smaller_than_the_grid_cells_are_a_pixel_or_empty():
    areas = (
        CellMasker(FakeMasker(), FakeEncoder()).propose(np.zeros((6, 9, 3), np.uint8)).sum((1, 2))
    )
    assert len(areas) == 256 and sorted(areas) == [0] * (256 - 54) + [1] * 54


def test_cells_line_up_with_the_encoders_features():
    """Each cell of a 16x16 grid painted in its own colour: the encoder's feature there is the mask's colour."""
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    image = colours.repeat(3, 0).repeat(2, 1)
    features = FakeEncoder().encode(image).reshape(256, 3)
    for mask, feature in zip(
        CellMasker(FakeMasker(), FakeEncoder()).propose(image), features, strict=True
    ):
        (one,) = np.unique(image[mask], axis=0)
        np.testing.assert_allclose(
            one / 128 - 1 + [0, 0, 0.01], feature, atol=1e-6
        )  # float32 of numbers up to 1


def test_cells_leave_references_to_the_masker():
    masker: Masker = CellMasker(FakeMasker(), FakeEncoder())
    image = random_image((20, 30)) // 64
    points = np.float32([[4, 7]])
    np.testing.assert_array_equal(masker.mask(image, points), FakeMasker().mask(image, points))
    assert masker.fingerprint == FakeMasker().fingerprint
    other = CellMasker(FakeMasker(), OblongEncoder())
    assert (
        other.fingerprint == masker.fingerprint
        and other.proposals_fingerprint != masker.proposals_fingerprint
    )
    assert (
        CellMasker(FakeMasker(), FakeEncoder("other-weights")).proposals_fingerprint
        == masker.proposals_fingerprint
    )


# MaskFormer.


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
    ours, _ = seen_and_proposed(
        masker_of(folder, MaskFormerConfig(input_size, longest_side=256)), image
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
    pixels, ours = seen_and_proposed(
        masker_of(folder, MaskFormerConfig(64, threshold=threshold)), random_image(size)
    )
    logits = [one for one in reference(original, pixels, size, threshold) if (one > 0).any()]
    theirs = sorted(logits, key=lambda one: -(one > 0).sum())
    assert 1 < len(theirs) < 24, (
        "too few or all queries are over the threshold: the test couldn't tell"
    )
    assert ours.shape == (len(theirs), *size) and ours.dtype == bool
    areas = ours.sum((1, 2))
    assert (np.diff(areas) <= 0).all() and areas.min() > 0
    unmatched = list(ours)
    for logit in theirs:  # areas may tie, so each is looked for
        sure = np.abs(logit) > 1e-4 * np.abs(logit).max()  # float32 rounding of two resizers
        same = [index for index, mask in enumerate(unmatched) if (mask == (logit > 0))[sure].all()]
        assert same
        del unmatched[same[0]]


def test_of_no_likely_query_there_are_no_masks(folder):
    masks = masker_of(folder, MaskFormerConfig(64, threshold=1.0)).propose(random_image(WIDE))
    assert masks.shape == (0, *WIDE) and masks.dtype == bool


def test_the_best_class_counts_not_all_of_them_together(folder, tmp_path):
    """Every query: 0.3 for each class, 0.1 for nothing."""
    masker = masker_of(folder, MaskFormerConfig(64, threshold=0.31))
    with torch.no_grad():
        masker.model.class_predictor.weight.zero_()
        masker.model.class_predictor.bias.copy_(torch.tensor([0.3, 0.3, 0.3, 0.1]).log())
    assert len(masker.propose(random_image(WIDE))) == 0
    masker.config = MaskFormerConfig(64, threshold=0.29)
    assert len(masker.propose(random_image(WIDE))) > 1


def test_the_image_is_not_written_to_and_may_be_a_view(folder):
    image = random_image(WIDE)
    before = image.copy()
    masker = masker_of(folder)
    straight = masker.propose(image)
    np.testing.assert_array_equal(image, before)
    view = np.flip(
        np.ascontiguousarray(np.flip(image, 1)), 1
    )  # negative strides, which torch lacks
    view.setflags(write=False)
    np.testing.assert_array_equal(masker.propose(view), straight)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8)],
)
def test_what_is_no_image_is_refused(folder, image):
    for masker in (masker_of(folder), CellMasker(FakeMasker(), FakeEncoder())):
        with pytest.raises(ValueError, match="image: expected uint8"):
            masker.propose(image)


def test_maskformer_leaves_references_to_the_masker(folder):
    masker: Masker = masker_of(folder)
    image, points = random_image(WIDE) // 64, np.float32([[4, 7]])
    np.testing.assert_array_equal(masker.mask(image, points), FakeMasker().mask(image, points))
    assert masker.fingerprint == FakeMasker().fingerprint


def with_config(folder: Path, path: Path, **change: object) -> Path:
    shutil.copytree(folder, path)
    config = json.loads((path / "config.json").read_text()) | change
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_proposals_fingerprint_follows_weights_architecture_and_settings(folder, tmp_path):
    once, again, named = (
        masker_of(folder),
        masker_of(folder),
        with_config(folder, tmp_path / "named", transformers_version="4.0.0"),
    )
    assert (
        once.proposals_fingerprint
        == again.proposals_fingerprint
        == masker_of(named).proposals_fingerprint
    )
    assert len(once.proposals_fingerprint) == 20
    with torch.no_grad():
        again.model.class_predictor.bias[0] += 1e-3
    del again.__dict__["proposals_fingerprint"]
    decoder = json.loads((folder / "config.json").read_text())["decoder_config"] | {
        "decoder_attention_heads": 4
    }
    others = [
        again,
        masker_of(folder, MaskFormerConfig(64, threshold=0.4)),
        masker_of(folder, MaskFormerConfig(96)),
        masker_of(
            with_config(folder, tmp_path / "heads", decoder_config=decoder)
        ),  # the same weights, used otherwise
    ]
    assert len({one.proposals_fingerprint for one in (once, *others)}) == 5
