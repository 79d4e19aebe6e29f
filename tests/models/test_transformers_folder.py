"""Missing, damaged or hostile folders of transformers' models: a line names the folder."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch as safetensors_torch
import torch
from published import write_clip, write_maskformer

from rimjax.models.image_text import ImageTextMatcher
from rimjax.models.maskformer import MaskFormerConfig, MaskFormerProposer

HALF = (0.5, 0.5, 0.5)


def load_maskformer(path: Path) -> Any:
    return MaskFormerProposer(path, MaskFormerConfig(64, threshold=0.35), device="cpu")


def load_clip(path: Path) -> Any:
    return ImageTextMatcher(path, HALF, HALF, device="cpu")


LOADERS: dict[str, Callable[[Path], Any]] = {"MaskFormer": load_maskformer, "CLIP": load_clip}
A_WEIGHT = {"MaskFormer": "class_predictor.bias", "CLIP": "text_projection.weight"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    paths = {name: tmp_path_factory.mktemp(name) for name in LOADERS}
    write_maskformer(paths["MaskFormer"])
    write_clip(paths["CLIP"])
    return paths


@pytest.fixture(params=LOADERS)
def case(request, folders, tmp_path) -> Iterator[tuple[str, Path]]:
    """A model's name and a folder of it, to be damaged."""
    path = tmp_path / "model"
    shutil.copytree(folders[request.param], path)
    yield request.param, path


def change_state(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    state = safetensors_torch.load_file(path / "model.safetensors")
    change(state)
    safetensors_torch.save_file(state, path / "model.safetensors", {"format": "pt"})


def as_pickle(path: Path) -> dict[str, Any]:
    """The weights as pytorch_model.bin, which is what both are published as."""
    state = safetensors_torch.load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    torch.save(state, path / "pytorch_model.bin")
    return state


class Payload:
    def __reduce__(self) -> tuple:
        return print, ("code ran",)


def hostile(path: Path) -> None:
    torch.save(as_pickle(path) | {"extra": Payload()}, path / "pytorch_model.bin")


def hostile_without_torch(path: Path) -> None:
    as_pickle(path)
    (path / "pytorch_model.bin").write_bytes(pickle.dumps({"extra": Payload()}, protocol=2))


def emptied(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": emptied,
    "no weights": lambda path: (path / "model.safetensors").unlink(),
    "no config": lambda path: (path / "config.json").unlink(),
    "garbage for weights": lambda path: (path / "model.safetensors").write_bytes(b"garbage" * 40),
    "empty weights": lambda path: (path / "model.safetensors").write_bytes(b""),
    "cut short": lambda path: (path / "model.safetensors").write_bytes(
        (path / "model.safetensors").read_bytes()[:-100]
    ),
    "garbage for config": lambda path: (path / "config.json").write_text("garbage"),
    "a list for config": lambda path: (path / "config.json").write_text("[1]"),
    "bytes for config": lambda path: (path / "config.json").write_bytes(b"\xff\xfe\x00"),
    "code in a pickle": hostile,
    "code in a plain pickle": hostile_without_torch,
}


def refused(name: str, path: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """The message; transformers' own lines must be held back."""
    capfd.readouterr()
    with pytest.raises(ValueError) as stop:
        LOADERS[name](path)
    message, printed = str(stop.value), capfd.readouterr()
    assert (
        message.startswith(f"{path}: not a {name}")
        and " as transformers writes it, or damaged (" in message
    )
    assert "\n" not in message and (printed.out, printed.err) == ("", "")
    return message


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_named_in_one_line(case, damage, capfd):
    name, path = case
    DAMAGES[damage](path)
    refused(name, path, capfd)


def test_a_lacking_weight_is_named(case, capfd):
    name, path = case
    change_state(path, lambda state: state.pop(A_WEIGHT[name]))
    assert f"it lacks 1 weights, {A_WEIGHT[name]} among them" in refused(name, path, capfd)


def test_nan_among_the_weights_is_refused_by_name(case):
    name, path = case
    change_state(path, lambda state: state[A_WEIGHT[name]].view(-1)[0].fill_(torch.nan))
    with pytest.raises(ValueError, match=f"{path}: {A_WEIGHT[name]} holds NaN or infinity"):
        LOADERS[name](path)


def test_a_weight_of_another_shape_is_refused(case, capfd):
    name, path = case
    change_state(
        path, lambda state: state.update({A_WEIGHT[name]: state[A_WEIGHT[name]][:-1].clone()})
    )
    assert "size" in refused(name, path, capfd)


def test_another_models_folder_is_refused(case, folders, capfd):
    name, path = case
    (other,) = set(LOADERS) - {name}
    shutil.copy(folders[other] / "model.safetensors", path)
    assert "it lacks " in refused(name, path, capfd)


@pytest.mark.parametrize("place", ["../{}", "/{}", "a/../../{}"])
def test_split_weights_are_read_from_their_folder_only(case, place, tmp_path, capfd):
    name, path = case
    outside = tmp_path / "outside.safetensors"
    shutil.move(path / "model.safetensors", outside)
    shard = place.format(outside if place == "/{}" else outside.name).replace("//", "/")
    weights = dict.fromkeys(safetensors_torch.load_file(outside), shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weights}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "isn't a plain file name" in refused(name, path, capfd)


@pytest.mark.parametrize("name", LOADERS)
def test_a_missing_folder_is_named(name, tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(FileNotFoundError) as stop:
            LOADERS[name](path)
        assert (
            str(stop.value)
            == f"{path}: no such folder; expected a {name} as transformers writes it"
        )


def test_a_published_pickle_loads_as_safetensors_do(case, folders):
    name, path = case
    as_pickle(path)
    ours, theirs = (LOADERS[name](folder) for folder in (path, folders[name]))
    for key, tensor in theirs.model.state_dict().items():
        np.testing.assert_array_equal(ours.model.state_dict()[key].numpy(), tensor.numpy())
    assert not ours.model.training


def test_published_quirks_are_forgiven(case):
    """Inference never reads some buffers, which some files lack and other files have."""
    name, path = case

    def quirk(state: dict[str, Any]) -> None:
        if name == "CLIP":
            state["text_model.embeddings.position_ids"] = torch.arange(16)[None]
            return
        spare = [
            key for key in state if key.endswith(("num_batches_tracked", "criterion.empty_weight"))
        ]
        assert len(spare) > 1 and "criterion.empty_weight" in spare
        for key in spare:
            del state[key]

    change_state(path, quirk)
    LOADERS[name](path)


@pytest.mark.parametrize("part", ["tokenizer.json", "tokenizer_config.json"])
def test_garbage_for_a_tokenizer_is_refused(folders, tmp_path, part, capfd):
    path = tmp_path / "clip"
    shutil.copytree(folders["CLIP"], path)
    (path / part).write_text("garbage")
    assert "not a CLIP tokenizer as" in refused("CLIP", path, capfd)


def test_a_lacking_tokenizer_is_refused(folders, tmp_path, capfd):
    path = tmp_path / "clip"
    shutil.copytree(folders["CLIP"], path)
    for part in path.glob("*token*"):
        part.unlink()
    assert "not a CLIP tokenizer as" in refused("CLIP", path, capfd)


def test_a_tokenizers_own_code_is_neither_run_nor_asked_about(
    folders, tmp_path, capfd, monkeypatch
):
    path = tmp_path / "clip"
    shutil.copytree(folders["CLIP"], path)
    (path / "evil.py").write_text("print('code ran')\nclass Evil: pass\n")
    config = json.loads((path / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # any question gets a yes
    with pytest.raises(ValueError) as stop:
        load_clip(path)
    assert str(stop.value).startswith(f"{path}: not a CLIP tokenizer as")
    assert capfd.readouterr().out == ""
