"""CLIP's image-text baseline on a tiny random CLIP, against transformers' features of crops."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from published import write_clip

from rimjax.models.image_text import ImageTextMatcher

MEAN, STD = (0.48, 0.45, 0.4), (0.26, 0.25, 0.28)
TOLERANCE = 1e-5  # float32 rounding, of unit vectors; typically 3e-7
PROMPTS = ["a photo of a cat", "mug", "", "a prompt that is longer than sixteen bytes"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    write_clip(path)
    return path


@pytest.fixture(scope="module")
def matcher(folder) -> ImageTextMatcher:
    return ImageTextMatcher(folder, MEAN, STD, device="cpu")


@pytest.fixture(scope="module")
def original(folder) -> Any:
    return transformers.CLIPModel.from_pretrained(folder).eval()


def unit(features: Any) -> np.ndarray:
    features = features.detach().double().numpy()
    return features / np.sqrt((features**2).sum(1, keepdims=True))


def apart(features: np.ndarray) -> float:
    """Of the two nearest vectors the largest difference of an entry."""
    return np.abs(features[:, None] - features)[~np.eye(len(features), dtype=bool)].max(1).min()


def scene(height: int = 40, width: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return an image, and masks: blob, ring, two pieces, pixel, row, rectangle, everything."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    y, x = np.mgrid[:height, :width]
    radius = np.hypot(y - height / 2, x - width / 2)
    shapes = [
        radius < 9,
        (radius > 8) & (radius < 15),
        (np.hypot(y - 5, x - 5) < 4) | (np.hypot(y - 30, x - 50) < 6),
        (y == 7) & (x == 11),
        (y == height - 1) & (x > 3),
        (y >= 10) & (y < 22) & (x >= width - 20),
        np.ones((height, width), bool),
    ]
    return image, np.array(shapes)


def crop(image: np.ndarray, mask: np.ndarray, size: int) -> np.ndarray:
    """The region's box, black outside of the region, resized to the model's square."""
    where = np.argwhere(mask)
    (top, left), (bottom, right) = where.min(0), where.max(0) + 1
    black = image.copy()
    black[~mask] = 0
    return np.asarray(
        Image.fromarray(black)
        .crop((left, top, right, bottom))
        .resize((size, size), Image.Resampling.BICUBIC)
    )


def test_regions_are_transformers_features_of_their_crops(matcher, original):
    image, masks = scene()
    crops = np.stack([crop(image, mask, 32) for mask in masks])
    pixels = (crops / 255 - MEAN) / STD
    theirs = unit(
        original.get_image_features(
            pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2)).float()
        )
    )
    ours, valid = matcher.embed_regions(image, masks)
    assert (
        ours.shape == (7, 24) and ours.dtype == np.float32 and valid.all() and valid.dtype == bool
    )
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    assert apart(theirs) > 100 * TOLERANCE, (
        "the features are alike: the test couldn't tell the regions apart"
    )


def test_transformers_own_processor_makes_the_same_pixels(matcher, original):
    """CLIP's processor on the filled box, told not to keep its proportions."""
    image, masks = scene()
    shapes = {
        "size": {"height": 32, "width": 32},
        "do_center_crop": False,
        "image_mean": MEAN,
        "image_std": STD,
    }
    processor = transformers.CLIPImageProcessor(**shapes)
    rows, columns = slice(10, 22), slice(40, 60)  # of the rectangle
    pixels = processor(image[rows, columns], return_tensors="pt")["pixel_values"]
    ours, _ = matcher.embed_regions(image, masks[5:6])
    np.testing.assert_allclose(
        ours, unit(original.get_image_features(pixel_values=pixels)), atol=TOLERANCE
    )


def test_what_lies_outside_of_a_region_does_not_count(matcher):
    image, masks = scene()
    other = np.where(masks[1][..., None], image, 255 - image)
    np.testing.assert_array_equal(
        matcher.embed_regions(other, masks[1:2])[0], matcher.embed_regions(image, masks[1:2])[0]
    )
    shifted = matcher.embed_regions(
        np.roll(image, (3, -5), (0, 1)), np.roll(masks[1:2], (3, -5), (1, 2))
    )[0]  # of no place either
    np.testing.assert_array_equal(shifted, matcher.embed_regions(image, masks[1:2])[0])


def test_an_empty_mask_is_zero_and_invalid(matcher):
    image, masks = scene()
    some = masks.copy()
    some[[0, 3, 6]] = False
    features, valid = matcher.embed_regions(image, some)
    assert valid.tolist() == [False, True, True, False, True, True, False]
    assert (features[~valid] == 0).all()
    np.testing.assert_allclose(
        features[valid], matcher.embed_regions(image, masks)[0][valid], atol=TOLERANCE
    )  # another batch size
    features, valid = matcher.embed_regions(image, np.zeros_like(masks))
    assert features.shape == (7, 24) and not features.any() and not valid.any()
    features, valid = matcher.embed_regions(image, masks[:0])
    assert features.shape == (0, 24) and valid.shape == (0,) and valid.dtype == bool


@pytest.mark.parametrize("batch_size", [1, 3, 7, 8])
def test_batches_change_nothing(folder, matcher, batch_size):
    image, masks = scene()
    ours, _ = ImageTextMatcher(
        folder, MEAN, STD, device="cpu", batch_size=batch_size
    ).embed_regions(image, masks)
    np.testing.assert_allclose(ours, matcher.embed_regions(image, masks)[0], atol=TOLERANCE)


def test_every_vector_has_unit_length(matcher):
    image, masks = scene()
    for features in (matcher.embed_regions(image, masks)[0], matcher.embed_texts(PROMPTS)):
        np.testing.assert_allclose(
            np.linalg.norm(features.astype(float), axis=1), 1, atol=1e-6
        )  # float32 rounding


def test_texts_are_transformers_features(matcher, original, folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt")
    assert tokenizer.padding_side == "right" and tokens["input_ids"].max() == tokenizer.eos_token_id
    assert tokens["attention_mask"].sum(1).tolist() == [16, 5, 2, 16]  # some cut short, some padded
    theirs = unit(original.get_text_features(tokens["input_ids"], tokens["attention_mask"]))
    ours = matcher.embed_texts(PROMPTS)
    assert ours.shape == (4, 24) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    assert apart(theirs) > 100 * TOLERANCE, (
        "the features are alike: the test couldn't tell the texts apart"
    )
    for index, prompt in enumerate(PROMPTS):
        np.testing.assert_allclose(
            matcher.embed_texts([prompt]), ours[index : index + 1], atol=TOLERANCE
        )


def copied(folder: Path, path: Path, name: str, **change: object) -> Path:
    """The folder with some of a JSON file's entries changed."""
    shutil.copytree(folder, path)
    config = json.loads((path / name).read_text()) | change
    (path / name).write_text(json.dumps(config))
    return path


def test_padded_on_the_left_the_last_words_state_counts(folder, original, tmp_path):
    """As of the mini CLIP's tokenizer: there is no end token, the words come last."""
    path = copied(folder, tmp_path / "left", "tokenizer_config.json", padding_side="left")
    core = json.loads((path / "tokenizer.json").read_text()) | {"post_processor": None}
    (path / "tokenizer.json").write_text(json.dumps(core))
    letters = {letter: core["model"]["vocab"][letter] for letter in "mug"}
    ids = torch.tensor([[299] * 13 + [letters[letter] for letter in "mug"]])
    hidden = original.text_model(input_ids=ids).last_hidden_state
    theirs = unit(original.text_projection(hidden[:, -1]))
    left = ImageTextMatcher(path, MEAN, STD, device="cpu")
    np.testing.assert_allclose(left.embed_texts(["mug"]), theirs, atol=TOLERANCE)
    assert np.abs(theirs - unit(original.text_projection(hidden[:, 0]))).max() > 100 * TOLERANCE


def test_no_texts_are_no_vectors(matcher):
    assert matcher.embed_texts([]).shape == (0, 24)


@pytest.mark.parametrize("length", [10**30, 20])
def test_prompts_are_cut_to_what_the_model_takes(folder, matcher, tmp_path, length):
    """Whatever the tokenizer's own limit; transformers writes 1e30 where there is none."""
    path = copied(folder, tmp_path / "long", "tokenizer_config.json", model_max_length=length)
    ours = ImageTextMatcher(path, MEAN, STD, device="cpu").embed_texts(PROMPTS)
    np.testing.assert_allclose(ours, matcher.embed_texts(PROMPTS), atol=TOLERANCE)


def test_fingerprint_follows_weights_architecture_and_colours(folder, matcher, tmp_path):
    changed = ImageTextMatcher(folder, MEAN, STD, device="cpu")
    with torch.no_grad():
        changed.model.text_projection.weight[0, 0] += 1e-3
    vision = json.loads((folder / "config.json").read_text())["vision_config"] | {
        "hidden_act": "gelu"
    }
    others = [
        changed,
        ImageTextMatcher(folder, STD, MEAN, device="cpu"),
        ImageTextMatcher(
            copied(folder, tmp_path / "gelu", "config.json", vision_config=vision),
            MEAN,
            STD,
            device="cpu",
        ),
    ]
    prints = {other.fingerprint for other in (matcher, *others)}
    assert len(prints) == 4 and set(map(len, prints)) == {20}
    moved = copied(folder, tmp_path / "moved", "config.json", transformers_version="4.0.0")
    assert (
        ImageTextMatcher(moved, MEAN, STD, device="cpu", batch_size=2).fingerprint
        == matcher.fingerprint
    )


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((40, 60, 3), np.float32),
        np.zeros((40, 60), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(matcher, image):
    with pytest.raises(ValueError, match="image must be uint8"):
        matcher.embed_regions(image, np.ones((1, *image.shape[:2]), bool))


@pytest.mark.parametrize("shape", [(1, 20, 30), (1, 60, 40), (40, 60)])
def test_masks_of_another_size_than_the_image_are_refused(matcher, shape):
    with pytest.raises(ValueError, match=r"masks must be bool\[P, 40, 60\]"):
        matcher.embed_regions(scene()[0], np.ones(shape, bool))
