"""Prompts of a class: what they mark, how they share the images out, where they are kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import fake_models, list_drawn, pick_colour

import rimjax
from rimjax.models.protocols import Models
from rimjax.models.stable_diffusion import DeferredGenerator
from rimjax.references import store
from rimjax.references.build import build_references
from rimjax.references.class_prompts import parse_classes, parse_prompt
from rimjax.references.one_class import references_key
from rimjax.sealed import read_sealed


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("telly", "telly"),
        ("old  television set", "old television set"),
        ("a photo of a television", "a photo of a {television}"),
        ("A photo of the red bag", "A photo of the {red bag}"),
        ("a photo of apples", "a photo of {apples}"),
        ("a photo of", "a photo of"),
        ("an old { telly } in a shop", "an old {telly} in a shop"),
        ("a photo of a {television} on a table", "a photo of a {television} on a table"),
    ],
)
def test_a_prompt_says_which_words_are_the_object(text: str, prompt: str) -> None:
    assert parse_prompt(text) == prompt and parse_prompt(prompt) == prompt


def test_classes_on_the_command_line_and_in_a_file(tmp_path: Path) -> None:
    assert parse_classes(" tv = a photo of a telly | monitor , bag") == {
        "tv": ("a photo of a {telly}", "monitor"),
        "bag": (),
    }
    file = tmp_path / "classes.txt"
    file.write_text(
        "# rooms\n\ntv=an old {telly}, in a shop|monitor\n  bag\n", encoding="utf-8-sig"
    )
    expected = {"tv": ("an old {telly}, in a shop", "monitor"), "bag": (), "cup": ()}
    assert parse_classes(f"@{file},cup") == expected
    file.write_text("# nothing\n")
    for text, message in (
        (f"@{file}", r"classes.txt: holds no class"),
        (
            f"@{tmp_path}/none.txt",
            r"none.txt: no such file; expected a text file with a class a line",
        ),
        ("bag=", "prompts must hold words"),
        ("bag=a|a", "prompts of 'bag' must differ"),
        ("bag=a {b} {c}", "one pair of braces"),
        ("bag=a {}", "one pair of braces"),
        ("bag,bag", "more than once: bag"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            parse_classes(text)


@pytest.fixture(scope="module")
def models() -> Models:
    models = rimjax.load_preset("mini", steps=2)
    return replace(models, references=replace(models.references, num_images=4))


def test_prompts_share_the_images_out_and_are_kept(models: Models, tmp_path: Path) -> None:
    prompts = ["a photo of a blue {bag}", "bag"]
    manifest, _ = build_references({"sack": prompts, "coat": None}, models, cache_dir=tmp_path)
    sack, coat = store.read_all_references(manifest, pictures=True)
    assert sack.images is not None and len(sack.images) == len(sack.foreground) == 4
    drawn = [models.generator.generate(prompt, 2, 0) for prompt in prompts]
    np.testing.assert_allclose(
        sack.images.astype(int), np.concatenate([part.images for part in drawn]), atol=2
    )  # in batches of another size
    np.testing.assert_allclose(
        sack.attention, np.concatenate([part.attention for part in drawn]), atol=1e-3
    )
    record = tmp_path / "references" / manifest.folders[0] / "references.json"
    assert read_sealed(record)["prompts"] == prompts == list(sack.prompts)
    assert json.loads(manifest.path.read_text())["prompts"] == {"sack": prompts}
    assert store.read_manifest(manifest.path).prompts == {"sack": tuple(prompts)}
    assert coat.prompts == () and rimjax.load_bank(manifest).names[1:] == ("sack", "coat")
    packed = store.pack_bank(manifest, tmp_path / "sack.safetensors")
    assert store.read_manifest(packed.path).prompts == {"sack": tuple(prompts)}


def test_images_are_shared_out_as_evenly_as_can_be(tmp_path: Path) -> None:
    models = fake_models()
    settings = replace(models.references, num_images=5)
    names = {"tv": ["apple", "plum", "leaf"]}
    manifest, _ = build_references(names, models, settings=settings, cache_dir=tmp_path)
    (tv,) = store.read_all_references(manifest, pictures=True)
    assert tv.images is not None
    shares = [
        int((tv.images == pick_colour(prompt)).all(-1).any((1, 2)).sum()) for prompt in names["tv"]
    ]
    assert shares == [2, 2, 1]


def test_attention_is_that_of_the_words_in_braces(models: Models) -> None:
    assert isinstance(models.generator, DeferredGenerator)
    prompts = models.generator.model.prompts
    ids, weights = prompts.encode("a photo of a blue {bag} on striped ground")
    tokens = prompts.tokenizer.convert_ids_to_tokens(ids[1])
    assert [token for token, weight in zip(tokens, weights, strict=True) if weight] == ["bag"]
    words = [token for token in tokens if token not in prompts.tokenizer.all_special_tokens]
    assert " ".join(words) == "a photo of a blue bag on striped ground"
    for prompt, word in (("a {blue bag}", "blue bag"), ("a {bag} on a table", "table")):
        with pytest.raises(ValueError, match=f"got '{word}'"):
            prompts.encode(prompt)


def test_prompts_are_part_of_the_keys_and_old_keys_stay(tmp_path: Path) -> None:
    models, keys = fake_models(), []
    for names in (["tv"], {"tv": None}, {"tv": []}, {"tv": "a"}, {"tv": ["a", "b"]}, {"tv": "b"}):
        manifest, _ = build_references(names, models, cache_dir=tmp_path)
        keys.append((manifest.folders, manifest.path))
    assert keys[0] == keys[1] == keys[2] and len(set(keys)) == 4
    assert list_drawn(models) == ["tv", "a", "a", "b", "b"]
    assert not {"prompts"} & json.loads(keys[0][1].read_text()).keys()
    assert keys[0][0][0] == f"tv-{references_key('tv', models, models.references)}"


def test_another_encoder_draws_prompts_no_second_time(tmp_path: Path) -> None:
    names = {"tv": ["a", "b"]}
    build_references(names, fake_models(), cache_dir=tmp_path)
    other = replace(fake_models(), antialias=False)
    manifest, _ = build_references(names, other, cache_dir=tmp_path)
    assert list_drawn(other) == [] and manifest.prompts == {"tv": ("a", "b")}
    more, _ = build_references(["leaf"], other, cache_dir=tmp_path, extend=manifest)
    assert more.prompts == {"tv": ("a", "b")}


def test_a_word_that_mini_doesnt_know_is_refused_before_weights_are_loaded() -> None:
    generator = rimjax.load_preset("mini").generator
    with pytest.raises(ValueError, match=r"words that the model knows \(t-shirt, .*got 'zebra'"):
        generator.check("a photo of a {zebra}")
    assert "_model" not in vars(generator)
