"""Files with changed bytes: an error of one line that names the file, or the content as it was.

Every format that rimjax reads is changed 100 times (`--robust N`: N times as often) by flipped
bits, other bytes and digits, and pieces that are cut out, doubled, cleared or put in. A format
without a digest (not `guarded`) may be read as other content, which nothing could notice: for these
only the errors are tested, and that the file is read as before once it is whole again.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch
from fakes import fake_models
from PIL import Image
from scenes import NAMES, make_scene
from trees import COCO_CATEGORIES

import rimjax
from ported_weights.checkpoints import read_state_dict
from rimjax import datasets
from rimjax.datasets import coco
from rimjax.datasets.dataset import read_labels
from rimjax.evaluation.run_folder import ImageResult, merge_runs, open_run
from rimjax.images import read_image
from rimjax.models import random_weights
from rimjax.models.stable_diffusion.checkpoint import map_safetensors, write_safetensors
from rimjax.models.vit import ViTConfig
from rimjax.models.vit_encoder import load_vit, save_vit
from rimjax.models.weight_record import check_weights, digest_weights, write_record
from rimjax.references import store
from rimjax.references.build import build_references
from rimjax.regions.archive import Archive

COUNT = 100
VIT = ViTConfig(hidden_size=8, num_layers=1, num_heads=1, patch_size=4, image_size=8)


class Format(NamedTuple):
    """A file format.

    Attributes:
        write: writes a file into an empty folder and returns its path.
        read: reads the file's content through the function that users call.
        guarded: whether other content must be noticed: a digest or the format's own sums tell.
    """

    write: Callable[[Path], Path]
    read: Callable[[Path], Any]
    guarded: bool = True


def build(folder: Path) -> store.Manifest:
    return build_references(NAMES[:2], fake_models(), cache_dir=folder)[0]


def find_in_class(folder: Path, name: str) -> Path:
    manifest = build(folder)
    return folder / "references" / manifest.folders[0] / name


def read_class(path: Path) -> Any:
    references = store.read_references(path.parent, pictures=True)
    return [getattr(references, name) for name in references.__dataclass_fields__]


def write_run(folder: Path) -> Path:
    description = {"classes": ["a", "b"], "background": True, "num_images": 3, "shard": None}
    with open_run(folder / "run", {**description, "seed": 17}) as (_, append):
        for name in "xyz":
            append(ImageResult(name, [[0, 1, 123], [2, 2, 4567]], {"match": 0.25}))
    return folder / "run"


def read_run(path: Path) -> Any:
    description, results = merge_runs([path.parent])
    return description, {name: repr(result) for name, result in results.items()}


def write_vit(folder: Path) -> Path:
    path = folder / "vit.safetensors"
    save_vit(jax.tree.map(np.asarray, random_weights.make_vit(VIT)), VIT, path)
    write_record(path, path)
    return path


def read_vit(path: Path) -> Any:
    check_weights(path)
    params, config = load_vit(path)
    return config, jax.tree.leaves(params)


def write_flax(folder: Path) -> Path:
    path = folder / "flax_model.safetensors"
    arrays = {name: np.arange(size, dtype=np.float32) for name, size in (("a/b", 40), ("c", 7))}
    write_safetensors(arrays, path)
    return path


def read_arrays(arrays: Any) -> list[Any]:
    return [(name, np.array(arrays[name])) for name in sorted(arrays)]


def write_pickle(folder: Path) -> Path:
    torch.save({"weight": torch.arange(30.0), "bias": torch.ones(3)}, folder / "model.pth")
    return folder / "model.pth"


def write_labels(folder: Path) -> Path:
    path = folder / "labels.png"
    Image.fromarray(make_scene()[1]).save(path)
    return path


def write_image(folder: Path, suffix: str) -> Path:
    path = folder / f"image{suffix}"
    Image.fromarray(make_scene()[0]).save(path)
    return path


def write_instances(folder: Path) -> Path:
    size = {"height": 20, "width": 30}
    outline = {"segmentation": [[2, 2, 9, 2, 9, 9, 2, 9]], "bbox": [2, 2, 7, 7], "area": 49}
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", **size}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 44, "iscrowd": 0, **outline}],
        "categories": [{"id": number, "name": name} for number, name in COCO_CATEGORIES.items()],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def write_names(folder: Path) -> Path:
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    image, truth = make_scene()
    Image.fromarray(image).save(folder / "images/a.png")
    Image.fromarray(truth).save(folder / "labels/a.png")
    (folder / "names.txt").write_text("_background_\napple\nplum: purple plum\nleaf\n")
    return folder / "names.txt"


def write_part(folder: Path) -> Path:
    archive = Archive(folder / "archive")
    for number in range(4):
        features = np.arange(6 * number, dtype=np.float32).reshape(number, 6)
        archive.put(f"image-{number}", {"features": features, "valid": np.ones(number, bool)})
    archive.join()
    (part,) = archive.folder.glob("part-*")
    return part


def read_part(path: Path) -> Any:
    archive = Archive(path.parent)
    records = [archive.get(f"image-{number}") for number in range(4)]
    if damaged := archive.verify()[1]:
        raise ValueError(damaged[0])
    return [read_arrays(record) for record in records]


def read_bank(path: Path) -> Any:
    bank = rimjax.load_bank(path)
    return [bank.names, bank.encoder, np.asarray(bank.prototypes), np.asarray(bank.classes)]


def write_packed(folder: Path) -> Path:
    return store.pack_bank(build(folder), folder / "packed.safetensors").path


FORMATS = {
    "manifest": Format(lambda folder: build(folder).path, read_bank),
    "packed bank": Format(write_packed, read_bank),
    "record of a class": Format(partial(find_in_class, name="references.json"), read_class),
    "prototypes": Format(partial(find_in_class, name="prototypes.safetensors"), read_class),
    "picture of a class": Format(partial(find_in_class, name="mask-00001.png"), read_class),
    "run.json": Format(lambda folder: write_run(folder) / "run.json", read_run),
    "images.jsonl": Format(lambda folder: write_run(folder) / "images.jsonl", read_run),
    "ViT": Format(write_vit, read_vit),
    "record of weights": Format(
        lambda folder: write_vit(folder).with_name("vit.safetensors.sha256"),
        lambda path: digest_weights(path.with_suffix("")),
    ),
    "safetensors": Format(
        write_flax, lambda path: read_arrays(map_safetensors(path)), guarded=False
    ),
    "pickle": Format(write_pickle, lambda path: read_arrays(read_state_dict(path)), guarded=False),
    "part of an archive": Format(write_part, read_part),
    "labels": Format(write_labels, read_labels, guarded=False),
    "PNG": Format(lambda folder: write_image(folder, ".png"), read_image, guarded=False),
    "JPEG": Format(lambda folder: write_image(folder, ".jpg"), read_image, guarded=False),
    "instance JSON": Format(
        write_instances,
        lambda path: [draw() for draw in coco.list_outline_maps(path)[0].values()],
        guarded=False,
    ),
    "names.txt": Format(
        write_names, lambda path: datasets.load(str(path.parent)).prompts, guarded=False
    ),
}


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Change a file's content in one place, or in up to four."""
    changed = bytearray(content)
    for _ in range(1 if rng.random() < 0.7 else rng.integers(2, 5)):
        place = int(rng.integers(len(changed))) if changed else 0
        piece = slice(place, place + int(rng.integers(1, 20)))
        digits = [index for index, byte in enumerate(changed) if 48 <= byte < 58]
        kind = rng.integers(8)
        if kind == 0 and changed:
            changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 1 and changed:
            changed[place] = int(rng.integers(256))
        elif kind <= 3 and digits:
            changed[int(rng.choice(digits))] = int(rng.integers(48, 58))
        elif kind == 4:
            del changed[piece]
        elif kind == 5:
            changed[place:place] = changed[piece]
        elif kind == 6:
            changed[piece] = bytes(len(changed[piece]))
        else:
            changed[place:place] = rng.integers(0, 256, 3, np.uint8).tobytes()
    length = int(rng.integers(len(changed) + 1)) if rng.random() < 0.1 else len(changed)
    return bytes(changed[:length])


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, np.ndarray):
        equal = ours.dtype == theirs.dtype and np.array_equal(
            ours, theirs, equal_nan=ours.dtype.kind == "f"
        )
        return bool(equal)
    if isinstance(ours, list | tuple) and not isinstance(ours, str):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


@pytest.mark.parametrize("name", FORMATS)
def test_changed_bytes_are_noticed_in_one_line(tmp_path: Path, robust: int, name: str) -> None:
    write, read, guarded = FORMATS[name]
    path = write(tmp_path)
    whole, before, rng = path.read_bytes(), read(path), np.random.default_rng(len(name))
    refused = 0
    for index in range(COUNT * robust):
        changed = mutate(whole, rng)
        path.write_bytes(changed)
        try:
            content = read(path)
        except (ValueError, OSError) as error:
            refused += 1
            assert "\n" not in str(error) and str(error), (index, changed)
            named = tmp_path.name in str(error) or "the run's 3 images" in str(error)
            assert named, (index, str(error))
            continue
        if guarded:
            assert same(content, before), f"change {index} is accepted as another content"
    assert refused
    path.write_bytes(whole)
    assert same(read(path), before)
